//! [`Or`]: an alternative for requests in which a limit finds nothing.

use super::scope::ScopeExtractor;
use crate::scope::Scopes;

/// A limit that may find nothing, so that an alternative can follow it: a [`By`](super::By), a
/// [`When`](super::When), or a chain of these. A scope is not one, because its alternative would
/// never be used.
pub trait Partial<Req> {
    /// The scopes of this request; none if the alternative applies.
    fn find(&self, req: &Req) -> Scopes;
}

/// A limit, and an alternative for requests in which it finds nothing; made by
/// [`By::or`](super::By::or).
///
/// # Examples
///
/// See [`By`](super::By).
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

    /// The limit for requests that neither of the two limits. The last limit so far must be one
    /// that may find nothing: a [`By`](super::By) or a [`When`](super::When).
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
    ///     .or(PER_PEER.by(peer_ip()))
    ///     .or(UNKNOWN);
    /// # limit(by);
    /// # }
    /// ```
    ///
    /// A chain that ends in a [`By`](super::By) is not a limit:
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

    /// Leaves the requests unlimited that neither of the two limits; see [`By::or_unlimited`].
    ///
    /// [`By::or_unlimited`]: super::By::or_unlimited
    pub fn or_unlimited(self) -> Or<Self> {
        Or::new(self, Scopes::default())
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
