//! Buckets in Redis. All requests are admitted.

use std::time::Duration;

use super::Outcome;
use crate::{
    case::{Case, rounds},
    load::{Arrivals, Load, Scopes, Subject, fill},
    plan::Plan,
    server::{self, Probe},
    subjects::{
        CELL, Cell, GOVERNOR, Governor, HOT, Keys, Limit, MANY, MINIMAL, Minimal, NAIVE, Naive,
        Ping, RATE_LIMITER, RATE_TIER, StartingNaive, StartingThrottle, THROTTLE, Throttle,
        rate_limiter, rate_tier,
    },
};

/// The case whose latency is the round trip.
pub const ROUND_TRIP: &str = "PING, 1 task";

/// For rows that take long.
pub const FEW: &[&str] = &[NAIVE, THROTTLE, CELL];
pub const SCRIPTS: &[&str] = &[NAIVE, MINIMAL, THROTTLE, CELL];
pub const ALL: &[&str] = &[NAIVE, MINIMAL, THROTTLE, CELL, RATE_LIMITER, RATE_TIER];

/// A case for each of these limiters on the Redis at `url`. Each scope is requested once before.
/// redis-cell is left out if the server does not have it.
pub async fn cases(
    names: &[&'static str],
    url: &str,
    probe: Option<&Probe>,
    limit: Limit,
    load: Load,
) -> Vec<Case> {
    let keys = &load.keys();
    let mut cases = Vec::new();
    for &name in names {
        let case = match name {
            NAIVE => filled(name, Naive::new(url, limit, keys).await, keys, load, probe).await,
            MINIMAL => {
                filled(
                    name,
                    Minimal::new(url, limit, keys).await,
                    keys,
                    load,
                    probe,
                )
                .await
            }
            THROTTLE => {
                let throttle = Throttle::redis(url, "bench", limit, keys);
                filled(name, throttle, keys, load, probe).await
            }
            CELL if server::cell_module().is_none() => continue,
            CELL => filled(name, Cell::new(url, limit, keys).await, keys, load, probe).await,
            RATE_LIMITER => {
                let connection = server::connect(url).await;
                let limiter = rate_limiter::redis(connection, limit, keys);
                filled(name, limiter, keys, load, probe).await
            }
            RATE_TIER => {
                let connection = server::connect(url).await;
                let tier = rate_tier::redis(connection, limit, keys);
                filled(name, tier, keys, load, probe).await
            }
            ROUND_TRIP => Case::new(name, Ping::new(url).await, Load::new(1, 1), None),
            unknown => panic!("no limiter on Redis is called {unknown}"),
        };
        cases.push(case);
    }
    cases
}

async fn filled<S: Subject>(
    name: &'static str,
    subject: S,
    keys: &Keys,
    load: Load,
    probe: Option<&Probe>,
) -> Case {
    fill(&subject, keys.count()).await;
    Case::new(name, subject, load, probe)
}

async fn run(plan: Plan, names: &[&'static str], limit: Limit, load: Load) -> Outcome {
    let server = server::start().await;
    let url = server.url();
    let probe = Probe::new(&url).await;
    let cases = cases(names, &url, Some(&probe), limit, load).await;
    Outcome::of(rounds(&plan, cases).await)
}

/// One task that requests rarely.
pub async fn caller(plan: Plan) -> Outcome {
    let load = Load {
        arrivals: Arrivals::Each(Duration::from_millis(2)),
        ..Load::new(1, 1)
    };
    let plan = Plan {
        slice: plan.slice * 2,
        ..plan
    };
    run(plan, SCRIPTS, HOT, load).await
}

pub async fn hot(plan: Plan, tasks: usize, names: &[&'static str]) -> Outcome {
    run(plan, names, HOT, Load::new(tasks, 1)).await
}

pub async fn scopes(plan: Plan, scopes: usize, names: &[&'static str]) -> Outcome {
    run(plan, names, MANY, Load::new(1_024, plan.scopes(scopes))).await
}

pub async fn unseen(plan: Plan) -> Outcome {
    let load = Load {
        scopes: Scopes::Unseen,
        ..Load::new(1_024, 0)
    };
    run(plan, SCRIPTS, MANY, load).await
}

pub const LEASE: &str = "tower-throttle, lease of 1,024";
pub const LARGE_LEASE: &str = "tower-throttle, lease of 16,384";

pub async fn lease(plan: Plan) -> Outcome {
    let server = server::start().await;
    let url = server.url();
    let probe = Some(&Probe::new(&url).await);
    let load = Load::new(1_024, 1);
    let keys = &load.keys();
    let leasing = |name, tokens| Throttle::leasing(&url, name, HOT, keys, tokens);
    let mut cases = cases(&[NAIVE, THROTTLE], &url, probe, HOT, load).await;
    cases.extend([
        Case::new(LEASE, leasing("leased", 1_024.0), load, probe),
        Case::new(LARGE_LEASE, leasing("leased more", 16_384.0), load, probe),
        Case::new(GOVERNOR, Governor::new(HOT, keys), load, None),
    ]);
    Outcome::of(rounds(&plan, cases).await)
}

pub async fn start(plan: Plan) -> Outcome {
    let server = server::start().await;
    let (url, keys) = (server.url(), Keys::new(1));
    let load = Load::new(1, 1);
    let throttle = StartingThrottle { url: url.clone() };
    let cases = vec![
        Case::new(NAIVE, StartingNaive { url, keys }, load, None),
        Case::new(THROTTLE, throttle, load, None),
    ];
    Outcome::of(rounds(&plan, cases).await)
}
