//! [`LiveScope`]: a scope whose quota may change.

use std::fmt::Display;

use super::scope::Scope;
use crate::{fallback::Fallback, quota::LiveQuota};

/// A [`Scope`] whose quota may change while it is used; made by [`LiveQuota::scope`].
///
/// A layer takes it as it is, alone, in an array, or [by](Self::by) a key. Elsewhere
/// [`current`](Self::current) is the scope of now.
///
/// # Examples
///
/// ```
/// use tower_throttle::{LiveQuota, Quota};
///
/// let quota = LiveQuota::new(Quota::per_minute(60.0));
/// let tenants = quota.scope("tenant");
/// quota.set(Quota::per_minute(30.0));
/// assert_eq!(tenants.key("acme").quota(), Quota::per_minute(30.0));
/// ```
#[must_use]
#[derive(Clone, Debug)]
pub struct LiveScope {
    quota: LiveQuota,
    scope: Scope,
}

impl LiveQuota {
    /// A scope that uses the quota that is current at each request.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, LiveQuota, Quota, RateLimitLayer};
    /// let quota = LiveQuota::new(Quota::per_second(500.0));
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), quota.scope("site"));
    /// quota.set(Quota::per_second(100.0)); // from the next request on
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is empty.
    pub fn scope(&self, name: impl Into<String>) -> LiveScope {
        LiveScope::new(self.clone(), name.into())
    }
}

impl LiveScope {
    pub(crate) fn new(quota: LiveQuota, name: String) -> Self {
        let scope = Scope::new(name, quota.get());
        Self { quota, scope }
    }

    /// The scope with the current quota.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// let scope = LiveQuota::new(Quota::per_second(5.0)).scope("api");
    /// assert_eq!(scope.current().quota().rate(), 5.0);
    /// ```
    pub fn current(&self) -> Scope {
        self.scope.clone().with_quota(self.quota.get())
    }

    /// As [`Scope::key`], with the current quota.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, LiveQuota, Quota, RateLimitLayer};
    /// let tenants = LiveQuota::new(Quota::per_second(5.0)).scope("tenant");
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), move |tenant: &u64| tenants.key(tenant));
    /// ```
    pub fn key(&self, key: impl Display) -> Scope {
        self.scope.key(key).with_quota(self.quota.get())
    }

    /// As [`Scope::cost`].
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// let scope = LiveQuota::new(Quota::per_minute(9_000.0)).scope("llm-tokens").cost(1_200.0);
    /// ```
    pub fn cost(self, tokens: f64) -> Self {
        self.map(|scope| scope.cost(tokens))
    }

    /// As [`Scope::fallback`].
    ///
    /// ```
    /// # use tower_throttle::{Fallback, LiveQuota, Quota};
    /// let scope = LiveQuota::new(Quota::per_minute(60.0)).scope("login").fallback(Fallback::FailClosed);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`Scope::fallback`].
    pub fn fallback(self, fallback: Fallback) -> Self {
        self.map(|scope| scope.fallback(fallback))
    }

    fn map(self, f: impl FnOnce(Scope) -> Scope) -> Self {
        Self {
            scope: f(self.scope),
            ..self
        }
    }
}
