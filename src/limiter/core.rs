//! What all clones of a limiter share, and how a store is chosen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    remote::{Mode, Remote},
    shares::{Shares, whole},
    turns::{TOLERANCE, Turns},
};
use crate::{
    bucket::{Bucket, Reservation, TakenAll, Terms},
    clock::{LONGEST_WAIT, from_us, to_us},
    decision::{Decision, Failure, Origin},
    fallback::Fallback,
    memory::{Demand, MemoryStore, StandIn},
    observe::Observer,
    scope::{BucketId, Hashes, Lookup, Scope},
};

/// For so long a process trusts that a bucket is not held back, once it has heard so.
const HEARD_LATELY: Duration = Duration::from_millis(25);

pub(crate) struct Core {
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) shares: Arc<Shares>,
    pub(crate) remote: Option<Remote>,
    pub(crate) turns: Turns,
    pub(crate) observer: Arc<Observer>,
    pub(crate) salt: [u8; 32],
    /// Whether anybody may hold buckets back, so that a turn promised earlier is not to be
    /// trusted without asking.
    pub(crate) heeds_holds: AtomicBool,
}

impl Core {
    /// Who decides unless Redis is away.
    #[inline]
    pub(crate) fn home(&self) -> Origin {
        match self.remote {
            Some(_) => Origin::Redis,
            None => Origin::Memory,
        }
    }

    /// A background task has panicked: it is logged, and a limiter on Redis is degraded until it
    /// has connected anew.
    pub(crate) fn task_panicked(&self, failure: &Failure) {
        match &self.remote {
            Some(remote) => remote.fails(failure),
            None => self.observer.misconfigured(failure),
        }
    }

    /// By which numbers a store holds this scope.
    pub(crate) fn terms(&self, scope: &Scope, origin: Origin) -> Terms {
        match origin {
            Origin::Share | Origin::Grace => self.shares.terms(scope),
            _ => whole(scope),
        }
    }

    /// How memory stands in for Redis on this scope.
    fn stand_in(&self, scope: &Scope, id: &BucketId, origin: Origin) -> Option<StandIn> {
        let owes = match origin {
            Origin::Share => true,
            Origin::Grace => false,
            _ => return None,
        };
        let (mut most, mut known) = (f64::INFINITY, f64::INFINITY);
        if let Some(remote) = &self.remote {
            let (tripped, recovered) = remote.last_outage();
            // What Redis told after the outage, memory need not follow: it spends beside it.
            let tells = |at| owes || recovered.is_none_or(|recovered| at < recovered);
            if let Some((level, at)) = remote.known_level(id)
                && tells(at)
            {
                // The callers of this process whose turns are still to come ask the share as well:
                // what they have reserved must not count twice.
                let reserved = self.turns.reserved(id, Origin::Redis);
                let level = (level + reserved).min(scope.quota().capacity());
                known = level / self.shares.divisor(scope);
            }
            if let Fallback::Strict(_) = self.shares.policy(scope) {
                let since = if owes { remote.away_since() } else { tripped };
                // Redis is there, only too slow for this one: nothing is granted beside it.
                let filled = since.map_or(0.0, |since| to_us(since.elapsed()));
                most = most.min(filled * self.shares.terms(scope).per_us);
            }
        }
        Some(StandIn {
            whole: whole(scope),
            most,
            known,
            owes,
        })
    }

    /// Decides on one scope at once, where that takes neither a call to Redis nor a wait: the
    /// level after it was granted, or when to come back. Else nothing has happened.
    #[inline]
    pub(crate) fn decide(&self, scope: &Scope, at_once: bool) -> Option<Result<f64, Duration>> {
        let (terms, cost) = (whole(scope), scope.tokens());
        if cost <= 0.0 || !terms.can_grant(cost) {
            return None;
        }
        let mut hashes = Hashes::default();
        let id = scope.lookup(&self.salt, &mut hashes);
        if let Some(remote) = &self.remote {
            if remote.has_leased()
                && self.has_heard_of_holds(remote, &id)
                && let Some(level) = remote.take_leased(scope, &id, terms)
            {
                return Some(Ok(level));
            }
            let retry_after = at_once.then(|| remote.refuses_now(&id, terms, cost));
            return retry_after.flatten().map(Err);
        }
        match self.memory.take(&id, terms, cost) {
            Ok(level) => Some(Ok(level)),
            Err(retry_after) => at_once.then(|| Err(from_us(retry_after))),
        }
    }

