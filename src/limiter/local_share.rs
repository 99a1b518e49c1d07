//! The local share of this process: what it may spend of each limit while Redis is unavailable.

use std::sync::Arc;

use tokio::time::Instant;

use super::pending::PendingCorrections;
use crate::{
    bucket::{Bucket, BucketParams, Debt, Reservation},
    fallback::{Fallback, Share},
    memory::{MemoryStore, ShareBounds},
    peers::Peers,
    redis::Ledger,
    scope::{BucketId, Scope},
};

/// The local shares: their sizes, the tokens taken from them, and the debt to charge to Redis.
pub(crate) struct LocalShares {
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) salt: [u8; 32],
    pub(crate) fallback: Fallback,
    pub(crate) pending: PendingCorrections,
}

impl LocalShares {
    /// The fallback of this scope.
    pub(crate) fn policy(&self, scope: &Scope) -> Fallback {
        scope.own_fallback().unwrap_or(self.fallback)
    }

    /// Whether memory keeps a share of this scope.
    pub(crate) fn has_share(&self, scope: &Scope) -> bool {
        self.policy(scope).share().is_some()
    }

    /// Whether requests are rejected while Redis is unavailable: the fallback demands it, or it
    /// allows no debt and the cost is over the share.
    pub(crate) fn fails_closed(&self, scope: &Scope) -> bool {
        match self.policy(scope) {
            Fallback::FailClosed => true,
            Fallback::StrictShare(_) => scope.tokens() > self.params(scope).capacity,
            Fallback::LocalShare(_) | Fallback::FailOpen => false,
        }
    }

    /// The number of equal shares of which this process has one.
    pub(crate) fn divisor(&self, scope: &Scope) -> f64 {
        match self.policy(scope).share() {
            Some(Share::Fixed(part)) => part.recip(),
            _ => self.peers.processes(),
        }
    }

    /// The parameters of the local share.
    pub(crate) fn params(&self, scope: &Scope) -> BucketParams {
        let (full, divisor) = (scope.params(), self.divisor(scope));
        match self.policy(scope) {
            Fallback::StrictShare(_) => full.strict_share(divisor),
            _ => full.share(divisor),
        }
    }

    /// Charges the share, or gives back to it if `tokens` is negative, and records that Redis is to
    /// be corrected in the same way.
    pub(crate) fn correct(&self, scope: &Scope, tokens: f64) {
        let (id, params, bounds) = self.share(scope, true);
        let correct = correct(tokens, params, bounds.full_quota);
        self.memory.with_share(&id, params, bounds, correct);
    }

    /// As [`correct`](Self::correct), but never on a bucket that unseen keys share.
    pub(crate) fn correct_own(&self, scope: &Scope, tokens: f64) {
        let (id, params, bounds) = self.share(scope, true);
        let correct = correct(tokens, params, bounds.full_quota);
        self.memory.with_own_share(&id, params, bounds, correct);
    }

    /// Undoes a reservation of the share whose caller was dropped.
    pub(crate) fn undo(&self, scope: &Scope, cancelled: Reservation, incurs_debt: bool) {
        let (id, params, bounds) = self.share(scope, incurs_debt);
        self.memory.with_share(&id, params, bounds, |bucket, debt| {
            bucket.undo(cancelled, params);
            if incurs_debt {
                *debt -= cancelled.tokens;
            }
        });
    }

    /// Records that Redis is to be given back a reservation for which the share is asked instead.
    pub(crate) fn credit_reservation(&self, scope: &Scope) {
        let (id, params, bounds) = self.share(scope, true);
        let credit = |_: &mut Bucket, debt: &mut f64| *debt -= scope.tokens();
        self.memory.with_share(&id, params, bounds, credit);
    }

    /// Pauses the share for `us` microseconds.
    pub(crate) fn pause(&self, scope: &Scope, us: f64) {
        if self.has_share(scope) {
            let (id, params, bounds) = self.share(scope, false);
            let pause = |bucket: &mut Bucket, _: &mut f64| bucket.pause(us, params);
            self.memory.with_own_share(&id, params, bounds, pause);
        }
    }

    /// Gives back tokens that dual admission took from the share and that were not used.
    pub(crate) fn give_back_without_debt(&self, scope: &Scope) {
        let (id, params, bounds) = self.share(scope, false);
        let give_back = |bucket: &mut Bucket, _: &mut f64| bucket.give_back(scope.tokens(), params);
        self.memory.with_share(&id, params, bounds, give_back);
    }

    fn share(&self, scope: &Scope, incurs_debt: bool) -> (BucketId, BucketParams, ShareBounds) {
        let bounds = ShareBounds::unbounded(scope.params(), incurs_debt);
        (scope.id(&self.salt), self.params(scope), bounds)
    }
}

fn correct(
    tokens: f64,
    params: BucketParams,
    full: BucketParams,
) -> impl FnOnce(&mut Bucket, &mut f64) {
    move |bucket, debt| {
        // As deep into debt as the undivided bucket could go.
        let deep = BucketParams {
            capacity: full.capacity,
            ..params
        };
        bucket.correct(tokens, if tokens > 0.0 { deep } else { params });
        *debt += tokens;
    }
}

impl Ledger for LocalShares {
    fn correct(&self, scope: &Scope, tokens: f64) {
        LocalShares::correct(self, scope, tokens);
    }

    fn pause(&self, scope: &Scope, until: Instant) {
        self.pending.pause(scope, until);
    }

    fn pauses(&self) -> Vec<(Scope, Instant)> {
        self.pending.pauses()
    }

    fn confirm_pauses(&self, delivered: &[(Scope, Instant)]) {
        self.pending.confirm(delivered);
    }

    fn undo(&self, scope: Scope, reservation: Reservation) {
        self.pending.undo((scope, reservation));
    }

    fn cancelled(&self) -> Vec<(Scope, Reservation)> {
        self.pending.take_cancelled()
    }

    fn sweep_step(&self, step: usize) {
        self.memory.sweep_step(step);
    }

    fn has_debt(&self) -> bool {
        self.memory.has_debt()
    }

    fn drain(&self) -> Vec<Debt> {
        self.memory.drain_debts()
    }
}
