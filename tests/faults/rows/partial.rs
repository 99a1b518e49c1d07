//! Faults that affect only some of the processes.

use futures_util::future::FutureExt;

use super::{
    super::{
        child::{CAPACITY, RATE},
        stage::{PROCESSES, PROXIED, Setup, Stage},
    },
    CALM, Expect, Length, OUTAGE, Row, WARM, row,
};

/// Nothing is reserved for processes that have been counted for less than five seconds.
const LIVES: f64 = 6.5;

/// The default of `reserve_for` in seconds, and a longer one for networks that may be partitioned.
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
    // The part is reserved from the heartbeat that finds the missing peer, until `reserve_for`
    // ends.
    let part = count as f64 / PROCESSES as f64;
    let unreserved = (lasts - reserved as f64 - 3.0).max(0.0);
    stage.allow(part * RATE * unreserved);
}

/// The processes that are cut off use their local shares. The others reserve for them only after
/// three seconds without a heartbeat and the next heartbeat of their own. Their tokens in Redis are
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
