//! What is queued for Redis, who is told, and what carries it.

use std::{future::Future, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    decision::{Decision, Failure, FailureKind},
    scope::Scope,
};

/// Carries a call to Redis.
pub(crate) trait Wire: Send + Sync + 'static {
    /// How long a demand may queue before it is turned away: as long as a call may take.
    fn patience(&self) -> Duration;

    /// Runs the script, within the deadline of the limiter, at most once.
    fn call(
        &self,
        keys: Vec<Vec<u8>>,
        argument: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;
}

/// Somebody who wants a decision.
pub(crate) trait Asker: Send + 'static {
    /// Different buckets, at least one, all or none of which to take from.
    fn scopes(&self) -> &[Scope];
    fn max_wait_us(&self) -> f64;
    /// False once the answer would be thrown away.
    fn is_wanted(&self) -> bool;
    fn answer(self, answer: Result<Decision, Failure>);
}

/// An asker that is answered in any case.
pub(super) struct Pending<A: Asker>(pub(super) Option<A>);

impl<A: Asker> Pending<A> {
    pub(super) fn answer(mut self, answer: Result<Decision, Failure>) {
        if let Some(asker) = self.0.take() {
            asker.answer(answer);
        }
    }
}

impl<A: Asker> Drop for Pending<A> {
    fn drop(&mut self) {
        if let Some(asker) = self.0.take() {
            // The runtime of the batching task was shut down under it.
            asker.answer(Err(Failure::new(
                FailureKind::Disconnected,
                "the task that speaks to Redis was shut down",
            )));
        }
    }
}

pub(super) enum Command<A: Asker> {
    /// And since when it is queued.
    Take(Pending<A>, Instant),
    GiveBack(Scope, f64),
    Charge(Scope, f64),
    Reset(Scope, oneshot::Sender<Result<f64, Failure>>),
    Look(Scope, oneshot::Sender<Result<f64, Failure>>),
}
