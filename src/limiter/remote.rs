//! Redis, as the limiter sees it; where the feature is off, something that cannot be.

use std::{sync::Arc, time::Duration};

use super::{core::Core, waiter::Waiter};
use crate::{decision::Failure, error::ConfigError, scope::Scope};

#[cfg(feature = "redis")]
pub(crate) struct Remote {
    batcher: crate::redis::Batcher<Arc<Waiter>, crate::redis::Link>,
    salt: [u8; 32],
}

#[cfg(feature = "redis")]
impl Remote {
    pub(crate) fn new(
        url: String,
        prefix: String,
        timeout: Duration,
        core: &Core,
    ) -> Result<Self, ConfigError> {
        use crate::redis::{Batcher, Link, LinkConfig};
        let config = LinkConfig {
            url,
            prefix: prefix.clone(),
            timeout,
        };
        let link = Link::new(config, core.observer.clone())?;
        Ok(Self {
            batcher: Batcher::new(link, prefix, core.salt),
            salt: core.salt,
        })
    }

    /// Queues a demand; the waiter is told in any case.
    pub(crate) fn take(&self, waiter: Arc<Waiter>) {
        self.batcher.take(waiter);
    }

    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64) {
        self.batcher.give_back(scope, tokens);
    }

    pub(crate) fn charge(&self, scope: &Scope, tokens: f64) {
        self.batcher.charge(scope, tokens);
    }

    pub(crate) async fn look(&self, scope: &Scope) -> Result<f64, Failure> {
        self.batcher.look(scope).await
    }

    pub(crate) async fn reset(&self, scope: &Scope) -> Result<f64, Failure> {
        self.batcher.reset(scope).await
    }

    /// When to come back, where earlier replies tell that Redis would refuse.
    pub(crate) fn refuses(&self, scope: &Scope, max_wait_us: f64) -> Option<Duration> {
        let quota = scope.quota();
        self.batcher.bounds().refuses(
            &scope.id(&self.salt),
            crate::bucket::Terms::new(quota.capacity(), quota.rate()),
            scope.tokens(),
            max_wait_us,
        )
    }
}

#[cfg(feature = "redis")]
impl crate::redis::Asker for Arc<Waiter> {
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
}

#[cfg(not(feature = "redis"))]
pub(crate) enum Remote {}

#[cfg(not(feature = "redis"))]
impl Remote {
    pub(crate) fn new(_: String, _: String, _: Duration, _: &Core) -> Result<Self, ConfigError> {
        Err(ConfigError::new("the feature `redis` is off"))
    }

    pub(crate) fn take(&self, _: Arc<Waiter>) {
        match *self {}
    }

    pub(crate) fn give_back(&self, _: &Scope, _: f64) {
        match *self {}
    }

    pub(crate) fn charge(&self, _: &Scope, _: f64) {
        match *self {}
    }

    pub(crate) async fn look(&self, _: &Scope) -> Result<f64, Failure> {
        match *self {}
    }

    pub(crate) async fn reset(&self, _: &Scope) -> Result<f64, Failure> {
        match *self {}
    }

    pub(crate) fn refuses(&self, _: &Scope, _: f64) -> Option<Duration> {
        match *self {}
    }
}
