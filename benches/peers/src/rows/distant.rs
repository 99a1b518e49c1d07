//! Redis at a distance, and the latency of requests that arrive at a fixed rate.

use std::time::Duration;

use super::{
    Outcome,
    redis::{self, ROUND_TRIP},
};
use crate::{
    case::rounds,
    delay::DelayProxy,
    load::{Arrivals, Load},
    plan::Plan,
    server::{self, Probe},
    subjects::{CELL, Limit, NAIVE, RATE_TIER, THROTTLE},
};

/// Requests per second.
const RATE: f64 = 20_000.0;

/// The open load.
pub async fn open(plan: Plan, limit: Limit, scopes: usize, round_trip: Duration) -> Outcome {
    let load = Load {
        arrivals: Arrivals::Open(RATE),
        ..Load::new(1, scopes)
    };
    let names = [ROUND_TRIP, NAIVE, THROTTLE, CELL, RATE_TIER];
    run(plan, &names, limit, load, round_trip).await
}

pub async fn closed(
    plan: Plan,
    limit: Limit,
    scopes: usize,
    tasks: usize,
    round_trip: Duration,
) -> Outcome {
    let names = [ROUND_TRIP, NAIVE, THROTTLE, CELL];
    run(plan, &names, limit, Load::new(tasks, scopes), round_trip).await
}

async fn run(
    plan: Plan,
    names: &[&'static str],
    limit: Limit,
    load: Load,
    round_trip: Duration,
) -> Outcome {
    let server = server::start().await;
    let probe = Probe::new(&server.url()).await;
    // Without a delay there is no proxy, which would add its own.
    let proxy = (!round_trip.is_zero()).then(|| DelayProxy::start(server.port(), round_trip));
    let url = proxy.as_ref().map_or(server.url(), DelayProxy::url);
    let cases = redis::cases(names, &url, Some(&probe), limit, load).await;
    Outcome::of(rounds(&plan, cases).await)
}
