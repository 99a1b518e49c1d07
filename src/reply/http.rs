//! [`HttpReply`]: a refusal as HTTP, or as gRPC to those who speak it.

use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};

use super::{
    EmptyBody, HeaderStyle, ProblemJson, Reply, grpc,
    headers::NO_STORE,
    problem::{PROBLEM_JSON, problem_json},
};
use crate::{Permit, Reason, Rejected};

/// A refusal becomes an HTTP response; made by
/// [`RateLimitLayer::respond_http`](crate::RateLimitLayer::respond_http). Errors of the inner
/// service are untouched, so that one that never fails still never does.
///
/// | reason | HTTP | gRPC and gRPC-Web (`POST` with `content-type: application/grpc`, `application/grpc-web` or `application/grpc-web-text`, also with `+…` or `;…`) |
/// |---|---|---|
/// | `Limited` | 429 with `Retry-After`, in whole seconds, rounded up | RESOURCE_EXHAUSTED with `RetryInfo` and `QuotaFailure` |
/// | `Impossible` | 403 | RESOURCE_EXHAUSTED with `QuotaFailure` only: a retry cannot help |
/// | `Unavailable` | 503 | UNAVAILABLE |
///
/// Every refusal carries `Cache-Control: no-store`, so that no cache gives it to another client.
///
/// Over HTTP, refusals and other answers also carry the fields of a [`HeaderStyle`]. A refusal
/// has no body unless [`problem_json`](Self::problem_json) is said; for one of your own there is
/// [`RateLimitLayer::respond`](crate::RateLimitLayer::respond) with
/// [`HeaderStyle::write_rejected`].
///
/// Before a client rather than in a server, say `headers(HeaderStyle::None)`: else the responses
/// that come back are marked with the limits of this process.
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
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HttpReply<T = EmptyBody> {
    style: HeaderStyle,
    body: T,
}

/// The fields of the draft, and refusals without a body.
impl Default for HttpReply {
    fn default() -> Self {
        Self {
            style: HeaderStyle::default(),
            body: EmptyBody,
        }
    }
}

impl HttpReply {
    /// Gives refusals over HTTP a body: a problem document, as of RFC 9457. The type of the body
    /// must be made from a `String`, as that of axum is.
    ///
    /// ```
    /// # use tower_throttle::reply::HttpReply;
    /// let reply = HttpReply::default().problem_json();
    /// ```
    pub fn problem_json(self) -> HttpReply<ProblemJson> {
        HttpReply {
            style: self.style,
            body: ProblemJson,
        }
    }
}

impl<T> HttpReply<T> {
    /// Which fields tell of the limit.
    ///
    /// ```
    /// # use tower_throttle::reply::{HeaderStyle, HttpReply};
    /// let reply = HttpReply::default().headers(HeaderStyle::None);
    /// ```
    pub fn headers(mut self, style: HeaderStyle) -> Self {
        self.style = style;
        self
    }

    fn refuse<A, B: Default>(
        &self,
        rejected: &Rejected,
        req: &Request<A>,
        body: impl FnOnce(&mut Response<B>),
    ) -> Response<B> {
        let content_type = req.headers().get(CONTENT_TYPE);
        // Every gRPC call is a POST. Others would take, and keep, this answer for a success.
        let content_type = content_type.filter(|_| req.method() == Method::POST);
        if let Some(answer) = content_type.and_then(grpc_answer) {
            let mut response = grpc::refusal(rejected, answer);
            response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
            return response;
        }
        let mut response = Response::new(B::default());
        *response.status_mut() = status(rejected);
        self.style.write_rejected(rejected, response.headers_mut());
        body(&mut response);
        response
    }
}

/// Everything but the body of a refusal.
macro_rules! common {
    () => {
        type Error = E;

        fn inner_error(&self, error: E) -> E {
            error
        }

        fn uses_permit(&self) -> bool {
            self.style != HeaderStyle::None
        }

        fn after(&self, permit: &mut Permit, res: &mut Response<B>) {
            mark(self.style, permit, res.headers_mut());
        }
    };
}

impl<A, B: Default, E> Reply<Request<A>, Response<B>, E> for HttpReply {
    common!();

