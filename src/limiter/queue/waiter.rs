//! [`Waiter`]: one pending request, shared by the caller and the task that answers it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::{Backends, wait_queue::WaitQueue};
use crate::{
    decision::{DecidedBy, Failure},
    redis::Mark,
    scope::{Scope, Scopes},
};

/// Tokens that are used later than this after they were due count as missed: otherwise, after a
/// process was suspended, all reservations that became due meanwhile would be used at once.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(100);

/// One request of one caller, from when it is made until the caller takes the answer or is
/// dropped.
pub(crate) struct Waiter {
    backends: Arc<dyn Backends>,
    scopes: Scopes,
    max_wait_us: f64,
    state: Mutex<WaiterState>,
}

struct WaiterState {
    phase: Phase,
    /// Which worker was given the request.
    mark: Option<Mark>,
    waker: Option<Waker>,
}

/// ```text
/// Asked => Answered        granted, rejected, or failed
/// Asked => Reserved        one of the scopes is reserved
/// Reserved => Answered     the reservation is due, or was missed
/// Asked, Reserved, Answered => Gone    the caller was dropped, or has taken the answer
/// ```
enum Phase {
    Asked,
    Reserved {
        which: usize,
        queue: Arc<WaitQueue<Waiter>>,
        /// The latest time: earlier, if a waiter before this one is cancelled.
        due: Instant,
    },
    Answered(Delivery),
    Gone,
}

/// What a pending request waits for.
pub(crate) enum WaitsFor {
    /// A decision of Redis, from the marked worker.
    Decision(Option<Mark>),
    /// A reservation in this queue, which is due at this time or earlier.
    Reservation(Arc<WaitQueue<Waiter>>, Instant),
    /// Nothing: the answer is there.
    Nothing,
}

/// What is delivered to the caller.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// All scopes are granted.
    Granted {
        tightest: usize,
        level: f64,
        decided_by: DecidedBy,
        decided_at: Instant,
    },
    /// The reservation of one scope is due.
    Due {
        which: usize,
        due: Instant,
        decided_by: DecidedBy,
    },
    /// The reservation passed while the process stood still, or its bucket was paused: the
    /// request is to be made again.
    Missed,
    /// The runtime that was to answer was shut down, or is not driven: the request is to be made
    /// again.
    Abandoned,
    Rejected {
        which: usize,
        retry_after: Duration,
        decided_at: Instant,
    },
    Failed(Failure),
}

impl Delivery {
    /// Whether it is too old to be used: the reservation has passed, the tokens were not used in
    /// time, or the time after which to retry is over.
    pub(crate) fn is_old(&self) -> bool {
        match self {
            Self::Granted { decided_at, .. } => decided_at.elapsed() > TOLERANCE,
            Self::Due { due, .. } => due.elapsed() > TOLERANCE,
            Self::Rejected {
                retry_after,
                decided_at,
                ..
            } => decided_at.elapsed() > TOLERANCE.max(*retry_after),
            Self::Missed => true,
            Self::Abandoned | Self::Failed(_) => false,
        }
    }
}

/// Wakes the caller. To be used when no lock is held, because a waker may run anything.
#[must_use]
pub(crate) struct Wake(Option<Waker>);

