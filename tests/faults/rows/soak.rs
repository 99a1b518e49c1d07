//! Faults of many kinds in a random order, for a given time.

use std::time::Duration;

use fastrand::Rng;
use futures_util::future::FutureExt;
use tokio::time::Instant;

use super::{
    super::{
        child::CAPACITY,
        figures::IN_FLIGHT,
        stage::{PROCESSES, PROXIED, Stage},
        support::Proxy,
    },
    OUTAGE, Row, row,
};

/// Set for a soak, which is then the only row.
pub(super) fn seconds() -> Option<f64> {
    std::env::var("THROTTLE_SOAK").ok()?.parse().ok()
}

async fn soak(stage: &mut Stage) {
    let seed = std::env::var("THROTTLE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    let seconds = seconds().unwrap_or(60.0);
    println!("THROTTLE_SEED={seed} THROTTLE_SOAK={seconds}");
    let mut rng = Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        stage.begins();
        let fault = fault(stage, &mut rng).await;
        stage.ends();
        // Two thirds of an outage's bound: faults that follow soon after another share it.
        stage.allow(0.2 * CAPACITY + 0.25 * IN_FLIGHT);
        println!("{fault}");
        let healthy = between(&mut rng, 0.2, 6.0);
        stage.sleep(healthy).await;
    }
}

fn between(rng: &mut Rng, least: f64, most: f64) -> f64 {
    least + rng.f64() * (most - least)
}

/// A random fault, and its removal.
async fn fault(stage: &mut Stage, rng: &mut Rng) -> String {
    let kind = rng.u64(..11);
    let seconds = between(rng, 0.02, 4.0);
    let each = |act: fn(&Proxy)| stage.proxies.iter().for_each(act);
    let name = match kind {
        0 => {
            stage.server.kill9();
            stage.sleep(seconds).await;
            stage.server.restart().await;
            "killed, restarted"
        }
        1 => {
            stage.server.freeze();
            stage.sleep(seconds).await;
            stage.server.thaw();
            "frozen"
        }
        2 => {
            each(Proxy::half_open);
            "half open"
        }
        3 => {
            each(Proxy::stall);
            stage.sleep(seconds).await;
            stage.proxies.iter().for_each(Proxy::cut);
            stage.proxies.iter().for_each(Proxy::pass);
            "black hole"
        }
        4 => {
            each(Proxy::reset);
            "reset"
        }
        5 => {
            each(Proxy::cut_mid_reply);
            stage.sleep(0.1).await;
            stage.proxies.iter().for_each(Proxy::pass);
            "cut in a reply"
        }
        6 => {
            stage.server.demote().await;
            stage.sleep(seconds).await;
            stage.server.promote().await;
            "read only"
        }
        7 => {
            stage.server.fill_memory().await;
            stage.sleep(seconds).await;
            stage.server.free_memory().await;
            "out of memory"
        }
        8 => {
            stage.server.flush_all().await;
            "flushed"
        }
        9 => {
            stage.server.script_flush().await;
            "scripts flushed"
        }
        _ => {
            let one = rng.usize(..PROCESSES);
            stage.proxies[one].stall();
            let short = seconds.min(2.0);
            stage.sleep(short).await;
            stage.proxies[one].cut();
            stage.proxies[one].pass();
            // It spends its local share while the others cannot reserve for it yet.
            stage.allow(super::RATE / PROCESSES as f64 * short + CAPACITY / PROCESSES as f64);
            "one cut off"
        }
    };
    format!("{name} ({seconds:.2} s)")
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row("soak", "faults in a random order", |stage, _| {
            soak(stage).boxed()
        })
        .on(PROXIED)
        .expect(OUTAGE.and_under()),
    ]
}
