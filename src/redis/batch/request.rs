//! A request that waits for a decision of Redis.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    clock::to_us,
    decision::{Decision, Failure, FailureKind},
    scope::Scope,
};

/// Makes a request and receives its answer.
pub(crate) trait Requester: Send + 'static {
    /// At least one bucket, each at most once. The request takes from all of them or from none.
    fn scopes(&self) -> &[Scope];
    fn max_wait_us(&self) -> f64;
    /// Whether the answer would be used. False once the request is cancelled.
    fn is_wanted(&self) -> bool;
    /// `decided_at`: when the answer was received, from which its waits count.
    fn answer(self, answer: Result<Decision, Failure>, decided_at: Instant);
    /// Has the request made again if it is still wanted. It was not decided, because the runtime
    /// of the worker was shut down or is not driven.
    fn retry(self);
}

/// A requester that is answered in any case, at the latest when this is dropped.
pub(crate) struct PendingRequest<R: Requester>(Option<R>);

impl<R: Requester> PendingRequest<R> {
    pub(crate) fn new(requester: R) -> Self {
        Self(Some(requester))
    }

    pub(crate) fn scopes(&self) -> &[Scope] {
        self.0.as_ref().map_or(&[], Requester::scopes)
    }

    pub(crate) fn max_wait_us(&self) -> f64 {
        self.0.as_ref().map_or(0.0, Requester::max_wait_us)
    }

    /// What is left of its wait after it has been queued for this long, in microseconds.
    pub(crate) fn wait_left(&self, queued: Duration) -> f64 {
        (self.max_wait_us() - to_us(queued)).max(0.0)
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(Requester::is_wanted)
    }

    /// Redis has decided, in a reply that was received at `decided_at`.
    pub(crate) fn answer(mut self, decision: Decision, decided_at: Instant) {
        if let Some(requester) = self.0.take() {
            requester.answer(Ok(decision), decided_at);
        }
    }

    pub(crate) fn fail(mut self, failure: Failure) {
        if let Some(requester) = self.0.take() {
            requester.answer(Err(failure), Instant::now());
        }
    }

    /// Not delivered: because of `failure`, or because the worker ended, and then the request is
    /// made again.
    pub(crate) fn undelivered(mut self, failure: Option<&Failure>) {
        match failure {
            Some(failure) => self.fail(failure.clone()),
            // One that panicked would panic again: it is answered by being dropped.
            None if std::thread::panicking() => {}
            None => {
                if let Some(requester) = self.0.take() {
                    requester.retry();
                }
            }
        }
    }
}

impl<R: Requester> Drop for PendingRequest<R> {
    fn drop(&mut self) {
        if let Some(requester) = self.0.take() {
            requester.answer(Err(abandoned()), Instant::now());
        }
    }
}

/// The worker ended, and nothing will be answered.
pub(crate) fn abandoned() -> Failure {
    Failure::new(
        FailureKind::Disconnected,
        "the task that sends calls to Redis has ended",
    )
}
