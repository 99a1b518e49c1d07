//! Keys from what a request is, rather than who sent it.

use std::{any::type_name, fmt, marker::PhantomData};

use http::Request;

use super::KeyExtractor;
use crate::scope::Scope;

/// The request's method, such as `GET`; all that are not in RFC 9110 or RFC 5789 are one, because
/// a client can make up as many as it likes. A client that uses all of them has ten buckets.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{method, peer_ip}};
///
/// const PER_PEER: Scope = Quota::per_minute(60.0).scope("peer");
/// const UNKNOWN: Scope = Quota::per_minute(60.0).scope("unknown-peer");
/// let by = PER_PEER.by((method(), peer_ip::<String>)).or(UNKNOWN); // reads and writes apart
/// ```
#[must_use]
pub fn method() -> Method {
    Method(())
}

/// Finds a key in the request's method; made by [`method()`].
///
/// # Examples
///
/// See [`method()`].
#[derive(Clone, Copy, Debug)]
pub struct Method(());

impl<B> KeyExtractor<Request<B>> for Method {
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        const KNOWN: [http::Method; 9] = [
            http::Method::GET,
            http::Method::POST,
            http::Method::PUT,
            http::Method::DELETE,
            http::Method::HEAD,
            http::Method::OPTIONS,
            http::Method::CONNECT,
            http::Method::PATCH,
            http::Method::TRACE,
        ];
        let method = req.method();
        Some(match KNOWN.contains(method) {
            true => base.key(method),
            false => base.key("other"),
        })
    }
}

/// The route that a request has matched in an axum router, such as `/users/{id}`: not its path, of
/// which a client can make up as many as it likes.
///
/// axum knows the route once a `Router` has chosen it, so that it depends on where the limit stands:
///
/// | the limit stands on | the key |
/// |---|---|
/// | `Router::layer` or `route_layer`, or the method router of a route | the route |
/// | the same of a `Router` that is nested by `nest` or `nest_service` | the whole route, `/api/users/{id}` |
/// | `Router::layer` of the `Router` in which another was nested by `nest` | the whole route |
/// | `Router::layer` of the `Router` in which a service was nested by `nest_service` | none |
/// | a service that is nested by `nest_service`, or around a whole `Router` | none |
/// | a fallback, of any of these | none |
/// | a service behind `route_service` | the route |
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::matched_path};
///
/// const PER_ROUTE: Scope = Quota::per_second(50.0).scope("route");
/// const NO_ROUTE: Scope = Quota::per_second(50.0).scope("no-route");
/// let by = PER_ROUTE.by(matched_path()).or(NO_ROUTE);
/// let limit = RateLimitLayer::new(&Limiter::in_memory(), by);
/// let router: Router = Router::new()
///     .route("/users/{id}", get(async || "hello"))
///     .route_layer(limit.respond_http());
/// ```
#[cfg(feature = "axum")]
#[must_use]
pub fn matched_path() -> MatchedPath {
    MatchedPath(())
}

/// Finds a key in the route that was matched; made by [`matched_path`].
///
/// # Examples
///
/// See [`matched_path`].
#[cfg(feature = "axum")]
#[derive(Clone, Copy, Debug)]
pub struct MatchedPath(());

#[cfg(feature = "axum")]
impl<B> KeyExtractor<Request<B>> for MatchedPath {
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        let mut path = req
            .extensions()
            .get::<axum::extract::MatchedPath>()?
            .as_str();
        // The root of a router below `nest_service("/a", …)` is `/a/` or `/a//`, as the client likes.
        while path.ends_with("//") {
            path = &path[..path.len() - 1];
        }
        Some(base.key(path))
    }
}

/// A value of type `T` among the request's extensions, where an authentication layer outside of
/// this one has put it: what the application has checked is the best of keys.
///
/// No key where there is none, as for a request without credentials, or with wrong ones.
///
/// The key is what `T` displays, or a part of it that [`key`](Extension::key) chooses. It must be
/// different for different identities and the same for one, such as the account's number: a name
/// that users choose, or change, is neither.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{ScopeExtractor, extension}};
///
/// #[derive(Clone)]
/// struct Account { id: u64, email: String }
///
/// const PER_ACCOUNT: Scope = Quota::per_minute(60.0).scope("account");
/// let by = PER_ACCOUNT.by(extension::<Account>().key(|account| account.id)).or_unlimited();
///
/// let mut request = http::Request::new(());
/// assert_eq!(by.extract(&request).iter().count(), 0);
/// request.extensions_mut().insert(Account { id: 7, email: "a@example.com".to_owned() });
/// assert_eq!(by.extract(&request).iter().count(), 1);
/// ```
#[must_use]
pub fn extension<T: Send + Sync + 'static>() -> Extension<T> {
    Extension(PhantomData)
}

/// Finds a key among the extensions; made by [`extension`].
///
/// # Examples
///
/// See [`extension`].
pub struct Extension<T>(PhantomData<fn() -> T>);

impl<T: Send + Sync + 'static> Extension<T> {
    /// The part of the value that is the key, such as an account's number. Where it cannot be
    /// copied, it is cloned: it borrows nothing from the value.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope, extract::extension};
    /// #[derive(Clone)]
    /// struct Account { id: u64 }
    ///
    /// const PER_ACCOUNT: Scope = Quota::per_minute(60.0).scope("account");
    /// let by = PER_ACCOUNT.by(extension::<Account>().key(|account| account.id)).or_unlimited();
    /// ```
    #[must_use]
    pub fn key<K: fmt::Display, F: Fn(&T) -> K>(self, key: F) -> ExtensionKey<T, F> {
        ExtensionKey {
            extension: self,
            key,
        }
    }
}

/// Finds a key in a value among the extensions; made by [`Extension::key`].
///
/// # Examples
///
/// See [`Extension::key`].
#[derive(Debug)]
pub struct ExtensionKey<T, F> {
    extension: Extension<T>,
    key: F,
}

impl<T, F: Clone> Clone for ExtensionKey<T, F> {
    fn clone(&self) -> Self {
        Self {
            extension: self.extension,
            key: self.key.clone(),
        }
    }
}

impl<T> Clone for Extension<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Extension<T> {}

impl<T> fmt::Debug for Extension<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extension<{}>", type_name::<T>())
    }
}

impl<B, T> KeyExtractor<Request<B>> for Extension<T>
where
    T: fmt::Display + Send + Sync + 'static,
{
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        Some(base.key(req.extensions().get::<T>()?))
    }
}

impl<B, T, F, K> KeyExtractor<Request<B>> for ExtensionKey<T, F>
where
    T: Send + Sync + 'static,
    F: Fn(&T) -> K,
    K: fmt::Display,
{
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        Some(base.key((self.key)(req.extensions().get::<T>()?)))
    }
}
