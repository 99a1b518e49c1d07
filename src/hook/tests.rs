use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use tower::{ServiceExt, layer::Layer, service_fn};

use super::*;
use crate::{limiter::Limiter, middleware::RateLimitLayer, quota::Quota, scope::Scope};

const DAY: Scope = Quota::per_day(100.0).scope("day").cost(10.0);

async fn answer(_: Request<()>) -> Result<Response<String>, Infallible> {
    Ok(Response::new("12".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn hooks_may_be_added_before_the_reply() {
    let limiter = Limiter::in_memory();
    let layer = RateLimitLayer::new(&limiter, DAY)
        .settle(|res: &Response<String>| res.body().parse().ok())
        .expose_permit()
        .respond_http()
        .problem_json();
    let inner = service_fn(async |req: Request<()>| {
        assert!(req.extensions().get::<PermitHandle>().is_some());
        answer(req).await
    });
    let response = layer.layer(inner).oneshot(Request::new(())).await;
    let response = response.expect("infallible");
    assert_eq!(response.headers()["ratelimit"], r#""day";r=90;t=8640"#);
    assert_eq!(limiter.bucket(&DAY).level().await.expect("in memory"), 88.0);
}

/// Records when it runs.
#[derive(Clone)]
struct Record(&'static str, Arc<Mutex<Vec<String>>>);

impl Record {
    fn push(&self, what: &str) {
        let mut events = self.1.lock().expect("not poisoned");
        events.push(format!("{} {what}", self.0));
    }
}

impl Hook<Request<()>, Response<String>> for Record {
    fn on_request(&self, permit: &mut Permit, _: &mut Request<()>) {
        self.push(match permit.scopes() {
            [] => "unmetered request",
            _ => "request",
        });
    }

    fn on_response(&self, _: &mut Permit, res: &mut Response<String>) {
        assert!(!res.headers().contains_key("ratelimit"));
        self.push("response");
    }

    fn on_shadow_response(&self, _: &Permit, _: &Response<String>) {
        self.push("shadow response");
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_run_in_the_order_in_which_they_are_added() {
    for (shadow, expected) in [
        (
            false,
            ["1 request", "2 request", "1 response", "2 response"],
        ),
        (
            true,
            [
                "1 unmetered request",
                "2 unmetered request",
                "1 shadow response",
                "2 shadow response",
            ],
        ),
    ] {
        let events = Arc::default();
        let layer = RateLimitLayer::new(&Limiter::in_memory(), DAY)
            .hook(Record("1", Arc::clone(&events)))
            .respond_http()
            .hook(Record("2", Arc::clone(&events)))
            .shadow(shadow);
        let service = layer.layer(service_fn(answer));
        service.oneshot(Request::new(())).await.expect("infallible");
        assert_eq!(*events.lock().expect("not poisoned"), expected);
    }
}

/// A service whose handlers use no permit allocates none.
#[test]
fn only_used_hooks_use_the_permit() {
    fn uses<H: Hook<Request<()>, Response<String>>>(hook: H) -> bool {
        hook.uses_permit()
    }
    assert!(!uses(()));
    assert!(!uses(((), ())));
    assert!(uses(((), |_: &mut Permit, _: &mut Response<String>| {})));
}
