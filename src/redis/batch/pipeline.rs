//! Calls in flight over one connection.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::{MaybeDone, maybe_done};

/// Calls in flight, in the order in which they were sent.
///
/// Replies come in that order, and the calls are over in that order. A call that Redis has to get again,
/// because it does not know the script, sends it when it is polled: so all of them are polled.
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
        if self.0.is_empty() {
            return None;
        }
        let oldest_is_over = |cx: &mut Context<'_>| {
            let mut calls = self.0.iter_mut();
            let oldest = calls.next().map(|call| call.as_mut().poll(cx));
            for call in calls {
                let _ = call.as_mut().poll(cx);
            }
            oldest.unwrap_or(Poll::Ready(()))
        };
        poll_fn(oldest_is_over).await;
        self.0.pop_front()?.as_mut().take_output()
    }
}

#[cfg(test)]
mod tests;
