//! The server's process ends, freezes and restarts.

use futures_util::future::FutureExt;
use tower_throttle::Fallback;

use super::{
    super::{
        child::CAPACITY,
        stage::{PLAIN, Setup, Stage},
    },
    Expect, Length, OUTAGE, Row, row,
};

const FLAPS: f64 = 15.0;

/// A local share that starts empty rejects until it has refilled a token, in each of the outages.
const FLAPPING: Expect = Expect {
    under: OUTAGE.under + FLAPS * 0.1 * CAPACITY,
    ..OUTAGE
};

const KEPT: Setup = Setup {
    args: &["--appendonly", "yes", "--appendfsync", "always"],
    ..PLAIN
};

async fn kill_and_restart(stage: &mut Stage, length: Length) {
    stage.begins();
    stage.server.kill9();
    stage.sleep(length.of(2.0, 5.0)).await;
    stage.server.restart().await;
    stage.ends();
}

async fn freeze(stage: &mut Stage, seconds: f64) {
    stage.begins();
    stage.server.freeze();
    stage.sleep(seconds).await;
    stage.server.thaw();
    stage.ends();
}

async fn flap(stage: &mut Stage, length: Length) {
    for _ in 0..length.of(3.0, FLAPS) as usize {
        stage.begins();
        stage.server.kill9();
        stage.sleep(1.0).await;
        stage.server.restart().await;
        stage.ends();
        stage.sleep(1.0).await;
    }
}

fn policy(policy: Fallback) -> Setup {
    Setup {
        policy: Some(policy),
        ..PLAIN
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "killed_and_restarted_with_its_data",
            "killed, restarted with its data",
            |stage, length| kill_and_restart(stage, length).boxed(),
        )
        .on(KEPT)
        .core(),
        row(
            "killed_and_restarted_empty",
            "killed, restarted empty",
            |stage, length| kill_and_restart(stage, length).boxed(),
        )
        .core(),
        row(
            "stopped_and_restarted",
            "stopped (SIGTERM), restarted with its data",
            |stage, length| {
                async move {
                    stage.begins();
                    stage.server.terminate().await;
                    stage.sleep(length.of(2.0, 5.0)).await;
                    stage.server.restart().await;
                    stage.ends();
                }
                .boxed()
            },
        )
        .on(KEPT),
        row("frozen_for_200_ms", "frozen for 0.2 s", |stage, _| {
            freeze(stage, 0.2).boxed()
        })
        .core(),
        row("frozen_for_3_s", "frozen for 3 s", |stage, _| {
            freeze(stage, 3.0).boxed()
        })
        .core(),
        row(
            "flapping_with_its_data",
            "killed and restarted every 2 s for 30 s, with its data",
            |stage, length| flap(stage, length).boxed(),
        )
        .expect(FLAPPING)
        .on(KEPT),
        row(
            "flapping_empty",
            "killed and restarted every 2 s for 30 s, empty",
            |stage, length| flap(stage, length).boxed(),
        )
        .expect(FLAPPING)
        .core(),
        row(
            "absent_at_start",
            "unavailable at the start",
            |stage, length| {
                async move {
                    stage.begins();
                    stage.sleep(length.of(2.0, 5.0)).await;
                    stage.server.restart().await;
                    stage.ends();
                }
                .boxed()
            },
        )
        .on(Setup {
            absent: true,
            ..PLAIN
        })
        .core(),
        row(
            "gone_for_good",
            "killed, never restarted",
            |stage, length| {
                async move {
                    stage.begins();
                    stage.server.kill9();
                    stage.sleep(length.of(2.0, 15.0)).await;
                }
                .boxed()
            },
        )
        .expect(Expect {
            recovers: false,
            ..OUTAGE
        }),
        row(
            "fail_open",
            "killed, under `Fallback::FailOpen`",
            |stage, length| kill_and_restart(stage, length).boxed(),
        )
        .on(policy(Fallback::FailOpen))
        .expect(OUTAGE.and_over(f64::INFINITY)),
        row(
            "fail_closed",
            "killed, under `Fallback::FailClosed`",
            |stage, length| kill_and_restart(stage, length).boxed(),
        )
        .on(policy(Fallback::FailClosed))
        .expect(Expect {
            errors: true,
            share: false,
            ..OUTAGE.and_under()
        }),
    ]
}
