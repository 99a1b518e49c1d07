//! What an acquisition of several scopes has so far, and when it asks for the rest.
//!
//! Tokens of several scopes are used at the same time, and each of them within [`TOLERANCE`] after
//! its own reservation, so the reservations must lie close together. Each bucket gives the next
//! one that is free, and none waits for another. The latest reservation therefore sets the time:
//! what is due earlier by more than [`ALIGNED`] is given back, and asked for again as long before
//! that time as it would have to wait.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    runtime::Id,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{
    bound::Bound,
    core::Core,
    wait_queue::TOLERANCE,
    waiter::{Outcome, Waiter},
};
use crate::{
    decision::DecidedBy,
    runtime,
    scope::{Scope, Scopes},
};

/// Reservations that lie no further apart are used together. The rest of the tolerance is for
/// timers and tasks that run late.
pub(super) const ALIGNED: Duration = Duration::from_millis(75);

/// The shortest pause before the rest is asked for again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// What a call to the store takes does not count as late, up to this: where Redis is far away,
/// what was taken in an earlier step would always be too old.
const LONGEST_CALL: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Steps {
    /// The scopes taken so far.
    pub(super) taken: Vec<Step>,
    /// Those whose time is still to come.
    reserved: Vec<Reserved>,
    /// The scopes taken from memory beside Redis, as long as it has just come back.
    pub(super) beside: Vec<usize>,
    /// When to see again whether the rest is to be asked for, and the runtime of this timer.
    look: Option<(Pin<Box<Sleep>>, Id)>,
    /// When the rest was asked for.
    asked: Option<Instant>,
}

/// A scope that was taken.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) origin: DecidedBy,
    /// When it is to be used.
    pub(super) due: Instant,
}

struct Reserved {
    index: usize,
    waiter: Arc<Waiter>,
    due: Instant,
    bound: Option<Box<Bound>>,
}

impl Steps {
    pub(super) fn take(&mut self, index: usize, origin: DecidedBy, due: Instant) {
        self.taken.push(Step { index, origin, due });
    }

    pub(super) fn reserve(&mut self, index: usize, waiter: Arc<Waiter>, due: Instant) {
        self.reserved.push(Reserved {
            index,
            waiter,
            due,
            bound: None,
        });
    }

    pub(super) fn has(&self, index: usize) -> bool {
        let taken = self.taken.iter().map(|step| step.index);
        let reserved = self.reserved.iter().map(|reserved| reserved.index);
        taken.chain(reserved).any(|other| other == index)
    }

    pub(super) fn is_reserving(&self) -> bool {
        !self.reserved.is_empty()
    }

    pub(super) fn has_missed(&self) -> bool {
        self.reserved.iter().any(|other| other.waiter.has_missed())
    }

    /// When all of these are to be used.
    pub(super) fn latest(&self) -> Option<Instant> {
        let metered = self.taken.iter().filter(|step| step.is_metered());
        let taken = metered.map(|step| step.due);
        let reserved = self.reserved.iter().map(|reserved| reserved.due);
        taken.chain(reserved).max()
    }

