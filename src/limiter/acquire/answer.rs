//! Waiting for answers and reservations, and what follows from them.

use std::{
    mem,
    task::{Context, Poll, ready},
};

use tokio::time::Instant;

use super::{Acquire, AcquireState, Next, Watchdog};
use crate::{
    decision::DecidedBy,
    limiter::queue::{Delivery, TOLERANCE, Waiter},
    rejected::Rejected,
    scope::Scope,
};

impl Acquire {
    /// Waits for the answer, for a reservation, or for the time to ask for the rest.
    pub(super) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let changed = self.poll_reserved(cx);
        let AcquireState::Waiting(waiter) = &self.state else {
            if let Some(next) = changed {
                return Poll::Ready(next);
            }
            if let Some(obtained) = &mut self.obtained {
                ready!(obtained.poll_recheck(cx));
                return Poll::Ready(Next::Resume);
            }
            return Poll::Pending;
        };
        let delivery = match waiter.poll(cx) {
            Poll::Ready(delivery) => delivery,
            Poll::Pending => {
                if self.scopes.as_slice().len() > 1
                    && let Some((which, due, decided_by)) = waiter.reservation()
                {
                    if decided_by != DecidedBy::DualAdmission {
                        let waiter = waiter.clone();
                        let index = self.index_of(&waiter.scopes()[which]);
                        let obtained = self.obtained();
                        obtained.answered(Instant::now());
                        obtained.reserve(index, waiter, due);
                        return Poll::Ready(Next::Resume);
                    }
                    // Redis is asked after memory.
                    if let (Some(core), Some(obtained)) = (&self.core, &mut self.obtained) {
                        obtained.align(&**core, &self.scopes, due);
                    }
                }
                let core = self.core.as_ref().expect(super::POLLED_AGAIN);
                ready!(Watchdog::poll(&mut self.watchdog, core, waiter, cx))
            }
        };
        // From here on the waiter has nothing to give back.
        let state = mem::replace(&mut self.state, AcquireState::Reserving);
        let AcquireState::Waiting(waiter) = state else {
            return Poll::Pending;
        };
        Poll::Ready(self.on_delivery(&waiter, delivery))
    }

    /// Takes the reserved scopes that are due.
    fn poll_reserved(&mut self, cx: &mut Context<'_>) -> Option<Next> {
        let (core, obtained) = (self.core.as_ref()?, self.obtained.as_mut()?);
        let before = obtained.taken.len();
        if !obtained.poll_reserved(core, cx) {
            return None;
        }
        match obtained.taken.get(before..).and_then(<[_]>::last) {
            Some(last) => {
                self.waited_for = Some(last.index as u32);
                Some(Next::Resume)
            }
            None => Some(Next::Retry),
        }
    }

    fn on_delivery(&mut self, waiter: &Waiter, delivery: Delivery) -> Next {
        if delivery.is_old() {
            // This was not polled in time. A token that was due earlier would be used in addition
            // to those that are due now.
            let drops = match delivery {
                Delivery::Granted { .. } | Delivery::Rejected { .. } => {
                    asks_again(self.deadline, &mut self.has_asked_late)
                }
                _ => matches!(delivery, Delivery::Due { .. }),
            };
            if drops {
                waiter.give_back(&delivery);
                return Next::Resume;
            }
        }
        match delivery {
            Delivery::Granted {
                tightest,
                level,
                decided_by,
                decided_at,
            } => {
                if let Some(obtained) = &mut self.obtained {
                    obtained.answered(decided_at);
                }
                let tightest = (tightest, level);
                self.granted(waiter.scopes(), tightest, decided_by, decided_at)
            }
            Delivery::Due {
                which,
                due,
                decided_by,
            } => self.reservation_due(&waiter.scopes()[which], due, decided_by),
            Delivery::Missed | Delivery::Abandoned => Next::Retry,
            Delivery::Rejected {
                which, retry_after, ..
            } => {
                let (scope, max_wait_us) = (&waiter.scopes()[which], waiter.max_wait_us());
                Next::Reject(Rejected::limited(scope, retry_after, max_wait_us, false))
            }
            Delivery::Failed(failure) => Next::FallBack(failure),
        }
    }

    /// These scopes were taken without a wait.
    pub(super) fn granted(
        &mut self,
        scopes: &[Scope],
        (tightest, level): (usize, f64),
        decided_by: DecidedBy,
        decided_at: Instant,
    ) -> Next {
        if self.taken().is_empty() && !self.is_reserving() {
            self.due = Some(decided_at);
            let tightest = self.index_of(&scopes[tightest]);
            return Next::Admit(Some((tightest, level)), decided_by);
        }
        for scope in scopes {
            let index = self.index_of(scope);
            self.obtained().take(index, decided_by, decided_at);
        }
        Next::Resume
    }

    fn reservation_due(&mut self, scope: &Scope, due: Instant, decided_by: DecidedBy) -> Next {
        let index = self.index_of(scope);
        if decided_by == DecidedBy::DualAdmission {
            self.obtained().dual.push(index);
            return Next::Ask;
        }
        self.waited_for = Some(index as u32);
        if self.scopes.as_slice().len() == 1 {
            self.due = Some(due);
            return Next::Admit(None, decided_by);
        }
        self.obtained().take(index, decided_by, due);
        Next::Resume
    }

    /// Aligns what was obtained, then admits, waits, or requests the rest.
    pub(super) fn resume(&mut self) -> Next {
        let (Some(core), Some(obtained)) = (&self.core, &mut self.obtained) else {
            return Next::Ask;
        };
        let Some(latest) = obtained.latest() else {
            return Next::Ask;
        };
        let core = core.clone();
        let gave_back = obtained.align(&*core, &self.scopes, latest);
        let left = self.left();
        if self.is_reserving() {
            self.state = AcquireState::Reserving;
            let asks_later = left.as_slice().is_empty()
                || self.obtained().ask_later(&core, &left, latest, gave_back);
            return if asks_later { Next::Wait } else { Next::Ask };
        }
        if !left.as_slice().is_empty() || self.drops_unusable() {
            return Next::Ask;
        }
        let last = self.taken().last().map(|last| last.decided_by);
        Next::Admit(None, last.unwrap_or(core.primary()))
    }

    /// Drops taken scopes that cannot be used any more, and are to be taken again: those whose
    /// bucket was paused since, and those that are too old by now. Returns whether there were any.
    fn drops_unusable(&mut self) -> bool {
        let (Some(core), Some(obtained)) = (&self.core, &mut self.obtained) else {
            return false;
        };
        let before = obtained.taken.len();
        obtained.forfeit_paused(core, &self.scopes);
        let mut taken = obtained.taken.iter();
        if taken.any(|taken| taken.due.elapsed() > TOLERANCE)
            && asks_again(self.deadline, &mut self.has_asked_late)
        {
            obtained.give_back_old(&**core, &self.scopes);
        }
        obtained.taken.len() < before
    }
}

/// Whether what is too old is asked for again: until the deadline, and once after it, so that a
/// process that is always late gets an answer as well.
fn asks_again(deadline: Option<Instant>, has_asked_late: &mut bool) -> bool {
    deadline.is_some_and(|end| Instant::now() < end) || !mem::replace(has_asked_late, true)
}
