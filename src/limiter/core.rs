//! What all clones of a limiter share, and how a store is chosen.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use super::{
    backend::{Mode, Op, RedisBackend},
    local_share::LocalShares,
    queue::{Backends, TOLERANCE, WaitQueues, Waiter},
};
use crate::{
    bucket::{Bucket, BucketParams, Reservation, TakenAll},
    clock::{from_us, to_us},
    decision::{DecidedBy, Decision, Failure},
    fallback::Fallback,
    memory::{MemoryStore, Request, ShareBounds},
    scope::{BucketId, Hashes, Lookup, Scope},
    telemetry::Observer,
};

/// How long a process trusts the last report that a bucket is not paused.
const PAUSE_NEWS_AGE: Duration = Duration::from_millis(25);

pub(crate) struct Core {
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) shares: Arc<LocalShares>,
    pub(crate) redis: Option<RedisBackend>,
    pub(crate) queues: WaitQueues<Waiter>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) salt: [u8; 32],
}

impl Core {
    /// Who decides unless Redis is away.
    #[inline]
    pub(crate) fn primary(&self) -> DecidedBy {
        match self.redis {
            Some(_) => DecidedBy::Redis,
            None => DecidedBy::Memory,
        }
    }

    /// By which numbers a store holds this scope.
    pub(crate) fn params(&self, scope: &Scope, origin: DecidedBy) -> BucketParams {
        match origin {
            DecidedBy::LocalShare | DecidedBy::DualAdmission => self.shares.params(scope),
            _ => scope.params(),
        }
    }

    /// How memory stands in for Redis on this scope.
    fn share_bounds(&self, scope: &Scope, id: &BucketId, origin: DecidedBy) -> Option<ShareBounds> {
        let owes = match origin {
            DecidedBy::LocalShare => true,
            DecidedBy::DualAdmission => false,
            _ => return None,
        };
        let (mut most, mut known) = (f64::INFINITY, f64::INFINITY);
        if let Some(remote) = &self.redis {
            let (tripped, recovered) = remote.last_outage();
            // What Redis told after the outage, memory need not follow: it spends beside it.
            let tells = |at| owes || recovered.is_none_or(|recovered| at < recovered);
            if let Some((level, at)) = remote.last_level(id)
                && tells(at)
            {
                // The callers of this process whose turns are still to come ask the share as well:
                // what they have reserved must not count twice.
                let reserved = self.queues.reserved(id, DecidedBy::Redis);
                let level = (level + reserved).min(scope.quota().capacity());
                known = level / self.shares.divisor(scope);
            }
            if let Fallback::StrictShare(_) = self.shares.policy(scope) {
                let since = if owes {
                    remote.unavailable_since()
                } else {
                    tripped
                };
                // Redis is there, only too slow for this one: nothing is granted beside it.
                let filled = since.map_or(0.0, |since| to_us(since.elapsed()));
                most = most.min(filled * self.shares.params(scope).per_us);
            }
        }
        Some(ShareBounds {
            full_quota: scope.params(),
            max_level: most,
            max_own_level: known,
            incurs_debt: owes,
        })
    }

    /// The fast path of every acquisition: decides about one scope without a call to Redis and
    /// without a wait, and counts the decision. Returns the level after a grant, or when to retry.
    /// If it returns `None`, nothing has happened, and the level cache need not be asked again.
    #[inline]
    pub(crate) fn decide_locally(
        &self,
        scope: &Scope,
        max_wait: Duration,
        shadow: bool,
    ) -> Option<Result<f64, Duration>> {
        let decision = self.try_locally(scope, max_wait.is_zero())?;
        let primary = self.primary().into();
        match decision {
            Ok(_) => self.observer.meter.admitted(scope, primary),
            Err(retry_after) => {
                self.observer
                    .rejected_at_once(scope, retry_after, primary, shadow);
            }
        }
        Some(decision)
    }

