//! [`RateLimitLayer`]: what a limit is made of.

use std::{fmt, time::Duration};

use tower_layer::Layer;

use super::service::RateLimit;
#[cfg(feature = "http")]
use crate::reply::{ExposePermit, HeaderStyle, HttpReply, ProblemJson};
#[cfg(feature = "learn")]
use crate::upstream::{HttpParts, Learn, Upstream};
use crate::{
    Rejected, ScopeExtractor, Scopes,
    clock::LONGEST_WAIT,
    extract::Misses,
    limiter::{Limiter, Permit},
    reply::{Fail, OnResponse, Respond, Settle},
};

/// Makes any tower `Service` keep a limit.
///
/// Three things are said of it, in this order: whose bucket a request takes from (a [`Scope`],
/// several, or something that finds them in the request), what a refusal becomes
/// ([`respond_http`](Self::respond_http), [`respond`](Self::respond),
/// [`reply`](Self::reply); an error unless said), and how long a request may wait for its turn
/// ([`max_wait`](Self::max_wait); not at all unless said).
///
/// A scope that is known ahead and may wait is acquired by `poll_ready`, so that readiness is
/// backpressure while the limit is spent; anything else is acquired between `call` and the inner
/// call. A service that was made ready and is called more than 100 ms later acquires again, in the
/// response future, and waits for up to `max_wait` there. The inner service must be `Clone`: a caller
/// that has to wait gives its place in it back for the time. One that is not goes behind a `Buffer` first.
///
/// # Examples
///
/// ```
/// use std::convert::Infallible;
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected, Scope};
///
/// const API: Scope = Quota::per_second(10.0).burst(1.0).scope("api");
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let mut service = ServiceBuilder::new()
///     .layer(RateLimitLayer::new(&limiter, API))
///     .service(service_fn(async |n: u32| Ok::<_, Infallible>(n + 1)));
///
/// assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
/// let error = service.ready().await.unwrap().call(1).await.unwrap_err();
/// assert!(Rejected::find(&*error).is_some());
/// # }
/// ```
///
/// # Panics
///
/// A service under this layer panics where [`Limiter::acquire`] does: if a request has to wait or
/// Redis has to be asked, and it is polled outside a Tokio runtime with a timer. A layer in the
/// [shadow](Self::shadow) counts nothing there.
///
/// [`Scope`]: crate::Scope
#[must_use]
#[derive(Clone)]
pub struct RateLimitLayer<K = crate::Scope, O = Fail> {
    pub(super) limiter: Limiter,
    pub(super) extractor: K,
    pub(super) reply: O,
    pub(super) max_wait: Duration,
    pub(super) shadow: bool,
    misses: Misses,
}

impl<K> RateLimitLayer<K> {
    /// Limits by `scope`: a [`Scope`](crate::Scope) or several, an
    /// [extractor](crate::extract), or a closure from a request to something that can stand for
    /// scopes. An un-annotated closure cannot be inferred: write `|req: &http::Request<_>|`.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let limiter = Limiter::in_memory();
    /// let layer = RateLimitLayer::new(&limiter, Quota::per_second(5.0).scope("site"));
    /// ```
    pub fn new(limiter: &Limiter, scope: K) -> Self {
        Self {
            limiter: limiter.clone(),
            extractor: scope,
            reply: Fail::default(),
            max_wait: Duration::ZERO,
            shadow: false,
            misses: Misses::default(),
        }
    }

    /// Answers a refusal over HTTP: 429 with `Retry-After`, or gRPC's RESOURCE_EXHAUSTED to a
    /// gRPC request; see [`HttpReply`].
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http();
    /// ```
    #[cfg(feature = "http")]
    pub fn respond_http(self) -> RateLimitLayer<K, HttpReply> {
        self.reply(HttpReply::default())
    }

    /// Answers a refusal with a response of your own; errors stay those of the inner service.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond(|rejected: &Rejected| format!("slow down: {rejected}"));
    /// ```
    pub fn respond<Res, F: Fn(&Rejected) -> Res>(self, f: F) -> RateLimitLayer<K, Respond<F>> {
        self.reply(Respond::new(f))
    }

    /// Answers by a [`Reply`](crate::reply::Reply) of your own.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, reply::Fail};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .reply(Fail::default());
    /// ```
    pub fn reply<P>(self, reply: P) -> RateLimitLayer<K, P> {
        self.map_reply(|_| reply)
    }
}

#[cfg(feature = "http")]
impl<K> RateLimitLayer<K, HttpReply> {
    /// Gives refusals over HTTP a body: a problem document, as of RFC 9457. The type of the body
    /// must be made from a `String`, as that of axum is.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http()
    ///     .problem_json();
    /// ```
    pub fn problem_json(self) -> RateLimitLayer<K, HttpReply<ProblemJson>> {
        self.map_reply(HttpReply::problem_json)
    }
}

#[cfg(feature = "http")]
impl<K, T> RateLimitLayer<K, HttpReply<T>> {
    /// Which fields tell of the limit, on refusals and on other answers; those of the IETF's
    /// draft unless said.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, reply::HeaderStyle};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http()
    ///     .headers(HeaderStyle::Legacy);
    /// ```
    pub fn headers(self, style: HeaderStyle) -> Self {
        self.map_reply(|reply| reply.headers(style))
    }
}

