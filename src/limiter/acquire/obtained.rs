//! [`Obtained`]: what an acquisition of several scopes has so far, and when it requests the rest.
//!
//! # Alignment
//!
//! The tokens of all scopes are used at the same time, and each at most 100 ms after it was due
//! ([`TOLERANCE`]). So the reservations must lie close together, but each bucket gives the next one
//! that is free, without regard to the others. The latest reservation therefore sets the time:
//!
//! 1. What is due more than 75 ms ([`ALIGNED`]) before that is given back. The other 25 ms are for
//!    timers and tasks that run late.
//! 2. It is asked for again when its own wait will end 75 ms before the latest reservation is due.
//!    As its bucket serves others meanwhile, its wait is estimated again half way, and half way
//!    again.
//! 3. A call to Redis takes time, up to 500 ms of which ([`MAX_CALL`]) do not count as late.

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

use super::watchdog::Watchdog;
use crate::{
    decision::DecidedBy,
    limiter::{
        core::Core,
        queue::{Backends, Delivery, TOLERANCE, Waiter},
    },
    runtime,
    scope::Scopes,
};

/// Reservations that lie no further apart are used together.
const ALIGNED: Duration = Duration::from_millis(75);

/// The shortest time before the rest is requested again.
const MIN_RECHECK: Duration = Duration::from_millis(5);

/// The part of a call that does not count as late: otherwise, with a long round trip to Redis,
/// tokens taken before the call would always be too old.
const MAX_CALL: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Obtained {
    pub(super) taken: Vec<TakenScope>,
    /// Not due yet.
    reserved: Vec<ReservedScope>,
    /// The indices of scopes that memory admitted, and Redis must admit as well (dual admission).
    pub(super) dual: Vec<usize>,
    /// When to see whether the rest is to be asked for, and the runtime of this timer.
    recheck: Option<(Pin<Box<Sleep>>, Id)>,
    /// When the rest was asked for.
    asked_at: Option<Instant>,
}

#[derive(Clone, Copy)]
pub(super) struct TakenScope {
    pub(super) index: usize,
    pub(super) decided_by: DecidedBy,
    /// When the tokens are to be used.
    pub(super) due: Instant,
}

struct ReservedScope {
    index: usize,
    waiter: Arc<Waiter>,
    due: Instant,
    watchdog: Option<Box<Watchdog>>,
}

impl Obtained {
    pub(super) fn take(&mut self, index: usize, decided_by: DecidedBy, due: Instant) {
        self.taken.push(TakenScope {
            index,
            decided_by,
            due,
        });
    }

    pub(super) fn reserve(&mut self, index: usize, waiter: Arc<Waiter>, due: Instant) {
        self.reserved.push(ReservedScope {
            index,
            waiter,
            due,
            watchdog: None,
        });
    }

    /// Whether a scope is taken or reserved.
    pub(super) fn has(&self, index: usize) -> bool {
        let taken = self.taken.iter().map(|taken| taken.index);
        let reserved = self.reserved.iter().map(|reserved| reserved.index);
        taken.chain(reserved).any(|other| other == index)
    }

    pub(super) fn is_reserving(&self) -> bool {
        !self.reserved.is_empty()
    }

    pub(super) fn has_missed(&self) -> bool {
        self.reserved.iter().any(|other| other.waiter.has_missed())
    }

    fn metered(&self) -> impl Iterator<Item = Instant> {
        let metered = self.taken.iter().filter(|taken| taken.is_metered());
        metered.map(|taken| taken.due)
    }

    /// When all of these are to be used.
    pub(super) fn latest(&self) -> Option<Instant> {
        let reserved = self.reserved.iter().map(|reserved| reserved.due);
        self.metered().chain(reserved).max()
    }