    /// Counts such a decision.
    #[inline]
    pub(crate) fn tell_at_once(
        &self,
        scope: &Scope,
        decision: Result<f64, Duration>,
        shadow: bool,
    ) {
        let home = self.home().into();
        match decision {
            Ok(_) => self.observer.meter.admitted(scope, home),
            Err(retry_after) => {
                self.observer
                    .refused_at_once(scope, retry_after, home, shadow);
            }
        }
    }

    /// Takes from all of these different buckets in memory, or from none.
    pub(crate) fn take_from_memory(
        &self,
        scopes: &[Scope],
        max_wait_us: f64,
        origin: Origin,
    ) -> Decision {
        match scopes {
            [scope] => {
                let terms = self.terms(scope, origin);
                let cost = scope.tokens();
                let id = scope.id(&self.salt);
                let take = |bucket: &mut Bucket| {
                    let taken = bucket.take(cost, 1, max_wait_us, terms);
                    (taken, bucket.free(), bucket.at)
                };
                let (taken, level, at) = match self.stand_in(scope, &id, origin) {
                    None => self.memory.with(&id.lookup(), terms, take),
                    Some(stand_in) => {
                        let owes = stand_in.owes;
                        self.memory
                            .with_stand_in(&id, terms, stand_in, |bucket, owed| {
                                let took = take(bucket);
                                if owes && took.0.granted > 0.0 {
                                    *owed += cost;
                                }
                                took
                            })
                    }
                };
                if taken.now > 0.0 {
                    Decision::Now { tightest: 0, level }
                } else if taken.granted > 0.0 {
                    Decision::Wait {
                        which: 0,
                        wait: from_us(taken.last),
                        reservation: Some(Reservation::due(at + taken.last, cost, terms)),
                    }
                } else {
                    Decision::Refused {
                        which: 0,
                        retry_after: from_us(taken.retry_after),
                    }
                }
            }
            scopes => {
                let demands: Vec<_> = scopes
                    .iter()
                    .map(|scope| {
                        let id = scope.id(&self.salt);
                        Demand {
                            id,
                            cost: scope.tokens(),
                            terms: self.terms(scope, origin),
                            stand_in: self.stand_in(scope, &id, origin),
                        }
                    })
                    .collect();
                match self.memory.take_all(&demands, max_wait_us) {
                    TakenAll::All => {
                        let (tightest, level) = self.tightest_in_memory(scopes, origin);
                        Decision::Now { tightest, level }
                    }
                    TakenAll::Slowest {
                        which,
                        wait,
                        reservation,
                    } => Decision::Wait {
                        which,
                        wait: from_us(wait),
                        reservation: Some(reservation),
                    },
                    TakenAll::Refused { which, retry_after } => Decision::Refused {
                        which,
                        retry_after: from_us(retry_after),
                    },
                }
            }
        }
    }

    /// How long a scope would wait, as far as is known here; none where it would not.
    pub(crate) fn quote(&self, scope: &Scope) -> Option<Duration> {
        let id = scope.id(&self.salt);
        let away = self
            .remote
            .as_ref()
            .map(|remote| remote.away_since().is_some());
        let (terms, bucket) = match (&self.remote, away) {
            (Some(remote), Some(false)) => {
                let (level, _) = remote.known_level(&id)?;
                let terms = whole(scope);
                (
                    terms,
                    Bucket {
                        level,
                        ..Bucket::full(0.0, terms)
                    },
                )
            }
            (_, away) => {
                let origin = away.map_or(Origin::Memory, |_| Origin::Share);
                (
                    self.terms(scope, origin),
                    self.bucket_in_memory(scope, origin),
                )
            }
        };
        let wait = bucket.quote(scope.tokens(), terms);
        (wait > 0.0).then(|| from_us(wait))
    }

    fn tightest_in_memory(&self, scopes: &[Scope], origin: Origin) -> (usize, f64) {
        let mut tightest = (0, f64::INFINITY, 0.0);
        for (which, scope) in scopes.iter().enumerate() {
            let level = self.level_in_memory(scope, origin);
            let part = level / scope.quota().capacity();
            if part < tightest.1 {
                tightest = (which, part, level);
            }
        }
        (tightest.0, tightest.2)
    }

    fn level_in_memory(&self, scope: &Scope, origin: Origin) -> f64 {
        self.bucket_in_memory(scope, origin).free()
    }

    fn bucket_in_memory(&self, scope: &Scope, origin: Origin) -> Bucket {
        let (id, terms) = (scope.id(&self.salt), self.terms(scope, origin));
        match self.stand_in(scope, &id, origin) {
            None => self
                .memory
                .with(&id.lookup(), terms, |bucket| bucket.clone()),
            Some(stand_in) => {
                let read = |bucket: &mut Bucket, _: &mut f64| bucket.clone();
                self.memory.with_stand_in(&id, terms, stand_in, read)
            }
        }
    }

