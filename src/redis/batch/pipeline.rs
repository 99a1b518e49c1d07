//! Calls in flight over one connection.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use futures_util::future::{MaybeDone, maybe_done};

/// Calls in flight, in the order in which they were sent.
///
/// Replies come in that order, so only the oldest call is polled, and a wake-up costs the same for
/// one call as for many. If replies are late, the oldest call times out first.
pub(super) struct Pipeline<F: Future>(VecDeque<Pin<Box<MaybeDone<F>>>>);

impl<F: Future> Pipeline<F> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends a call: it does so when it is first polled.
    pub(super) async fn send(&mut self, call: F) {
        let mut call = Box::pin(maybe_done(call));
        let _ = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
        self.0.push_back(call);
    }

    /// Waits for the oldest call. Returns none if there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the call stays in flight.
    pub(super) async fn next(&mut self) -> Option<F::Output> {
        let oldest = self.0.front_mut()?;
        oldest.as_mut().await;
        let output = oldest.as_mut().take_output();
        self.0.pop_front();
        output
    }
}

#[cfg(test)]
mod tests;
