//! [`RateLimit`]: readiness and calls.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::{future::ResponseFuture, layer::RateLimitLayer, shadow::Watched};
use crate::{
    Rejected, Scopes,
    extract::ScopeExtractor,
    limiter::{Acquire, Permit, TOLERANCE},
    reply::{Fail, Reply},
};

/// How long a turn that has come is held for an inner service that is no longer ready. After
/// that it is given back and a new one asked for, within the same deadline: a token that is used
/// late crowds those whose turn it is then.
pub(super) const HOLD: Duration = Duration::from_millis(10);

/// A service under a limit; made by [`RateLimitLayer`].
///
/// A clone shares the limiter, never a token in hand. Dropping it gives back what it holds. A
/// token that was acquired by `poll_ready` and not used within 100 ms is given back as well,
/// except for what its bucket has refilled since, and asked for again.
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
pub struct RateLimit<S, K = crate::Scope, O = Fail> {
    inner: S,
    layer: RateLimitLayer<K, O>,
    state: State,
}

/// What `poll_ready` holds. Only a scope that is known ahead and may wait leaves `Idle`.
///
/// ```text
/// Idle => Acquiring            the inner service is ready
/// Acquiring => Held            granted
/// Acquiring => Refused         refused: for `call` to deliver, never for `poll_ready`
/// Held => Idle                 the inner service stayed unready for too long, or nobody called
/// Refused => Idle              its `retry_after` has passed
/// ```
#[derive(Debug)]
enum State {
    Idle {
        /// Until when to wait, where a token was given back and is asked for again.
        until: Option<Instant>,
    },
    Acquiring {
        acquire: Acquire,
        until: Instant,
        /// Whether the inner service is the one that was made ready.
        ready: bool,
        /// Whether `poll_ready` has said ready meanwhile: then it says so until the call.
        offered: bool,
    },
    Held {
        permit: HeldPermit,
        until: Instant,
        /// Set while the inner service is not ready.
        hold: Option<Pin<Box<Sleep>>>,
    },
    Refused {
        rejected: Rejected,
        at: Instant,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Idle { until: None }
    }
}

impl State {
    fn decided(result: Result<Permit, Rejected>, due: Instant, until: Instant) -> Self {
        match result {
            Ok(permit) => Self::Held {
                permit: HeldPermit::new(permit, due),
                until,
                hold: None,
            },
            Err(rejected) => Self::Refused {
                rejected,
                at: Instant::now(),
            },
        }
    }

    /// Whether the acquisition waits for a turn that is known to come later.
    fn is_asleep(&self) -> bool {
        matches!(
            self,
            Self::Acquiring { acquire, offered: false, .. }
                if acquire.is_reserved()
        )
    }

    fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Acquiring { acquire, until, .. } = self {
            let until = *until;
            let result = ready!(Pin::new(&mut *acquire).poll(cx));
            *self = Self::decided(result, acquire.due(), until);
        }
        Poll::Ready(())
    }

    /// Gives up what has been kept for too long: a token that is used late crowds those whose
    /// turn it is then. Within the deadline it is asked for again; after that this is for another
    /// request.
    fn drop_old(&mut self) {
        let old = match self {
            Self::Held { permit, until, .. } if permit.is_old() => *until,
            Self::Acquiring { acquire, until, .. } if acquire.has_missed() => *until,
            _ => return,
        };
        let in_time = Instant::now() <= old;
        match self {
            // It asks again by itself.
            Self::Acquiring { .. } if in_time => {}
            _ => {
                let until = in_time.then_some(old);
                *self = Self::Idle { until };
            }
        }
    }
}

fn is_current(rejected: &Rejected, at: Instant) -> bool {
    rejected
        .retry_after()
        .is_none_or(|retry_after| at.elapsed() < retry_after)
}

/// A permit that is not spent yet: dropped, it is given back.
#[derive(Debug)]
pub(super) struct HeldPermit {
    permit: Option<Permit>,
    /// When its tokens were to be used.
    due: Instant,
}

impl HeldPermit {
    pub(super) fn new(permit: Permit, due: Instant) -> Self {
        let permit = Some(permit);
        Self { permit, due }
    }

    /// Whether it is too late to use it.
    pub(super) fn is_old(&self) -> bool {
        self.due.elapsed() > TOLERANCE
    }

    /// What to ask for again, should this be given back.
    pub(super) fn scopes(&self) -> Scopes {
        self.permit
            .as_ref()
            .map(|permit| permit.scopes().to_vec().into())
            .unwrap_or_default()
    }

