//! Only some of the processes are hit.

use futures_util::future::FutureExt;

use super::{
    super::{
        child::{CAPACITY, RATE},
        stage::{PROCESSES, PROXIED, Setup, Stage},
    },
    CALM, Expect, Length, OUTAGE, Row, WARM, row,
};

/// Processes that have been counted for less than five seconds are not missed.
const LIVES: f64 = 6.5;

/// Seconds for which room is left by default, and by those who fear partitions more.
const RESERVED: u64 = 5;
const RESERVED_LONG: u64 = 60;

async fn cut_off(stage: &mut Stage, count: usize, reserved: u64, length: Length) {
    stage.sleep(LIVES - WARM).await;
    stage.begins();
    for proxy in &stage.proxies[..count] {
        proxy.stall();
    }
    let lasts = length.of(8.0, 60.0);
    stage.sleep(lasts).await;
    for proxy in &stage.proxies[..count] {
        proxy.cut();
        proxy.pass();
    }
    stage.ends();
    // Room is left from the beat that finds the silence until it ends.
    let part = count as f64 / PROCESSES as f64;
    let unreserved = (lasts - reserved as f64 - 3.0).max(0.0);
    stage.allow(part * RATE * unreserved);
}

/// The others live from their shares, and those who reach Redis leave room for them only once
/// they were silent for three seconds and the next beat has told so. Their tokens in Redis are
/// spent too.
fn allowed(count: usize) -> Expect {
    let part = count as f64 / PROCESSES as f64;
    OUTAGE.and_over(part * (RATE * 4.0 + CAPACITY)).and_under()
}

const LONG: Setup = Setup {
    reserve_for: Some(RESERVED_LONG),
    ..PROXIED
};

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "one_of_four_cut_off",
            "1 of 4 processes cut off for 60 s",
            |stage, length| cut_off(stage, 1, RESERVED, length).boxed(),
        )
        .on(PROXIED)
        .expect(allowed(1)),
        row(
            "one_of_four_cut_off_and_reserved_for",
            "1 of 4 processes cut off for 60 s, `reserve_for` 60 s",
            |stage, length| cut_off(stage, 1, RESERVED_LONG, length).boxed(),
        )
        .on(LONG)
        .expect(allowed(1)),
        row(
            "three_of_four_cut_off",
            "3 of 4 processes cut off for 60 s",
            |stage, length| cut_off(stage, 3, RESERVED, length).boxed(),
        )
        .on(PROXIED)
        .expect(allowed(3))
        .core(),
        row(
            "three_of_four_cut_off_and_reserved_for",
            "3 of 4 processes cut off for 60 s, `reserve_for` 60 s",
            |stage, length| cut_off(stage, 3, RESERVED_LONG, length).boxed(),
        )
        .on(LONG)
        .expect(allowed(3)),
        row(
            "process_killed",
            "a process killed while it holds tokens and reservations",
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
