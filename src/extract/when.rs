//! [`When`]: a limit for some requests.

use super::{
    or::{Or, Partial},
    scope::ScopeExtractor,
};
use crate::scope::{Scope, Scopes};

/// Applies `limit` to the requests for which `predicate` returns `true`.
///
/// [`Scope::when`] and [`Or::when`] do the same; this function is for tuples, arrays and closures.
/// Other requests are not limited, unless [`When::or`] sets a limit for them.
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

/// A limit for some requests; made by [`when`].
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
    /// Limits only the requests for which `predicate` returns `true`.
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
    /// Limits only the requests for which `predicate` returns `true`.
    ///
    /// ```
    /// # #[cfg(feature = "http")] {
    /// # use tower_throttle::{Quota, Scope, extract::peer_ip};
    /// # const PER_PEER: Scope = Quota::per_minute(60.0).scope("peer");
    /// # const UNKNOWN: Scope = Quota::per_minute(10.0).scope("unknown-peer");
    /// let by = PER_PEER
    ///     .by(peer_ip())
    ///     .or(UNKNOWN)
    ///     .when(|req: &http::Request<String>| req.uri().path() != "/health");
    /// # }
    /// ```
    pub fn when<Req, P: Fn(&Req) -> bool>(self, predicate: P) -> When<Self, P> {
        when(self, predicate)
    }
}

impl<X, P> When<X, P> {
    /// The limit for all other requests, and for those in which this limit finds no scope.
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
