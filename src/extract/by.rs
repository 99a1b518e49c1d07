//! A bucket of its own for each value found in a request: [`By`] and [`Or`].

use std::fmt::Display;

use super::{Found, ScopeExtractor};
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
/// let limit = JOBS.by(Tenant).or_unlimited();
/// assert_eq!(limit.extract(&Job { tenant: 7 }).iter().count(), 1);
/// ```
///
/// # Spellings
///
/// Two spellings of one key are two buckets, so that a client that may choose among `n` spellings
/// has `n` times the limit. [`header`](super::header()) removes the differences that HTTP itself
/// does not count, [`method`](super::method()) takes all unknown methods for one, and
/// [`matched_path`](super::matched_path) is the route instead of the path. A closure must do so
/// itself. Common traps: percent-encoding, repeated or trailing slashes and the query of a path;
/// case, default port and trailing dot of a host; case and sub-addresses of an e-mail address;
/// leading zeros of a number; Unicode normalization; a value that is not text, for which
/// `to_str().ok()` finds no key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not find a key in a `{Req}`",
    label = "expected what finds a key, such as `client_ip(…)`, or a tuple of such",
    note = "a closure `|req: &{Req}|` returns an `Option` of the key, which can be displayed and \
            borrows nothing from the request: `Some(value.to_owned())`",
    note = "`extension::<T>()` needs a `T: Display`; otherwise choose the key: \
            `extension::<T>().key(|value| value.id)`",
    note = "limits are joined outside of `by`: `(SITE, PER_CLIENT.by(client).or(UNKNOWN))`"
)]
pub trait KeyExtractor<Req> {
    /// `base` with the key of this request; none where it has none.
    ///
    /// # Examples
    ///
    /// See [`KeyExtractor`].
    fn scope(&self, base: &Scope, req: &Req) -> Option<Scope>;
}

/// A bucket per key, which says nothing yet of requests without a key.
///
/// Made by [`Scope::by`]. It is not a limit by itself: [`or`](Self::or) names what requests without
/// a key take from, [`or_unlimited`](Self::or_unlimited) leaves them unlimited. One of the two is
/// required.
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
/// Without either it does not compile as a limit:
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
    found: Found,
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
        let scope = match &self.base {
            Base::Fixed(scope) => self.key.scope(scope, req),
            Base::Live(scope) => self.key.scope(&scope.current(), req),
        };
        if self.found.is_never_after(scope.is_some()) {
            self.warn_never_found();
        }
        scope
    }

    fn warn_never_found(&self) {
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
            Found::ENOUGH,
        );
    }
}

impl Scope {
    /// A bucket of its own for each key that `key` finds in a request.
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
            found: Found::default(),
        }
    }
}

impl LiveScope {
    /// As [`Scope::by`], by the quota that holds at each request.
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
            found: Found::default(),
        }
    }
}

impl<X> By<X> {
    /// What requests without a key take from: a [`Scope`], several, or another extractor. Where
    /// that is a [`By`] too, the chain needs an end of its own.
    ///
    /// **A limit behind a key that nothing has checked is no limit.** A client that sends an
    /// invented key has a key: it gets a fresh bucket, and never reaches what `or` names. So a limit
    /// per client cannot stand behind [`header`](super::header()); take from both together, and
    /// give a bucket of its own only to an identity that the application has checked:
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope};
    /// # use tower_throttle::extract::{TrustedProxies, client_ip, extension};
    /// # const PER_CLIENT: Scope = Quota::per_minute(60.0).scope("client");
    /// # const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-client");
    /// # const PER_ACCOUNT: Scope = Quota::per_minute(60.0).scope("account");
    /// #[derive(Clone)]
    /// struct Account { id: u64 } // inserted into the extensions by the application's authentication
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
    /// An alternative with other keys needs a name of its own: equal keys of one name are one
    /// bucket, whatever they were found in, so that a user called `192.0.2.7` would share that of
    /// an address.
    pub fn or<Y>(self, otherwise: Y) -> Or<Self, Y> {
        Or::new(self, otherwise)
    }

    /// Leaves requests without a key unlimited.
    ///
    /// This is for a limit that stands beside another one, which limits those requests; see
    /// [`or`](Self::or). Alone, it lets a client escape the limit by leaving out the key.
    pub fn or_unlimited(self) -> Or<Self> {
        Or::new(self, Scopes::default())
    }

    /// A quota that depends on the request, such as that of a customer's plan; where `quota`
    /// returns `None`, the scope's own stands.
    ///
    /// The bucket is the same one: when a customer changes to another plan, the tokens that are
    /// left stay, at most as many as the new plan can hold.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::extension};
    /// #[derive(Clone)]
    /// struct Account { id: u64, plan: Quota } // put there by an authentication layer
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
            found: self.found,
        }
    }
}

/// What may find nothing, and so can stand in front of [`or`](By::or): a [`By`], a
/// [`When`](super::When), or a chain of these. A scope cannot, because what follows it would never
/// be reached.
pub trait Partial<Req> {
    /// The scopes of this request; none where another alternative applies.
    fn find(&self, req: &Req) -> Scopes;
}

impl<Req, X: KeyExtractor<Req>> Partial<Req> for By<X> {
    fn find(&self, req: &Req) -> Scopes {
        self.scope(req).into_scopes()
    }
}

impl<Req, X: Partial<Req>, Y: Partial<Req>> Partial<Req> for Or<X, Y> {
    fn find(&self, req: &Req) -> Scopes {
        let scopes = self.first.find(req);
        if scopes.as_slice().is_empty() {
            return self.otherwise.find(req);
        }
        scopes
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
    X: Partial<Req>,
    Y: ScopeExtractor<Req>,
{
    fn extract(&self, req: &Req) -> Scopes {
        let scopes = self.first.find(req);
        if scopes.as_slice().is_empty() {
            return self.otherwise.extract(req);
        }
        scopes
    }
}
