//! Data is lost or overwritten, or another server takes over; and the server's clock is set.

use std::time::Duration;

use futures_util::future::{FutureExt, join_all};

use super::{
    super::{
        child::{CAPACITY, RATE, SCOPES},
        figures::IN_FLIGHT,
        stage::{PLAIN, PROXIED, Setup, Stage},
        support::RedisServer,
    },
    CALM, LATE, OUTAGE, Row, row,
};

const PAUSE: f64 = 0.2;

/// Replaces the values of the buckets of all processes.
async fn overwrite(server: &RedisServer, value: &[u8]) {
    join_all(SCOPES.map(|kind| server.set_bucket(kind.name, value))).await;
}

async fn set_clock(stage: &mut Stage, ahead_s: i64) {
    stage.begins();
    stage.server.set_clock(ahead_s);
    stage.sleep(3.0).await;
    stage.server.set_clock(0);
    stage.ends();
}

async fn replica(stage: &Stage) -> RedisServer {
    let replica = RedisServer::start().await;
    replica.replicate(&stage.server).await;
    replica
}

/// New connections of these processes go to `server`, and the existing ones are cut.
fn redirect(stage: &Stage, processes: std::ops::Range<usize>, server: &RedisServer) {
    for proxy in &stage.proxies[processes] {
        proxy.redirect(server.port());
        proxy.cut();
    }
}

async fn fail_over(stage: &mut Stage, lags: Option<Duration>) {
    let replica = replica(stage).await;
    if let Some(lag) = lags {
        replica.freeze();
        tokio::time::sleep(lag).await;
    }
    stage.begins();
    stage.server.kill9();
    if lags.is_some() {
        replica.thaw();
    }
    stage.sleep(1.0).await;
    replica.promote().await;
    redirect(stage, 0..stage.proxies.len(), &replica);
    stage.server = replica;
    stage.ends();
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = values();
    rows.extend(clocks());
    rows.extend(elsewhere());
    rows
}

fn values() -> Vec<Row> {
    vec![
        row("flushed", "`FLUSHALL`", |stage, _| {
            async move {
                stage.begins();
                stage.server.flush_all().await;
                stage.ends();
            }
            .boxed()
        })
        .core(),
        row("scripts_flushed", "`SCRIPT FLUSH`", |stage, _| {
            async move {
                stage.begins();
                stage.server.script_flush().await;
                stage.ends();
            }
            .boxed()
        })
        .expect(CALM),
        // The bound for any client: one capacity, and the reservations.
        row(
            "hashes_evicted",
            "the hashes of the buckets are evicted",
            |stage, _| {
                async move {
                    stage.begins();
                    // All buckets are in one class.
                    stage.server.evict_hashes_of(SCOPES[0].name).await;
                    stage.ends();
                }
                .boxed()
            },
        )
        .expect(CALM.and_over(CAPACITY + IN_FLIGHT)),
        row(
            "foreign_values",
            "buckets are overwritten three times: a list instead of the hash, 4 bytes, NaN",
            |stage, _| {
                async move {
                    stage.begins();
                    let server = &stage.server;
                    let hash = server.hash_of(SCOPES[0].name).await;
                    server.set_list(&hash).await;
                    stage.sleep(PAUSE).await;
                    overwrite(server, b"four").await;
                    stage.sleep(PAUSE).await;
                    overwrite(server, &f64::NAN.to_le_bytes().repeat(4)).await;
                    stage.ends();
                }
                .boxed()
            },
        )
        .expect(CALM.and_over(3.0 * (CAPACITY + IN_FLIGHT))),
    ]
}

/// The bound of each step forward: what it refills, at most one capacity, and the reservations.
fn clocks() -> Vec<Row> {
    const CLOCK: Setup = Setup {
        clock: true,
        ..PLAIN
    };
    let jump = CALM.and_over(CAPACITY + IN_FLIGHT);
    vec![
        row(
            "clock_60_s_ahead",
            "the server's clock set 60 s ahead and back",
            |stage, _| set_clock(stage, 60).boxed(),
        )
        .on(CLOCK)
        .expect(jump),
        row(
            "clock_60_s_behind",
            "the server's clock set 60 s behind and back",
            |stage, _| set_clock(stage, -60).boxed(),
        )
        .on(CLOCK)
        .expect(jump),
        row(
            "clock_1_h_behind",
            "the server's clock set 1 h behind and back",
            |stage, _| set_clock(stage, -3_600).boxed(),
        )
        .on(CLOCK)
        .expect(jump),
    ]
}

fn elsewhere() -> Vec<Row> {
    let rows = vec![
        row(
            "failover_in_sync",
            "failover to a replica in sync",
            |stage, _| fail_over(stage, None).boxed(),
        )
        .core(),
        row(
            "failover_lagging",
            "failover to a replica that lags by 1.5 s",
            |stage, _| fail_over(stage, Some(Duration::from_millis(1_500))).boxed(),
        ),
        // The bound for any client here too: each master grants the full rate.
        row(
            "two_masters",
            "two masters for 2 s, half of the processes on each",
            |stage, _| {
                async move {
                    let other = replica(stage).await;
                    other.promote().await;
                    stage.begins();
                    redirect(stage, 0..stage.proxies.len() / 2, &other);
                    stage.sleep(2.0).await;
                    redirect(stage, 0..stage.proxies.len() / 2, &stage.server);
                    stage.ends();
                }
                .boxed()
            },
        )
        .expect(OUTAGE.and_over(2.0 * RATE + CAPACITY + LATE).and_under()),
    ];
    rows.into_iter().map(|row| row.on(PROXIED)).collect()
}
