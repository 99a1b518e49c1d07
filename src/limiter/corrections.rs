//! Corrections of a bucket: tokens that were granted and not used or used and not granted, and what
//! operators and upstreams ask for.

use std::time::Duration;

use super::{backend::Op, core::Core};
use crate::{
    bucket::Bucket,
    clock::to_us,
    decision::{DecidedBy, Failure},
    scope::Scope,
};

impl Core {
    /// Gives back tokens that `decided_by` granted and that were not used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64, decided_by: DecidedBy) {
        if tokens > 0.0 {
            match decided_by {
                DecidedBy::DualAdmission => self.shares.give_back_without_debt(scope),
                _ => self.correct(scope, -tokens, decided_by),
            }
        }
    }

    /// Charges tokens that were used beyond what `decided_by` granted.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64, decided_by: DecidedBy) {
        if tokens > 0.0 {
            self.correct(scope, tokens, decided_by);
        }
    }

    /// Charges tokens, or gives them back if `tokens` is negative.
    fn correct(&self, scope: &Scope, tokens: f64, decided_by: DecidedBy) {
        match (&self.redis, decided_by) {
            (_, DecidedBy::Unmetered) => {}
            (None, _) => {
                let (id, params) = (scope.id(&self.salt), scope.params());
                let correct = |bucket: &mut Bucket| bucket.correct(tokens, params);
                self.memory.with(&id.lookup(), params, correct);
            }
            // Redis is corrected as soon as it has recovered.
            (Some(redis), _) if redis.unavailable_since().is_some() => {
                self.shares.correct(scope, tokens);
            }
            (Some(redis), _) => redis.send(scope, Op::correction(tokens)),
        }
    }

    /// Pauses a bucket: in this process from now on.
    pub(crate) fn pause(&self, scope: &Scope, duration: Duration) {
        if duration.is_zero() {
            return;
        }
        let (us, id) = (to_us(duration), scope.id(&self.salt));
        match &self.redis {
            None => {
                let params = scope.params();
                let pause = |bucket: &mut Bucket| bucket.pause(us, params);
                self.memory.with_own(&id.lookup(), params, pause);
            }
            Some(redis) => {
                redis.announce_pauses();
                self.shares.pause(scope, us);
                redis.send(scope, Op::Pause { us });
            }
        }
        self.queues.recheck(id.as_bytes());
    }

    /// Caps the level of a bucket at `tokens`, in the background. A call that fails is not repeated:
    /// the next response of the upstream has a later number.
    #[cfg(feature = "learn")]
    pub(crate) fn cap_level(&self, scope: &Scope, tokens: f64) {
        let Some(redis) = &self.redis else {
            return self.cap_level_in_memory(scope, tokens);
        };
        // A level that is known to be lower needs no call.
        let full = scope.quota().capacity();
        let last = redis.last_level(&scope.id(&self.salt));
        if tokens < last.map_or(full, |(level, _)| level) {
            redis.send(scope, Op::CapLevel { tokens });
        }
    }

    /// Caps the level of a bucket at `tokens`; NaN changes nothing.
    pub(crate) async fn cap_level_now(&self, scope: &Scope, tokens: f64) -> Result<(), Failure> {
        if tokens.is_nan() {
            return Ok(());
        }
        let tokens = tokens.max(0.0);
        match &self.redis {
            None => {
                self.cap_level_in_memory(scope, tokens);
                Ok(())
            }
            Some(redis) => redis.ask(scope, Op::CapLevel { tokens }).await.map(|_| ()),
        }
    }

    fn cap_level_in_memory(&self, scope: &Scope, tokens: f64) {
        let cap = |bucket: &mut Bucket| bucket.cap_level(tokens);
        let id = scope.id(&self.salt);
        self.memory.with_own(&id.lookup(), scope.params(), cap);
    }

    /// Adds tokens to a bucket, up to its capacity, or charges them if `tokens` is negative.
    pub(crate) fn adjust(&self, scope: &Scope, tokens: f64) {
        if !tokens.is_finite() || tokens == 0.0 {
            return;
        }
        // From the deepest debt to full, or back. A larger number would lose precision.
        let most = 2.0 * scope.quota().capacity();
        let tokens = tokens.clamp(-most, most);
        match &self.redis {
            None => {
                let (id, params) = (scope.id(&self.salt), scope.params());
                let adjust = |bucket: &mut Bucket| bucket.correct(-tokens, params);
                self.memory.with_own(&id.lookup(), params, adjust);
            }
            Some(redis) if redis.unavailable_since().is_some() => {
                self.shares.correct_own(scope, -tokens);
            }
            Some(redis) => redis.send(scope, Op::correction(-tokens)),
        }
    }

    /// Fills a bucket. The one in memory is filled even if Redis is unavailable.
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