impl<K, O> RateLimitLayer<K, O> {
    /// How long a request may wait for its reservation. Defaults to zero; at most 30 years. The time
    /// in the queue for Redis counts towards it, the call to Redis comes on top:
    /// see [`Limiter::acquire`].
    ///
    /// A timeout outside this layer does not cover a wait in `poll_ready`; this bound does.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("out"))
    ///     .max_wait(Duration::from_secs(30));
    /// ```
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait.min(LONGEST_WAIT);
        self
    }

    /// Only watches, to try a limit on real traffic: every request passes at once, and its
    /// response is left as it is, while the layer decides beside it and counts what it would have
    /// refused, as `shadow_rejected` (feature `metrics`; see `docs/metrics.md`).
    ///
    /// Tokens are taken as they would be: a request that would be admitted takes them, now or at
    /// the turn for which it would wait; one that would be refused takes none. So a layer in the
    /// shadow shares its buckets with one that is not, if they have the same names: give it names
    /// of its own. [`settle`](Self::settle) corrects what was decided by the time the response is
    /// there. [`on_response`](Self::on_response) does not run, because it could change the
    /// response, and the handle of [`expose_permit`](Self::expose_permit) settles nothing; that of
    /// a layer outside stays where it is. Nobody is held up, so with a [`max_wait`](Self::max_wait)
    /// up to `rate * max_wait` small tasks wait for turns beside the requests.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("new"))
    ///     .shadow(true);
    /// ```
    pub fn shadow(mut self, only_watches: bool) -> Self {
        self.shadow = only_watches;
        self
    }

    /// Corrects the cost once the response is known; `None` lets the estimate stand.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// struct Answer { tokens: f64 }
    /// let tokens = Quota::per_minute(90_000.0).scope("llm-tokens").cost(1_200.0);
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), tokens)
    ///     .settle(|answer: &Answer| Some(answer.tokens));
    /// ```
    pub fn settle<Res, F: Fn(&Res) -> Option<f64>>(
        self,
        actual: F,
    ) -> RateLimitLayer<K, Settle<O, F>> {
        self.map_reply(|reply| Settle::new(reply, actual))
    }

    /// Runs `hook` on each response of the inner service, with the permit that let it through.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Permit, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .on_response(|permit: &mut Permit, answer: &mut String| {
    ///         if permit.is_degraded() {
    ///             answer.push('*');
    ///         }
    ///     });
    /// ```
    pub fn on_response<Res, F: Fn(&mut Permit, &mut Res)>(
        self,
        hook: F,
    ) -> RateLimitLayer<K, OnResponse<O, F>> {
        self.map_reply(|reply| OnResponse::new(reply, hook))
    }

    /// Learns from each answer what the upstream says of its limits, for all processes: see
    /// [`Upstream`](crate::upstream::Upstream). For a service that answers with an
    /// `http::Response`.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, upstream::Upstream};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"))
    ///     .learn(Upstream::github());
    /// ```
    #[cfg(feature = "learn")]
    pub fn learn(self, upstream: Upstream) -> RateLimitLayer<K, Learn<O>> {
        self.limiter.announce_pauses();
        self.map_reply(|reply| Learn::new(reply, upstream, HttpParts))
    }

    /// As [`learn`](Self::learn), for any other service: `parts` finds status and headers in its
    /// answers, such as `|res: &reqwest::Response| (res.status(), res.headers())`.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, upstream::Upstream};
    /// struct Answer { status: http::StatusCode, headers: http::HeaderMap }
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"))
    ///     .learn_from(Upstream::github(), |answer: &Answer| (answer.status, &answer.headers));
    /// ```
    #[cfg(feature = "learn")]
    pub fn learn_from<Res, F>(self, upstream: Upstream, parts: F) -> RateLimitLayer<K, Learn<O, F>>
    where
        F: for<'a> Fn(&'a Res) -> (http::StatusCode, &'a http::HeaderMap),
    {
        self.limiter.announce_pauses();
        self.map_reply(|reply| Learn::new(reply, upstream, parts))
    }

    /// Puts a [`PermitHandle`](crate::PermitHandle) into the extensions of each
    /// `http::Request`, so that whoever serves it can settle its cost.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http()
    ///     .expose_permit();
    /// ```
    #[cfg(feature = "http")]
    pub fn expose_permit(self) -> RateLimitLayer<K, ExposePermit<O>> {
        self.map_reply(ExposePermit::new)
    }

    fn map_reply<P>(self, f: impl FnOnce(O) -> P) -> RateLimitLayer<K, P> {
        RateLimitLayer {
            limiter: self.limiter,
            extractor: self.extractor,
            reply: f(self.reply),
            max_wait: self.max_wait,
            shadow: self.shadow,
            misses: self.misses,
        }
    }

    /// The scopes of this request.
    #[inline]
    pub(super) fn scopes<Req>(&self, req: &Req) -> Scopes
    where
        K: ScopeExtractor<Req>,
    {
        if let Some(scopes) = self.extractor.fixed() {
            return scopes;
        }
        let scopes = self.extractor.extract(req);
        if self.extractor.is_unwatched() && self.misses.reach_limit(scopes.as_slice().is_empty()) {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                extractor = std::any::type_name::<K>(),
                "a layer has limited none of its first {} requests: its closure returned no scope",
                Misses::LIMIT,
            );
        }
        scopes
    }
}

impl<S, K: Clone, O: Clone> Layer<S> for RateLimitLayer<K, O> {
    type Service = RateLimit<S, K, O>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.clone())
    }
}

impl<K, O> fmt::Debug for RateLimitLayer<K, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("limiter", &self.limiter)
            .field("max_wait", &self.max_wait)
            .field("shadow", &self.shadow)
            .finish_non_exhaustive()
    }
}
