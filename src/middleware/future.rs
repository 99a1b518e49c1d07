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
    service::{HOLD, HeldPermit},
    shadow::Watched,
};
use crate::{
    Rejected, Scopes,
    limiter::{Acquire, Limiter, Permit},
    reply::Reply,
};

pin_project! {
    /// The response of a [`RateLimit`](crate::RateLimit).
    ///
    /// Dropped before the inner service was called, it gives back what it was granted.
    pub struct ResponseFuture<S, Req, O>
    where
        S: Service<Req>,
        O: Reply<Req, S::Response, S::Error>,
    {
        reply: O,
        #[pin]
        state: State<S, Req, S::Future, Result<S::Response, O::Error>>,
    }
}

pin_project! {
    /// Small, because it is moved: what only those need who have to wait is boxed.
    ///
    /// ```text
    /// Waiting => Calling        granted, and the inner service ready
    /// Waiting => Done           refused, or the inner service failed
    /// Refused, Calling, Watched => Done
    /// ```
    #[project = StateProj]
    enum State<S, Req, F, T> {
        Waiting {
            waiting: Option<Box<Waiting<S, Req>>>,
        },
        Refused {
            refused: Option<T>,
        },
        Calling {
            #[pin]
            future: F,
            // For the reply, where it uses it.
            permit: Option<Box<Permit>>,
        },
        Watched {
            #[pin]
            future: F,
            watched: Watched,
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
/// Acquiring => Readying      granted after a sleep, in which the inner service was let go
/// Readying => Acquiring      it was not ready for too long: the token was given back
/// ```
enum Step {
    Acquiring {
        acquire: Acquire,
        /// Whether the inner service is the one that was made ready.
        ready: bool,
    },
    Readying {
        /// None once it was given back.
        permit: Option<HeldPermit>,
        hold: Pin<Box<Sleep>>,
        scopes: Scopes,
    },
}

impl<S, Req> Waiting<S, Req>
where
    S: Service<Req> + Clone,
{
    /// Until there is a permit and the inner service is ready, or no permit.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<HeldPermit, Rejected>, S::Error>> {
        loop {
            self.step = match &mut self.step {
                Step::Acquiring { acquire, ready } => match Pin::new(&mut *acquire).poll(cx) {
                    Poll::Pending => {
                        if *ready && acquire.is_reserved() {
                            // Never sleep for a token while holding a place in the inner
                            // service that others could use.
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

impl<S, Req, O> ResponseFuture<S, Req, O>
where
    S: Service<Req>,
    O: Reply<Req, S::Response, S::Error>,
{
    #[inline]
    pub(super) fn granted(inner: &mut S, reply: O, permit: Option<Permit>, req: Req) -> Self {
        let (future, permit) = call(inner, &reply, permit, req);
        let state = State::Calling { future, permit };
        Self { reply, state }
    }

    /// What the refusal becomes is there at once: it is smaller than a request and a refusal.
    #[inline]
    pub(super) fn refused(reply: O, rejected: Rejected, req: Req) -> Self {
        let refused = Some(reply.limited(rejected, req));
        let state = State::Refused { refused };
        Self { reply, state }
    }

    /// The request goes on whatever is decided; before it goes the permit that stands in.
    pub(super) fn watched(
        inner: &mut S,
        reply: O,
        watched: Watched,
        stands_in: Option<Permit>,
        mut req: Req,
    ) -> Self {
        if let Some(mut permit) = stands_in {
            reply.before(&mut permit, &mut req);
        }
        let future = inner.call(req);
        let state = State::Watched { future, watched };
        Self { reply, state }
    }

    pub(super) fn acquiring(
        inner: S,
        ready: bool,
        reply: O,
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
            reply,
            state: State::Waiting {
                waiting: Some(Box::new(waiting)),
            },
        }
    }
}

/// A token is spent here, at the inner call, and nowhere else.
#[inline]
fn call<S, Req, O>(
    inner: &mut S,
    reply: &O,
    permit: Option<Permit>,
    mut req: Req,
) -> (S::Future, Option<Box<Permit>>)
where
    S: Service<Req>,
    O: Reply<Req, S::Response, S::Error>,
{
    let mut permit = permit.filter(|_| reply.uses_permit()).map(Box::new);
    if let Some(permit) = &mut permit {
        reply.before(permit, &mut req);
    }
    (inner.call(req), permit)
}

const POLLED_AGAIN: &str = "`ResponseFuture` was polled after it had resolved";

impl<S, Req, O> Future for ResponseFuture<S, Req, O>
where
    S: Service<Req> + Clone,
    O: Reply<Req, S::Response, S::Error>,
{
    type Output = Result<S::Response, O::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { future, permit } => {
                    let mut result = ready!(future.poll(cx));
                    if let (Ok(response), Some(permit)) = (&mut result, permit) {
                        this.reply.after(permit, response);
                    }
                    this.state.set(State::Done);
                    return Poll::Ready(result.map_err(|error| this.reply.inner_error(error)));
                }
                StateProj::Watched { future, watched } => {
                    let result = ready!(future.poll(cx));
                    let permit = mem::replace(watched, Watched::Nothing).permit();
                    if let (Ok(response), Some(permit)) = (&result, permit) {
                        this.reply.after_in_shadow(&permit, response);
                    }
                    this.state.set(State::Done);
                    return Poll::Ready(result.map_err(|error| this.reply.inner_error(error)));
                }
                StateProj::Refused { refused } => {
                    let result = refused.take().expect(POLLED_AGAIN);
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
                            let (future, permit) = call(&mut inner, this.reply, permit, req);
                            this.state.set(State::Calling { future, permit });
                        }
                        Ok(Err(rejected)) => {
                            this.state.set(State::Done);
                            return Poll::Ready(this.reply.limited(rejected, waiting.req));
                        }
                        Err(error) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Err(this.reply.inner_error(error)));
                        }
                    }
                }
                StateProj::Done => panic!("{POLLED_AGAIN}"),
            }
        }
    }
}

impl<S, Req, O> fmt::Debug for ResponseFuture<S, Req, O>
where
    S: Service<Req>,
    O: Reply<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