    fn limited(&self, rejected: Rejected, req: Request<A>) -> Result<Response<B>, E> {
        let EmptyBody = self.body;
        Ok(self.refuse(&rejected, &req, |_| {}))
    }
}

impl<A, B, E> Reply<Request<A>, Response<B>, E> for HttpReply<ProblemJson>
where
    B: Default + From<String>,
{
    common!();

    fn limited(&self, rejected: Rejected, req: Request<A>) -> Result<Response<B>, E> {
        let ProblemJson = self.body;
        Ok(self.refuse(&rejected, &req, |response| {
            *response.body_mut() = problem_json(&rejected).into();
            let content_type = HeaderValue::from_static(PROBLEM_JSON);
            response.headers_mut().insert(CONTENT_TYPE, content_type);
        }))
    }
}

fn mark(style: HeaderStyle, permit: &Permit, headers: &mut HeaderMap) {
    // To a gRPC client they would be metadata that nobody reads.
    let answer = headers.get(CONTENT_TYPE).and_then(grpc_answer);
    if style != HeaderStyle::None && answer.is_none() {
        style.write_admitted(permit, headers);
    }
}

/// The HTTP status of a refusal, for a response of your own.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, reply::status};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let too_much = Quota::per_second(10.0).scope("api").cost(11.0);
/// let refused = Limiter::in_memory().try_acquire(too_much).await.unwrap_err();
/// assert_eq!(status(&refused), 403);
/// # }
/// ```
pub fn status(rejected: &Rejected) -> StatusCode {
    match rejected.reason() {
        Reason::Limited => StatusCode::TOO_MANY_REQUESTS,
        Reason::ExceedsCapacity | Reason::TooManyScopes => StatusCode::FORBIDDEN,
        Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The content type of an answer to a gRPC or gRPC-Web request: `application/grpc`, with
/// `+proto` and the like, or the same with `-web` or `-web-text`. A gRPC-Web client, too, finds a
/// status in the headers of an answer without a body.
fn grpc_answer(content_type: &HeaderValue) -> Option<HeaderValue> {
    const KINDS: [&str; 3] = [
        "application/grpc",
        "application/grpc-web",
        "application/grpc-web-text",
    ];
    let content_type = content_type.as_bytes();
    let kind = KINDS.into_iter().find(|kind| {
        let (start, rest) = content_type
            .split_at_checked(kind.len())
            .unwrap_or_default();
        // A parameter may have spaces before it (RFC 9110, section 5.6.6).
        start.eq_ignore_ascii_case(kind.as_bytes())
            && (rest.starts_with(b"+")
                || matches!(rest.trim_ascii_start().first(), None | Some(b';')))
    })?;
    Some(HeaderValue::from_static(kind))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Quota;
    use http::header::RETRY_AFTER;

    fn refusal(rejected: &Rejected) -> Response<String> {
        HttpReply::default().refuse(rejected, &Request::new(()), |_| {})
    }

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
            let rejected = Rejected::limited(&scope, wait, 0.0, false);
            let response = refusal(&rejected);
            assert_eq!(response.headers()[RETRY_AFTER], seconds);
        }
        let never = refusal(&Rejected::exceeds_capacity(&scope));
        assert_eq!(never.status(), 403);
        assert!(!never.headers().contains_key(RETRY_AFTER));
        let away = refusal(&Rejected::unavailable(&scope, None));
        assert_eq!(away.status(), 503);
    }

    #[test]
    fn grpc_is_recognised() {
        for (content_type, expected) in [
            ("application/grpc", Some("application/grpc")),
            ("Application/gRPC+proto", Some("application/grpc")),
            ("application/grpc; charset=utf-8", Some("application/grpc")),
            ("application/grpc-web", Some("application/grpc-web")),
            ("application/grpc-web+proto", Some("application/grpc-web")),
            (
                "application/grpc-web-text",
                Some("application/grpc-web-text"),
            ),
            ("application/grpc ;x=y", Some("application/grpc")),
            ("application/grpc x", None),
            ("application/grpcx", None),
            ("application/grp", None),
            ("application/json", None),
        ] {
            let answer = grpc_answer(&HeaderValue::from_static(content_type));
            assert_eq!(answer, expected.map(HeaderValue::from_static));
        }
    }
}
