//! [`RateLimit`]: the rate-limited service.

use std::{
    fmt, mem,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_service::Service;

use super::{
    config::Config,
    future::ResponseFuture,
    handlers::Handlers,
    readiness::{Readiness, is_current},
    shadow::ShadowDecision,
};
use crate::{
    extract::ScopeExtractor,
    hook::Hook,
    rejected::Rejected,
    reply::{Fail, Reply},
    scope::Scopes,
};

/// A rate-limited service; made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// A clone shares the limiter, but no acquired tokens. Dropping the service gives tokens back that
/// `poll_ready` has acquired. Tokens that are not used within 100 ms are given back as well, less
/// what the bucket has refilled since, and acquired again.
///
/// # Examples
///
/// ```
/// use std::convert::Infallible;
/// use tower::{Layer, service_fn};
/// use tower_throttle::{Limiter, Quota, RateLimit, RateLimitLayer};
///
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"));
/// let service: RateLimit<_> = layer.layer(service_fn(async |n: u32| Ok::<_, Infallible>(n)));
/// ```
pub struct RateLimit<S, K = crate::scope::Scope, R = Fail, H = ()> {
    inner: S,
    config: Config<K>,
    handlers: Handlers<R, H>,
    readiness: Readiness,
}

impl<S, K, R, H> RateLimit<S, K, R, H> {
    pub(super) fn new(inner: S, config: Config<K>, handlers: Handlers<R, H>) -> Self {
        Self {
            inner,
            config,
            handlers,
            readiness: Readiness::default(),
        }
    }

    /// The inner service.
    ///
    /// ```
    /// # use tower::{Layer, service_fn};
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let inner = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n));
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"));
    /// let service = layer.layer(inner);
    /// let _inner = service.get_ref();
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Calls to it are not limited.
    ///
    /// ```
    /// # use tower::{Layer, service_fn};
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let inner = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n));
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"));
    /// let mut service = layer.layer(inner);
    /// let _inner = service.get_mut();
    /// ```
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Removes the limit and returns the inner service.
    ///
    /// ```
    /// # use tower::{Layer, service_fn};
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer};
    /// let inner = service_fn(async |n: u32| Ok::<_, std::convert::Infallible>(n));
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), Quota::per_second(5.0).scope("api"));
    /// let _inner = layer.layer(inner).into_inner();
    /// ```
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, K, R, H, Req> Service<Req> for RateLimit<S, K, R, H>
where
    S: Service<Req> + Clone,
    K: ScopeExtractor<Req>,
    R: Reply<Req, S::Response, S::Error> + Clone,
    H: Hook<Req, S::Response> + Clone,
{
    type Response = S::Response;
    type Error = R::Error;
    type Future = ResponseFuture<S, Req, R, H>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let Self {
            inner,
            config,
            handlers: Handlers { reply, .. },
            readiness,
        } = self;
        if config.max_wait.is_zero() || config.shadow {
            let ready = inner.poll_ready(cx);
            return ready.map_err(|error| reply.inner_error(error));
        }
        readiness.drop_old();
        // The acquisition is polled even if the inner service is not ready: otherwise its tokens
        // would be kept until that is. While it waits for a reservation, it needs no ready inner
        // service, so that is not polled.
        if readiness.poll_acquire(cx).is_pending() && readiness.release_if_reserved(inner) {
            return Poll::Pending;
        }
        match inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(reply.inner_error(error))),
            Poll::Pending => {
                readiness.poll_hold(cx);
                return Poll::Pending;
            }
        }
        match config.extractor.fixed() {
            Some(scopes) => readiness
                .poll_scopes(&scopes, &config.limiter, config.max_wait, inner, cx)
                .map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        if self.config.shadow {
            return self.call_in_shadow(req);
        }
        // The deadline of an earlier request must not shorten the wait of this one.
        let Readiness::Idle { until: None } = self.readiness else {
            return self.call_slow(None, req);
        };
        let config = &self.config;
        let mut extracted = None;
        let scopes = match config.extractor.fixed_ref() {
            Some(scopes) => scopes,
            None => extracted.insert(config.scopes(&req)).as_slice(),
        };
        if let [scope] = scopes
            && let Some(decision) = config.limiter.decide_locally(scope, config.max_wait, false)
        {
            let handlers = self.handlers.clone();
            return match decision {
                Ok(level) => {
                    let uses = handlers.use_permit::<Req, S::Response, S::Error>();
                    let permit = uses.then(|| config.limiter.permit(scope, level));
                    ResponseFuture::granted(&mut self.inner, handlers, permit, req)
                }
                Err(retry_after) => {
                    let rejected = Rejected::limited(scope, retry_after, 0.0, false);
                    self.reject(handlers, rejected, req)
                }
            };
        }
        self.call_slow(extracted, req)
    }
}

