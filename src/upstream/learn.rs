//! [`Learn`]: adjusts buckets by the limits that each response reports.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};

use super::Upstream;
use crate::{hook::Hook, limiter::Permit};

/// Adjusts the buckets of a request by the rate-limit headers of its response; made by
/// [`RateLimitLayer::learn`](crate::RateLimitLayer::learn).
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, upstream::Upstream};
///
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"))
///     .learn(Upstream::retry_after());
/// ```
#[derive(Clone, Debug)]
pub struct Learn<P = HttpParts> {
    upstream: Upstream,
    parts: P,
}

impl<P> Learn<P> {
    pub(crate) fn new(upstream: Upstream, parts: P) -> Self {
        Self { upstream, parts }
    }
}

/// Finds the status and the headers of a response: [`HttpParts`] for `http::Response`, otherwise a
/// closure `|res: &reqwest::Response| (res.status(), res.headers())`.
///
/// # Examples
///
/// ```
/// use tower_throttle::upstream::{HttpParts, Parts};
///
/// let response = http::Response::new(());
/// assert_eq!(HttpParts.parts(&response).0, 200);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not find status and headers in a `{Res}`",
    note = "`learn` reads `http::Response`; for others use `learn_from(upstream, \
            |res: &{Res}| (res.status(), res.headers()))`"
)]
pub trait Parts<Res> {
    /// The status and the headers of a response.
    fn parts<'a>(&self, res: &'a Res) -> (StatusCode, &'a HeaderMap);
}

/// The status and headers of an `http::Response`.
///
/// # Examples
///
/// See [`Parts`].
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "it has no fields and needs none")]
pub struct HttpParts;

impl<B> Parts<Response<B>> for HttpParts {
    fn parts<'a>(&self, res: &'a Response<B>) -> (StatusCode, &'a HeaderMap) {
        (res.status(), res.headers())
    }
}

#[diagnostic::do_not_recommend]
impl<Res, F> Parts<Res> for F
where
    F: for<'a> Fn(&'a Res) -> (StatusCode, &'a HeaderMap),
{
    fn parts<'a>(&self, res: &'a Res) -> (StatusCode, &'a HeaderMap) {
        self(res)
    }
}

/// Does nothing in shadow mode: a layer that rejects nothing pauses nothing.
impl<Req, Res, P> Hook<Req, Res> for Learn<P>
where
    P: Parts<Res>,
{
    fn on_response(&self, permit: &mut Permit, res: &mut Res) {
        let (status, headers) = self.parts.parts(res);
        let advice = self.upstream.read(status, headers, seconds_since_1970());
        for (field, remaining) in &advice.remaining {
            if let Some(which) = self.upstream.scope_of(field, permit.scopes()) {
                permit.cap_level(which, *remaining);
            }
        }
        if advice.is_exhausted || advice.pause.is_some() {
            let pause = advice
                .pause
                .map(|pause| self.upstream.jittered(pause, fastrand::f64()));
            for which in self.upstream.scopes(permit.scopes()) {
                match pause {
                    Some(pause) => permit.pause(which, pause),
                    None => permit.cap_level(which, 0.0),
                }
            }
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "without a Date header, the upstream means the time of day"
)]
fn seconds_since_1970() -> f64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64()
}
