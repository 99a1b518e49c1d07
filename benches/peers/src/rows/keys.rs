//! Many keys: what they occupy in Redis, and how long another client waits for Redis while they come
//! and while they are forgotten.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep};

use super::Outcome;
use crate::{
    load::{Subject, block_until, fill},
    plan::Plan,
    sample::histogram,
    server::{self, Probe, RedisServer},
    subjects::{BRIEF, CELL, Cell, Keys, MANY, MINIMAL, Minimal, NAIVE, Naive, THROTTLE, Throttle},
};

/// The memory that so many buckets add.
pub async fn bytes(plan: Plan) -> Outcome {
    let scopes = plan.scopes(100_000);
    let keys = &Keys::new(scopes);
    let mut counts = Vec::new();
    for name in [THROTTLE, NAIVE, MINIMAL, CELL] {
        let server = server::start().await;
        let url = server.url();
        let bytes = match name {
            THROTTLE => added(&url, Throttle::redis(&url, "bench", MANY, keys), scopes).await,
            NAIVE => added(&url, Naive::new(&url, MANY, keys).await, scopes).await,
            MINIMAL => added(&url, Minimal::new(&url, MANY, keys).await, scopes).await,
            _ if server::cell_module().is_none() => continue,
            _ => added(&url, Cell::new(&url, MANY, keys).await, scopes).await,
        };
        counts.push((format!("bytes per bucket, {name}"), bytes / scopes as f64));
    }
    counts.push(("buckets".to_owned(), scopes as f64));
    Outcome {
        counts,
        ..Outcome::default()
    }
}

/// Bytes. What the connection and the first request add is not counted.
async fn added(url: &str, subject: impl Subject, scopes: usize) -> f64 {
    let probe = Probe::new(url).await;
    fill(&subject, 1).await;
    let before = probe.used_memory().await;
    fill(&subject, scopes).await;
    probe.used_memory().await - before
}

/// One limiter after the other, each with a server of its own.
pub async fn bystander(plan: Plan) -> Outcome {
    let scopes = plan.scopes(1_000_000);
    let keys = &Keys::new(scopes);
    let mut counts = vec![("scopes".to_owned(), scopes as f64)];
    let server = server::start().await;
    let throttle = Throttle::redis(&server.url(), "bench", BRIEF, keys);
    counts.extend(stalls(THROTTLE, &server, throttle, scopes).await);
    let server = server::start().await;
    let naive = Naive::new(&server.url(), BRIEF, keys).await;
    counts.extend(stalls(NAIVE, &server, naive, scopes).await);
    Outcome {
        counts,
        ..Outcome::default()
    }
}

/// Requests each scope once, and waits until three quarters of their memory are free again.
async fn stalls(
    name: &str,
    server: &RedisServer,
    subject: impl Subject,
    scopes: usize,
) -> Vec<(String, f64)> {
    const TIMEOUT: Duration = Duration::from_secs(40);
    let probe = Probe::new(&server.url()).await;
    let before = probe.used_memory().await;
    let mut counts = Vec::new();

    let pings = Pings::start(server.url());
    let start = Instant::now();
    fill(&subject, scopes).await;
    let seconds = start.elapsed().as_secs_f64();
    counts.push((format!("{name}: seconds in which they come"), seconds));
    counts.extend(pings.stop(name, "while they come"));

    let pings = Pings::start(server.url());
    let start = Instant::now();
    let few = before + (probe.used_memory().await - before) / 4.0;
    while probe.used_memory().await > few && start.elapsed() < TIMEOUT {
        sleep(Duration::from_millis(100)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    counts.push((format!("{name}: seconds until they are forgotten"), seconds));
    counts.extend(pings.stop(name, "while they are forgotten"));
    counts
}

/// A client that sends PING every millisecond, in a thread without the runtime that is under load.
struct Pings {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Histogram<u64>>,
}

impl Pings {
    fn start(url: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            let client = redis::Client::open(url).expect("our own URL parses");
            let mut connection = client.get_connection().expect("Redis is there");
            let mut latency = histogram();
            while !stopped.load(Ordering::Relaxed) {
                block_until(Instant::now() + Duration::from_millis(1));
                let start = Instant::now();
                let reply = redis::cmd("PING").exec(&mut connection);
                reply.expect("Redis answers");
                latency.saturating_record(start.elapsed().as_nanos() as u64);
            }
            latency
        };
        Self {
            stop,
            thread: thread::spawn(run),
        }
    }

    fn stop(self, name: &str, phase: &str) -> [(String, f64); 2] {
        self.stop.store(true, Ordering::Relaxed);
        let latency = self.thread.join().expect("the thread panicked");
        let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
        [
            (
                format!("{name}: longest PING {phase}, ms"),
                ms(latency.max()),
            ),
            (
                format!("{name}: p99 of PING {phase}, ms"),
                ms(latency.value_at_quantile(0.99)),
            ),
        ]
    }
}
