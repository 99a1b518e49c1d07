//! Redis, as the limiter sees it; where the feature is off, something that cannot be.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::waiter::Waiter;
#[cfg(feature = "redis")]
use crate::clock::to_us;
#[cfg(feature = "redis")]
use crate::redis;
use crate::{
    bucket::{Reservation, Terms},
    decision::Failure,
    scope::{BucketId, Lookup, Scope},
};

/// How Redis is, for somebody who is about to ask it.
#[derive(Debug)]
pub(crate) enum Mode {
    /// It decides.
    Passing,
    /// It decides, but memory must admit as well.
    Grace,
    /// It is left alone.
    Away(Failure),
}

#[cfg(feature = "redis")]
pub(crate) use crate::redis::Mark;

#[cfg(feature = "redis")]
pub(crate) struct Remote {
    batcher: redis::Batcher<Arc<Waiter>, redis::Link>,
    known: Arc<redis::Known>,
    leases: Arc<redis::Leases>,
    salt: [u8; 32],
}

#[cfg(feature = "redis")]
impl Remote {
    pub(crate) fn new(config: redis::LinkConfig, salt: [u8; 32]) -> Self {
        let keyspace = config.keyspace.clone();
        let known = config.known.clone();
        let leases = config.leases.clone();
        let books = config.books.clone();
        let link = redis::Link::new(config);
        Self {
            batcher: redis::Batcher::new(link, keyspace, known.clone(), leases.clone(), books),
            known,
            leases,
            salt,
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.batcher.wire().mode() {
            redis::Mode::Passing => Mode::Passing,
            redis::Mode::Grace => Mode::Grace,
            redis::Mode::Away(failure) => Mode::Away(failure),
        }
    }

    /// A background task has failed.
    pub(crate) fn fails(&self, failure: &Failure) {
        redis::Wire::fails(self.batcher.wire(), failure);
    }

    /// Since when Redis is away, if it is.
    pub(crate) fn away_since(&self) -> Option<Instant> {
        self.batcher.wire().tripped()
    }

    /// The last outage: when it began, and when it was over.
    pub(crate) fn last_outage(&self) -> (Option<Instant>, Option<Instant>) {
        self.batcher.wire().last_outage()
    }

    /// The level that was told last, refilled since then, if that is less than full; and when
    /// it was told.
    pub(crate) fn known_level(&self, id: &BucketId) -> Option<(f64, Instant)> {
        self.known.level(id)
    }

    /// Queues a demand; the waiter is told in any case, as long as the marked runtime is driven.
    pub(crate) fn take(&self, waiter: Arc<Waiter>) -> Option<Mark> {
        self.batcher.take(waiter)
    }

    /// So long after it was asked, a runtime that is driven has done something.
    pub(crate) fn patience(&self) -> Duration {
        self.batcher.patience()
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
    pub(crate) fn raise_known(&self, scope: &Scope, tokens: f64) {
        let quota = scope.quota();
        let terms = Terms::new(quota.capacity(), quota.rate());
        self.known.raise(&scope.id(&self.salt), terms, tokens);
    }

    /// Undoes a reservation whose caller has gone away.
    pub(crate) fn undo(&self, gone: Box<(Scope, Reservation)>) {
        self.batcher.undo(gone);
    }

    /// Grants nobody anything before `until`; in this process from now on.
    pub(crate) fn hold_back(&self, scope: &Scope, until: Instant) {
        let (quota, id) = (scope.quota(), scope.id(&self.salt));
        let terms = Terms::new(quota.capacity(), quota.rate());
        let left = until.saturating_duration_since(Instant::now());
        self.known.hold_back(&id, terms, to_us(left));
        self.leases.forget(&id);
        self.batcher.hold_back(scope, until);
    }

    /// Leaves no more than so many tokens.
    pub(crate) fn lower(&self, scope: &Scope, tokens: f64) {
        self.leases.forget(&scope.id(&self.salt));
        self.batcher.lower(scope, tokens);
    }

    /// When this process heard last of a bucket, and until when it is held back.
    pub(crate) fn heard(&self, id: &Lookup<'_>) -> Option<(Instant, Option<Instant>)> {
        let heard = self.known.heard(id)?;
        Some((heard.at, heard.held))
    }

    /// The part of each rate that is reserved for those who are missing.
    pub(crate) fn reserved(&self) -> f64 {
        use redis::Wire;
        1.0 - self.batcher.wire().part().of_rate
    }

    pub(crate) async fn look(&self, scope: &Scope) -> Result<f64, Failure> {
        self.batcher.look(scope).await
    }

    pub(crate) async fn reset(&self, scope: &Scope) -> Result<f64, Failure> {
        self.batcher.reset(scope).await
    }

    pub(crate) async fn leave(&self) {
        crate::runtime::require();
        self.batcher.leave().await;
        self.batcher.wire().leave().await;
    }

    /// When to come back, where earlier replies tell that Redis would refuse.
    pub(crate) fn refuses(&self, scope: &Scope, max_wait_us: f64) -> Option<Duration> {
        let quota = scope.quota();
        self.known.refuses(
            &scope.lookup(&self.salt, &mut crate::scope::Hashes::default()),
            Terms::new(quota.capacity(), quota.rate()),
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
    pub(crate) fn take_leased(&self, scope: &Scope, id: &Lookup<'_>, terms: Terms) -> Option<f64> {
        if self.leases.is_empty() || !matches!(self.mode(), Mode::Passing) {
            return None;
        }
        let leased = self.leases.take(id, terms, scope.tokens())?;
        if leased.more {
            self.batcher.lease(scope);
        }
        Some(leased.level)
    }

    /// The same for somebody who does not wait, as long as Redis alone decides.
    #[inline]
    pub(crate) fn refuses_now(&self, id: &Lookup<'_>, terms: Terms, cost: f64) -> Option<Duration> {
        let retry_after = self.known.refuses(id, terms, cost, 0.0)?;
        matches!(self.mode(), Mode::Passing).then_some(retry_after)
    }
}

#[cfg(feature = "redis")]
impl redis::Asker for Arc<Waiter> {
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

    fn ask_again(self) {
        if let Some(wake) = self.abandon() {
            wake.wake();
        }
    }
}

#[cfg(not(feature = "redis"))]
pub(crate) enum Remote {}

/// Who was asked.
#[cfg(not(feature = "redis"))]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Mark {
    pub(crate) runtime: tokio::runtime::Id,
}

#[cfg(not(feature = "redis"))]
impl Remote {
    pub(crate) fn mode(&self) -> Mode {
        match *self {}
    }

    pub(crate) fn fails(&self, _: &Failure) {
        match *self {}
    }

    pub(crate) fn away_since(&self) -> Option<Instant> {
        match *self {}
    }

    pub(crate) fn last_outage(&self) -> (Option<Instant>, Option<Instant>) {
        match *self {}
    }

    pub(crate) fn known_level(&self, _: &BucketId) -> Option<(f64, Instant)> {
        match *self {}
    }

    pub(crate) fn take(&self, _: Arc<Waiter>) -> Option<Mark> {
        match *self {}
    }

    pub(crate) fn patience(&self) -> Duration {
        match *self {}
    }

    pub(crate) fn take_over(&self, _: Mark) -> Option<Mark> {
        match *self {}
    }

    pub(crate) fn give_back(&self, _: &Scope, _: f64) {
        match *self {}
    }

    pub(crate) fn charge(&self, _: &Scope, _: f64) {
        match *self {}
    }

    pub(crate) fn undo(&self, _: Box<(Scope, Reservation)>) {
        match *self {}
    }

    pub(crate) fn raise_known(&self, _: &Scope, _: f64) {
        match *self {}
    }

    pub(crate) fn hold_back(&self, _: &Scope, _: Instant) {
        match *self {}
    }

    pub(crate) fn lower(&self, _: &Scope, _: f64) {
        match *self {}
    }

    pub(crate) fn heard(&self, _: &Lookup<'_>) -> Option<(Instant, Option<Instant>)> {
        match *self {}
    }

    pub(crate) fn reserved(&self) -> f64 {
        match *self {}
    }

    pub(crate) async fn look(&self, _: &Scope) -> Result<f64, Failure> {
        match *self {}
    }

    pub(crate) async fn reset(&self, _: &Scope) -> Result<f64, Failure> {
        match *self {}
    }

    pub(crate) async fn leave(&self) {
        match *self {}
    }

    pub(crate) fn refuses(&self, _: &Scope, _: f64) -> Option<Duration> {
        match *self {}
    }

    pub(crate) fn has_leased(&self) -> bool {
        match *self {}
    }

    pub(crate) fn take_leased(&self, _: &Scope, _: &Lookup<'_>, _: Terms) -> Option<f64> {
        match *self {}
    }

    pub(crate) fn refuses_now(&self, _: &Lookup<'_>, _: Terms, _: f64) -> Option<Duration> {
        match *self {}
    }
}