    /// When the first of the tokens was to be used.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let metered = self.taken.iter().filter(|step| step.is_metered());
        metered.map(|step| step.due).min()
    }

    /// The rest is asked for now.
    pub(super) fn asks(&mut self) {
        self.asked = Some(Instant::now());
        self.look = None;
    }

    /// The rest was answered for at `told`.
    pub(super) fn answered(&mut self, told: Instant) {
        if let Some(asked) = self.asked.take() {
            let call = told.saturating_duration_since(asked).min(LONGEST_CALL);
            for step in &mut self.taken {
                step.due += call;
            }
        }
    }

    /// Gives back what is due too early to be used at `time`. Whether there was any.
    pub(super) fn align(&mut self, core: &Core, scopes: &Scopes, time: Instant) -> bool {
        let before = self.taken.len() + self.reserved.len();
        let fits = |due: Instant| due + ALIGNED >= time;
        self.taken.retain(|step| {
            let keep = !step.is_metered() || fits(step.due);
            if !keep {
                step.give_back(core, scopes);
            }
            keep
        });
        self.reserved.retain(|reserved| {
            let keep = fits(reserved.due);
            if !keep {
                reserved.waiter.cancel();
            }
            keep
        });
        self.taken.len() + self.reserved.len() < before
    }

    /// Gives back what is too old to be used now. Whether there was any.
    pub(super) fn drop_old(&mut self, core: &Core, scopes: &Scopes) -> bool {
        let before = self.taken.len();
        self.taken.retain(|step| {
            let keep = !step.is_metered() || step.due.elapsed() <= TOLERANCE;
            if !keep {
                step.give_back(core, scopes);
            }
            keep
        });
        self.taken.len() < before
    }

    /// When to ask for `left`, of which `early` says whether they were just granted too early;
    /// none: at once.
    pub(super) fn wait_for(
        &mut self,
        core: &Core,
        left: &Scopes,
        time: Instant,
        early: bool,
    ) -> Option<()> {
        let now = Instant::now();
        let until = time.saturating_duration_since(now);
        // Who else comes meanwhile changes how long they would wait: looking again half way, and
        // half way again, leaves little time for that.
        let mut pause = (until / 2).max(SHORTEST_PAUSE);
        if !early && let Some(wait) = left.iter().filter_map(|scope| core.quote(scope)).max() {
            let lead = until.checked_sub(wait + ALIGNED)?;
            pause = pause.min(lead).max(SHORTEST_PAUSE);
        }
        // In the last moments the rest is asked for when the time has come.
        self.look = (until > ALIGNED).then(|| (Box::pin(sleep(pause)), runtime::current()));
        Some(())
    }

    pub(super) fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((look, of)) = &mut self.look else {
            return Poll::Pending;
        };
        let here = runtime::current();
        if *of != here {
            // The other one may not be driven any more.
            *look = Box::pin(sleep_until(look.deadline()));
            *of = here;
        }
        look.as_mut().poll(cx)
    }

    /// Takes the reservations whose time has come. Whether any of them has changed.
    pub(super) fn poll_reserved(&mut self, core: &Arc<Core>, cx: &mut Context<'_>) -> bool {
        let before = self.reserved.len();
        let taken = &mut self.taken;
        self.reserved.retain_mut(|reserved| {
            let outcome = match reserved.waiter.poll(cx) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => {
                    match Bound::poll(&mut reserved.bound, core, &reserved.waiter, cx) {
                        Poll::Ready(outcome) => outcome,
                        Poll::Pending => return true,
                    }
                }
            };
            if let Outcome::Due {
                which,
                due: turn,
                origin,
            } = outcome
            {
                if turn.elapsed() > TOLERANCE {
                    let scope = &reserved.waiter.scopes()[which];
                    core.give_back_late(scope, origin, turn);
                } else {
                    let (index, due) = (reserved.index, turn);
                    taken.push(Step { index, origin, due });
                }
            }
            false
        });
        self.reserved.len() < before
    }

    pub(super) fn give_back_all(self, core: &Core, scopes: &Scopes) {
        for reserved in &self.reserved {
            reserved.waiter.cancel();
        }
        for step in &self.taken {
            step.give_back(core, scopes);
        }
        for index in self.beside {
            let scope = &scopes.as_slice()[index];
            core.give_back(scope, scope.tokens(), DecidedBy::DualAdmission);
        }
    }
}

impl Step {
    /// Whether there is a bucket behind it.
    fn is_metered(&self) -> bool {
        self.origin != DecidedBy::Unmetered
    }

    fn give_back(&self, core: &Core, scopes: &Scopes) {
        let scope: &Scope = &scopes.as_slice()[self.index];
        core.give_back_late(scope, self.origin, self.due);
    }
}
