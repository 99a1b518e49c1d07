//! [`HttpReply`]: answers over HTTP, and over gRPC to clients that use it.

use http::{
    Method, Request, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};

use super::{
    grpc,
    headers::{HeaderStyle, NO_STORE},
    problem::problem_json,
    rejection::Reply,
    status::status,
};
use crate::{limiter::Permit, rejected::Rejected};

#[cfg(test)]
mod tests;

/// A rejection becomes an HTTP response; made by
/// [`RateLimitLayer::respond_http`](crate::RateLimitLayer::respond_http).
///
/// Errors of the inner service are unchanged, so that an infallible service stays infallible.
///
/// | reason | HTTP | gRPC and gRPC-Web (`POST` with `content-type: application/grpc`, `application/grpc-web` or `application/grpc-web-text`, also with `+…` or `;…`) |
/// |---|---|---|
/// | `Limited` | 429 with `Retry-After`, in whole seconds, rounded up | RESOURCE_EXHAUSTED with `RetryInfo` and `QuotaFailure` |
/// | `ExceedsCapacity`, `TooManyScopes` | 403 | RESOURCE_EXHAUSTED with `QuotaFailure` only: a retry cannot help |
/// | `Unavailable` | 503 | UNAVAILABLE |
///
/// Every rejection carries `Cache-Control: no-store`, so that no cache gives it to another client.
///
/// Over HTTP, all responses also carry the fields of a [`HeaderStyle`]. A rejection has no body
/// unless [`problem_json`](Self::problem_json) is set. For a body of your own, use
/// [`RateLimitLayer::respond`](crate::RateLimitLayer::respond) with
/// [`HeaderStyle::write_rejected`].
///
/// In a client, set `headers(HeaderStyle::None)`: otherwise the limits of this process are written
/// into the responses of the server.
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
/// let rejected = service.oneshot(get()).await.unwrap();
/// assert_eq!(rejected.status(), 429);
/// assert_eq!(rejected.headers()["retry-after"], "60");
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HttpReply<T = EmptyBody> {
    style: HeaderStyle,
    body: T,
}

/// The fields of the IETF's draft, and rejections without a body.
impl Default for HttpReply {
    fn default() -> Self {
        Self {
            style: HeaderStyle::default(),
            body: EmptyBody,
        }
    }
}

impl HttpReply {
    /// Gives rejections over HTTP a problem document as body (RFC 9457). The type of the body
    /// must be `From<String>`, as that of axum is.
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
    /// The rate-limit fields of responses. Defaults to [`HeaderStyle::Draft`].
    ///
    /// ```
    /// # use tower_throttle::reply::{HeaderStyle, HttpReply};
    /// let reply = HttpReply::default().headers(HeaderStyle::None);
    /// ```
    pub fn headers(mut self, style: HeaderStyle) -> Self {
        self.style = style;
        self
    }

    fn reject<A, B: Default>(&self, rejected: &Rejected, req: &Request<A>) -> Response<B>
    where
        T: RejectionBody<B>,
    {
        // Every gRPC call is a POST. Other requests of this type expect an HTTP status: a gRPC
        // status is sent with 200, which they and caches would take for a success.
        if req.method() == Method::POST
            && let Some(content_type) = req.headers().get(CONTENT_TYPE)
            && let Some(content_type) = grpc_content_type(content_type)
        {
            let mut response = grpc::rejection(rejected, content_type);
            response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
            return response;
        }
        let mut response = Response::new(B::default());
        *response.status_mut() = status(rejected);
        self.style.write_rejected(rejected, response.headers_mut());
        self.body.write(rejected, &mut response);
        response
    }
}

impl<A, B, E, T> Reply<Request<A>, Response<B>, E> for HttpReply<T>
where
    B: Default,
    T: RejectionBody<B>,
{
    type Error = E;

    fn rejected(&self, rejected: Rejected, req: Request<A>) -> Result<Response<B>, E> {
        Ok(self.reject(&rejected, &req))
    }

    fn inner_error(&self, error: E) -> E {
        error
    }

    fn uses_permit(&self) -> bool {
        self.style != HeaderStyle::None
    }

    fn admitted(&self, permit: &Permit, res: &mut Response<B>) {
        let headers = res.headers_mut();
        // A gRPC client would receive them as metadata, which it does not read.
        let is_grpc = headers.get(CONTENT_TYPE).and_then(grpc_content_type);
        if is_grpc.is_none() {
            self.style.write_admitted(permit, headers);
        }
    }
}

/// Writes the body of a rejection over HTTP.
pub trait RejectionBody<B> {
    /// Sets the body and its content type.
    fn write(&self, rejected: &Rejected, response: &mut Response<B>);
}

/// A rejection has no body. This is the default.
///
/// # Examples
///
/// ```
/// use tower_throttle::reply::{EmptyBody, HttpReply};
///
/// let reply: HttpReply<EmptyBody> = HttpReply::default();
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct EmptyBody;

impl<B> RejectionBody<B> for EmptyBody {
    fn write(&self, _: &Rejected, _: &mut Response<B>) {}
}

/// The body of a rejection is a problem document; made by
/// [`RateLimitLayer::problem_json`](crate::RateLimitLayer::problem_json).
///
/// # Examples
///
/// ```
/// use tower_throttle::reply::{HttpReply, ProblemJson};
///
/// let reply: HttpReply<ProblemJson> = HttpReply::default().problem_json();
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ProblemJson;

impl<B: From<String>> RejectionBody<B> for ProblemJson {
    fn write(&self, rejected: &Rejected, response: &mut Response<B>) {
        *response.body_mut() = problem_json(rejected).into();
        let content_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
}

/// The content type of an answer to a gRPC or gRPC-Web request: `application/grpc` for
/// `application/grpc+proto` and the like, and the same with `-web` or `-web-text`. `None` for
/// other content types. A gRPC-Web client reads the status from the headers of a response without
/// a body, too.
fn grpc_content_type(content_type: &HeaderValue) -> Option<HeaderValue> {
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
        // Spaces are allowed before a parameter (RFC 9110, section 5.6.6).
        start.eq_ignore_ascii_case(kind.as_bytes())
            && (rest.starts_with(b"+")
                || matches!(rest.trim_ascii_start().first(), None | Some(b';')))
    })?;
    Some(HeaderValue::from_static(kind))
}
