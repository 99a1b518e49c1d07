//! [`HttpReply`]: a refusal as HTTP, or as gRPC to those who speak it.

use http::{
    Request, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};

use super::{Reply, grpc};
use crate::{Reason, Rejected};

/// A refusal becomes an HTTP response; made by
/// [`RateLimitLayer::respond_http`](crate::RateLimitLayer::respond_http). Errors of the inner
/// service are untouched, so that one that never fails still never does.
///
/// | reason | HTTP | gRPC (`content-type: application/grpc*`) |
/// |---|---|---|
/// | `Limited` | 429 with `Retry-After`, in whole seconds, rounded up | RESOURCE_EXHAUSTED with `RetryInfo` |
/// | `Impossible` | 403 | RESOURCE_EXHAUSTED without it: a retry cannot help |
/// | `Unavailable` | 503 | UNAVAILABLE |
///
/// # Examples
///
/// ```
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope};
///
/// const SITE: Scope = Quota::per_minute(1.0).scope("site");
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(RateLimitLayer::new(&Limiter::in_memory(), SITE).respond_http())
///     .service(service_fn(async |_: http::Request<String>| {
///         Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
///     }));
/// let get = || http::Request::new(String::new());
/// assert_eq!(service.clone().oneshot(get()).await.unwrap().status(), 200);
/// let refused = service.oneshot(get()).await.unwrap();
/// assert_eq!(refused.status(), 429);
/// assert_eq!(refused.headers()["retry-after"], "60");
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct HttpReply;

impl<A, B: Default, E> Reply<Request<A>, Response<B>, E> for HttpReply {
    type Error = E;

    fn inner_error(&self, error: E) -> E {
        error
    }

    fn uses_permit(&self) -> bool {
        false
    }

    fn limited(&self, rejected: Rejected, req: Request<A>) -> Result<Response<B>, E> {
        let content_type = req.headers().get(CONTENT_TYPE);
        Ok(if content_type.is_some_and(is_grpc) {
            grpc::refusal(&rejected)
        } else {
            refusal(&rejected)
        })
    }
}

/// `application/grpc`, `application/grpc+proto` and the like; `application/grpc-web` wants its
/// status in the body and gets plain HTTP.
fn is_grpc(content_type: &HeaderValue) -> bool {
    let content_type = content_type.as_bytes().to_ascii_lowercase();
    content_type
        .strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

fn refusal<B: Default>(rejected: &Rejected) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = match rejected.reason() {
        Reason::Limited => StatusCode::TOO_MANY_REQUESTS,
        Reason::Impossible => StatusCode::FORBIDDEN,
        Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    if let Some(retry_after) = rejected.retry_after() {
        // Up: nobody is sent back early, and never 0.
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Quota;

    #[test]
    fn retry_after_is_rounded_up() {
        let scope = Quota::per_second(1.0).scope("s");
        for (wait, seconds) in [
            (Duration::from_micros(1), "1"),
            (Duration::from_millis(999), "1"),
            (Duration::from_secs(1), "1"),
            (Duration::new(1, 1), "2"),
            (Duration::from_secs(86_400), "86400"),
        ] {
            let rejected = Rejected::limited(&scope, wait, false);
            let response: Response<String> = refusal(&rejected);
            assert_eq!(response.headers()[RETRY_AFTER], seconds);
        }
        let never: Response<String> = refusal(&Rejected::impossible(&scope));
        assert_eq!(never.status(), 403);
        assert!(!never.headers().contains_key(RETRY_AFTER));
        let away: Response<String> = refusal(&Rejected::unavailable(&scope, None));
        assert_eq!(away.status(), 503);
    }

    #[test]
    fn grpc_is_recognised() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&HeaderValue::from_static(content_type)), expected);
        }
    }
}
