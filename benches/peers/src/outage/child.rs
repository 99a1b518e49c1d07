//! One of the processes. Its tasks request tokens from two limiters all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
    time::sleep,
};

use super::run::{LIMIT, PAUSE, STEP, TASKS, WHOLE, now_us};
use crate::{
    load::Subject,
    subjects::{Keys, NaiveWithFallback, Throttle},
};

/// Reads the start time of the run from standard input. Prints, for each limiter, the number of
/// tokens admitted in each step.
pub async fn child(url: &str) {
    let throttle = Throttle::redis(url, "outage", LIMIT, &Keys::new(1));
    let naive = NaiveWithFallback::new(url, LIMIT).await;
    // The first request opens the connection.
    throttle.clone().take(0).await;
    println!("ready");
    let mut start = String::new();
    let mut stdin = BufReader::new(tokio::io::stdin());
    stdin.read_line(&mut start).await.expect("stdin is text");
    let start = start.trim().parse().expect("the time of the start");

    let mut end = String::new();
    let counts = tokio::select! {
        counts = async { tokio::join!(load(throttle, start), load(naive, start)) } => counts,
        _ = stdin.read_line(&mut end) => return, // The parent has ended.
    };
    for counts in [counts.0, counts.1] {
        println!("{}", serde_json::to_string(&counts).expect("numbers"));
    }
}

async fn load(subject: impl Subject, start: u64) -> Vec<u64> {
    let steps = WHOLE.as_micros() / STEP.as_micros();
    let counts: Arc<[AtomicU64]> = (0..steps).map(|_| AtomicU64::new(0)).collect();
    sleep(Duration::from_micros(start.saturating_sub(now_us()))).await;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (mut subject, counts) = (subject.clone(), counts.clone());
        tasks.spawn(async move {
            loop {
                let admitted = subject.take(0).await;
                let step = (now_us() - start) / STEP.as_micros() as u64;
                let Some(count) = counts.get(step as usize) else {
                    return;
                };
                if admitted {
                    count.fetch_add(1, Ordering::Relaxed);
                } else {
                    sleep(PAUSE).await;
                }
            }
        });
    }
    tasks.join_all().await;
    counts
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .collect()
}
