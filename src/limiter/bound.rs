//! The bound on a caller's wait: a timer of its own runtime. What answers the caller may run on
//! another one, which nobody drives.

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

use super::{
    backend::Mark,
    core::Core,
    waiter::{Outcome, Waiter, Whereabouts},
};
use crate::{
    decision::{Failure, FailureKind},
    runtime,
};

/// A waiter that is not served so long after its turn has its line served on its own runtime:
/// soon enough for the turn to be used within the tolerance.
const LATE: Duration = Duration::from_millis(20);

/// A line that is driven serves its waiters within this time, though it look for a hold first; a
/// turn that is served later is missed anyway.
const SERVED: Duration = Duration::from_secs(1);

/// How often an acquisition asks runtimes that turn out not to be driven, before memory decides.
const MOST_ASKED: u32 = 4;

/// The bound of one acquisition. The timer exists only while it may be needed.
#[derive(Default)]
pub(crate) struct Bound {
    timer: Option<Timer>,
    /// How often it has asked again, since something was decided.
    asked_again: u32,
    /// Towards which turn it has had the line taken over.
    taken_over: Option<Instant>,
}

struct Timer {
    sleep: Pin<Box<Sleep>>,
    runtime: Id,
    of: Of,
}

/// What a timer is for.
///
/// ```text
/// Answer => Answer       the worker has done something
/// Answer => abandoned    it has not, or another has taken over: ask again
/// Turn => Served         the line was taken over
/// Served => missed       ask again
/// ```
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Answer(Mark),
    Turn(Instant),
    Served(Instant),
}

impl Bound {
    /// Ready where whoever was to answer does not, and the wait is over.
    ///
    /// # Panics
    ///
    /// Outside a runtime with a timer.
    pub(crate) fn poll(
        bound: &mut Option<Box<Self>>,
        core: &Arc<Core>,
        waiter: &Waiter,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        let here = runtime::current();
        loop {
            match waiter.place() {
                // It was woken meanwhile.
                Whereabouts::Answered => return Poll::Pending,
                // Where this is polled, so is the worker, or the driver of the line.
                Whereabouts::Asked(mark) if mark.is_none_or(|mark| mark.runtime == here) => {
                    if let Some(this) = bound {
                        this.timer = None;
                    }
                    return Poll::Pending;
                }
                Whereabouts::Asked(mark) => {
                    let this = bound.get_or_insert_default();
                    let Some((remote, mark)) = core.redis.as_ref().zip(mark) else {
                        return Poll::Pending;
                    };
                    let end = || Instant::now() + remote.patience();
                    ready!(this.poll_timer(Of::Answer(mark), end, here, cx));
                    if let Some(later) = remote.take_over(mark) {
                        waiter.set_mark(Some(later));
                        continue;
                    }
                    waiter.cancel();
                    this.asked_again += 1;
                    if this.asked_again < MOST_ASKED {
                        return Poll::Ready(Outcome::Abandoned);
                    }
                    return Poll::Ready(Outcome::Failed(Failure::new(
                        FailureKind::Timeout,
                        "no runtime that speaks to Redis is driven",
                    )));
                }
                Whereabouts::Reserved(line, _) if line.is_served_on(here) => {
                    if let Some(this) = bound {
                        this.timer = None;
                    }
                    return Poll::Pending;
                }
                Whereabouts::Reserved(line, turn) => {
                    let this = bound.get_or_insert_default();
                    this.asked_again = 0;
                    // Once: of two runtimes that are both late, neither keeps the line otherwise.
                    if this.taken_over != Some(turn) {
                        ready!(this.poll_timer(Of::Turn(turn), || turn + LATE, here, cx));
                        core.queues.take_over(core, &line);
                        this.taken_over = Some(turn);
                        continue;
                    }
                    let end = || Instant::now() + SERVED;
                    ready!(this.poll_timer(Of::Served(turn), end, here, cx));
                    waiter.cancel();
                    return Poll::Ready(Outcome::Missed);
                }
            }
        }
    }

    fn poll_timer(
        &mut self,
        of: Of,
        end: impl FnOnce() -> Instant,
        here: Id,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let kept = self
            .timer
            .take()
            .filter(|timer| timer.of == of && timer.runtime == here);
        let timer = self.timer.insert(kept.unwrap_or_else(|| Timer {
            sleep: Box::pin(sleep_until(end())),
            runtime: here,
            of,
        }));
        timer.sleep.as_mut().poll(cx)
    }
}