impl<S, K, R, H> RateLimit<S, K, R, H> {
    /// Uses what `poll_ready` has acquired, otherwise acquires.
    #[inline(never)]
    fn call_slow<Req>(&mut self, scopes: Option<Scopes>, req: Req) -> ResponseFuture<S, Req, R, H>
    where
        S: Service<Req> + Clone,
        K: ScopeExtractor<Req>,
        R: Reply<Req, S::Response, S::Error> + Clone,
        H: Hook<Req, S::Response> + Clone,
    {
        let handlers = self.handlers.clone();
        let (acquire, until, ready) = match mem::take(&mut self.readiness) {
            Readiness::Held { permit, .. } if !permit.is_old() => {
                return ResponseFuture::granted(&mut self.inner, handlers, permit.spend(), req);
            }
            Readiness::Rejected { rejected, at } if is_current(&rejected, at) => {
                return self.reject(handlers, rejected, req);
            }
            Readiness::Acquiring {
                acquire,
                until,
                ready,
                ..
            } if !acquire.has_missed() => (acquire, until, ready),
            Readiness::Idle { until: None } => {
                let config = &self.config;
                let scopes = scopes.unwrap_or_else(|| config.scopes(&req));
                let mut acquire = config.limiter.acquire_undecided(scopes, config.max_wait);
                match acquire.decide_now() {
                    Some(Ok(permit)) => {
                        let permit = Some(permit);
                        return ResponseFuture::granted(&mut self.inner, handlers, permit, req);
                    }
                    Some(Err(rejected)) => return self.reject(handlers, rejected, req),
                    None => (acquire, Instant::now() + config.max_wait, true),
                }
            }
            old => {
                // Tokens that are too old are given back before the request acquires its own.
                drop(old);
                return self.call(req);
            }
        };
        let limiter = self.config.limiter.clone();
        // The clone stays here: the service that returned ready is the one to call.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        ResponseFuture::acquiring(inner, ready, handlers, acquire, until, limiter, req)
    }

    /// Calls the inner service at once and acquires at the same time.
    #[inline(never)]
    fn call_in_shadow<Req>(&mut self, req: Req) -> ResponseFuture<S, Req, R, H>
    where
        S: Service<Req> + Clone,
        K: ScopeExtractor<Req>,
        R: Reply<Req, S::Response, S::Error> + Clone,
        H: Hook<Req, S::Response> + Clone,
    {
        let handlers = self.handlers.clone();
        let uses = handlers.use_permit::<Req, S::Response, S::Error>();
        let config = &self.config;
        let scopes = config.scopes(&req);
        let decision = ShadowDecision::start(&config.limiter, scopes, config.max_wait, uses);
        let stand_in = uses.then(|| config.limiter.unmetered_permit());
        ResponseFuture::in_shadow(&mut self.inner, handlers, decision, stand_in, req)
    }

    /// Replaces the inner service by a clone that is not ready, because it will not be called:
    /// until then it would occupy capacity that other callers can use.
    fn reject<Req>(
        &mut self,
        handlers: Handlers<R, H>,
        rejected: Rejected,
        req: Req,
    ) -> ResponseFuture<S, Req, R, H>
    where
        S: Service<Req> + Clone,
        R: Reply<Req, S::Response, S::Error>,
        H: Hook<Req, S::Response>,
    {
        self.inner = self.inner.clone();
        ResponseFuture::rejected(handlers, rejected, req)
    }
}

impl<S: Clone, K: Clone, R: Clone, H: Clone> Clone for RateLimit<S, K, R, H> {
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.config.clone(),
            self.handlers.clone(),
        )
    }
}

impl<S: fmt::Debug, K, R, H> fmt::Debug for RateLimit<S, K, R, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
