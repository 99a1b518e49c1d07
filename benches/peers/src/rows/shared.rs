//! Buckets in Redis. All requests are admitted.

use super::{Claim, Outcome, case};
use crate::{
    case::{Case, Figures, commands_per_op, ops_per_second, p50, redis_us, rounds},
    load::Load,
    plan::Plan,
    server::{self, Probe},
    subjects::{Cell, HOT, Keys, Limit, MANY, MINIMAL, Minimal, NAIVE, Naive, THROTTLE, Throttle},
};

/// Which peers are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peers {
    All,
    /// For rows whose many tasks make each round long.
    Scripts,
}

async fn run(plan: &Plan, limit: Limit, load: Load, peers: Peers) -> Vec<Figures> {
    let server = server::start().await;
    let url = server.url();
    let probe = &Probe::new(&url).await;
    let keys = &Keys::new(load.scopes);
    let mut cases = vec![
        Case::new(
            NAIVE,
            Naive::new(&url, limit, keys).await,
            load,
            Some(probe),
        ),
        Case::new(
            MINIMAL,
            Minimal::new(&url, limit, keys).await,
            load,
            Some(probe),
        ),
        Case::new(
            THROTTLE,
            Throttle::redis(&url, "bench", limit, keys),
            load,
            Some(probe),
        ),
    ];
    if server::cell_module().is_some() {
        let cell = Cell::new(&url, limit, keys).await;
        cases.push(Case::new("redis-cell", cell, load, Some(probe)));
    }
    #[cfg(feature = "peers")]
    if peers == Peers::All {
        use crate::subjects::{rate_limiter, rate_tier};
        let limiter = rate_limiter::redis(server::connect(&url).await, limit, keys);
        cases.push(Case::new("tower-rate-limiter", limiter, load, Some(probe)));
        let tier = rate_tier::redis(server::connect(&url).await, limit, keys);
        cases.push(Case::new("tower-rate-tier", tier, load, Some(probe)));
    }
    #[cfg(not(feature = "peers"))]
    let _ = peers;
    rounds(plan, cases).await
}

fn hot(tasks: usize) -> Load {
    Load { tasks, scopes: 1 }
}

pub async fn hot_1(plan: &Plan) -> Outcome {
    let figures = run(plan, HOT, hot(1), Peers::All).await;
    let throttle = case(&figures, THROTTLE);
    let latency = throttle.ratio(case(&figures, MINIMAL), p50);
    Outcome {
        claims: vec![Claim::at_most(
            "p50 relative to the minimal script",
            1.05,
            latency,
            "x",
        )],
        figures,
        ..Outcome::default()
    }
}

pub async fn hot_64(plan: &Plan) -> Outcome {
    let figures = run(plan, HOT, hot(64), Peers::All).await;
    let mut claims = vec![faster(&figures, 8.0)];
    claims.push(fewer_commands(&figures, 0.02));
    Outcome {
        claims,
        figures,
        ..Outcome::default()
    }
}

pub async fn hot_1024(plan: &Plan) -> Outcome {
    let figures = run(plan, HOT, hot(1024), Peers::All).await;
    let mut claims = vec![faster(&figures, 40.0)];
    claims.push(fewer_commands(&figures, 0.003));
    let (throttle, naive) = (case(&figures, THROTTLE), case(&figures, NAIVE));
    let cheaper = naive.ratio(throttle, redis_us);
    claims.push(Claim::at_least(
        "Redis CPU per token, naive script relative to tower-throttle",
        150.0,
        cheaper,
        "x",
    ));
    Outcome {
        claims,
        figures,
        ..Outcome::default()
    }
}

pub async fn hot_10240(plan: &Plan) -> Outcome {
    let figures = run(plan, HOT, hot(10_240), Peers::Scripts).await;
    Outcome {
        claims: vec![faster(&figures, 25.0)],
        figures,
        ..Outcome::default()
    }
}

pub async fn lease(plan: &Plan) -> Outcome {
    let server = server::start().await;
    let url = server.url();
    let probe = Some(&Probe::new(&url).await);
    let load = hot(1024);
    let keys = &Keys::new(load.scopes);
    let naive = Naive::new(&url, HOT, keys).await;
    let leasing = |name, tokens| Throttle::leasing(&url, name, HOT, keys, tokens);
    let cases = vec![
        Case::new(NAIVE, naive, load, probe),
        Case::new(THROTTLE, leasing("leased", 1_024.0), load, probe),
        Case::new(
            "tower-throttle, lease of 16,384",
            leasing("leased more", 16_384.0),
            load,
            probe,
        ),
        Case::new(
            "tower-throttle, no lease",
            Throttle::redis(&url, "bench", HOT, keys),
            load,
            probe,
        ),
    ];
    let figures = rounds(plan, cases).await;
    Outcome {
        claims: vec![faster(&figures, 80.0)],
        figures,
        ..Outcome::default()
    }
}

fn many(scopes: usize) -> Load {
    Load {
        tasks: 1024,
        scopes,
    }
}

pub async fn scopes_10k(plan: &Plan) -> Outcome {
    let figures = run(plan, MANY, many(10_000), Peers::All).await;
    let mut claims = vec![faster(&figures, 4.0)];
    if server::cell_module().is_some() {
        let cell = case(&figures, "redis-cell");
        let ratio = case(&figures, THROTTLE).ratio(cell, ops_per_second);
        claims.push(Claim::at_least(
            "throughput relative to redis-cell",
            1.8,
            ratio,
            "x",
        ));
    }
    Outcome {
        claims,
        figures,
        ..Outcome::default()
    }
}

pub async fn scopes_100k(plan: &Plan) -> Outcome {
    let figures = run(plan, MANY, many(100_000), Peers::All).await;
    let mut claims = vec![faster(&figures, 3.5)];
    // Of so many scopes, 1,024 tasks rarely use the same one twice in a call: one token is one scope.
    let ratio = case(&figures, THROTTLE).ratio(case(&figures, NAIVE), redis_us);
    claims.push(Claim::at_most(
        "Redis CPU per scope relative to the naive script",
        0.35,
        ratio,
        "x",
    ));
    Outcome {
        claims,
        figures,
        ..Outcome::default()
    }
}

fn faster(figures: &[Figures], target: f64) -> Claim {
    let ratio = case(figures, THROTTLE).ratio(case(figures, NAIVE), ops_per_second);
    Claim::at_least(
        "throughput relative to the naive script",
        target,
        ratio,
        "x",
    )
}

fn fewer_commands(figures: &[Figures], target: f64) -> Claim {
    let commands = case(figures, THROTTLE).median(commands_per_op);
    Claim::at_most("Redis commands per token", target, commands, "")
}
