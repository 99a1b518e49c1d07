//! [`ResponseFuture`]: from the call to the response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::service::{HOLD, InHand};
use crate::{
    Rejected, Scopes,
    limiter::{Acquire, Limiter, Permit, Progress},
    reply::Reply,
};

pin_project! {
    /// The response of a [`RateLimit`](crate::RateLimit).
    ///
    /// Dropped before the inner service was called, it gives back what it was granted.
    pub struct ResponseFuture<S, Req, O>
    where
        S: Service<Req>,
    {
        reply: O,
        #[pin]
        state: State<S, Req, S::Future>,
    }
}

pin_project! {
    /// ```text
    /// Acquiring => Calling       granted, the inner service still ready
    /// Acquiring => Readying      granted after a sleep, in which the inner service was let go
    /// Acquiring => Done          refused
    /// Readying => Calling        the inner service is ready
    /// Readying => Acquiring      it was not for too long: the token was given back
    /// Calling => Done
    /// ```
    #[project = StateProj]
    enum State<S, Req, F> {
        Acquiring {
            acquire: Acquire,
            // Whether the inner service is the one that was made ready.
            ready: bool,
            rest: Option<Rest<S, Req>>,
        },
        Readying {
            // None once it was given back.
            permit: Option<InHand>,
            hold: Pin<Box<Sleep>>,
            scopes: Scopes,
            rest: Option<Rest<S, Req>>,
        },
        Refused {
            refused: Option<(Rejected, Req)>,
        },
        Calling {
            #[pin]
            future: F,
            permit: Option<Permit>,
        },
        Done,
    }
}

/// What is needed once the token is there.
struct Rest<S, Req> {
    inner: S,
    req: Req,
    limiter: Limiter,
    until: Instant,
}

impl<S, Req, O> ResponseFuture<S, Req, O>
where
    S: Service<Req>,
    O: Reply<Req, S::Response, S::Error>,
{
    pub(super) fn granted(inner: &mut S, reply: O, permit: InHand, req: Req) -> Self {
        let state = call(inner, &reply, permit, req);
        Self { reply, state }
    }

    pub(super) fn refused(reply: O, rejected: Rejected, req: Req) -> Self {
        Self {
            reply,
            state: State::Refused {
                refused: Some((rejected, req)),
            },
        }
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
        Self {
            reply,
            state: State::Acquiring {
                acquire,
                ready,
                rest: Some(Rest {
                    inner,
                    req,
                    limiter,
                    until,
                }),
            },
        }
    }
}

/// A token is spent here, at the inner call, and nowhere else.
fn call<S, Req, O>(
    inner: &mut S,
    reply: &O,
    permit: InHand,
    mut req: Req,
) -> State<S, Req, S::Future>
where
    S: Service<Req>,
    O: Reply<Req, S::Response, S::Error>,
{
    let mut permit = permit.spend();
    if let Some(permit) = &mut permit {
        reply.before(permit, &mut req);
    }
    State::Calling {
        future: inner.call(req),
        permit,
    }
}

const POLLED_AGAIN: &str = "`ResponseFuture` was polled after it had resolved";

impl<S, Req, O> Future for ResponseFuture<S, Req, O>
where
    S: Service<Req> + Clone,
    O: Reply<Req, S::Response, S::Error>,
{
    type Output = Result<S::Response, O::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Acquiring {
                    acquire,
                    ready,
                    rest,
                } => match Pin::new(&mut *acquire).poll(cx) {
                    Poll::Pending => {
                        if let Some(rest) = rest
                            && *ready
                            && acquire.progress() == Progress::Asleep
                        {
                            // Never sleep for a token while holding a place in the inner
                            // service that others could use.
                            rest.inner = rest.inner.clone();
                            *ready = false;
                        }
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(permit)) => {
                        let permit = InHand::new(permit);
                        let mut rest = rest.take().expect(POLLED_AGAIN);
                        if *ready {
                            call(&mut rest.inner, this.reply, permit, rest.req)
                        } else {
                            State::Readying {
                                scopes: permit.scopes(),
                                permit: Some(permit),
                                hold: Box::pin(tokio::time::sleep(HOLD)),
                                rest: Some(rest),
                            }
                        }
                    }
                    Poll::Ready(Err(rejected)) => {
                        let rest = rest.take().expect(POLLED_AGAIN);
                        this.state.set(State::Done);
                        return Poll::Ready(this.reply.limited(rejected, rest.req));
                    }
                },
                StateProj::Readying {
                    permit,
                    hold,
                    scopes,
                    rest,
                } => {
                    let inner = &mut rest.as_mut().expect(POLLED_AGAIN).inner;
                    match inner.poll_ready(cx) {
                        Poll::Ready(Ok(())) => {
                            let mut rest = rest.take().expect(POLLED_AGAIN);
                            match permit.take() {
                                Some(permit) => call(&mut rest.inner, this.reply, permit, rest.req),
                                None => State::Acquiring {
                                    acquire: rest.limiter.acquire(
                                        &*scopes,
                                        rest.until.saturating_duration_since(Instant::now()),
                                    ),
                                    ready: true,
                                    rest: Some(rest),
                                },
                            }
                        }
                        Poll::Ready(Err(error)) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Err(this.reply.inner_error(error)));
                        }
                        Poll::Pending => {
                            if permit.is_some() {
                                ready!(hold.as_mut().poll(cx));
                                *permit = None;
                            }
                            return Poll::Pending;
                        }
                    }
                }
                StateProj::Refused { refused } => {
                    let (rejected, req) = refused.take().expect(POLLED_AGAIN);
                    this.state.set(State::Done);
                    return Poll::Ready(this.reply.limited(rejected, req));
                }
                StateProj::Calling { future, permit } => {
                    let mut result = ready!(future.poll(cx));
                    if let (Ok(response), Some(permit)) = (&mut result, permit) {
                        this.reply.after(permit, response);
                    }
                    this.state.set(State::Done);
                    return Poll::Ready(result.map_err(|error| this.reply.inner_error(error)));
                }
                StateProj::Done => panic!("{POLLED_AGAIN}"),
            };
            this.state.set(next);
        }
    }
}

impl<S, Req, O> fmt::Debug for ResponseFuture<S, Req, O>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
