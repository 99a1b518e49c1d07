//! This process's share of limits whose store is away.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;

use crate::{
    bucket::{Bucket, Reservation, Terms},
    fallback::{Fallback, Share},
    members::Members,
    memory::{MemoryStore, StandIn},
    scope::{BucketId, Scope},
};

/// Holds that Redis is to be told of once it is back; more of them are forgotten.
const MOST_UNTOLD: usize = 1_024;

/// Cancelled reservations that are kept for Redis; the tokens of more come back by the refill.
const MOST_CANCELLED: usize = 16_384;

/// The shares of this process: how large they are, what was taken from them, and what of it is
/// owed to Redis.
pub(crate) struct Shares {
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) members: Arc<Members>,
    pub(crate) salt: [u8; 32],
    pub(crate) fallback: Fallback,
    pub(crate) untold: Untold,
}

/// A reservation whose caller has gone away.
type Cancelled = (Scope, Reservation);

/// Holds and cancelled reservations that Redis was not told of.
#[derive(Default)]
pub(crate) struct Untold {
    any: AtomicBool,
    holds: Mutex<Vec<(Scope, Instant)>>,
    cancelled: Mutex<Vec<Cancelled>>,
}

impl Untold {
    fn add(&self, scope: &Scope, until: Instant) {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        holds.retain(|(_, until)| *until > now);
        let known = holds.iter_mut().find(|(other, _)| other.same_bucket(scope));
        if let Some((_, known)) = known {
            *known = until.max(*known);
        } else if holds.len() < MOST_UNTOLD {
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

impl Shares {
    pub(crate) fn policy(&self, scope: &Scope) -> Fallback {
        scope.own_fallback().unwrap_or(self.fallback)
    }

    /// Whether memory keeps a share of this scope.
    pub(crate) fn holds(&self, scope: &Scope) -> bool {
        self.policy(scope).share().is_some()
    }

    /// Whether nobody may be admitted to this scope without Redis: the policy says so, or it allows
    /// no debt and the cost is over the share.
    pub(crate) fn is_closed(&self, scope: &Scope) -> bool {
        match self.policy(scope) {
            Fallback::Closed => true,
            Fallback::Strict(_) => scope.tokens() > self.terms(scope).cap,
            Fallback::Share(_) | Fallback::Open => false,
        }
    }

    /// Of how many equal shares this process has one.
    pub(crate) fn divisor(&self, scope: &Scope) -> f64 {
        match self.policy(scope).share() {
            Some(Share::Fixed(part)) => part.recip(),
            _ => self.members.processes(),
        }
    }

    pub(crate) fn terms(&self, scope: &Scope) -> Terms {
        let (whole, divisor) = (whole(scope), self.divisor(scope));
        match self.policy(scope) {
            Fallback::Strict(_) => whole.strict_share(divisor),
            _ => whole.share(divisor),
        }
    }

    /// Charges a share, or, below zero, gives back to it, what Redis was not told of.
    pub(crate) fn correct(&self, scope: &Scope, tokens: f64) {
        let (id, terms, stand_in) = self.correction(scope);
        self.memory
            .with_stand_in(&id, terms, stand_in, correct(tokens, terms, stand_in.whole));
    }

    /// As `correct`, but never on a share that other scopes take from as well.
    pub(crate) fn correct_own(&self, scope: &Scope, tokens: f64) {
        let (id, terms, stand_in) = self.correction(scope);
        self.memory
            .with_own_stand_in(&id, terms, stand_in, correct(tokens, terms, stand_in.whole));
    }

    fn correction(&self, scope: &Scope) -> (BucketId, Terms, StandIn) {
        let stand_in = StandIn {
            whole: whole(scope),
            most: f64::INFINITY,
            known: f64::INFINITY,
            owes: true,
        };
        (scope.id(&self.salt), self.terms(scope), stand_in)
    }

    /// Undoes a reservation of a share, whose caller has gone away.
    pub(crate) fn undo(&self, scope: &Scope, gone: Reservation, owes: bool) {
        let (id, terms, stand_in) = self.correction(scope);
        let stand_in = StandIn { owes, ..stand_in };
        self.memory
            .with_stand_in(&id, terms, stand_in, |bucket, owed| {
                bucket.undo(gone, terms);
                if owes {
                    *owed -= gone.tokens;
                }
            });
    }

    /// Redis is to be given back what it reserved, as the share is asked for it anew.
    pub(crate) fn forgo(&self, scope: &Scope) {
        let (id, terms, stand_in) = self.correction(scope);
        let forgo = |_: &mut Bucket, owed: &mut f64| *owed -= scope.tokens();
        self.memory.with_stand_in(&id, terms, stand_in, forgo);
    }

    /// Grants nobody anything of a share for so long, in microseconds.
    pub(crate) fn hold_back(&self, scope: &Scope, us: f64) {
        if !self.holds(scope) {
            return;
        }
        let (terms, whole) = (self.terms(scope), whole(scope));
        let stand_in = StandIn {
            whole,
            most: f64::INFINITY,
            known: f64::INFINITY,
            owes: false,
        };
        let id = scope.id(&self.salt);
        self.memory
            .with_own_stand_in(&id, terms, stand_in, |bucket, _| {
                bucket.hold_back(us, terms);
            });
    }

    /// Gives back what was taken beside Redis and not used.
    pub(crate) fn give_back_unowed(&self, scope: &Scope) {
        let terms = self.terms(scope);
        let stand_in = StandIn {
            whole: whole(scope),
            most: f64::INFINITY,
            known: f64::INFINITY,
            owes: false,
        };
        let give_back = |bucket: &mut Bucket, _: &mut f64| bucket.give_back(scope.tokens(), terms);
        let id = scope.id(&self.salt);
        self.memory.with_stand_in(&id, terms, stand_in, give_back);
    }
}

fn correct(tokens: f64, terms: Terms, whole: Terms) -> impl FnOnce(&mut Bucket, &mut f64) {
    move |bucket, owed| {
        if tokens > 0.0 {
            // As deep into debt as the whole bucket could go.
            let deep = Terms {
                cap: whole.cap,
                ..terms
            };
            bucket.charge(tokens, deep);
        } else {
            bucket.give_back(-tokens, terms);
        }
        *owed += tokens;
    }
}

/// The quota of a scope, undivided.
#[inline]
pub(crate) fn whole(scope: &Scope) -> Terms {
    let quota = scope.quota();
    Terms {
        cap: quota.capacity(),
        per_us: quota.per_us(),
    }
}

#[cfg(feature = "redis")]
impl crate::redis::Books for Shares {
    fn correct(&self, scope: &Scope, tokens: f64) {
        Shares::correct(self, scope, tokens);
    }

    fn hold_back(&self, scope: &Scope, until: Instant) {
        self.untold.add(scope, until);
    }

    fn undo(&self, gone: Box<(Scope, Reservation)>) {
        self.untold.undo(*gone);
    }

    fn cancelled(&self) -> Vec<(Scope, Reservation)> {
        std::mem::take(&mut *self.untold.lock_cancelled())
    }

    fn tidy(&self, turn: usize) {
        self.memory.tidy(turn);
    }

    fn owes(&self) -> bool {
        self.memory.owes()
    }

    fn settle(&self) -> Vec<crate::redis::Owed> {
        let debts = self.memory.settle();
        debts
            .into_iter()
            .map(|debt| crate::redis::Owed {
                id: debt.id,
                terms: debt.whole,
                tokens: debt.tokens,
                wait_us: debt.wait_us,
                big: debt.big,
            })
            .collect()
    }
}
