//! A bucket of its own for each value found in a request: [`By`] and [`Or`].

use std::fmt::Display;

use super::ScopeExtractor;
use crate::{
    quota::Quota,
    scope::{IntoScopes, LiveScope, Scope, Scopes},
};

/// Finds what distinguishes one caller from another.
///
/// A closure or function that returns an `Option` of what the key is written as is one, too; so
/// are tuples of them: one bucket for each combination.
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
    label = "expected what finds a key, such as `header(\"x-api-key\")`, or a tuple of such",
    note = "a closure `|req: &{Req}|` returns an `Option` of the key, which can be displayed and \
            borrows nothing from the request: `Some(value.to_owned())`",
    note = "limits are joined outside of `by`: `(SITE, PER_KEY.by(header(\"x-api-key\")))`"
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
    /// What requests without a key take from, so that leaving it out is no way round the limit:
    /// a [`Scope`], several, or another extractor.
    ///
    /// By other keys, let it have a name of its own: equal keys of one name are one bucket,
    /// whatever they were found in, so that a user called `192.0.2.7` would share that of an
    /// address.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::header};
    /// # const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
    /// # const ANONYMOUS: Scope = Quota::per_minute(10.0).scope("anonymous");
    /// let by = PER_KEY.by(header("x-api-key")).or(ANONYMOUS);
    /// # }
    /// ```
    pub fn or<Y>(self, otherwise: Y) -> Or<Self, Y> {
        Or::new(self, otherwise)
    }

    /// A quota that depends on the request, such as that of a customer's plan; where `quota`
    /// returns `None`, the scope's own stands.
    ///
    /// The bucket is the same one: when a customer changes to another plan, the tokens that are
    /// left stay, at most as many as the new plan can hold.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::header};
    /// #[derive(Clone)]
    /// struct Plan { quota: Quota } // put there by an authentication layer
    ///
    /// const PER_KEY: Scope = Quota::per_minute(10.0).scope("api-key");
    /// let by = PER_KEY
    ///     .by(header("x-api-key"))
    ///     .quota(|req: &http::Request<String>| Some(req.extensions().get::<Plan>()?.quota));
    /// # }
    /// ```
    pub fn quota<Req, F: Fn(&Req) -> Option<Quota>>(self, quota: F) -> By<WithQuota<X, F>> {
        By {
            base: self.base,
            key: WithQuota {
                key: self.key,
                quota,
            },
        }
    }
}

impl<Req, X: KeyExtractor<Req>> ScopeExtractor<Req> for By<X> {
    fn extract(&self, req: &Req) -> Scopes {
        self.scope(req).into_scopes()
    }
}

/// A key, and a quota that depends on the request; made by [`By::quota`].
///
/// # Examples
///
/// See [`By::quota`].
#[derive(Clone, Debug)]
pub struct WithQuota<X, F> {
    key: X,
    quota: F,
}

impl<Req, X, F> KeyExtractor<Req> for WithQuota<X, F>
where
    X: KeyExtractor<Req>,
    F: Fn(&Req) -> Option<Quota>,
{
    fn scope(&self, base: &Scope, req: &Req) -> Option<Scope> {
        let scope = self.key.scope(base, req)?;
        Some(match (self.quota)(req) {
            Some(quota) => scope.with_quota(quota),
            None => scope,
        })
    }
}

#[diagnostic::do_not_recommend]
impl<Req, F, T> KeyExtractor<Req> for F
where
    F: Fn(&Req) -> Option<T>,
    T: Display,
{
    fn scope(&self, base: &Scope, req: &Req) -> Option<Scope> {
        Some(base.key(self(req)?))
    }
}

/// What one finds, and for requests in which it finds nothing, what another does; made by
/// [`By::or`].
///
/// # Examples
///
/// See [`By`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Or<X, Y = Scopes> {
    first: X,
    otherwise: Y,
}

impl<X, Y> Or<X, Y> {
    pub(super) fn new(first: X, otherwise: Y) -> Self {
        Self { first, otherwise }
    }
}

impl<Req, X, Y> ScopeExtractor<Req> for Or<X, Y>
where
    X: ScopeExtractor<Req>,
    Y: ScopeExtractor<Req>,
{
    fn extract(&self, req: &Req) -> Scopes {
        let scopes = self.first.extract(req);
        if scopes.as_slice().is_empty() {
            return self.otherwise.extract(req);
        }
        scopes
    }
}
