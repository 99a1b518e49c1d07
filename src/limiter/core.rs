//! [`Core`]: the state that all clones of a limiter share, and the choice of a backend.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use super::{
    backend::{Mode, Op, RedisBackend},
    local_share::LocalShares,
    queue::{Backends, TOLERANCE, WaitQueues, Waiter},
};
use crate::{
    bucket::{Bucket, BucketParams, Reservation},
    clock::from_us,
    decision::{DecidedBy, Failure},
    memory::MemoryStore,
    scope::{Hashes, Lookup, Scope},
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
    /// The configured backend.
    #[inline]
    pub(crate) fn primary(&self) -> DecidedBy {
        match self.redis {
            Some(_) => DecidedBy::Redis,
            None => DecidedBy::Memory,
        }
    }

    /// The parameters of the bucket by which a backend decides about this scope.
    pub(crate) fn params(&self, scope: &Scope, decided_by: DecidedBy) -> BucketParams {
        match decided_by {
            DecidedBy::LocalShare | DecidedBy::DualAdmission => self.shares.params(scope),
            _ => scope.params(),
        }
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
                && self.is_pause_current(redis, &id)
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

    /// How long a request would wait, by the last reported level, or `None` if it would not.
    pub(crate) fn quote(&self, scope: &Scope) -> Option<Duration> {
        let id = scope.id(&self.salt);
        let decided_by = match &self.redis {
            None => DecidedBy::Memory,
            Some(redis) if redis.unavailable_since().is_some() => DecidedBy::LocalShare,
            Some(_) => DecidedBy::Redis,
        };
        let params = self.params(scope, decided_by);
        let bucket = match (&self.redis, decided_by) {
            (Some(redis), DecidedBy::Redis) => Bucket {
                level: redis.last_level(&id)?.0,
                ..Bucket::full(0.0, params)
            },
            _ => self.bucket_in_memory(scope, decided_by),
        };
        let wait = bucket.quote(scope.tokens(), params);
        (wait > 0.0).then(|| from_us(wait))
    }

    /// Whether the cached pause of the bucket is current: no limiter pauses buckets, or the last
    /// report is recent.
    fn is_pause_current(&self, redis: &RedisBackend, id: &Lookup<'_>) -> bool {
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
                    // Otherwise the share would start lower by tokens for which no caller waits.
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
        if self.is_pause_current(redis, id) || matches!(redis.mode(), Mode::Unavailable(_)) {
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

/// The tokens of a scope that were due at `due`, less what the bucket has refilled since.
pub(super) fn unused(scope: &Scope, due: Instant) -> f64 {
    let late = due.elapsed();
    if late <= TOLERANCE {
        return scope.tokens();
    }
    (scope.tokens() - scope.quota().rate() * late.as_secs_f64()).max(0.0)
}