    #[inline]
    fn try_locally(&self, scope: &Scope, may_reject: bool) -> Option<Result<f64, Duration>> {
        let (params, cost) = (scope.params(), scope.tokens());
        if cost <= 0.0 || !params.can_grant(cost) {
            return None;
        }
        let mut hashes = Hashes::default();
        let id = scope.lookup(&self.salt, &mut hashes);
        if let Some(redis) = &self.redis {
            if redis.has_leased()
                && self.knows_of_pauses(redis, &id)
                && let Some(level) = redis.take_leased(scope, &id, params)
            {
                return Some(Ok(level));
            }
            let retry_after = may_reject.then(|| redis.rejects_now(&id, params, cost));
            return retry_after.flatten().map(Err);
        }
        match self.memory.take(&id, params, cost) {
            Ok(level) => Some(Ok(level)),
            Err(retry_after) => may_reject.then(|| Err(from_us(retry_after))),
        }
    }

    /// Takes from all of these different buckets in memory, or from none.
    pub(crate) fn take_from_memory(
        &self,
        scopes: &[Scope],
        max_wait_us: f64,
        origin: DecidedBy,
    ) -> Decision {
        match scopes {
            [scope] => {
                let params = self.params(scope, origin);
                let cost = scope.tokens();
                let id = scope.id(&self.salt);
                let take = |bucket: &mut Bucket| {
                    let taken = bucket.take(cost, 1, max_wait_us, params);
                    (taken, bucket.free(), bucket.at)
                };
                let (taken, level, at) = match self.share_bounds(scope, &id, origin) {
                    None => self.memory.with(&id.lookup(), params, take),
                    Some(stand_in) => {
                        let owes = stand_in.incurs_debt;
                        self.memory
                            .with_share(&id, params, stand_in, |bucket, owed| {
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
                        reservation: Some(Reservation::due(at + taken.last, cost, params)),
                    }
                } else {
                    Decision::Rejected {
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
                        Request {
                            id,
                            cost: scope.tokens(),
                            params: self.params(scope, origin),
                            share: self.share_bounds(scope, &id, origin),
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
                    TakenAll::Rejected { which, retry_after } => Decision::Rejected {
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
            .redis
            .as_ref()
            .map(|remote| remote.unavailable_since().is_some());
        let (params, bucket) = match (&self.redis, away) {
            (Some(remote), Some(false)) => {
                let (level, _) = remote.last_level(&id)?;
                let params = scope.params();
                (
                    params,
                    Bucket {
                        level,
                        ..Bucket::full(0.0, params)
                    },
                )
            }
            (_, away) => {
                let origin = away.map_or(DecidedBy::Memory, |_| DecidedBy::LocalShare);
                (
                    self.params(scope, origin),
                    self.bucket_in_memory(scope, origin),
                )
            }
        };
        let wait = bucket.quote(scope.tokens(), params);
        (wait > 0.0).then(|| from_us(wait))
    }

    fn tightest_in_memory(&self, scopes: &[Scope], origin: DecidedBy) -> (usize, f64) {
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

    fn level_in_memory(&self, scope: &Scope, origin: DecidedBy) -> f64 {
        self.bucket_in_memory(scope, origin).free()
    }

    fn bucket_in_memory(&self, scope: &Scope, origin: DecidedBy) -> Bucket {
        let (id, params) = (scope.id(&self.salt), self.params(scope, origin));
        match self.share_bounds(scope, &id, origin) {
            None => self
                .memory
                .with(&id.lookup(), params, |bucket| bucket.clone()),
            Some(stand_in) => {
                let read = |bucket: &mut Bucket, _: &mut f64| bucket.clone();
                self.memory.with_share(&id, params, stand_in, read)
            }
        }
    }

    /// Gives back what `origin` granted and nobody used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64, origin: DecidedBy) {
        if tokens <= 0.0 {
            return;
        }
        match (origin, &self.redis) {
            (DecidedBy::Memory, _) => {
                let params = scope.params();
                self.memory
                    .with(&scope.id(&self.salt).lookup(), params, |bucket| {
                        bucket.give_back(tokens, params);
                    });
            }
            (DecidedBy::DualAdmission, _) => self.shares.give_back_without_debt(scope),
            // What a share granted is charged to Redis as soon as that is back.
            (DecidedBy::Redis | DecidedBy::LocalShare, Some(remote)) => {
                match remote.unavailable_since() {
                    None => remote.send(scope, Op::GiveBack { tokens }),
                    Some(_) => self.shares.correct(scope, -tokens),
                }
            }
            (DecidedBy::Redis | DecidedBy::LocalShare, None) | (DecidedBy::Unmetered, _) => {}
        }
    }

    /// Charges what was used beyond what `origin` granted.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64, origin: DecidedBy) {
        if tokens <= 0.0 {
            return;
        }
        match (origin, &self.redis) {
            (DecidedBy::Memory, _) => {
                let params = scope.params();
                self.memory
                    .with(&scope.id(&self.salt).lookup(), params, |bucket| {
                        bucket.charge(tokens, params);
                    });
            }
            (DecidedBy::Redis | DecidedBy::LocalShare | DecidedBy::DualAdmission, Some(remote)) => {
                match remote.unavailable_since() {
                    None => remote.send(scope, Op::Charge { tokens }),
                    Some(_) => self.shares.correct(scope, tokens),
                }
            }
            (DecidedBy::Redis | DecidedBy::LocalShare | DecidedBy::DualAdmission, None)
            | (DecidedBy::Unmetered, _) => {}
        }
    }

    /// Grants nobody anything of this bucket for so long; in this process from now on.
    pub(crate) fn pause(&self, scope: &Scope, hold: Duration) {
        let (us, id) = (to_us(hold), scope.id(&self.salt));
        match &self.redis {
            None => {
                let params = scope.params();
                let pause = |bucket: &mut Bucket| bucket.pause(us, params);
                self.memory.with_own(&id.lookup(), params, pause);
            }
            Some(remote) => {
                remote.announce_pauses();
                self.shares.pause(scope, us);
                remote.send(scope, Op::Pause { us });
            }
        }
        self.queues.recheck(id.as_bytes());
    }

    /// Leaves no more than so many tokens in this bucket.
    pub(crate) fn cap_level(&self, scope: &Scope, tokens: f64) {
        if tokens.is_nan() {
            return;
        }
        let tokens = tokens.max(0.0);
        let id = scope.id(&self.salt);
        match &self.redis {
            None => {
                let lower = |bucket: &mut Bucket| bucket.cap_level(tokens);
                self.memory.with_own(&id.lookup(), scope.params(), lower);
            }
            // What is known to be lower need not be said.
            Some(remote) => {
                let full = scope.quota().capacity();
                let known = remote.last_level(&id).map_or(full, |(level, _)| level);
                if tokens < known {
                    remote.send(scope, Op::CapLevel { tokens });
                }
            }
        }
    }

    /// Whether this process would know if another one had paused the bucket.
    fn knows_of_pauses(&self, redis: &RedisBackend, id: &Lookup<'_>) -> bool {
        if !redis.pauses_in_use() {
            return true;
        }
        let view = redis.pause_view(id);
        view.is_some_and(|(reported_at, _)| reported_at.elapsed() <= PAUSE_NEWS_AGE)
    }

    /// The level in the primary backend.
    pub(crate) async fn level(&self, scope: &Scope) -> Result<f64, Failure> {
        match &self.redis {
            None => Ok(self.level_in_memory(scope, DecidedBy::Memory)),
            Some(redis) => match redis.mode() {
                Mode::Unavailable(failure) => Err(failure),
                Mode::Passing | Mode::Recovering => redis.ask(scope, Op::Look).await,
            },
        }
    }

    /// The level that decides while Redis is unavailable.
    pub(crate) fn local_level(&self, scope: &Scope) -> f64 {
        self.level_in_memory(scope, DecidedBy::LocalShare)
    }

    /// Gives tokens to a bucket, at most as many as make it full, or, below zero, charges them.
    pub(crate) fn adjust(&self, scope: &Scope, tokens: f64) {
        if !tokens.is_finite() {
            return;
        }
        // From its deepest debt to full, or back: more would only be lost in the rounding.
        let most = 2.0 * scope.quota().capacity();
        let tokens = tokens.clamp(-most, most);
        match &self.redis {
            None => {
                let (id, params) = (scope.id(&self.salt), scope.params());
                let adjust = |bucket: &mut Bucket| match tokens >= 0.0 {
                    true => bucket.give_back(tokens, params),
                    false => bucket.charge(-tokens, params),
                };
                self.memory.with_own(&id.lookup(), params, adjust);
            }
            Some(remote) if remote.unavailable_since().is_some() => {
                self.shares.correct_own(scope, -tokens);
            }
            Some(remote) if tokens > 0.0 => remote.send(scope, Op::GiveBack { tokens }),
            Some(remote) if tokens < 0.0 => remote.send(scope, Op::Charge { tokens: -tokens }),
            Some(_) => {}
        }
    }

    /// Fills a bucket, in memory in any case.
    pub(crate) async fn reset(&self, scope: &Scope) -> Result<(), Failure> {
        let params = match self.redis {
            None => scope.params(),
            Some(_) => self.shares.params(scope),
        };
        self.memory.reset(&scope.id(&self.salt), params);
        self.shares.pending.forget(scope);
        match &self.redis {
            None => Ok(()),
            Some(redis) => redis.ask(scope, Op::Reset).await.map(|_| ()),
        }
    }
}

impl Backends for Core {
    fn queues(&self) -> &WaitQueues<Waiter> {
        &self.queues
    }

    fn give_back_late(&self, scope: &Scope, decided_by: DecidedBy, due: Instant) {
        // An unused token leaves room in its bucket only until that has refilled. What it has
        // refilled since, others may have used already, so that part of an old token is lost.
        self.give_back(scope, unused(scope, due), decided_by);
    }

    fn undo(&self, scope: &Scope, reservation: Reservation, decided_by: DecidedBy) {
        let Some(redis) = &self.redis else {
            let (id, params) = (scope.id(&self.salt), scope.params());
            let undo = |bucket: &mut Bucket| bucket.undo(reservation, params);
            return self.memory.with(&id.lookup(), params, undo);
        };
        let is_unavailable = redis.unavailable_since().is_some();
        match decided_by {
            DecidedBy::Redis => {
                if is_unavailable {
                    // Otherwise the share would start lower by what nobody waits for any more.
                    redis.raise_level(scope, reservation.tokens);
                    self.shares.pending.undo((scope.clone(), reservation));
                } else {
                    redis.send(scope, Op::Undo(reservation));
                }
            }
            DecidedBy::LocalShare if is_unavailable => self.shares.undo(scope, reservation, true),
            DecidedBy::DualAdmission => self.shares.undo(scope, reservation, false),
            // What a share reserved was charged to Redis after the outage, and refills there.
            DecidedBy::LocalShare | DecidedBy::Memory | DecidedBy::Unmetered => {}
        }
    }

    fn paused_until(&self, id: &Lookup<'_>, decided_by: DecidedBy) -> Option<Instant> {
        let redis = self.redis.as_ref();
        let reported = redis
            .and_then(|redis| redis.pause_view(id))
            .and_then(|(_, paused_until)| paused_until);
        match decided_by {
            DecidedBy::Redis | DecidedBy::Unmetered => reported,
            DecidedBy::Memory | DecidedBy::LocalShare | DecidedBy::DualAdmission => {
                reported.max(self.memory.paused_until(id))
            }
        }
    }

    fn refresh_pause<'a>(&'a self, scope: &'a Scope, id: &Lookup<'_>) -> Option<BoxFuture<'a, ()>> {
        let redis = self.redis.as_ref()?;
        if self.knows_of_pauses(redis, id) || matches!(redis.mode(), Mode::Unavailable(_)) {
            return None;
        }
        // If Redis does not answer, the reservation stands.
        let look = async move {
            let _ = redis.ask(scope, Op::Look).await;
        };
        Some(look.boxed())
    }

    fn spends_local_share(&self, scope: &Scope) -> bool {
        let redis = self.redis.as_ref();
        let is_unavailable = redis.is_some_and(|redis| redis.unavailable_since().is_some());
        is_unavailable && self.shares.has_share(scope)
    }

    fn credit_reservation(&self, scope: &Scope) {
        self.shares.credit_reservation(scope);
    }

    /// It is logged, and a limiter on Redis is degraded until it has connected anew.
    fn task_panicked(&self, failure: &Failure) {
        match &self.redis {
            Some(redis) => redis.fail(failure),
            None => self.observer.advise(failure),
        }
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
