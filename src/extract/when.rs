//! [`When`]: a limit for some of the requests.

use super::{Or, ScopeExtractor, by::Partial};
use crate::scope::{Scope, Scopes};

/// Limits by `limit` only requests for which `predicate` holds.
///
/// The methods [`Scope::when`] and [`Or::when`] say the same; this is for tuples,
/// arrays and closures. What the others take from, [`When::or`] says; without it, from nothing.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::when};
///
/// const SITE: Scope = Quota::per_second(500.0).scope("site");
/// const WRITES: Scope = Quota::per_second(20.0).scope("writes");
///
/// struct Query { write: bool }
///
/// let layer = RateLimitLayer::new(
///     &Limiter::in_memory(),
///     when([SITE, WRITES], |query: &Query| query.write).or(SITE),
/// );
/// ```
pub fn when<Req, X, P: Fn(&Req) -> bool>(limit: X, predicate: P) -> When<X, P> {
    When { limit, predicate }
}

/// A limit for some of the requests; made by [`when`].
///
/// # Examples
///
/// See [`when`].
#[derive(Clone, Debug)]
#[must_use]
pub struct When<X, P> {
    limit: X,
    predicate: P,
}

impl<Req, X, P> ScopeExtractor<Req> for When<X, P>
where
    X: ScopeExtractor<Req>,
    P: Fn(&Req) -> bool,
{
    fn extract(&self, req: &Req) -> Scopes {
        match (self.predicate)(req) {
            true => self.limit.extract(req),
            false => Scopes::default(),
        }
    }
}

impl<Req, X, P> Partial<Req> for When<X, P>
where
    X: ScopeExtractor<Req>,
    P: Fn(&Req) -> bool,
{
    fn find(&self, req: &Req) -> Scopes {
        self.extract(req)
    }
}

impl Scope {
    /// Limits only requests for which `predicate` holds.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope};
    /// const WRITES: Scope = Quota::per_second(20.0).scope("writes");
    /// let layer = RateLimitLayer::new(
    ///     &Limiter::in_memory(),
    ///     WRITES.when(|req: &http::Request<String>| !req.method().is_safe()),
    /// );
    /// # }
    /// ```
    pub fn when<Req, P: Fn(&Req) -> bool>(self, predicate: P) -> When<Self, P> {
        when(self, predicate)
    }
}

impl<X, Y> Or<X, Y> {
    /// Limits only requests for which `predicate` holds.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::peer_ip};
    /// # const PER_PEER: Scope = Quota::per_minute(60.0).scope("peer");
    /// # const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-peer");
    /// let by = PER_PEER
    ///     .by(peer_ip::<String>)
    ///     .or(UNKNOWN)
    ///     .when(|req: &http::Request<String>| req.uri().path() != "/health");
    /// # }
    /// ```
    pub fn when<Req, P: Fn(&Req) -> bool>(self, predicate: P) -> When<Self, P> {
        when(self, predicate)
    }

    /// What requests take from that are limited by neither, where the last alternative so far can
    /// leave requests unlimited: a [`By`](super::By) or a [`When`].
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::{extension, peer_ip}};
    /// # const PER_USER: Scope = Quota::per_minute(60.0).scope("user");
    /// # const PER_PEER: Scope = Quota::per_minute(60.0).scope("peer");
    /// # const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-peer");
    /// # fn limit(_: impl tower_throttle::ScopeExtractor<http::Request<()>>) {}
    /// #[derive(Clone)]
    /// struct User { id: u64 } // authenticated
    ///
    /// let by = PER_USER
    ///     .by(extension::<User>().key(|user| user.id))
    ///     .or(PER_PEER.by(peer_ip))
    ///     .or(UNKNOWN);
    /// # limit(by);
    /// # }
    /// ```
    ///
    /// A chain that ends in a [`By`](super::By) is not a limit yet:
    ///
    /// ```compile_fail,E0277
    /// # use tower_throttle::{Quota, Scope, ScopeExtractor};
    /// # const A: Scope = Quota::per_minute(60.0).scope("a");
    /// # const B: Scope = Quota::per_minute(60.0).scope("b");
    /// # fn limit(_: impl ScopeExtractor<(u64, u64)>) {}
    /// limit(A.by(|req: &(u64, u64)| Some(req.0)).or(B.by(|req: &(u64, u64)| Some(req.1))));
    /// ```
    pub fn or<Z>(self, otherwise: Z) -> Or<Self, Z> {
        Or::new(self, otherwise)
    }

    /// Leaves requests unlimited that are limited by neither; see [`By::or_unlimited`].
    ///
    /// [`By::or_unlimited`]: super::By::or_unlimited
    pub fn or_unlimited(self) -> Or<Self> {
        Or::new(self, Scopes::default())
    }
}

impl<X, P> When<X, P> {
    /// What the other requests take from, and those in which the limit finds nobody.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope};
    /// const WRITES: Scope = Quota::per_second(20.0).scope("writes");
    /// const READS: Scope = Quota::per_second(500.0).scope("reads");
    /// let limit = WRITES
    ///     .when(|req: &http::Request<String>| !req.method().is_safe())
    ///     .or(READS);
    /// # }
    /// ```
    pub fn or<Y>(self, otherwise: Y) -> Or<Self, Y> {
        Or::new(self, otherwise)
    }
}
