//! Only some of the processes are hit.

use futures_util::future::FutureExt;

use super::{
    super::{
        child::{CAPACITY, RATE},
        stage::{PROCESSES, PROXIED, Stage},
    },
    CALM, Expect, Length, OUTAGE, Row, row,
};

async fn cut_off(stage: &mut Stage, count: usize, length: Length) {
    stage.begins();
    for proxy in &stage.proxies[..count] {
        proxy.stall();
    }
    stage.sleep(length.of(8.0, 60.0)).await;
    for proxy in &stage.proxies[..count] {
        proxy.cut();
        proxy.pass();
    }
    stage.ends();
}

/// The others live from their shares, and those who reach Redis leave room for them only once
/// they were silent for three seconds and the next beat has told so. Their tokens in Redis are
/// spent too.
fn allowed(count: usize) -> Expect {
    let part = count as f64 / PROCESSES as f64;
    OUTAGE.and_over(part * (RATE * 4.0 + CAPACITY)).and_under()
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "one_of_four_cut_off",
            "1 of 4 processes cut off for 60 s",
            |stage, length| cut_off(stage, 1, length).boxed(),
        )
        .on(PROXIED)
        .expect(allowed(1)),
        row(
            "three_of_four_cut_off",
            "3 of 4 processes cut off for 60 s",
            |stage, length| cut_off(stage, 3, length).boxed(),
        )
        .on(PROXIED)
        .expect(allowed(3))
        .core(),
        row(
            "process_killed",
            "a process killed while it holds tokens and turns",
            |stage, _| {
                async move {
                    stage.begins();
                    stage.kill_process(0);
                    stage.ends();
                }
                .boxed()
            },
        )
        .expect(CALM)
        .core(),
    ]
}
