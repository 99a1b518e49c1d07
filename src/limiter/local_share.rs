//! This process's share of limits whose store is away.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;

use crate::{
    bucket::{Bucket, BucketParams, Reservation},
    fallback::{Fallback, Share},
    memory::{MemoryStore, ShareBounds},
    peers::Peers,
    scope::{BucketId, Scope},
};

/// Holds that Redis is to be told of once it is back; more of them are forgotten.
const MAX_PENDING_PAUSES: usize = 1_024;

/// Cancelled reservations that are kept for Redis; the tokens of more come back by the refill.
const MOST_CANCELLED: usize = 16_384;

/// The shares of this process: how large they are, what was taken from them, and what of it is
/// owed to Redis.
pub(crate) struct LocalShares {
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) members: Arc<Peers>,
    pub(crate) salt: [u8; 32],
    pub(crate) fallback: Fallback,
    pub(crate) pending: PendingCorrections,
}

/// A reservation whose caller has gone away.
type Cancelled = (Scope, Reservation);

/// Holds and cancelled reservations that Redis was not told of.
#[derive(Default)]
pub(crate) struct PendingCorrections {
    any: AtomicBool,
    holds: Mutex<Vec<(Scope, Instant)>>,
    cancelled: Mutex<Vec<Cancelled>>,
}

impl PendingCorrections {
    fn add(&self, scope: &Scope, until: Instant) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        holds.retain(|(_, until)| *until > now);
        let known = holds.iter_mut().find(|(other, _)| other.same_bucket(scope));
        if let Some((_, known)) = known {
            *known = until.max(*known);
        } else if holds.len() < MAX_PENDING_PAUSES {
            holds.push((scope.clone(), until));
        }
        self.any.store(true, Ordering::Release);
    }

    pub(crate) fn undo(&self, gone: Cancelled) {
        let mut cancelled = self.lock_cancelled();
        if cancelled.len() < MOST_CANCELLED {
            cancelled.push(gone);
        }
    }

    fn lock_cancelled(&self) -> MutexGuard<'_, Vec<Cancelled>> {
        self.cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A reset ends a hold, and forgets reservations.
    pub(crate) fn forget(&self, scope: &Scope) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.retain(|(other, _)| !other.same_bucket(scope));
        drop(holds);
        self.lock_cancelled()
            .retain(|gone| !gone.0.same_bucket(scope));
    }

    /// All of them, which from here on are somebody else's to tell.
    pub(crate) fn take(&self) -> Vec<(Scope, Instant)> {
        if !self.any.load(Ordering::Relaxed) || !self.any.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *holds)
    }
}

impl LocalShares {
    pub(crate) fn policy(&self, scope: &Scope) -> Fallback {
        scope.own_fallback().unwrap_or(self.fallback)
    }

    /// Whether memory keeps a share of this scope.
    pub(crate) fn has_share(&self, scope: &Scope) -> bool {
        self.policy(scope).share().is_some()
    }

    /// Whether nobody may be admitted to this scope without Redis: the policy says so, or it allows
    /// no debt and the cost is over the share.
    pub(crate) fn fails_closed(&self, scope: &Scope) -> bool {
        match self.policy(scope) {
            Fallback::FailClosed => true,
            Fallback::StrictShare(_) => scope.tokens() > self.params(scope).capacity,
            Fallback::LocalShare(_) | Fallback::FailOpen => false,
        }
    }

    /// Of how many equal shares this process has one.
    pub(crate) fn divisor(&self, scope: &Scope) -> f64 {
        match self.policy(scope).share() {
            Some(Share::Fixed(part)) => part.recip(),
            _ => self.members.processes(),
        }
    }

    pub(crate) fn params(&self, scope: &Scope) -> BucketParams {
        let (whole, divisor) = (scope.params(), self.divisor(scope));
        match self.policy(scope) {
            Fallback::StrictShare(_) => whole.strict_share(divisor),
            _ => whole.share(divisor),
        }
    }

    /// Charges a share, or, below zero, gives back to it, what Redis was not told of.
    pub(crate) fn correct(&self, scope: &Scope, tokens: f64) {
        let (id, params, stand_in) = self.correction(scope);
        self.memory.with_share(
            &id,
            params,
            stand_in,
            correct(tokens, params, stand_in.full_quota),
        );
    }

