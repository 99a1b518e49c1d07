//! [`RateLimitLayer`]: the layer and its options.

use std::{fmt, time::Duration};

use tower_layer::Layer;

use super::{config::Config, handlers::Handlers, service::RateLimit};
#[cfg(feature = "learn")]
use crate::upstream::{HttpParts, Learn, Upstream};
use crate::{
    clock::LONGEST_WAIT,
    extract::Misses,
    hook::Settle,
    limiter::{Limiter, Permit},
    rejected::Rejected,
    reply::Fail,
};
#[cfg(feature = "http")]
use crate::{
    hook::ExposePermit,
    reply::{HeaderStyle, HttpReply, ProblemJson},
};

/// Applies a rate limit to any tower `Service`.
///
/// It has three parts:
///
/// - the limit: a [`Scope`], several, or an [extractor](crate::extract) that finds them in the
///   request;
/// - the reply: what a rejection becomes. Defaults to an error; see
///   [`respond_http`](Self::respond_http), [`respond`](Self::respond) and [`reply`](Self::reply);
/// - the wait: how long a request may wait for its reservation. Defaults to zero; see
///   [`max_wait`](Self::max_wait).
///
/// A scope that is known in advance and may wait is acquired by `poll_ready`, so that the service
/// is not ready while the limit is exceeded. Everything else is acquired after `call`, before the
/// inner service is called. A service that is called more than 100 ms after it was ready acquires
/// again in the response future, and waits for up to `max_wait` there.
///
/// The inner service must be `Clone`: while a caller waits, its ready inner service is replaced by
/// a clone, so that others can use the capacity. Put a service that is not `Clone` behind a
/// `Buffer`.
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
/// The service panics if a request has to wait or to call Redis, and is polled outside a Tokio
/// runtime with a timer, like [`Limiter::acquire`]. In [shadow mode](Self::shadow) it does not
/// panic, and does not count such a request.
///
/// [`Scope`]: crate::Scope
#[must_use]
#[derive(Clone)]
pub struct RateLimitLayer<K = crate::scope::Scope, R = Fail, H = ()> {
    config: Config<K>,
    handlers: Handlers<R, H>,
}

impl<K> RateLimitLayer<K> {
    /// Limits requests by `scope`: a [`Scope`](crate::Scope) or several, an
    /// [extractor](crate::extract), or a closure from a request to scopes. The parameter of a
    /// closure needs a type: `|req: &http::Request<_>|`.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let limiter = Limiter::in_memory();
    /// let layer = RateLimitLayer::new(&limiter, Quota::per_second(5.0).scope("site"));
    /// ```
    pub fn new(limiter: &Limiter, scope: K) -> Self {
        Self {
            config: Config {
                limiter: limiter.clone(),
                extractor: scope,
                max_wait: Duration::ZERO,
                shadow: false,
                misses: Misses::default(),
            },
            handlers: Handlers {
                reply: Fail::default(),
                hooks: (),
            },
        }
    }
}

impl<K, H> RateLimitLayer<K, Fail, H> {
    /// Answers a rejection over HTTP: 429 with `Retry-After`, or RESOURCE_EXHAUSTED for a gRPC
    /// request; see [`HttpReply`].
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http();
    /// ```
    #[cfg(feature = "http")]
    pub fn respond_http(self) -> RateLimitLayer<K, HttpReply, H> {
        self.reply(HttpReply::default())
    }

    /// Answers a rejection with the response that `f` makes of it. Errors of the inner service are
    /// unchanged.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond(|rejected: &Rejected| format!("slow down: {rejected}"));
    /// ```
    pub fn respond<Res, F: Fn(&Rejected) -> Res>(self, f: F) -> RateLimitLayer<K, F, H> {
        self.reply(f)
    }

    /// Answers a rejection with a [`Reply`](crate::reply::Reply).
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, reply::Fail};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .reply(Fail::default());
    /// ```
    pub fn reply<R>(self, reply: R) -> RateLimitLayer<K, R, H> {
        self.map_reply(|_| reply)
    }
}

#[cfg(feature = "http")]
impl<K, H> RateLimitLayer<K, HttpReply, H> {
    /// Adds a problem document (RFC 9457) as the body of rejections over HTTP. The body type must
    /// implement `From<String>`, as that of axum does.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http()
    ///     .problem_json();
    /// ```
    pub fn problem_json(self) -> RateLimitLayer<K, HttpReply<ProblemJson>, H> {
        self.map_reply(HttpReply::problem_json)
    }
}

#[cfg(feature = "http")]
impl<K, T, H> RateLimitLayer<K, HttpReply<T>, H> {
    /// The rate-limit fields of rejections and other responses. Defaults to
    /// [`HeaderStyle::Draft`].
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

impl<K, R, H> RateLimitLayer<K, R, H> {
    /// How long a request may wait for its reservation. Defaults to zero; at most 30 years.
    ///
    /// The time in the queue for Redis is part of it, the call to Redis is not: see
    /// [`Limiter::acquire`]. It also bounds the wait in `poll_ready`. A `Timeout` layer outside
    /// this one does not, because it covers the response future only.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("out"))
    ///     .max_wait(Duration::from_secs(30));
    /// ```
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.config.max_wait = max_wait.min(LONGEST_WAIT);
        self
    }

