//! [`ResponseFuture`]: from the call to the response.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::{
    handlers::Handlers,
    held_permit::{HOLD, HeldPermit},
    shadow::ShadowDecision,
};
use crate::{
    hook::Hook,
    limiter::{Acquire, Limiter, Permit},
    rejected::Rejected,
    reply::Reply,
    scope::Scopes,
};

pin_project! {
    /// The response of a [`RateLimit`](crate::RateLimit).
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it has called the inner service, it gives its tokens back and
    /// cancels its reservations.
    pub struct ResponseFuture<S, Req, R, H = ()>
    where
        S: Service<Req>,
        R: Reply<Req, S::Response, S::Error>,
    {
        handlers: Handlers<R, H>,
        #[pin]
        state: State<S, Req, S::Future, Result<S::Response, R::Error>>,
    }
}

pin_project! {
    /// Small, because it is moved: the fields of requests that wait are boxed.
    ///
    /// ```text
    /// Waiting => Calling        granted, and the inner service is ready
    /// Waiting => Done           rejected, or the inner service failed
    /// Rejected, Calling, Shadow => Done
    /// ```
    #[project = StateProj]
    enum State<S, Req, F, T> {
        Waiting {
            waiting: Option<Box<Waiting<S, Req>>>,
        },
        Rejected {
            result: Option<T>,
        },
        Calling {
            #[pin]
            future: F,
            // None if neither the reply nor the hooks use it.
            permit: Option<Box<Permit>>,
        },
        Shadow {
            #[pin]
            future: F,
            decision: ShadowDecision,
        },
        Done,
    }
}

struct Waiting<S, Req> {
    step: Step,
    inner: S,
    req: Req,
    limiter: Limiter,
    until: Instant,
}

/// ```text
/// Acquiring => Readying      granted after a wait during which the inner service was replaced
/// Readying => Acquiring      it was not ready for too long: the tokens were given back
/// ```
enum Step {
    Acquiring {
        acquire: Acquire,
        /// Whether the inner service is the one that returned ready.
        ready: bool,
    },
    Readying {
        /// None after its tokens were given back.
        permit: Option<HeldPermit>,
        hold: Pin<Box<Sleep>>,
        scopes: Scopes,
    },
}

impl<S, Req> Waiting<S, Req>
where
    S: Service<Req> + Clone,
{
    /// Completes with a permit when the inner service is ready, or with a rejection.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<HeldPermit, Rejected>, S::Error>> {
        loop {
            self.step = match &mut self.step {
                Step::Acquiring { acquire, ready } => match Pin::new(&mut *acquire).poll(cx) {
                    Poll::Pending => {
                        if *ready && acquire.is_reserved() {
                            // During the wait, a ready service would occupy capacity that other
                            // callers can use.
                            self.inner = self.inner.clone();
                            *ready = false;
                        }
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(permit)) => {
                        let permit = HeldPermit::new(permit, acquire.due());
                        if *ready {
                            return Poll::Ready(Ok(Ok(permit)));
                        }
                        Step::Readying {
                            scopes: permit.scopes(),
                            permit: Some(permit),
                            hold: Box::pin(tokio::time::sleep(HOLD)),
                        }
                    }
                    Poll::Ready(Err(rejected)) => return Poll::Ready(Ok(Err(rejected))),
                },
                Step::Readying {
                    permit,
                    hold,
                    scopes,
                } => match self.inner.poll_ready(cx)? {
                    Poll::Ready(()) => match permit.take().filter(|permit| !permit.is_old()) {
                        Some(permit) => return Poll::Ready(Ok(Ok(permit))),
                        None => Step::Acquiring {
                            acquire: self.limiter.acquire(
                                &*scopes,
                                self.until.saturating_duration_since(Instant::now()),
                            ),
                            ready: true,
                        },
                    },
                    Poll::Pending => {
                        if permit.is_some() {
                            ready!(hold.as_mut().poll(cx));
                            *permit = None;
                        }
                        return Poll::Pending;
                    }
                },
            };
        }
    }
}

