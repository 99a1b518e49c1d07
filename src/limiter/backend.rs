//! [`RedisBackend`]: what the limiter asks of Redis.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::queue::Waiter;
pub(crate) use crate::redis::{Mark, Mode, Op};
use crate::{
    bucket::BucketParams,
    decision::{DecidedBy, Decision, Failure},
    redis,
    scope::{BucketId, Hashes, Lookup, Scope},
};

pub(crate) struct RedisBackend {
    batcher: redis::Batcher<Arc<Waiter>, redis::RedisConnection>,
    levels: Arc<redis::LevelCache>,
    leases: Arc<redis::Leases>,
    salt: [u8; 32],
}

impl RedisBackend {
    pub(crate) fn new(config: redis::ConnectionConfig, salt: [u8; 32]) -> Self {
        let keys = config.keyspace.clone();
        let levels = config.levels.clone();
        let leases = config.leases.clone();
        let ledger = config.ledger.clone();
        let connection = redis::RedisConnection::new(config);
        Self {
            batcher: redis::Batcher::new(connection, keys, levels.clone(), leases.clone(), ledger),
            levels,
            leases,
            salt,
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.batcher.connection().mode()
    }

    /// A background task has panicked: Redis counts as unavailable until it is connected again.
    pub(crate) fn fail(&self, failure: &Failure) {
        redis::Connection::fail(self.batcher.connection(), failure);
    }

    /// When Redis became unavailable, if it is.
    pub(crate) fn unavailable_since(&self) -> Option<Instant> {
        self.batcher.connection().unavailable_since()
    }

    /// When the last outage began, and when it ended.
    pub(crate) fn last_outage(&self) -> (Option<Instant>, Option<Instant>) {
        self.batcher.connection().last_outage()
    }

    /// The last reported level, refilled since then, and when it was reported. `None` if the bucket
    /// is unknown, or full by now.
    pub(crate) fn last_level(&self, id: &BucketId) -> Option<(f64, Instant)> {
        self.levels.level(id)
    }

    /// Queues a request. The waiter is answered in any case, as long as the runtime of the returned
    /// mark is driven.
    pub(crate) fn take(&self, waiter: Arc<Waiter>) -> Option<Mark> {
        self.batcher.take(waiter)
    }

    /// A worker whose runtime is driven makes progress within this time.
    pub(crate) fn patience(&self) -> Duration {
        self.batcher.max_silence()
    }

    /// If the marked worker has made progress since, returns its new mark. Otherwise a worker on
    /// the current runtime replaces it, and the request is to be made again.
    pub(crate) fn take_over(&self, mark: Mark) -> Option<Mark> {
        self.batcher.take_over(mark)
    }

    /// Queues an operation without waiting for its result.
    pub(crate) fn send(&self, scope: &Scope, op: Op) {
        self.batcher.send(scope, op);
    }

    /// Queues an operation and returns the level of the bucket after it.
    pub(crate) async fn ask(&self, scope: &Scope, op: Op) -> Result<f64, Failure> {
        self.batcher.ask(scope, op).await
    }

    /// Raises the last reported level of a bucket by `tokens`.
    pub(crate) fn raise_level(&self, scope: &Scope, tokens: f64) {
        let id = scope.id(&self.salt);
        self.levels.raise(&id, scope.params(), tokens);
    }

    /// Whether any limiter on this Redis may pause buckets.
    pub(crate) fn pauses_in_use(&self) -> bool {
        self.batcher.connection().pauses_in_use()
    }

    /// Lets the peers know that this limiter may pause buckets.
    pub(crate) fn announce_pauses(&self) {
        self.batcher.connection().announce_pauses();
    }

    /// When Redis last reported a bucket, and the end of its pause, if it is paused.
    pub(crate) fn pause_view(&self, id: &Lookup<'_>) -> Option<(Instant, Option<Instant>)> {
        let view = self.levels.pause_view(id)?;
        Some((view.at, view.paused_until))
    }

    /// The part of each rate that is reserved for missing peers, from 0 to 1.
    pub(crate) fn reserved(&self) -> f64 {
        use redis::Connection;
        1.0 - self.batcher.connection().part().of_rate
    }

    pub(crate) async fn deregister(&self) {
        crate::runtime::require();
        self.batcher.return_leases().await;
        self.batcher.connection().deregister().await;
    }

    /// When to retry, if the level cache shows that Redis would reject the request.
    pub(crate) fn rejects(&self, scope: &Scope, max_wait_us: f64) -> Option<Duration> {
        self.levels.rejects(
            &scope.lookup(&self.salt, &mut Hashes::default()),
            scope.params(),
            scope.tokens(),
            max_wait_us,
        )
    }

    /// Whether this process has leased any tokens, without a lock.
    #[inline]
    pub(crate) fn has_leased(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Takes tokens that this process has leased, if Redis alone decides. Returns the level that
    /// is left.
    #[inline]
    pub(crate) fn take_leased(
        &self,
        scope: &Scope,
        id: &Lookup<'_>,
        params: BucketParams,
    ) -> Option<f64> {
        if self.leases.is_empty() || !matches!(self.mode(), Mode::Passing) {
            return None;
        }
        let leased = self.leases.take(id, params, scope.tokens())?;
        if leased.more {
            self.batcher.lease(scope);
        }
        Some(leased.level)
    }

    /// As `rejects`, for a request that does not wait, if Redis alone decides.
    #[inline]
    pub(crate) fn rejects_now(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
    ) -> Option<Duration> {
        let retry_after = self.levels.rejects(id, params, cost, 0.0)?;
        matches!(self.mode(), Mode::Passing).then_some(retry_after)
    }
}

impl redis::Requester for Arc<Waiter> {
    fn scopes(&self) -> &[Scope] {
        Waiter::scopes(self)
    }

    fn max_wait_us(&self) -> f64 {
        Waiter::max_wait_us(self)
    }

    fn is_wanted(&self) -> bool {
        Waiter::is_wanted(self)
    }

    fn answer(self, answer: Result<Decision, Failure>, decided_at: Instant) {
        self.decide(answer, DecidedBy::Redis, decided_at);
    }

    fn retry(self) {
        if let Some(wake) = self.abandon() {
            wake.wake();
        }
    }
}
