//! What carries a call to Redis, as the batcher sees it.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep};

use crate::{decision::Failure, peers::RatePart, redis::script::Arguments};

/// Carries a call to Redis.
pub(crate) trait Connection: Send + Sync + 'static {
    /// How long a call may take. How long a request may be queued follows from it.
    fn call_timeout(&self) -> Duration;

    /// By which part of their rates buckets refill for all processes that reach Redis, and for how
    /// long.
    fn part(&self) -> RatePart;

    /// Whether Redis alone decides, and all processes that are alive reach it. Only then may
    /// tokens be taken ahead.
    fn is_steady(&self) -> bool;

    /// A reply reports a paused bucket: some limiter on this Redis pauses buckets.
    fn pause_reported(&self) {}

    /// Treats Redis as unavailable until it is connected again, because a background task failed.
    fn fail(&self, _failure: &Failure) {}

    /// Abandons the connection, because the runtime that drives it is not driven, or is shut down.
    /// The next call connects on its own runtime.
    fn abandon(&self);

    /// Closes the connection: the limiter is dropped, and everything is sent.
    fn close(&self);

    /// Runs the script at most once, within the limiter's timeout.
    fn call(
        &self,
        arguments: Arguments,
        deadline: &mut Deadline,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;
}

/// A timer that one call after another uses.
///
/// Moving it to a later time, as each call does, costs nothing. A new timer for each call would
/// wake the runtime's driver, and cancelling it would wake the driver again.
pub(crate) struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    pub(crate) fn new() -> Self {
        Self(Box::pin(sleep(Duration::ZERO)))
    }

    pub(crate) fn set(&mut self, deadline: Instant) {
        self.0.as_mut().reset(deadline);
    }

    pub(crate) async fn passed(&mut self) {
        self.0.as_mut().await;
    }
}
