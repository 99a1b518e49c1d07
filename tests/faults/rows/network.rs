//! The way to the server is bad.

use std::time::Duration;

use futures_util::future::FutureExt;

use super::{
    super::{
        stage::{PROXIED, Stage},
        support::Proxy,
    },
    CALM, Row, row,
};

/// Something is done to all links, lasts for some seconds, and is over.
async fn spoil(stage: &mut Stage, seconds: f64, act: impl Fn(&Proxy)) {
    stage.begins();
    stage.proxies.iter().for_each(act);
    stage.sleep(seconds).await;
    stage.proxies.iter().for_each(Proxy::pass);
    stage.ends();
}

/// As `spoil`; what was held up meanwhile is lost.
async fn spoil_and_cut(stage: &mut Stage, seconds: f64, act: impl Fn(&Proxy)) {
    stage.begins();
    stage.proxies.iter().for_each(act);
    stage.sleep(seconds).await;
    for proxy in &stage.proxies {
        proxy.cut();
        proxy.pass();
    }
    stage.ends();
}

async fn away(stage: &mut Stage, ms: u64) {
    spoil(stage, 4.0, |proxy| {
        proxy.delay(Duration::from_micros(ms * 500));
    })
    .await;
}

pub(super) fn rows() -> Vec<Row> {
    let rows = vec![
        row(
            "half_open",
            "connections half open: the other end disappears",
            |stage, _| spoil(stage, 0.0, Proxy::half_open).boxed(),
        )
        .core(),
        row(
            "black_hole",
            "packets lost for 3 s, on new connections too",
            |stage, _| spoil_and_cut(stage, 3.0, Proxy::stall).boxed(),
        )
        .core(),
        row(
            "cut_mid_reply",
            "connections closed in the middle of a reply",
            |stage, _| spoil(stage, 0.2, Proxy::cut_mid_reply).boxed(),
        ),
        row(
            "replies_lost",
            "replies lost for 2 s, calls executed",
            |stage, _| spoil_and_cut(stage, 2.0, Proxy::drop_replies).boxed(),
        ),
        row("slow_5_ms", "5 ms of latency for 4 s", |stage, _| {
            away(stage, 5).boxed()
        })
        .expect(CALM),
        row("slow_50_ms", "50 ms of latency for 4 s", |stage, _| {
            away(stage, 50).boxed()
        })
        .expect(CALM),
        row("slow_500_ms", "500 ms of latency for 4 s", |stage, _| {
            away(stage, 500).boxed()
        }),
        row(
            "split",
            "replies in pieces of 40 bytes, for 2 s",
            |stage, _| spoil(stage, 2.0, |proxy| proxy.split(40)).boxed(),
        )
        .expect(CALM),
        row("reset", "connections reset", |stage, _| {
            spoil(stage, 0.0, Proxy::reset).boxed()
        }),
        row(
            "refused",
            "connections closed, new ones refused for 2 s",
            |stage, _| {
                spoil(stage, 2.0, |proxy| {
                    proxy.refuse();
                    proxy.cut();
                })
                .boxed()
            },
        ),
    ];
    rows.into_iter().map(|row| row.on(PROXIED)).collect()
}