    /// The inner service is called now.
    pub(super) fn spend(mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.give_back_late(self.due);
        }
    }
}

impl<S, K, O> RateLimit<S, K, O> {
    pub(super) fn new(inner: S, layer: RateLimitLayer<K, O>) -> Self {
        Self {
            inner,
            layer,
            state: State::default(),
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

    /// The inner service. Whoever makes it ready or calls it here does so past the limit.
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

    /// The inner service, without the limit.
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

impl<S, K, O> RateLimit<S, K, O>
where
    S: Clone,
{
    /// Drives the acquisition of scopes that are known ahead, the inner service being ready.
    fn poll_scopes(&mut self, scopes: &Scopes, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.state {
                State::Idle { until } => {
                    let now = Instant::now();
                    let until = until.unwrap_or(now + self.layer.max_wait);
                    let max_wait = until.saturating_duration_since(now);
                    self.state = State::Acquiring {
                        acquire: self.layer.limiter.acquire(scopes, max_wait),
                        until,
                        ready: true,
                        offered: false,
                    };
                }
                State::Acquiring { ready, .. } => {
                    *ready = true;
                    if self.state.poll_acquire(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    if self.falls_asleep() {
                        return Poll::Pending;
                    }
                    // Where tokens abound, the response future finishes this: waiting for the
                    // round trip here would put all callers of a shared service in a row.
                    let limiter = &self.layer.limiter;
                    let scarce = || limiter.is_scarce(scopes.as_slice());
                    if let State::Acquiring { offered, .. } = &mut self.state
                        && (*offered || !scarce())
                    {
                        *offered = true;
                        return Poll::Ready(());
                    }
                    return Poll::Pending;
                }
                State::Held { hold, .. } => {
                    *hold = None;
                    return Poll::Ready(());
                }
                State::Refused { rejected, at } => {
                    if is_current(rejected, *at) {
                        return Poll::Ready(());
                    }
                    self.state = State::default();
                }
            }
        }
    }

    /// Whether the acquisition sleeps. Never does it so while holding a place in the inner service
    /// that others could use.
    fn falls_asleep(&mut self) -> bool {
        let asleep = self.state.is_asleep();
        if asleep
            && let State::Acquiring { ready, .. } = &mut self.state
            && mem::take(ready)
        {
            self.inner = self.inner.clone();
        }
        asleep
    }

    /// The inner service is not ready: a turn that has come is held for a moment only, then
    /// given back.
    fn poll_hold(&mut self, cx: &mut Context<'_>) {
        if let State::Held { until, hold, .. } = &mut self.state {
            let until = *until;
            let timer = hold.get_or_insert_with(|| Box::pin(tokio::time::sleep(HOLD)));
            if timer.as_mut().poll(cx).is_ready() {
                self.state = State::Idle { until: Some(until) };
            }
        }
    }
}

impl<S, K, O, Req> Service<Req> for RateLimit<S, K, O>
where
    S: Service<Req> + Clone,
    K: ScopeExtractor<Req>,
    O: Reply<Req, S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = O::Error;
    type Future = ResponseFuture<S, Req, O>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.layer.max_wait.is_zero() || self.layer.shadow {
            let ready = self.inner.poll_ready(cx);
            return ready.map_err(|error| self.layer.reply.inner_error(error));
        }
        self.state.drop_old();
        // A turn is heard of when it comes, whether or not the inner service is ready: unheard, it
        // would be kept for as long as that takes. In its sleep an acquisition holds no place in
        // the inner service, so none is asked for before.
        if self.state.poll_acquire(cx).is_pending() && self.falls_asleep() {
            return Poll::Pending;
        }
        match self.inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                return Poll::Ready(Err(self.layer.reply.inner_error(error)));
            }
            Poll::Pending => {
                self.poll_hold(cx);
                return Poll::Pending;
            }
        }
        match self.layer.extractor.fixed() {
            Some(scopes) => self.poll_scopes(&scopes, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        if self.layer.shadow {
            return self.call_in_shadow(req);
        }
        // Of an older request, `until` must not cut the wait of the next.
        let State::Idle { until: None } = self.state else {
            return self.call_held(req);
        };
        let Self { inner, layer, .. } = self;
        let mut extracted = None;
        let scopes = match layer.extractor.fixed_ref() {
            Some(scopes) => scopes,
            None => extracted.insert(layer.scopes(&req)).as_slice(),
        };
        if let [scope] = scopes
            && let Some(decision) = layer.limiter.decide_locally(scope, layer.max_wait, false)
        {
            return match decision {
                Ok(level) => {
                    let reply = layer.reply.clone();
                    let uses = reply.uses_permit();
                    let permit = uses.then(|| layer.limiter.permit(scope, level));
                    ResponseFuture::granted(inner, reply, permit, req)
                }
                Err(retry_after) => {
                    let rejected = Rejected::limited(scope, retry_after, 0.0, false);
                    self.refused(rejected, req)
                }
            };
        }
        self.call_acquiring(extracted, req)
    }
}

impl<S, K, O> RateLimit<S, K, O> {
    /// With what `poll_ready` has brought about.
    #[inline(never)]
    fn call_held<Req>(&mut self, req: Req) -> ResponseFuture<S, Req, O>
    where
        S: Service<Req> + Clone,
        K: ScopeExtractor<Req>,
        O: Reply<Req, S::Response, S::Error> + Clone,
    {
        let reply = self.layer.reply.clone();
        match mem::take(&mut self.state) {
            State::Held { permit, .. } if !permit.is_old() => {
                ResponseFuture::granted(&mut self.inner, reply, permit.spend(), req)
            }
            State::Refused { rejected, at } if is_current(&rejected, at) => {
                self.refused(rejected, req)
            }
            State::Acquiring {
                acquire,
                until,
                ready,
                ..
            } if !acquire.has_missed() => self.acquiring(acquire, until, ready, req),
            // What is too old for this request is given back before it asks for its own.
            old => {
                drop(old);
                self.call(req)
            }
        }
    }

