//! The layer in a real server: axum in this process, its clients in another one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{Router, routing::get};
use futures_util::future::FutureExt;
use tokio::{net::TcpListener, task::JoinSet};
use tower_throttle::Limiter;

use super::Outcome;
use crate::{
    case::{Case, rounds},
    http_client::{HttpClient, HttpLoad},
    load::{Arrivals, Load},
    metric::P99,
    plan::Plan,
    sample::{Sample, cpu, histogram},
    server,
    subjects::{HOT, Ping, RATE_TIER, by_header, in_memory, limiter, rate_tier, tower_governor},
};

pub const NO_LAYER: &str = "no layer";
pub const IN_MEMORY: &str = "tower-throttle in memory";
const ON_REDIS: &str = "tower-throttle on Redis";
const PING: &str = "PING, 500/s";

/// Each connection sends a request when it has the last response.
pub async fn saturated(plan: Plan) -> Outcome {
    let load = HttpLoad {
        connections: 64,
        pace: None,
    };
    run(plan, load).await
}

/// The server is idle most of the time, so latency is not that of a queue.
pub async fn paced(plan: Plan) -> Outcome {
    let load = HttpLoad {
        connections: 32,
        pace: Some(Duration::from_millis(10)),
    };
    let slice = plan.slice * 2;
    let mut outcome = run(Plan { slice, ..plan }, load).await;
    let case = |name| outcome.case(name).expect("it was measured");
    let bare = case(NO_LAYER);
    let trip = P99.median(case(PING));
    outcome.counts = vec![
        (
            "p99 added in memory, µs".to_owned(),
            P99.difference(case(IN_MEMORY), bare),
        ),
        (
            "p99 added on Redis, relative to the p99 of PING".to_owned(),
            P99.difference(case(ON_REDIS), bare) / trip,
        ),
        (
            "p99 added by tower_governor, µs".to_owned(),
            P99.difference(case("tower_governor"), bare),
        ),
        (
            "p99 added by tower-rate-tier, µs".to_owned(),
            P99.difference(case(RATE_TIER), bare),
        ),
    ];
    outcome
}

async fn run(plan: Plan, load: HttpLoad) -> Outcome {
    let redis = server::start().await;
    let throttle = |limiter: &Limiter| router().layer(by_header(limiter, HOT));
    let servers = [
        (NO_LAYER, router()),
        (IN_MEMORY, throttle(&in_memory())),
        (ON_REDIS, throttle(&limiter(&redis.url()))),
        ("tower_governor", router().layer(tower_governor::layer(HOT))),
        (RATE_TIER, router().layer(rate_tier::layer(HOT))),
    ];
    let mut running = JoinSet::new();
    let mut cases = Vec::new();
    for (name, router) in servers {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("no free loopback port");
        let address = listener.local_addr().expect("it is bound");
        running.spawn(axum::serve(listener, router).into_future());
        let run = move |slice| async move { round(address, load, slice) }.boxed_local();
        cases.push(Case::of(name, Box::new(run)));
    }
    if load.pace.is_some() {
        let load = Load {
            arrivals: Arrivals::Each(Duration::from_millis(2)),
            ..Load::new(1, 1)
        };
        cases.push(Case::new(PING, Ping::new(&redis.url()).await, load, None));
    }
    Outcome::of(rounds(&plan, cases).await)
}

fn router() -> Router {
    Router::new().route("/", get(async || "hello"))
}

fn round(server: SocketAddr, load: HttpLoad, slice: Duration) -> Sample {
    let mut client = HttpClient::start(server, load, slice);
    client.begins();
    let before = cpu();
    let counted = client.finish();
    let mut latency = histogram();
    for (nanoseconds, count) in counted.latencies {
        latency.saturating_record_n(nanoseconds, count);
    }
    Sample {
        ops: counted.responses,
        admitted: counted.admitted,
        seconds: counted.seconds,
        cpu: cpu() - before,
        redis_cpu: 0.0,
        commands: 0,
        latency,
        failures: 0,
        total_admitted: counted.admitted,
        total_seconds: counted.seconds,
    }
}