    /// As `correct`, but never on a share that other scopes take from as well.
    pub(crate) fn correct_own(&self, scope: &Scope, tokens: f64) {
        let (id, params, stand_in) = self.correction(scope);
        self.memory.with_own_share(
            &id,
            params,
            stand_in,
            correct(tokens, params, stand_in.full_quota),
        );
    }

    fn correction(&self, scope: &Scope) -> (BucketId, BucketParams, ShareBounds) {
        let stand_in = ShareBounds {
            full_quota: scope.params(),
            most: f64::INFINITY,
            known: f64::INFINITY,
            owes: true,
        };
        (scope.id(&self.salt), self.params(scope), stand_in)
    }

    /// Undoes a reservation of a share, whose caller has gone away.
    pub(crate) fn undo(&self, scope: &Scope, gone: Reservation, owes: bool) {
        let (id, params, stand_in) = self.correction(scope);
        let stand_in = ShareBounds { owes, ..stand_in };
        self.memory
            .with_share(&id, params, stand_in, |bucket, owed| {
                bucket.undo(gone, params);
                if owes {
                    *owed -= gone.tokens;
                }
            });
    }

    /// Redis is to be given back what it reserved, as the share is asked for it anew.
    pub(crate) fn credit_reservation(&self, scope: &Scope) {
        let (id, params, stand_in) = self.correction(scope);
        let forgo = |_: &mut Bucket, owed: &mut f64| *owed -= scope.tokens();
        self.memory.with_share(&id, params, stand_in, forgo);
    }

    /// Grants nobody anything of a share for so long, in microseconds.
    pub(crate) fn pause(&self, scope: &Scope, us: f64) {
        if !self.has_share(scope) {
            return;
        }
        let (params, whole) = (self.params(scope), scope.params());
        let stand_in = ShareBounds {
            full_quota: whole,
            most: f64::INFINITY,
            known: f64::INFINITY,
            owes: false,
        };
        let id = scope.id(&self.salt);
        self.memory
            .with_own_share(&id, params, stand_in, |bucket, _| {
                bucket.pause(us, params);
            });
    }

    /// Gives back what was taken beside Redis and not used.
    pub(crate) fn give_back_without_debt(&self, scope: &Scope) {
        let params = self.params(scope);
        let stand_in = ShareBounds {
            full_quota: scope.params(),
            most: f64::INFINITY,
            known: f64::INFINITY,
            owes: false,
        };
        let give_back = |bucket: &mut Bucket, _: &mut f64| bucket.give_back(scope.tokens(), params);
        let id = scope.id(&self.salt);
        self.memory.with_share(&id, params, stand_in, give_back);
    }
}

fn correct(
    tokens: f64,
    params: BucketParams,
    whole: BucketParams,
) -> impl FnOnce(&mut Bucket, &mut f64) {
    move |bucket, owed| {
        if tokens > 0.0 {
            // As deep into debt as the whole bucket could go.
            let deep = BucketParams {
                capacity: whole.capacity,
                ..params
            };
            bucket.charge(tokens, deep);
        } else {
            bucket.give_back(-tokens, params);
        }
        *owed += tokens;
    }
}

impl crate::redis::Ledger for LocalShares {
    fn correct(&self, scope: &Scope, tokens: f64) {
        LocalShares::correct(self, scope, tokens);
    }

    fn pause(&self, scope: &Scope, until: Instant) {
        self.pending.add(scope, until);
    }

    fn undo(&self, gone: Box<(Scope, Reservation)>) {
        self.pending.undo(*gone);
    }

    fn cancelled(&self) -> Vec<(Scope, Reservation)> {
        std::mem::take(&mut *self.pending.lock_cancelled())
    }

    fn sweep_step(&self, turn: usize) {
        self.memory.sweep_step(turn);
    }

    fn has_debt(&self) -> bool {
        self.memory.has_debt()
    }

    fn drain(&self) -> Vec<crate::redis::Debt> {
        let debts = self.memory.drain_debts();
        debts
            .into_iter()
            .map(|debt| crate::redis::Debt {
                id: debt.id,
                params: debt.whole,
                tokens: debt.tokens,
                wait_us: debt.wait_us,
                big: debt.big,
            })
            .collect()
    }
}
