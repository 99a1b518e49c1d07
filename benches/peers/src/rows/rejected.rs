//! All requests are rejected: the buckets are empty.

use tower::Layer;
use tower_throttle::{Limiter, RateLimitLayer, Rejected};

use super::Outcome;
use crate::{
    case::{Allowed, Case, rounds},
    load::Load,
    plan::Plan,
    server::{self, Probe},
    subjects::{
        GOVERNOR, Governor, Keys, Layered, NAIVE, Naive, SPENT, in_memory, limiter, no_op,
        tower_governor,
    },
};

pub const ON_REDIS: &str = "tower-throttle on Redis";

pub async fn scopes(plan: Plan, scopes: usize) -> Outcome {
    let server = server::start().await;
    let url = server.url();
    let probe = &Probe::new(&url).await;
    let load = Load::new(1_024, scopes);
    let keys = &Keys::new(scopes);
    let cases = vec![
        Case::new(GOVERNOR, Governor::new(SPENT, keys), load, None),
        throttle(ON_REDIS, &limiter(&url), keys, load, probe),
        throttle("tower-throttle in memory", &in_memory(), keys, load, probe),
        Case::new(
            "tower_governor",
            tower_governor::memory(SPENT, keys),
            load,
            None,
        ),
        Case::new(
            NAIVE,
            Naive::new(&url, SPENT, keys).await,
            load,
            Some(probe),
        ),
    ];
    let cases = cases
        .into_iter()
        .map(|case| case.allowed(Allowed::Once(SPENT, scopes)))
        .collect();
    // Long enough that nearly every scope is used before the measurement starts.
    let warm_up = plan.warm_up * if scopes > 1 { 4 } else { 1 };
    Outcome::of(rounds(&Plan { warm_up, ..plan }, cases).await)
}

/// The layer over a no-op service.
fn throttle(name: &'static str, limiter: &Limiter, keys: &Keys, load: Load, probe: &Probe) -> Case {
    let scope = SPENT.quota().scope("bench");
    if keys.count() == 1 {
        return of(name, RateLimitLayer::new(limiter, scope), load, probe);
    }
    let keys = keys.clone();
    let keyed = move |index: &usize| scope.key(&*keys.get(*index));
    return of(name, RateLimitLayer::new(limiter, keyed), load, probe);

    fn of<K>(name: &'static str, layer: RateLimitLayer<K>, load: Load, probe: &Probe) -> Case
    where
        K: tower_throttle::ScopeExtractor<usize> + Clone + Send + Sync + 'static,
    {
        let service = layer.respond(|_: &Rejected| false).layer(no_op::<usize>());
        let subject = Layered::<_, _, _, true>::new(
            service,
            |scope: usize| scope,
            |answer: Result<bool, std::convert::Infallible>| answer.unwrap_or(false),
        );
        Case::new(name, subject, load, Some(probe))
    }
}