    /// Enables shadow mode, a dry run on real traffic. Defaults to `false`.
    ///
    /// Every request passes at once and its response is unchanged. The layer decides on it at the
    /// same time, and counts the requests that it would have rejected as `shadow_rejected` (feature
    /// `metrics`; see `docs/metrics.md`).
    ///
    /// A request that would be admitted takes its tokens, at once or when its reservation is due.
    /// One that would be rejected takes none. Use scopes with names of their own: a layer in
    /// shadow mode shares its buckets with other layers whose scopes have the same names.
    ///
    /// [`settle`](Self::settle) corrects a cost if the decision was made by the time of the
    /// response. [`on_response`](Self::on_response) and `learn` do nothing. The handle of
    /// [`expose_permit`](Self::expose_permit) settles nothing; a handle that an outer layer has
    /// inserted is kept. With a [`max_wait`](Self::max_wait), up to `rate * max_wait` small tasks
    /// wait for reservations.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("new"))
    ///     .shadow(true);
    /// ```
    pub fn shadow(mut self, enabled: bool) -> Self {
        self.config.shadow = enabled;
        self
    }

    /// Corrects the cost to `actual(response)`, in tokens. `None` keeps the estimate.
    ///
    /// Runs before all other hooks.
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
    ) -> RateLimitLayer<K, R, (Settle<F>, H)> {
        self.map(|Handlers { reply, hooks }| Handlers {
            reply,
            hooks: (Settle::new(actual), hooks),
        })
    }

    /// Runs `hook` on each response of the inner service, with the permit of its request.
    ///
    /// Hooks run in the order in which they are added, before
    /// [`respond_http`](Self::respond_http) writes its fields.
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
    ) -> RateLimitLayer<K, R, (H, F)> {
        self.hook(hook)
    }

    /// Adds a [`Hook`](crate::hook::Hook), which runs before and after each inner call.
    ///
    /// Hooks run in the order in which they are added.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Permit, Quota, RateLimitLayer, hook::Hook};
    /// #[derive(Clone)]
    /// struct Log;
    ///
    /// impl<Req, Res> Hook<Req, Res> for Log {
    ///     fn on_request(&self, permit: &mut Permit, _: &mut Req) {
    ///         println!("admitted: {permit:?}");
    ///     }
    /// }
    ///
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .hook(Log);
    /// ```
    pub fn hook<H2>(self, hook: H2) -> RateLimitLayer<K, R, (H, H2)> {
        self.map(|Handlers { reply, hooks }| Handlers {
            reply,
            hooks: (hooks, hook),
        })
    }

    /// Adjusts the buckets of all processes by the upstream's rate-limit headers: see
    /// [`Upstream`](crate::upstream::Upstream). For a service that returns `http::Response`.
    ///
    /// Add it before a hook that rewrites these headers.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, upstream::Upstream};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"))
    ///     .learn(Upstream::github());
    /// ```
    #[cfg(feature = "learn")]
    pub fn learn(self, upstream: Upstream) -> RateLimitLayer<K, R, (H, Learn)> {
        self.config.limiter.announce_pauses();
        self.hook(Learn::new(upstream, HttpParts))
    }

    /// [`learn`](Self::learn) for any other service: `parts` finds the status and the headers of a
    /// response, such as `|res: &reqwest::Response| (res.status(), res.headers())`.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, upstream::Upstream};
    /// struct Answer { status: http::StatusCode, headers: http::HeaderMap }
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"))
    ///     .learn_from(Upstream::github(), |answer: &Answer| (answer.status, &answer.headers));
    /// ```
    #[cfg(feature = "learn")]
    pub fn learn_from<Res, F>(
        self,
        upstream: Upstream,
        parts: F,
    ) -> RateLimitLayer<K, R, (H, Learn<F>)>
    where
        F: for<'a> Fn(&'a Res) -> (http::StatusCode, &'a http::HeaderMap),
    {
        self.config.limiter.announce_pauses();
        self.hook(Learn::new(upstream, parts))
    }

    /// Inserts a [`PermitHandle`](crate::PermitHandle) into the extensions of each
    /// `http::Request`, so that its handler can settle the cost.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("site"))
    ///     .respond_http()
    ///     .expose_permit();
    /// ```
    #[cfg(feature = "http")]
    pub fn expose_permit(self) -> RateLimitLayer<K, R, (H, ExposePermit)> {
        self.hook(ExposePermit)
    }

    fn map_reply<R2>(self, f: impl FnOnce(R) -> R2) -> RateLimitLayer<K, R2, H> {
        self.map(|Handlers { reply, hooks }| Handlers {
            reply: f(reply),
            hooks,
        })
    }

    fn map<R2, H2>(
        self,
        f: impl FnOnce(Handlers<R, H>) -> Handlers<R2, H2>,
    ) -> RateLimitLayer<K, R2, H2> {
        RateLimitLayer {
            config: self.config,
            handlers: f(self.handlers),
        }
    }
}

impl<S, K: Clone, R: Clone, H: Clone> Layer<S> for RateLimitLayer<K, R, H> {
    type Service = RateLimit<S, K, R, H>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.config.clone(), self.handlers.clone())
    }
}

impl<K, R, H> fmt::Debug for RateLimitLayer<K, R, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
