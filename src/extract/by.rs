//! A bucket of its own for each value found in a request: [`By`] and [`Or`].

use super::ScopeExtractor;
use crate::scope::{IntoScopes, LiveScope, Scope, Scopes};

/// Finds what distinguishes one caller from another.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{KeyExtractor, ScopeExtractor}};
///
/// struct Job { tenant: u64 }
///
/// #[derive(Clone)]
/// struct Tenant;
///
/// impl KeyExtractor<Job> for Tenant {
///     fn scope(&self, base: &Scope, job: &Job) -> Option<Scope> {
///         Some(base.key(job.tenant))
///     }
/// }
///
/// const JOBS: Scope = Quota::per_minute(60.0).scope("jobs");
/// assert_eq!(JOBS.by(Tenant).extract(&Job { tenant: 7 }).iter().count(), 1);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not find a key in a `{Req}`",
    note = "`header(\"x-api-key\")` finds one in an `http::Request`; for anything else pass a \
            closure that returns `SCOPE.key(value)` to the layer"
)]
pub trait KeyExtractor<Req> {
    /// `base` with the key of this request; none where it has none.
    ///
    /// # Examples
    ///
    /// See [`KeyExtractor`].
    fn scope(&self, base: &Scope, req: &Req) -> Option<Scope>;
}

/// A bucket per key; a request without one is not limited, unless [`or`](Self::or) says by what.
///
/// Made by [`Scope::by`].
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "http")] {
/// use tower_throttle::{Quota, Scope, extract::{ScopeExtractor, header}};
///
/// const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
/// const ANONYMOUS: Scope = Quota::per_minute(10.0).scope("anonymous");
///
/// let by = PER_KEY.by(header("x-api-key")).or(ANONYMOUS);
/// let request = http::Request::new(());
/// assert_eq!(by.extract(&request).iter().next().unwrap().name(), "anonymous");
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct By<X> {
    base: Base,
    key: X,
}

#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "both are scopes; a box would only cost each request"
)]
enum Base {
    Fixed(Scope),
    Live(LiveScope),
}

impl<X> By<X> {
    fn scope<Req>(&self, req: &Req) -> Option<Scope>
    where
        X: KeyExtractor<Req>,
    {
        match &self.base {
            Base::Fixed(scope) => self.key.scope(scope, req),
            Base::Live(scope) => self.key.scope(&scope.current(), req),
        }
    }
}

impl Scope {
    /// A bucket of its own for each key that `key` finds in a request.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::header};
    /// const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), PER_KEY.by(header("x-api-key")));
    /// # }
    /// ```
    pub fn by<X>(self, key: X) -> By<X> {
        By {
            base: Base::Fixed(self),
            key,
        }
    }
}

impl LiveScope {
    /// As [`Scope::by`], by the quota that holds at each request.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Limiter, LiveQuota, Quota, RateLimitLayer, extract::header};
    /// let quota = LiveQuota::new(Quota::per_minute(60.0));
    /// let by = quota.scope("api-key").by(header("x-api-key"));
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), by);
    /// # }
    /// ```
    pub fn by<X>(self, key: X) -> By<X> {
        By {
            base: Base::Live(self),
            key,
        }
    }
}

impl<X> By<X> {
    /// What requests without a key take from, so that leaving it out is no way round the limit.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::header};
    /// # const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
    /// # const ANONYMOUS: Scope = Quota::per_minute(10.0).scope("anonymous");
    /// let by = PER_KEY.by(header("x-api-key")).or(ANONYMOUS);
    /// # }
    /// ```
    pub fn or(self, otherwise: impl IntoScopes) -> Or<X> {
        Or {
            by: self,
            otherwise: otherwise.into_scopes(),
        }
    }
}

impl<Req, X: KeyExtractor<Req>> ScopeExtractor<Req> for By<X> {
    fn extract(&self, req: &Req) -> Scopes {
        self.scope(req).into_scopes()
    }
}

/// A bucket per key, and one for those without; made by [`By::or`].
///
/// # Examples
///
/// See [`By`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Or<X> {
    by: By<X>,
    otherwise: Scopes,
}

impl<Req, X: KeyExtractor<Req>> ScopeExtractor<Req> for Or<X> {
    fn extract(&self, req: &Req) -> Scopes {
        match self.by.scope(req) {
            Some(scope) => scope.into_scopes(),
            None => self.otherwise.clone(),
        }
    }
}
