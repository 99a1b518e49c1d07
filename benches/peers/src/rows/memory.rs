//! Buckets in memory.

use std::convert::Infallible;

use tower::{Layer, Service};
use tower_throttle::{RateLimitLayer, Rejected, ScopeExtractor};

use super::Outcome;
use crate::{
    case::{Allowed, Case, rounds},
    load::Subject,
    plan::Plan,
    subjects::{
        GOVERNOR, Governor, HOT, HttpRequest, Keys, Layered, Limit, Limitador, RATE_LIMITER,
        RATE_TIER, SPENT, THROTTLE, Throttle, by_header, in_memory, is_success, no_op, no_op_http,
        rate_limiter, rate_tier, requests, tower_governor,
    },
};

/// The limiters without layers.
pub async fn direct(plan: Plan, limit: Limit, scopes: usize, threads: usize) -> Outcome {
    let scopes = plan.scopes(scopes);
    let keys = &Keys::new(scopes);
    let (mut governor, mut throttle) = (
        Governor::new(limit, keys),
        Throttle::memory("bench", limit, keys),
    );
    let is_spent = limit.tokens == SPENT.tokens;
    if !is_spent {
        // The buckets exist before the measurement starts.
        for scope in 0..scopes {
            governor.take(scope).await;
            throttle.take(scope).await;
        }
    }
    let mut cases = vec![
        Case::tight(GOVERNOR, governor, threads, scopes),
        Case::tight(THROTTLE, throttle, threads, scopes),
    ];
    if is_spent {
        cases = cases
            .into_iter()
            .map(|case| case.allowed(Allowed::Once(limit, scopes)))
            .collect();
    }
    Outcome::of(rounds(&plan, cases).await)
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

pub async fn layer(plan: Plan) -> Outcome {
    let keys = &Keys::new(1);
    let keyed = {
        let (scope, keys) = (HOT.quota().scope("bench"), keys.clone());
        move |index: &usize| scope.key(&*keys.get(*index))
    };
    let http = no_op_http::<String>();
    let http_throttle = by_header(&in_memory(), HOT).layer(http);
    let cases = vec![
        Case::tight(GOVERNOR, Governor::new(HOT, keys), 1, 1),
        Case::tight("no-op service", plain(no_op::<usize>()), 1, 1),
        Case::tight(THROTTLE, fixed_layer(), 1, 1),
        Case::tight("tower-throttle, by key", through(keyed), 1, 1),
        Case::tight("limitador", Limitador::new(HOT, keys), 1, 1),
        Case::tight("no-op service, http", over_http(http, keys), 1, 1),
        Case::tight(
            "tower-throttle, http by header",
            over_http(http_throttle, keys),
            1,
            1,
        ),
        Case::tight("tower_governor", tower_governor::memory(HOT, keys), 1, 1),
        Case::tight(RATE_LIMITER, rate_limiter::memory(HOT, keys), 1, 1),
        Case::tight(RATE_TIER, rate_tier::memory(HOT, keys), 1, 1),
    ];
    Outcome::of(rounds(&plan, cases).await)
}

fn over_http<S>(service: S, keys: &Keys) -> impl Subject + use<S>
where
    S: Service<HttpRequest, Response = http::Response<String>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    Layered::<_, _, _, true>::new(service, requests(keys), is_success)
}
