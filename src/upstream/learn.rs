//! What a layer learns from each answer: [`Learn`].

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};

use super::Upstream;
use crate::{Permit, Rejected, reply::Reply};

/// Learns from each answer of the inner service; made by
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
pub struct Learn<O, P = HttpParts> {
    reply: O,
    upstream: Upstream,
    parts: P,
}

impl<O, P> Learn<O, P> {
    pub(crate) fn new(reply: O, upstream: Upstream, parts: P) -> Self {
        Self {
            reply,
            upstream,
            parts,
        }
    }
}

/// Where an answer has its status and headers: [`HttpParts`] for `http::Response`, else a closure
/// `|res: &reqwest::Response| (res.status(), res.headers())`.
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
    /// Status and headers of an answer.
    fn parts<'a>(&self, res: &'a Res) -> (StatusCode, &'a HeaderMap);
}

/// The status and headers of an `http::Response`.
///
/// # Examples
///
/// See [`Parts`].
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::exhaustive_structs,
    reason = "it has nothing and will have nothing"
)]
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

impl<Req, Res, E, O, P> Reply<Req, Res, E> for Learn<O, P>
where
    O: Reply<Req, Res, E>,
    P: Parts<Res>,
{
    type Error = O::Error;

    fn inner_error(&self, error: E) -> Self::Error {
        self.reply.inner_error(error)
    }

    fn limited(&self, rejected: Rejected, req: Req) -> Result<Res, Self::Error> {
        self.reply.limited(rejected, req)
    }

    fn before(&self, permit: &mut Permit, req: &mut Req) {
        self.reply.before(permit, req);
    }

    fn after(&self, permit: &mut Permit, res: &mut Res) {
        let (status, headers) = self.parts.parts(res);
        let advice = self.upstream.read(status, headers, seconds_since_1970());
        // Before what is learned: what remains has counted this answer already, and what a
        // settlement gives back would come on top. After it is read: a reply may write fields of
        // the same names.
        self.reply.after(permit, res);
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

    /// Learns nothing: a layer that only watches holds nobody back.
    fn after_in_shadow(&self, permit: &Permit, res: &Res) {
        self.reply.after_in_shadow(permit, res);
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "an upstream that sends no Date of its own means the time of day"
)]
fn seconds_since_1970() -> f64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64()
}
