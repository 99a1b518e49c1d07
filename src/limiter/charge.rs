//! What was taken for a permit, and how it is corrected.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::Instant;

use super::core::{Core, unused};
use crate::{
    decision::DecidedBy,
    scope::{Scope, Scopes},
    telemetry::Cost,
};

/// What was taken, from where, and what it was corrected to.
pub(crate) struct Charged {
    pub(crate) core: Arc<Core>,
    pub(crate) scopes: Scopes,
    pub(crate) origin: Origins,
    /// The bits of the settled cost; NaN as long as the estimate stands, infinite once it was
    /// refunded.
    settled: AtomicU64,
}

/// Where the tokens of each scope came from.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    All(DecidedBy),
    /// In the order of the scopes.
    Each(Box<[DecidedBy]>),
}

impl Origins {
    pub(super) fn get(&self, index: usize) -> DecidedBy {
        match self {
            Self::All(origin) => *origin,
            Self::Each(origins) => origins[index],
        }
    }

    pub(super) fn is_degraded(&self) -> bool {
        let degraded =
            |origin: &DecidedBy| matches!(origin, DecidedBy::LocalShare | DecidedBy::Unmetered);
        match self {
            Self::All(origin) => degraded(origin),
            Self::Each(origins) => origins.iter().any(degraded),
        }
    }
}

impl Clone for Charged {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            scopes: self.scopes.clone(),
            origin: self.origin.clone(),
            settled: AtomicU64::new(self.settled.load(Ordering::Relaxed)),
        }
    }
}

impl Charged {
    #[inline]
    pub(crate) fn new(core: Arc<Core>, scopes: Scopes, origin: Origins) -> Self {
        Self {
            core,
            scopes,
            origin,
            settled: AtomicU64::new(f64::NAN.to_bits()),
        }
    }

    pub(super) fn settle(&self, actual: f64) {
        if !(actual >= 0.0 && actual.is_finite()) {
            return;
        }
        let Some(before) = self.swap(actual) else {
            return;
        };
        let costed = self.scopes.iter().any(Scope::is_costed);
        for (index, scope) in self.scopes.iter().enumerate() {
            if scope.is_costed() || !costed {
                // No more than one capacity beyond the estimate: a store clips larger debts, and
                // a later correction must not give back what was never charged.
                let most = scope.tokens() + scope.quota().capacity();
                let before = before.map_or(scope.tokens(), |before| before.min(most));
                self.correct(index, scope, before, actual.min(most));
            }
        }
    }

    pub(super) fn refund(&self) {
        let Some(before) = self.swap(f64::INFINITY) else {
            return;
        };
        let costed = self.scopes.iter().any(Scope::is_costed);
        for (index, scope) in self.scopes.iter().enumerate() {
            let most = scope.tokens() + scope.quota().capacity();
            let settled = before
                .filter(|_| scope.is_costed() || !costed)
                .map(|before| before.min(most));
            self.correct(index, scope, settled.unwrap_or(scope.tokens()), 0.0);
        }
    }

    pub(super) fn give_back_late(&self, due: Instant) {
        if self.swap(f64::INFINITY) != Some(None) {
            return;
        }
        for (index, scope) in self.scopes.iter().enumerate() {
            let lost = scope.tokens() - unused(scope, due);
            self.correct(index, scope, scope.tokens(), lost);
        }
    }

    /// What was settled before, or none; nothing at all once it was refunded. Swapped as one,
    /// so that the corrections of several handles add up whatever their order.
    fn swap(&self, actual: f64) -> Option<Option<f64>> {
        let mut before = self.settled.load(Ordering::Relaxed);
        loop {
            let value = f64::from_bits(before);
            if value.is_infinite() {
                return None;
            }
            match self.settled.compare_exchange_weak(
                before,
                actual.to_bits(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some((!value.is_nan()).then_some(value)),
                Err(now) => before = now,
            }
        }
    }

    fn correct(&self, index: usize, scope: &Scope, before: f64, after: f64) {
        let origin = self.origin.get(index);
        let meter = self.core.observer.meter;
        if after > before {
            meter.corrected(scope, Cost::Settled, after - before);
            self.core.charge(scope, after - before, origin);
        } else if after < before {
            meter.corrected(scope, Cost::Refunded, before - after);
            self.core.give_back(scope, before - after, origin);
        }
    }
}