impl Wake {
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

impl WaiterState {
    fn is_answered(&self) -> bool {
        matches!(self.phase, Phase::Answered(_))
    }
}

/// For the caller.
impl Waiter {
    pub(crate) fn new(backends: Arc<dyn Backends>, scopes: Scopes, max_wait_us: f64) -> Arc<Self> {
        Arc::new(Self {
            backends,
            scopes,
            max_wait_us,
            state: Mutex::new(WaiterState {
                phase: Phase::Asked,
                mark: None,
                waker: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, WaiterState> {
        // Phases are replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn scopes(&self) -> &[Scope] {
        self.scopes.as_slice()
    }

    pub(crate) fn max_wait_us(&self) -> f64 {
        self.max_wait_us
    }

    pub(crate) fn backends(&self) -> &Arc<dyn Backends> {
        &self.backends
    }

    /// Records which worker was given the request.
    pub(crate) fn set_mark(&self, mark: Option<Mark>) {
        self.lock().mark = mark;
    }

    pub(crate) fn waits_for(&self) -> WaitsFor {
        let state = self.lock();
        match &state.phase {
            Phase::Asked => WaitsFor::Decision(state.mark),
            Phase::Reserved { queue, due, .. } => WaitsFor::Reservation(queue.clone(), *due),
            Phase::Answered(_) | Phase::Gone => WaitsFor::Nothing,
        }
    }

    /// Which of the scopes is reserved, for when at the latest, and by which backend.
    pub(crate) fn reservation(&self) -> Option<(usize, Instant, DecidedBy)> {
        match &self.lock().phase {
            Phase::Reserved { which, queue, due } => Some((*which, *due, queue.decided_by)),
            _ => None,
        }
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Delivery> {
        // Dropped after the lock: a waker may run anything where it is cloned or dropped.
        let mut waker;
        let mut state = self.lock();
        let known = state.waker.as_ref();
        if !state.is_answered() && known.is_none_or(|known| !known.will_wake(cx.waker())) {
            drop(state);
            waker = Some(cx.waker().clone());
            state = self.lock();
            if !state.is_answered() {
                std::mem::swap(&mut state.waker, &mut waker);
            }
        }
        if state.is_answered()
            && let Phase::Answered(delivery) = std::mem::replace(&mut state.phase, Phase::Gone)
        {
            return Poll::Ready(delivery);
        }
        Poll::Pending
    }

    /// Whether there is an answer that is too old to be used.
    pub(crate) fn has_missed(&self) -> bool {
        matches!(&self.lock().phase, Phase::Answered(delivery) if delivery.is_old())
    }

    /// Gives back what was delivered and is not used.
    pub(crate) fn give_back(&self, delivery: &Delivery) {
        let (scopes, decided_by, due) = match *delivery {
            Delivery::Granted {
                decided_by,
                decided_at,
                ..
            } => (self.scopes(), decided_by, decided_at),
            Delivery::Due {
                which,
                due,
                decided_by,
            } => (&self.scopes()[which..=which], decided_by, due),
            _ => return,
        };
        for scope in scopes {
            self.backends.give_back_late(scope, decided_by, due);
        }
    }

    /// The caller is dropped: what it was granted is given back, what is reserved is undone.
    pub(crate) fn cancel(&self) {
        let (phase, waker) = {
            let mut state = self.lock();
            let phase = std::mem::replace(&mut state.phase, Phase::Gone);
            (phase, state.waker.take())
        };
        // Here, not under the lock of a queue that drops the last reference to this.
        drop(waker);
        match phase {
            Phase::Reserved { queue, .. } => {
                if let Some(reservation) = queue.cancel(Self::is_wanted) {
                    self.backends
                        .undo(&queue.scope, reservation, queue.decided_by);
                }
            }
            Phase::Answered(delivery) => self.give_back(&delivery),
            // The task that decides on a request that is `Gone` gives back what it grants.
            Phase::Asked | Phase::Gone => {}
        }
    }
}

/// For the task that answers. No transition happens after the caller was dropped, because there is
/// no caller to wake.
impl Waiter {
    pub(crate) fn is_wanted(&self) -> bool {
        !matches!(self.lock().phase, Phase::Gone)
    }

    /// Returns `with` if the caller was dropped.
    fn enter<T>(&self, with: T, next: impl FnOnce(T, &Phase) -> Phase) -> Result<Wake, T> {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Gone) {
            return Err(with);
        }
        let next = next(with, &state.phase);
        let before = std::mem::replace(&mut state.phase, next);
        let wake = Wake(state.waker.take());
        drop(state);
        drop(before);
        Ok(wake)
    }

    pub(super) fn deliver(&self, delivery: Delivery) -> Result<Wake, Delivery> {
        self.enter(delivery, |delivery, _| Phase::Answered(delivery))
    }

    /// One of the scopes is reserved. The caller is woken, because it may hold a resource that it
    /// must not keep while it waits.
    pub(super) fn reserve(
        &self,
        which: usize,
        queue: &Arc<WaitQueue<Self>>,
        due: Instant,
    ) -> Option<Wake> {
        let reserved = |queue, _: &_| Phase::Reserved { which, queue, due };
        self.enter(queue.clone(), reserved).ok()
    }

    /// The reservation is due.
    pub(super) fn serve(&self, due: Instant) -> Option<Wake> {
        let answered = |due, phase: &_| {
            Phase::Answered(match phase {
                Phase::Reserved { which, queue, .. } => Delivery::Due {
                    which: *which,
                    due,
                    decided_by: queue.decided_by,
                },
                _ => Delivery::Missed,
            })
        };
        self.enter(due, answered).ok()
    }

    /// The reservation has passed.
    pub(super) fn miss(&self) -> Option<Wake> {
        self.deliver(Delivery::Missed).ok()
    }

    /// No task is going to answer.
    pub(crate) fn abandon(&self) -> Option<Wake> {
        self.deliver(Delivery::Abandoned).ok()
    }

    /// Makes the caller poll again, though nothing is decided.
    pub(super) fn nudge(&self) -> Wake {
        Wake(self.lock().waker.take())
    }
}
