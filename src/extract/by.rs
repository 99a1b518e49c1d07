//! [`By`]: one bucket for each key.

use super::{
    key::KeyExtractor,
    misses::Misses,
    or::{Or, Partial},
};
use crate::{
    quota::Quota,
    scope::{IntoScopes, LiveScope, Scope, Scopes},
};

/// One bucket for each key; made by [`Scope::by`].
///
/// It is not a limit by itself, because a request may have no key. [`or`](Self::or) sets the limit
/// for such requests, [`or_unlimited`](Self::or_unlimited) leaves them unlimited. One of the two
/// is required.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "http")] {
/// use tower_throttle::{
///     Quota, Scope,
///     extract::{ScopeExtractor, TrustedProxies, client_ip},
/// };
///
/// const PER_CLIENT: Scope = Quota::per_minute(60.0).scope("client");
/// const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-client");
///
/// let by = PER_CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN);
/// let request = http::Request::new(());
/// assert_eq!(by.extract(&request).iter().next().unwrap().name(), "unknown-client");
/// # }
/// ```
///
/// Without either of them it does not compile as a limit:
///
/// ```compile_fail,E0277
/// use tower_throttle::{Quota, Scope, ScopeExtractor};
///
/// const PER_TENANT: Scope = Quota::per_minute(60.0).scope("tenant");
/// fn limit(_: impl ScopeExtractor<String>) {}
///
/// limit(PER_TENANT.by(|tenant: &String| Some(tenant.clone())));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct By<X> {
    base: Base,
    key: X,
    misses: Misses,
}

#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "both hold a scope; a box would add an allocation"
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
        let scope = match &self.base {
            Base::Fixed(scope) => self.key.scope(scope, req),
            Base::Live(scope) => self.key.scope(&scope.current(), req),
        };
        if self.misses.reach_limit(scope.is_none()) {
            self.warn_no_keys();
        }
        scope
    }

    fn warn_no_keys(&self) {
        #[cfg(feature = "tracing")]
        tracing::warn!(
            scope = match &self.base {
                Base::Fixed(scope) => scope.name().to_owned(),
                Base::Live(scope) => scope.current().name().to_owned(),
            },
            extractor = std::any::type_name::<X>(),
            "the first {} requests had no key: check that the server, or a layer outside of this \
             one, provides what the extractor reads, and that a feature it needs, such as `axum` \
             or `tonic`, is enabled",
            Misses::LIMIT,
        );
    }
}

impl Scope {
    /// One bucket for each key that `key` finds in a request.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope};
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// const PER_CLIENT: Scope = Quota::per_minute(60.0).scope("client");
    /// const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-client");
    /// let by = PER_CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN);
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), by);
    /// # }
    /// ```
    pub fn by<X>(self, key: X) -> By<X> {
        By {
            base: Base::Fixed(self),
            key,
            misses: Misses::default(),
        }
    }
}

impl LiveScope {
    /// [`Scope::by`] with the quota that applies at each request.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Limiter, LiveQuota, Quota, RateLimitLayer};
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let quota = LiveQuota::new(Quota::per_minute(60.0));
    /// let unknown = quota.scope("unknown-client");
    /// let by = quota.scope("client").by(client_ip(TrustedProxies::none())).or(unknown);
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), by);
    /// # }
    /// ```
    pub fn by<X>(self, key: X) -> By<X> {
        By {
            base: Base::Live(self),
            key,
            misses: Misses::default(),
        }
    }
}

impl<X> By<X> {
    /// The limit for requests without a key: a [`Scope`], several, or another extractor. If that
    /// is a [`By`] too, it needs an alternative of its own.
    ///
    /// **The alternative does not protect a key that nothing has verified.** A client that sends an
    /// invented key has a key: it gets a new bucket, and its request never takes from the
    /// alternative. So do not put a limit per client behind [`header`](super::header()): take from
    /// both together, and use only an identity that the application has verified as a key:
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope};
    /// # use tower_throttle::extract::{TrustedProxies, client_ip, extension};
    /// # const PER_CLIENT: Scope = Quota::per_minute(60.0).scope("client");
    /// # const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-client");
    /// # const PER_ACCOUNT: Scope = Quota::per_minute(60.0).scope("account");
    /// #[derive(Clone)]
    /// struct Account { id: u64 } // inserted into the extensions by the authentication layer
    ///
    /// let limits = (
    ///     PER_CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN),
    ///     PER_ACCOUNT.by(extension::<Account>().key(|account| account.id)).or_unlimited(),
    /// );
    /// # fn limit(_: impl tower_throttle::ScopeExtractor<http::Request<()>>) {}
    /// # limit(limits);
    /// # }
    /// ```
    ///
    /// Give an alternative with other keys another name. Equal keys of one name have one bucket,
    /// whatever they were found in: a user called `192.0.2.7` would share the bucket of that
    /// address.
    pub fn or<Y>(self, otherwise: Y) -> Or<Self, Y> {
        Or::new(self, otherwise)
    }

    /// Leaves requests without a key unlimited.
    ///
    /// Use it together with another limit that covers those requests; see [`or`](Self::or). Alone,
    /// it lets a client avoid the limit by leaving out the key.
    pub fn or_unlimited(self) -> Or<Self> {
        Or::new(self, Scopes::default())
    }

    /// Sets a quota that depends on the request, such as that of a customer's plan. If `quota`
    /// returns `None`, the quota of the scope applies.
    ///
    /// The bucket stays the same: if a customer changes to another plan, the remaining tokens are
    /// kept, up to the new capacity.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::extension};
    /// #[derive(Clone)]
    /// struct Account { id: u64, plan: Quota } // inserted by an authentication layer
    ///
    /// const PER_ACCOUNT: Scope = Quota::per_minute(10.0).scope("account");
    /// let by = PER_ACCOUNT
    ///     .by(extension::<Account>().key(|account| account.id))
    ///     .quota(|req: &http::Request<String>| Some(req.extensions().get::<Account>()?.plan))
    ///     .or_unlimited();
    /// # }
    /// ```
    pub fn quota<Req, F: Fn(&Req) -> Option<Quota>>(self, quota: F) -> By<WithQuota<X, F>> {
        By {
            base: self.base,
            key: WithQuota {
                key: self.key,
                quota,
            },
            misses: self.misses,
        }
    }
}

impl<Req, X: KeyExtractor<Req>> Partial<Req> for By<X> {
    fn find(&self, req: &Req) -> Scopes {
        self.scope(req).into_scopes()
    }
}

/// A key with a quota that depends on the request; made by [`By::quota`].
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
