//! [`Watchdog`]: the caller's own timer, for the case that no answer arrives.
//!
//! Workers and dispatchers are tasks of the runtime that first needed them, which may not be driven
//! any more. If an acquisition is polled on another one, a timer of that runtime bounds its wait.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    runtime::Id,
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    decision::{Failure, FailureKind},
    limiter::{
        backend::Mark,
        core::Core,
        queue::{self, Delivery, Waiter, WaitsFor},
    },
    runtime,
};

/// A wait queue is taken over if a reservation is overdue by this time: soon enough for the
/// tokens to be used within the tolerance.
const OVERDUE: Duration = Duration::from_millis(20);

/// A dispatcher that is driven serves its waiters within this time, even if it requests the pause
/// from Redis first. A reservation that is served later is missed anyway.
const MAX_SERVE: Duration = Duration::from_secs(1);

/// After so many requests on runtimes that are not driven, an acquisition is decided from memory.
const MAX_ASKED: u32 = 4;

/// The timer exists only while it may be needed.
#[derive(Default)]
pub(super) struct Watchdog {
    timer: Option<Timer>,
    /// How often the request was abandoned since something was decided.
    abandoned: u32,
    /// The reservation for which the wait queue was taken over.
    taken_over: Option<Instant>,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    runtime: Id,
    purpose: Purpose,
}

/// ```text
/// Decision => Decision          the worker has made progress
/// Decision => Abandoned         it has not, or another has taken over: the request is made again
/// Reservation => Served         overdue: the wait queue was taken over
/// Served => Missed              not served: the request is made again
/// ```
#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    Decision(Mark),
    Reservation(Instant),
    Served(Instant),
}

impl Watchdog {
    /// Ready if no answer arrives in time. The request is then cancelled.
    ///
    /// # Panics
    ///
    /// Panics outside of a runtime with a timer.
    pub(super) fn poll(
        watchdog: &mut Option<Box<Self>>,
        core: &Arc<Core>,
        waiter: &Waiter,
        cx: &mut Context<'_>,
    ) -> Poll<Delivery> {
        let here = runtime::current();
        loop {
            match waiter.waits_for() {
                // It was woken meanwhile.
                WaitsFor::Nothing => return Poll::Pending,
                WaitsFor::Decision(mark) => {
                    let mark = mark.filter(|mark| mark.runtime != here);
                    let Some((redis, mark)) = core.redis.as_ref().zip(mark) else {
                        // The worker is driven where this is polled.
                        return Self::stop(watchdog);
                    };
                    let this = watchdog.get_or_insert_default();
                    let end = || Instant::now() + redis.patience();
                    ready!(this.poll_timer(Purpose::Decision(mark), end, here, cx));
                    if let Some(later) = redis.take_over(mark) {
                        waiter.set_mark(Some(later));
                        continue;
                    }
                    waiter.cancel();
                    this.abandoned += 1;
                    if this.abandoned < MAX_ASKED {
                        return Poll::Ready(Delivery::Abandoned);
                    }
                    return Poll::Ready(Delivery::Failed(Failure::new(
                        FailureKind::Timeout,
                        "no runtime with a connection to Redis is driven",
                    )));
                }
                WaitsFor::Reservation(queue, _) if queue.is_served_on(here) => {
                    return Self::stop(watchdog);
                }
                WaitsFor::Reservation(queue, due) => {
                    let this = watchdog.get_or_insert_default();
                    this.abandoned = 0;
                    // Once: two runtimes that are both late would take it from each other.
                    if this.taken_over != Some(due) {
                        let end = || due + OVERDUE;
                        ready!(this.poll_timer(Purpose::Reservation(due), end, here, cx));
                        queue::take_over(waiter.backends(), &queue);
                        this.taken_over = Some(due);
                        continue;
                    }
                    let end = || Instant::now() + MAX_SERVE;
                    ready!(this.poll_timer(Purpose::Served(due), end, here, cx));
                    waiter.cancel();
                    return Poll::Ready(Delivery::Missed);
                }
            }
        }
    }

    fn stop(watchdog: &mut Option<Box<Self>>) -> Poll<Delivery> {
        if let Some(this) = watchdog {
            this.timer = None;
        }
        Poll::Pending
    }

    fn poll_timer(
        &mut self,
        purpose: Purpose,
        end: impl FnOnce() -> Instant,
        here: Id,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let kept = self
            .timer
            .take()
            .filter(|timer| timer.purpose == purpose && timer.runtime == here);
        let timer = self.timer.insert(kept.unwrap_or_else(|| Timer {
            sleep: Box::pin(sleep_until(end())),
            runtime: here,
            purpose,
        }));
        timer.sleep.as_mut().poll(cx)
    }
}
