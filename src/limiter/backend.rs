//! Redis, as the limiter sees it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::waiter::Waiter;
use crate::{
    bucket::{BucketParams, Reservation},
    clock::to_us,
    decision::Failure,
    redis,
    scope::{BucketId, Lookup, Scope},
};

pub(crate) use crate::redis::{Mark, Mode};

pub(crate) struct RedisBackend {
    batcher: redis::Batcher<Arc<Waiter>, redis::RedisConnection>,
    levels: Arc<redis::LevelCache>,
    leases: Arc<redis::Leases>,
    salt: [u8; 32],
}

impl RedisBackend {
    pub(crate) fn new(config: redis::ConnectionConfig, salt: [u8; 32]) -> Self {
        let keyspace = config.keyspace.clone();
        let known = config.levels.clone();
        let leases = config.leases.clone();
        let books = config.ledger.clone();
        let link = redis::RedisConnection::new(config);
        Self {
            batcher: redis::Batcher::new(link, keyspace, known.clone(), leases.clone(), books),
            levels: known,
            leases,
            salt,
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.batcher.connection().mode()
    }

    /// A background task has failed.
    pub(crate) fn fail(&self, failure: &Failure) {
        redis::Connection::fail(self.batcher.connection(), failure);
    }

    /// Since when Redis is away, if it is.
    pub(crate) fn unavailable_since(&self) -> Option<Instant> {
        self.batcher.connection().unavailable_since()
    }

    /// The last outage: when it began, and when it was over.
    pub(crate) fn last_outage(&self) -> (Option<Instant>, Option<Instant>) {
        self.batcher.connection().last_outage()
    }

    /// The level that was told last, refilled since then, if that is less than full; and when
    /// it was told.
    pub(crate) fn last_level(&self, id: &BucketId) -> Option<(f64, Instant)> {
        self.levels.level(id)
    }

    /// Queues a demand; the waiter is told in any case, as long as the marked runtime is driven.
    pub(crate) fn take(&self, waiter: Arc<Waiter>) -> Option<Mark> {
        self.batcher.take(waiter)
    }

    /// So long after it was asked, a runtime that is driven has done something.
    pub(crate) fn patience(&self) -> Duration {
        self.batcher.max_silence()
    }

    /// Redis is asked on the current runtime from here on, if the marked one has done nothing:
    /// then none, and whoever waits asks again.
    pub(crate) fn take_over(&self, mark: Mark) -> Option<Mark> {
        self.batcher.take_over(mark)
    }

    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64) {
        self.batcher.give_back(scope, tokens);
    }

    pub(crate) fn charge(&self, scope: &Scope, tokens: f64) {
        self.batcher.charge(scope, tokens);
    }

    /// As far as is known, a bucket has so many tokens more.
    pub(crate) fn raise_level(&self, scope: &Scope, tokens: f64) {
        let id = scope.id(&self.salt);
        self.levels.raise(&id, scope.params(), tokens);
    }

    /// Undoes a reservation whose caller has gone away.
    pub(crate) fn undo(&self, gone: Box<(Scope, Reservation)>) {
        self.batcher.undo(gone);
    }

    /// Grants nobody anything before `until`; in this process from now on.
    pub(crate) fn pause(&self, scope: &Scope, until: Instant) {
        let (params, id) = (scope.params(), scope.id(&self.salt));
        let left = until.saturating_duration_since(Instant::now());
        self.levels.pause(&id, params, to_us(left));
        self.leases.forget(&id);
        self.batcher.pause(scope, until);
    }

    /// Leaves no more than so many tokens.
    pub(crate) fn cap_level(&self, scope: &Scope, tokens: f64) {
        self.leases.forget(&scope.id(&self.salt));
        self.batcher.cap_level(scope, tokens);
    }

    /// When this process heard last of a bucket, and until when it is held back.
    pub(crate) fn pause_view(&self, id: &Lookup<'_>) -> Option<(Instant, Option<Instant>)> {
        let heard = self.levels.pause_view(id)?;
        Some((heard.at, heard.paused_until))
    }

    /// The part of each rate that is reserved for those who are missing.
    pub(crate) fn reserved(&self) -> f64 {
        use redis::Connection;
        1.0 - self.batcher.connection().part().of_rate
    }

    pub(crate) async fn look(&self, scope: &Scope) -> Result<f64, Failure> {
        self.batcher.look(scope).await
    }

    pub(crate) async fn reset(&self, scope: &Scope) -> Result<f64, Failure> {
        self.batcher.reset(scope).await
    }

    pub(crate) async fn deregister(&self) {
        crate::runtime::require();
        self.batcher.return_leases().await;
        self.batcher.connection().deregister().await;
    }

    /// When to come back, where earlier replies tell that Redis would refuse.
    pub(crate) fn rejects(&self, scope: &Scope, max_wait_us: f64) -> Option<Duration> {
        self.levels.rejects(
            &scope.lookup(&self.salt, &mut crate::scope::Hashes::default()),
            scope.params(),
            scope.tokens(),
            max_wait_us,
        )
    }

    /// Whether this process holds anything ahead, at a glance.
    #[inline]
    pub(crate) fn has_leased(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Takes from what this process has taken ahead, as long as Redis alone decides: the level
    /// that is left.
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

    /// The same for somebody who does not wait, as long as Redis alone decides.
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

    fn answer(self, answer: Result<crate::decision::Decision, Failure>) {
        Waiter::answer(&self, answer);
    }

    fn retry(self) {
        if let Some(wake) = self.abandon() {
            wake.wake();
        }
    }
}