    /// Gives back what `origin` granted and nobody used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64, origin: Origin) {
        if tokens <= 0.0 {
            return;
        }
        match (origin, &self.remote) {
            (Origin::Memory, _) => {
                let terms = whole(scope);
                self.memory
                    .with(&scope.id(&self.salt).lookup(), terms, |bucket| {
                        bucket.give_back(tokens, terms);
                    });
            }
            (Origin::Grace, _) => self.shares.give_back_unowed(scope),
            // What a share granted is charged to Redis as soon as that is back.
            (Origin::Redis | Origin::Share, Some(remote)) => match remote.away_since() {
                None => remote.give_back(scope, tokens),
                Some(_) => self.shares.correct(scope, -tokens),
            },
            (Origin::Redis | Origin::Share, None) | (Origin::Nowhere, _) => {}
        }
    }

    /// Undoes a reservation that `origin` made, whose caller has gone away before it was due.
    pub(crate) fn undo(&self, scope: &Scope, gone: Reservation, origin: Origin) {
        let Some(remote) = &self.remote else {
            let (id, terms) = (scope.id(&self.salt), whole(scope));
            let undo = |bucket: &mut Bucket| bucket.undo(gone, terms);
            return self.memory.with(&id.lookup(), terms, undo);
        };
        let is_away = remote.away_since().is_some();
        match origin {
            Origin::Redis => {
                let gone = (scope.clone(), gone);
                if is_away {
                    // Nor does the share start lower by what nobody waits for any more.
                    remote.raise_known(scope, gone.1.tokens);
                    self.shares.untold.undo(gone);
                } else {
                    remote.undo(Box::new(gone));
                }
            }
            Origin::Share if is_away => self.shares.undo(scope, gone, true),
            Origin::Grace => self.shares.undo(scope, gone, false),
            // What a share reserved was charged to Redis when that came back, and refills there.
            Origin::Share | Origin::Memory | Origin::Nowhere => {}
        }
    }

    /// Whether Redis is away, and what it reserved earlier is to be asked of the share: the other
    /// processes, who live from their shares, do not know of that debt.
    pub(crate) fn lives_from_share(&self, scope: &Scope) -> bool {
        let remote = self.remote.as_ref();
        let is_away = remote.is_some_and(|remote| remote.away_since().is_some());
        is_away && self.shares.holds(scope)
    }

    /// Gives back what `origin` granted of a scope for a time that may have passed.
    ///
    /// Unused, a token leaves room in its bucket only until that has refilled: more than the
    /// bucket lacked is not kept. What it refilled since, others may have used already, so that
    /// much of an old token is lost.
    pub(crate) fn give_back_late(&self, scope: &Scope, origin: Origin, due: Instant) {
        let tokens = unused(scope, due);
        self.give_back(scope, tokens, origin);
    }

    /// Charges what was used beyond what `origin` granted.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64, origin: Origin) {
        if tokens <= 0.0 {
            return;
        }
        match (origin, &self.remote) {
            (Origin::Memory, _) => {
                let terms = whole(scope);
                self.memory
                    .with(&scope.id(&self.salt).lookup(), terms, |bucket| {
                        bucket.charge(tokens, terms);
                    });
            }
            (Origin::Redis | Origin::Share | Origin::Grace, Some(remote)) => {
                match remote.away_since() {
                    None => remote.charge(scope, tokens),
                    Some(_) => self.shares.correct(scope, tokens),
                }
            }
            (Origin::Redis | Origin::Share | Origin::Grace, None) | (Origin::Nowhere, _) => {}
        }
    }

    /// Grants nobody anything of this bucket for so long; in this process from now on.
    pub(crate) fn hold_back(&self, scope: &Scope, hold: Duration) {
        self.heeds_holds.store(true, Ordering::Relaxed);
        let (us, id) = (to_us(hold), scope.id(&self.salt));
        match &self.remote {
            None => {
                let terms = whole(scope);
                let hold_back = |bucket: &mut Bucket| bucket.hold_back(us, terms);
                self.memory.with_own(&id.lookup(), terms, hold_back);
            }
            Some(remote) => {
                self.shares.hold_back(scope, us);
                remote.hold_back(scope, Instant::now() + hold.min(LONGEST_WAIT));
            }
        }
        self.turns.look_again(id.as_bytes());
    }

    /// Leaves no more than so many tokens in this bucket.
    pub(crate) fn lower(&self, scope: &Scope, tokens: f64) {
        let id = scope.id(&self.salt);
        match &self.remote {
            None => {
                let lower = |bucket: &mut Bucket| bucket.lower(tokens);
                self.memory.with_own(&id.lookup(), whole(scope), lower);
            }
            // What is known to be lower need not be said.
            Some(remote) => {
                let full = scope.quota().capacity();
                let known = remote.known_level(&id).map_or(full, |(level, _)| level);
                if tokens < known {
                    remote.lower(scope, tokens);
                }
            }
        }
    }

    /// Until when a bucket is held back, as far as this process has heard.
    pub(crate) fn held_until(&self, id: &Lookup<'_>, origin: Origin) -> Option<Instant> {
        let remote = self.remote.as_ref();
        let heard = remote
            .and_then(|remote| remote.heard(id))
            .and_then(|(_, held)| held);
        match origin {
            Origin::Redis | Origin::Nowhere => heard,
            Origin::Memory | Origin::Share | Origin::Grace => heard.max(self.memory.held_until(id)),
        }
    }

    /// Whether a hold that another process may have made would be known here.
    fn has_heard_of_holds(&self, remote: &Remote, id: &Lookup<'_>) -> bool {
        if !self.heeds_holds.load(Ordering::Relaxed) {
            return true;
        }
        let heard = remote.heard(id);
        heard.is_some_and(|(at, _)| at.elapsed() <= HEARD_LATELY)
    }

    /// Hears of a hold that another process may have made since this one heard last.
    pub(crate) async fn hear_of_holds(&self, scope: &Scope, id: &Lookup<'_>) {
        let Some(remote) = &self.remote else {
            return;
        };
        if !self.has_heard_of_holds(remote, id) && !matches!(remote.mode(), Mode::Away(_)) {
            // Where Redis does not answer, what was promised stands.
            let _ = remote.look(scope).await;
        }
    }

    pub(crate) async fn peek(&self, scope: &Scope) -> (f64, bool) {
        match &self.remote {
            None => (self.level_in_memory(scope, Origin::Memory), false),
            Some(remote) => match remote.mode() {
                Mode::Away(_) => (self.level_in_memory(scope, Origin::Share), true),
                Mode::Passing | Mode::Grace => match remote.look(scope).await {
                    Ok(level) => (level, false),
                    Err(_) => (self.level_in_memory(scope, Origin::Share), true),
                },
            },
        }
    }

    /// Gives tokens to a bucket, at most as many as make it full, or, below zero, charges them.
    pub(crate) fn credit(&self, scope: &Scope, tokens: f64) {
        // From its deepest debt to full, or back: more would only be lost in the rounding.
        let most = 2.0 * scope.quota().capacity();
        let tokens = tokens.clamp(-most, most);
        match &self.remote {
            None => {
                let (id, terms) = (scope.id(&self.salt), whole(scope));
                let credit = |bucket: &mut Bucket| match tokens >= 0.0 {
                    true => bucket.give_back(tokens, terms),
                    false => bucket.charge(-tokens, terms),
                };
                self.memory.with_own(&id.lookup(), terms, credit);
            }
            Some(remote) if remote.away_since().is_some() => {
                self.shares.correct_own(scope, -tokens);
            }
            Some(remote) if tokens > 0.0 => remote.give_back(scope, tokens),
            Some(remote) if tokens < 0.0 => remote.charge(scope, -tokens),
            Some(_) => {}
        }
    }

    pub(crate) async fn reset(&self, scope: &Scope) {
        let terms = match self.remote {
            None => whole(scope),
            Some(_) => self.shares.terms(scope),
        };
        self.memory.reset(&scope.id(&self.salt), terms);
        self.shares.untold.forget(scope);
        if let Some(remote) = &self.remote {
            // Without Redis there is nothing to tell; the memory was reset.
            let _ = remote.reset(scope).await;
        }
    }

    /// Whether somebody here waits for one of these scopes, or Redis is known to refuse it.
    pub(crate) fn is_scarce(&self, scopes: &[Scope], max_wait_us: f64) -> bool {
        let origins = match self.remote {
            None => &[Origin::Memory][..],
            Some(_) => &[Origin::Redis, Origin::Share, Origin::Grace],
        };
        scopes.iter().any(|scope| {
            let sleeps = |origin: &Origin| self.turns.has_sleepers(self, scope, *origin);
            origins.iter().any(sleeps)
                || self
                    .remote
                    .as_ref()
                    .is_some_and(|remote| remote.refuses(scope, max_wait_us).is_some())
        })
    }
}

/// What is left of the tokens of a scope that were to be used at `due` and were not.
pub(super) fn unused(scope: &Scope, due: Instant) -> f64 {
    let late = due.elapsed();
    if late <= TOLERANCE {
        return scope.tokens();
    }
    (scope.tokens() - scope.quota().rate() * late.as_secs_f64()).max(0.0)
}
