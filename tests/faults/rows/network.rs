//! Network faults.

use std::time::Duration;

use futures_util::future::FutureExt;

use super::{
    super::{
        stage::{PROXIED, Stage},
        support::Proxy,
    },
    CALM, Row, row,
};

/// Applies a fault to all connections for some seconds, then removes it.
async fn disturb(stage: &mut Stage, seconds: f64, act: impl Fn(&Proxy)) {
    stage.begins();
    stage.proxies.iter().for_each(act);
    stage.sleep(seconds).await;
    stage.proxies.iter().for_each(Proxy::pass);
    stage.ends();
}

/// As `disturb`; bytes that were delayed meanwhile are lost.
async fn disturb_and_cut(stage: &mut Stage, seconds: f64, act: impl Fn(&Proxy)) {
    stage.begins();
    stage.proxies.iter().for_each(act);
    stage.sleep(seconds).await;
    for proxy in &stage.proxies {
        proxy.cut();
        proxy.pass();
    }
    stage.ends();
}

async fn latency(stage: &mut Stage, ms: u64) {
    disturb(stage, 4.0, |proxy| {
        proxy.delay(Duration::from_micros(ms * 500));
    })
    .await;
}

pub(super) fn rows() -> Vec<Row> {
    let rows = vec![
        row(
            "half_open",
            "connections half open: the other end disappears",
            |stage, _| disturb(stage, 0.0, Proxy::half_open).boxed(),
        )
        .core(),
        row(
            "black_hole",
            "packets lost for 3 s, on new connections too",
            |stage, _| disturb_and_cut(stage, 3.0, Proxy::stall).boxed(),
        )
        .core(),
        row(
            "cut_mid_reply",
            "connections closed in the middle of a reply",
            |stage, _| disturb(stage, 0.2, Proxy::cut_mid_reply).boxed(),
        ),
        row(
            "replies_lost",
            "replies lost for 2 s, calls executed",
            |stage, _| disturb_and_cut(stage, 2.0, Proxy::drop_replies).boxed(),
        ),
        row("slow_5_ms", "5 ms of latency for 4 s", |stage, _| {
            latency(stage, 5).boxed()
        })
        .expect(CALM),
        row("slow_50_ms", "50 ms of latency for 4 s", |stage, _| {
            latency(stage, 50).boxed()
        })
        .expect(CALM),
        row("slow_500_ms", "500 ms of latency for 4 s", |stage, _| {
            latency(stage, 500).boxed()
        }),
        row(
            "split",
            "replies in pieces of 40 bytes for 2 s",
            |stage, _| disturb(stage, 2.0, |proxy| proxy.split(40)).boxed(),
        )
        .expect(CALM),
        row("reset", "connections reset", |stage, _| {
            disturb(stage, 0.0, Proxy::reset).boxed()
        }),
        row(
            "refused",
            "connections closed, new ones refused for 2 s",
            |stage, _| {
                disturb(stage, 2.0, |proxy| {
                    proxy.refuse();
                    proxy.cut();
                })
                .boxed()
            },
        ),
    ];
    rows.into_iter().map(|row| row.on(PROXIED)).collect()
}