impl<S, Req, R, H> ResponseFuture<S, Req, R, H>
where
    S: Service<Req>,
    R: Reply<Req, S::Response, S::Error>,
    H: Hook<Req, S::Response>,
{
    #[inline]
    pub(super) fn granted(
        inner: &mut S,
        handlers: Handlers<R, H>,
        permit: Option<Permit>,
        req: Req,
    ) -> Self {
        let (future, permit) = call(inner, &handlers, permit, req);
        let state = State::Calling { future, permit };
        Self { handlers, state }
    }

    /// Keeps the result of the rejection, which is smaller than the request and the rejection.
    #[inline]
    pub(super) fn rejected(handlers: Handlers<R, H>, rejected: Rejected, req: Req) -> Self {
        let result = Some(handlers.reply.rejected(rejected, req));
        let state = State::Rejected { result };
        Self { handlers, state }
    }

    /// Calls the inner service whatever the decision is. Hooks see `stand_in` before the call.
    pub(super) fn in_shadow(
        inner: &mut S,
        handlers: Handlers<R, H>,
        decision: ShadowDecision,
        stand_in: Option<Permit>,
        mut req: Req,
    ) -> Self {
        if let Some(mut permit) = stand_in {
            handlers.hooks.on_request(&mut permit, &mut req);
        }
        let future = inner.call(req);
        let state = State::Shadow { future, decision };
        Self { handlers, state }
    }

    pub(super) fn acquiring(
        inner: S,
        ready: bool,
        handlers: Handlers<R, H>,
        acquire: Acquire,
        until: Instant,
        limiter: Limiter,
        req: Req,
    ) -> Self {
        let waiting = Waiting {
            step: Step::Acquiring { acquire, ready },
            inner,
            req,
            limiter,
            until,
        };
        Self {
            handlers,
            state: State::Waiting {
                waiting: Some(Box::new(waiting)),
            },
        }
    }
}

/// Calls the inner service. The tokens count as used here and nowhere else.
#[inline]
fn call<S, Req, R, H>(
    inner: &mut S,
    handlers: &Handlers<R, H>,
    permit: Option<Permit>,
    mut req: Req,
) -> (S::Future, Option<Box<Permit>>)
where
    S: Service<Req>,
    R: Reply<Req, S::Response, S::Error>,
    H: Hook<Req, S::Response>,
{
    let uses = |_: &Permit| handlers.use_permit::<Req, S::Response, S::Error>();
    let mut permit = permit.filter(uses).map(Box::new);
    if let Some(permit) = &mut permit {
        handlers.hooks.on_request(permit, &mut req);
    }
    (inner.call(req), permit)
}

const POLLED_AGAIN: &str = "`ResponseFuture` was polled after completion";

impl<S, Req, R, H> Future for ResponseFuture<S, Req, R, H>
where
    S: Service<Req> + Clone,
    R: Reply<Req, S::Response, S::Error>,
    H: Hook<Req, S::Response>,
{
    type Output = Result<S::Response, R::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Handlers { reply, hooks } = &*this.handlers;
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { future, permit } => {
                    let mut result = ready!(future.poll(cx));
                    if let (Ok(response), Some(permit)) = (&mut result, permit) {
                        hooks.on_response(permit, response);
                        reply.admitted(permit, response);
                    }
                    this.state.set(State::Done);
                    return Poll::Ready(result.map_err(|error| reply.inner_error(error)));
                }
                StateProj::Shadow { future, decision } => {
                    let result = ready!(future.poll(cx));
                    let permit = mem::take(decision).permit();
                    if let (Ok(response), Some(permit)) = (&result, permit) {
                        hooks.on_shadow_response(&permit, response);
                    }
                    this.state.set(State::Done);
                    return Poll::Ready(result.map_err(|error| reply.inner_error(error)));
                }
                StateProj::Rejected { result } => {
                    let result = result.take().expect(POLLED_AGAIN);
                    this.state.set(State::Done);
                    return Poll::Ready(result);
                }
                StateProj::Waiting { waiting } => {
                    let result = ready!(waiting.as_mut().expect(POLLED_AGAIN).poll(cx));
                    let waiting = waiting.take().expect(POLLED_AGAIN);
                    match result {
                        Ok(Ok(permit)) => {
                            let permit = permit.spend();
                            let Waiting { mut inner, req, .. } = *waiting;
                            let (future, permit) = call(&mut inner, this.handlers, permit, req);
                            this.state.set(State::Calling { future, permit });
                        }
                        Ok(Err(rejected)) => {
                            this.state.set(State::Done);
                            return Poll::Ready(reply.rejected(rejected, waiting.req));
                        }
                        Err(error) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Err(reply.inner_error(error)));
                        }
                    }
                }
                StateProj::Done => panic!("{POLLED_AGAIN}"),
            }
        }
    }
}

impl<S, Req, R, H> fmt::Debug for ResponseFuture<S, Req, R, H>
where
    S: Service<Req>,
    R: Reply<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
