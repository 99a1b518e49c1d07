//! Buckets in memory.

use std::convert::Infallible;

use tower::{Layer, Service};
use tower_throttle::{RateLimitLayer, Rejected, ScopeExtractor};

use super::{Claim, Outcome, case};
use crate::{
    case::{Allowed, Case, Figures, ns_per_op, rounds},
    load::{Load, Subject},
    plan::Plan,
    subjects::{
        Governor, HOT, Keys, Layered, Limit, MANY, SPENT, THROTTLE, Throttle, in_memory,
        is_success, no_op, no_op_http, requests,
    },
};

pub async fn one(plan: &Plan) -> Outcome {
    run(plan, HOT, 1, 1, 0.65).await
}

pub async fn ten_thousand(plan: &Plan) -> Outcome {
    run(plan, MANY, 10_000, 1, 0.65).await
}

pub async fn million(plan: &Plan) -> Outcome {
    run(plan, MANY, 1_000_000, 1, 0.65).await
}

pub async fn rejected(plan: &Plan) -> Outcome {
    run(plan, SPENT, 1, 2, 0.5).await
}

async fn run(plan: &Plan, limit: Limit, scopes: usize, threads: usize, target: f64) -> Outcome {
    let keys = &Keys::new(scopes);
    let (mut governor, mut throttle) = (
        Governor::new(limit, keys),
        Throttle::memory("bench", limit, keys),
    );
    if limit.tokens > SPENT.tokens {
        // The buckets exist before the measurement starts.
        for scope in 0..scopes {
            governor.take(scope).await;
            throttle.take(scope).await;
        }
    }
    let mut cases = vec![
        Case::tight("governor", governor, threads, scopes),
        Case::tight(THROTTLE, throttle, threads, scopes),
    ];
    if limit.tokens == SPENT.tokens {
        cases = cases
            .into_iter()
            .map(|case| case.allowed(Allowed::Once(limit, scopes)))
            .collect();
    }
    let figures = rounds(plan, cases).await;
    Outcome {
        claims: vec![cheaper(&figures, target)],
        figures,
        ..Outcome::default()
    }
}

fn cheaper(figures: &[Figures], target: f64) -> Claim {
    let ratio = case(figures, THROTTLE).ratio(case(figures, "governor"), ns_per_op);
    let what = "time per decision relative to governor called directly";
    Claim::at_most(what, target, ratio, "x")
}

/// The layer with a fixed scope, over a no-op service.
pub fn fixed_layer() -> impl Subject + use<> {
    through(HOT.quota().scope("bench"))
}

fn through<K>(scope: K) -> impl Subject + use<K>
where
    K: ScopeExtractor<usize> + Clone + Send + Sync + 'static,
{
    let layer = RateLimitLayer::new(&in_memory(), scope).respond(|_: &Rejected| false);
    plain(layer.layer(no_op::<usize>()))
}

fn plain<S>(service: S) -> impl Subject + use<S>
where
    S: Service<usize, Response = bool, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Layered::<_, _, _, true>::new(
        service,
        |scope: usize| scope,
        |answer: Result<bool, Infallible>| answer.unwrap_or(false),
    )
}

pub async fn layer(plan: &Plan) -> Outcome {
    let keys = &Keys::new(1);
    let keyed = {
        let (scope, keys) = (HOT.quota().scope("bench"), keys.clone());
        move |index: &usize| scope.key(keys.get(*index))
    };
    let mut cases = vec![
        Case::tight("governor", Governor::new(HOT, keys), 1, 1),
        Case::tight("no-op service", plain(no_op::<usize>()), 1, 1),
        Case::tight(THROTTLE, fixed_layer(), 1, 1),
        Case::tight("tower-throttle, by key", through(keyed), 1, 1),
        Case::tight("no-op service, http", http_bare(keys), 1, 1),
        Case::tight(
            "tower-throttle, http by header",
            http_throttle(HOT, keys),
            1,
            1,
        ),
    ];
    #[cfg(feature = "peers")]
    cases.push(Case::tight(
        "tower_governor",
        crate::subjects::tower_governor(HOT, keys),
        1,
        1,
    ));
    let figures = rounds(plan, cases).await;
    Outcome {
        claims: vec![cheaper(&figures, 0.5)],
        figures,
        ..Outcome::default()
    }
}

pub async fn tasks(plan: &Plan) -> Outcome {
    let load = Load {
        tasks: 1024,
        scopes: 1,
    };
    let keys = &Keys::new(1);
    let mut cases = vec![
        Case::new("governor", Governor::new(HOT, keys), load, None),
        Case::new(THROTTLE, Throttle::memory("bench", HOT, keys), load, None),
        Case::new("no-op service, http", http_bare(keys), load, None),
        Case::new(
            "tower-throttle, http by header",
            http_throttle(HOT, keys),
            load,
            None,
        ),
        Case::new("tower RateLimit in a Buffer", buffered(), load, None),
    ];
    #[cfg(feature = "peers")]
    {
        use crate::subjects::{Limitador, rate_limiter, rate_tier, tower_governor};
        let layer = tower_governor(HOT, keys);
        cases.push(Case::new("tower_governor", layer, load, None));
        let layer = rate_limiter::memory(HOT, keys);
        cases.push(Case::new("tower-rate-limiter", layer, load, None));
        let layer = rate_tier::memory(HOT, keys);
        cases.push(Case::new("tower-rate-tier", layer, load, None));
        cases.push(Case::new(
            "limitador",
            Limitador::new(HOT, keys),
            load,
            None,
        ));
    }
    Outcome {
        figures: rounds(plan, cases).await,
        ..Outcome::default()
    }
}

fn http_bare(keys: &Keys) -> impl Subject + use<> {
    Layered::<_, _, _, true>::new(no_op_http::<String>(), requests(keys), is_success)
}

fn http_throttle(limit: Limit, keys: &Keys) -> impl Subject + use<> {
    let by_header = limit
        .quota()
        .scope("bench")
        .by(tower_throttle::extract::header("x-api-key"))
        .or_unlimited();
    let layer = RateLimitLayer::new(&in_memory(), by_header).respond_http();
    let service = layer.layer(no_op_http::<String>());
    Layered::<_, _, _, true>::new(service, requests(keys), is_success)
}

/// tower's `RateLimit` is not `Clone`, so tasks share it through a `Buffer`.
fn buffered() -> impl Subject + use<> {
    let service = tower::ServiceBuilder::new()
        .buffer(1024)
        .rate_limit(u64::MAX, std::time::Duration::from_secs(3600))
        .service(no_op::<usize>());
    Layered::<_, _, _, false>::new(
        service,
        |scope: usize| scope,
        |answer: Result<bool, tower::BoxError>| answer.unwrap_or(false),
    )
}
