//! All requests are rejected: the buckets are empty.

use tower::Layer;
use tower_throttle::{Limiter, RateLimitLayer, Rejected};

use super::{Claim, Outcome, case};
use crate::{
    case::{Allowed, Case, ops_per_second, rounds},
    load::Load,
    plan::Plan,
    server::{self, Probe},
    subjects::{Governor, Keys, Layered, NAIVE, Naive, SPENT, in_memory, limiter, no_op},
};

pub async fn one(plan: &Plan) -> Outcome {
    run(plan, 1, 0.95).await
}

pub async fn many(plan: &Plan) -> Outcome {
    run(plan, 10_000, 1.0).await
}

async fn run(plan: &Plan, scopes: usize, target: f64) -> Outcome {
    let server = server::start().await;
    let url = server.url();
    let probe = &Probe::new(&url).await;
    let load = Load {
        tasks: 1024,
        scopes,
    };
    let keys = &Keys::new(scopes);
    let naive = Naive::new(&url, SPENT, keys).await;
    let mut cases = vec![
        Case::new("governor", Governor::new(SPENT, keys), load, None),
        throttle("tower-throttle, Redis", &limiter(&url), keys, load, probe),
        throttle("tower-throttle, memory", &in_memory(), keys, load, probe),
        Case::new(NAIVE, naive, load, Some(probe)),
    ];
    #[cfg(feature = "peers")]
    {
        use crate::subjects::{Limitador, tower_governor};
        let layer = tower_governor(SPENT, keys);
        cases.push(Case::new("tower_governor", layer, load, None));
        cases.push(Case::new(
            "limitador, memory",
            Limitador::new(SPENT, keys),
            load,
            None,
        ));
    }
    let cases = cases
        .into_iter()
        .map(|case| case.allowed(Allowed::Once(SPENT, scopes)))
        .collect();
    // Long enough that nearly every scope is used before the measurement starts.
    let warm_up = plan.warm_up * if scopes > 1 { 4 } else { 1 };
    let figures = rounds(&Plan { warm_up, ..*plan }, cases).await;
    let ratio =
        case(&figures, "tower-throttle, Redis").ratio(case(&figures, "governor"), ops_per_second);
    Outcome {
        claims: vec![Claim::at_least(
            "throughput of the layer relative to governor called directly",
            target,
            ratio,
            "x",
        )],
        figures,
        ..Outcome::default()
    }
}

/// The layer over a no-op service.
fn throttle(name: &'static str, limiter: &Limiter, keys: &Keys, load: Load, probe: &Probe) -> Case {
    let scope = SPENT.quota().scope("bench");
    if load.scopes == 1 {
        return of(name, RateLimitLayer::new(limiter, scope), load, probe);
    }
    let keys = keys.clone();
    let keyed = move |index: &usize| scope.key(keys.get(*index));
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