    /// Decides beside the request, which goes on at once.
    #[inline(never)]
    fn call_in_shadow<Req>(&mut self, req: Req) -> ResponseFuture<S, Req, O>
    where
        S: Service<Req> + Clone,
        K: ScopeExtractor<Req>,
        O: Reply<Req, S::Response, S::Error> + Clone,
    {
        let layer = &self.layer;
        let reply = layer.reply.clone();
        let scopes = layer.scopes(&req);
        let uses = reply.uses_permit();
        let watched = Watched::decide(&layer.limiter, scopes, layer.max_wait, uses);
        let stands_in = uses.then(|| layer.limiter.unmetered_permit());
        ResponseFuture::watched(&mut self.inner, reply, watched, stands_in, req)
    }

    #[inline(never)]
    fn call_acquiring<Req>(&mut self, scopes: Option<Scopes>, req: Req) -> ResponseFuture<S, Req, O>
    where
        S: Service<Req> + Clone,
        K: ScopeExtractor<Req>,
        O: Reply<Req, S::Response, S::Error> + Clone,
    {
        self.state = State::default();
        let layer = &self.layer;
        let reply = layer.reply.clone();
        let scopes = scopes.unwrap_or_else(|| layer.scopes(&req));
        let mut acquire = layer.limiter.acquire_undecided(scopes, layer.max_wait);
        match acquire.decide_now() {
            Some(Ok(permit)) => ResponseFuture::granted(&mut self.inner, reply, Some(permit), req),
            Some(Err(rejected)) => self.refused(rejected, req),
            None => {
                let until = Instant::now() + layer.max_wait;
                self.acquiring(acquire, until, true, req)
            }
        }
    }

    /// Nobody will call the inner service: it gives up what it was made ready with, which others
    /// could use.
    fn refused<Req>(&mut self, rejected: Rejected, req: Req) -> ResponseFuture<S, Req, O>
    where
        S: Service<Req> + Clone,
        O: Reply<Req, S::Response, S::Error> + Clone,
    {
        self.inner = self.inner.clone();
        ResponseFuture::refused(self.layer.reply.clone(), rejected, req)
    }

    fn acquiring<Req>(
        &mut self,
        acquire: Acquire,
        until: Instant,
        ready: bool,
        req: Req,
    ) -> ResponseFuture<S, Req, O>
    where
        S: Service<Req> + Clone,
        O: Reply<Req, S::Response, S::Error> + Clone,
    {
        let reply = self.layer.reply.clone();
        let limiter = self.layer.limiter.clone();
        // The service that was made ready is the one that is called.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        ResponseFuture::acquiring(inner, ready, reply, acquire, until, limiter, req)
    }
}

impl<S: Clone, K: Clone, O: Clone> Clone for RateLimit<S, K, O> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.layer.clone())
    }
}

impl<S: fmt::Debug, K, O> fmt::Debug for RateLimit<S, K, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}
