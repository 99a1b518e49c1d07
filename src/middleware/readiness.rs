//! [`Readiness`]: what `poll_ready` has acquired for the next call.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::held_permit::{HOLD, HeldPermit};
use crate::{
    limiter::{Acquire, Limiter, Permit},
    rejected::Rejected,
    scope::Scopes,
};

/// The state of a service between `poll_ready` and `call`. It leaves `Idle` only for scopes that
/// are known in advance and may wait.
///
/// ```text
/// Idle => Acquiring            the inner service is ready
/// Acquiring => Held            granted
/// Acquiring => Rejected        rejected: `call` returns the rejection, `poll_ready` never does
/// Held => Idle                 the inner service was not ready for too long, or was not called
/// Rejected => Idle             its `retry_after` has passed
/// ```
#[derive(Debug)]
pub(super) enum Readiness {
    Idle {
        /// The deadline of an acquisition whose tokens were given back.
        until: Option<Instant>,
    },
    Acquiring {
        acquire: Acquire,
        until: Instant,
        /// Whether the inner service is the one that returned ready.
        ready: bool,
        /// Whether `poll_ready` has returned ready meanwhile: then it does so until the call.
        offered: bool,
    },
    Held {
        permit: HeldPermit,
        until: Instant,
        /// Runs while the inner service is not ready.
        hold: Option<Pin<Box<Sleep>>>,
    },
    Rejected {
        rejected: Rejected,
        at: Instant,
    },
}

impl Default for Readiness {
    fn default() -> Self {
        Self::Idle { until: None }
    }
}

impl Readiness {
    fn decided(result: Result<Permit, Rejected>, due: Instant, until: Instant) -> Self {
        match result {
            Ok(permit) => Self::Held {
                permit: HeldPermit::new(permit, due),
                until,
                hold: None,
            },
            Err(rejected) => Self::Rejected {
                rejected,
                at: Instant::now(),
            },
        }
    }

    /// Drives the acquisition of `scopes`. The inner service is ready.
    pub(super) fn poll_scopes<S: Clone>(
        &mut self,
        scopes: &Scopes,
        limiter: &Limiter,
        max_wait: Duration,
        inner: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            match self {
                Self::Idle { until } => {
                    let now = Instant::now();
                    let until = until.unwrap_or(now + max_wait);
                    let max_wait = until.saturating_duration_since(now);
                    *self = Self::Acquiring {
                        acquire: limiter.acquire(scopes, max_wait),
                        until,
                        ready: true,
                        offered: false,
                    };
                }
                Self::Acquiring { ready, .. } => {
                    *ready = true;
                    if self.poll_acquire(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    if self.release_if_reserved(inner) {
                        return Poll::Pending;
                    }
                    // If there are enough tokens, the response future completes the acquisition:
                    // to wait for Redis here would serialize all callers of a shared service.
                    let scarce = || limiter.is_scarce(scopes.as_slice());
                    if let Self::Acquiring { offered, .. } = self
                        && (*offered || !scarce())
                    {
                        *offered = true;
                        return Poll::Ready(());
                    }
                    return Poll::Pending;
                }
                Self::Held { hold, .. } => {
                    *hold = None;
                    return Poll::Ready(());
                }
                Self::Rejected { rejected, at } => {
                    if is_current(rejected, *at) {
                        return Poll::Ready(());
                    }
                    *self = Self::default();
                }
            }
        }
    }

    /// Polls the acquisition, if there is one.
    pub(super) fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Acquiring { acquire, until, .. } = self {
            let until = *until;
            let result = ready!(Pin::new(&mut *acquire).poll(cx));
            *self = Self::decided(result, acquire.due(), until);
        }
        Poll::Ready(())
    }

    /// Whether the acquisition waits for a reservation. Then replaces `inner` by a clone that is
    /// not ready: during the wait it would occupy capacity that other callers can use.
    pub(super) fn release_if_reserved<S: Clone>(&mut self, inner: &mut S) -> bool {
        match self {
            Self::Acquiring {
                acquire,
                offered: false,
                ready,
                ..
            } if acquire.is_reserved() => {
                if mem::take(ready) {
                    *inner = inner.clone();
                }
                true
            }
            _ => false,
        }
    }

    /// Gives back a held permit when the inner service has not been ready for [`HOLD`].
    pub(super) fn poll_hold(&mut self, cx: &mut Context<'_>) {
        if let Self::Held { until, hold, .. } = self {
            let until = *until;
            let timer = hold.get_or_insert_with(|| Box::pin(tokio::time::sleep(HOLD)));
            if timer.as_mut().poll(cx).is_ready() {
                *self = Self::Idle { until: Some(until) };
            }
        }
    }

    /// Gives back tokens that were due too long ago. Before the deadline they are requested again;
    /// after it, the next acquisition is that of another request.
    pub(super) fn drop_old(&mut self) {
        let old = match self {
            Self::Held { permit, until, .. } if permit.is_old() => *until,
            Self::Acquiring { acquire, until, .. } if acquire.has_missed() => *until,
            _ => return,
        };
        let in_time = Instant::now() <= old;
        match self {
            // The acquisition requests the tokens again.
            Self::Acquiring { .. } if in_time => {}
            _ => {
                let until = in_time.then_some(old);
                *self = Self::Idle { until };
            }
        }
    }
}

/// Whether a rejection at this time still holds.
pub(super) fn is_current(rejected: &Rejected, at: Instant) -> bool {
    rejected
        .retry_after()
        .is_none_or(|retry_after| at.elapsed() < retry_after)
}
