//! Corrections that are kept until Redis has recovered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{bucket::Reservation, scope::Scope};

/// Further pauses are dropped.
const MAX_PAUSES: usize = 1_024;

/// Further cancelled reservations are dropped; the refill replaces their tokens.
const MAX_CANCELLED: usize = 16_384;

/// Pauses and cancelled reservations that were not delivered to Redis.
#[derive(Default)]
pub(crate) struct PendingCorrections {
    pauses: Mutex<Vec<(Scope, Instant)>>,
    cancelled: Mutex<Vec<(Scope, Reservation)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PendingCorrections {
    /// Keeps a pause, or extends the one of the same bucket.
    pub(crate) fn pause(&self, scope: &Scope, until: Instant) {
        let mut pauses = lock(&self.pauses);
        let known = pauses
            .iter_mut()
            .find(|(other, _)| other.same_bucket(scope));
        if let Some((_, known)) = known {
            *known = until.max(*known);
        } else if pauses.len() < MAX_PAUSES {
            pauses.push((scope.clone(), until));
        }
    }

    /// The pauses that are not over.
    pub(crate) fn pauses(&self) -> Vec<(Scope, Instant)> {
        let mut pauses = lock(&self.pauses);
        let now = Instant::now();
        pauses.retain(|(_, until)| *until > now);
        pauses.clone()
    }

    /// Drops pauses that were delivered, unless they were extended meanwhile.
    pub(crate) fn confirm(&self, delivered: &[(Scope, Instant)]) {
        lock(&self.pauses).retain(|(scope, until)| {
            !delivered
                .iter()
                .any(|(other, end)| other.same_bucket(scope) && end >= until)
        });
    }

    /// Keeps a reservation whose caller was dropped, to be undone after the recovery of Redis.
    pub(crate) fn undo(&self, cancelled: (Scope, Reservation)) {
        let mut kept = lock(&self.cancelled);
        if kept.len() < MAX_CANCELLED {
            kept.push(cancelled);
        }
    }

    /// Drops what is kept of a bucket that is reset.
    pub(crate) fn forget(&self, scope: &Scope) {
        lock(&self.pauses).retain(|(other, _)| !other.same_bucket(scope));
        lock(&self.cancelled).retain(|(other, _)| !other.same_bucket(scope));
    }

    /// Takes all cancelled reservations. The caller delivers them.
    pub(crate) fn take_cancelled(&self) -> Vec<(Scope, Reservation)> {
        std::mem::take(&mut *lock(&self.cancelled))
    }
}