    /// When the first of the tokens was due.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.metered().min()
    }

    /// A backend is asked for the rest.
    pub(super) fn start_asking(&mut self) {
        self.asked_at = Some(Instant::now());
        self.recheck = None;
    }

    /// A backend has decided about the rest.
    pub(super) fn answered(&mut self, decided_at: Instant) {
        if let Some(asked_at) = self.asked_at.take() {
            let call = decided_at.saturating_duration_since(asked_at);
            for taken in &mut self.taken {
                taken.due += call.min(MAX_CALL);
            }
        }
    }

    /// Gives back what is due too early to be used at `latest`. Returns whether there was any.
    pub(super) fn align(
        &mut self,
        backends: &dyn Backends,
        scopes: &Scopes,
        latest: Instant,
    ) -> bool {
        let is_early = |due: Instant| due + ALIGNED < latest;
        let before = self.taken.len() + self.reserved.len();
        self.give_back_if(backends, scopes, |taken| is_early(taken.due));
        self.reserved.retain(|reserved| {
            if is_early(reserved.due) {
                reserved.waiter.cancel();
            }
            !is_early(reserved.due)
        });
        self.taken.len() + self.reserved.len() < before
    }

    /// Gives back what is too old to be used now.
    pub(super) fn give_back_old(&mut self, backends: &dyn Backends, scopes: &Scopes) {
        self.give_back_if(backends, scopes, |taken| taken.due.elapsed() > TOLERANCE);
    }

    /// Drops the tokens of buckets that have been paused since. They are not given back: during a
    /// pause a bucket must not gain tokens.
    pub(super) fn forfeit_paused(&mut self, core: &Core, scopes: &Scopes) {
        self.taken.retain(|taken| {
            let id = scopes.as_slice()[taken.index].id(&core.salt);
            core.paused_until(&id.lookup(), taken.decided_by).is_none()
        });
    }

    fn give_back_if(
        &mut self,
        backends: &dyn Backends,
        scopes: &Scopes,
        is_meant: impl Fn(&TakenScope) -> bool,
    ) {
        self.taken.retain(|taken| {
            let goes = taken.is_metered() && is_meant(taken);
            if goes {
                taken.give_back(backends, scopes);
            }
            !goes
        });
    }

    /// Sets the time to ask for `left`, of which some may just have been given back. Returns false
    /// if that is now.
    pub(super) fn ask_later(
        &mut self,
        core: &Core,
        left: &Scopes,
        latest: Instant,
        gave_back: bool,
    ) -> bool {
        let until_latest = latest.saturating_duration_since(Instant::now());
        // What was just granted too early would be granted too early again.
        let own_wait = match gave_back {
            true => None,
            false => left.iter().filter_map(|scope| core.quote(scope)).max(),
        };
        let Some(recheck) = recheck_after(until_latest, own_wait) else {
            return false;
        };
        // In the last moments the rest is asked for when the reservation is due.
        self.recheck =
            (until_latest > ALIGNED).then(|| (Box::pin(sleep(recheck)), runtime::current()));
        true
    }

    pub(super) fn poll_recheck(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((recheck, of)) = &mut self.recheck else {
            return Poll::Pending;
        };
        let here = runtime::current();
        if *of != here {
            // The other runtime may not be driven any more.
            *recheck = Box::pin(sleep_until(recheck.deadline()));
            *of = here;
        }
        recheck.as_mut().poll(cx)
    }

    /// Takes the reserved scopes that are due. Returns whether the reservations have changed.
    pub(super) fn poll_reserved(&mut self, core: &Arc<Core>, cx: &mut Context<'_>) -> bool {
        let before = self.reserved.len();
        let taken = &mut self.taken;
        self.reserved.retain_mut(|reserved| {
            let (waiter, watchdog) = (&reserved.waiter, &mut reserved.watchdog);
            let delivery = match waiter.poll(cx) {
                Poll::Ready(delivery) => Poll::Ready(delivery),
                Poll::Pending => Watchdog::poll(watchdog, core, waiter, cx),
            };
            match delivery {
                Poll::Pending => return true,
                Poll::Ready(delivery) if delivery.is_old() => waiter.give_back(&delivery),
                Poll::Ready(Delivery::Due {
                    due, decided_by, ..
                }) => taken.push(TakenScope {
                    index: reserved.index,
                    decided_by,
                    due,
                }),
                Poll::Ready(_) => {}
            }
            false
        });
        self.reserved.len() < before
    }

    pub(super) fn give_back_all(self, core: &Core, scopes: &Scopes) {
        for reserved in &self.reserved {
            reserved.waiter.cancel();
        }
        for taken in &self.taken {
            taken.give_back(core, scopes);
        }
        for index in self.dual {
            let scope = &scopes.as_slice()[index];
            core.give_back(scope, scope.tokens(), DecidedBy::DualAdmission);
        }
    }
}

impl TakenScope {
    /// Whether there is a bucket behind it.
    fn is_metered(&self) -> bool {
        self.decided_by != DecidedBy::Unmetered
    }

    fn give_back(&self, backends: &dyn Backends, scopes: &Scopes) {
        let scope = &scopes.as_slice()[self.index];
        backends.give_back_late(scope, self.decided_by, self.due);
    }
}

/// When to look at the rest again, if the latest reservation is due after `until_latest` and the
/// rest would have to wait for `own_wait`. `None` if the rest is to be asked for at once.
fn recheck_after(until_latest: Duration, own_wait: Option<Duration>) -> Option<Duration> {
    let half = until_latest / 2;
    let recheck = match own_wait {
        Some(own_wait) => half.min(until_latest.checked_sub(own_wait + ALIGNED)?),
        None => half,
    };
    Some(recheck.max(MIN_RECHECK))
}

#[cfg(test)]
mod tests;
