//! Keys from parts of the request: [`method`], [`matched_path`] and [`extension`].

use std::{any::type_name, fmt, marker::PhantomData};

use http::Request;

use super::key::KeyExtractor;
use crate::scope::Scope;

/// The method of the request, such as `GET`.
///
/// Methods that are not in RFC 9110 or RFC 5789 share one key, because a client can invent any
/// number of them. A client that uses all methods has ten buckets.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{method, peer_ip}};
///
/// const PER_PEER: Scope = Quota::per_minute(60.0).scope("peer");
/// const UNKNOWN: Scope = Quota::per_minute(60.0).scope("unknown-peer");
/// let by = PER_PEER.by((method(), peer_ip())).or(UNKNOWN); // one bucket for each method of a peer
/// ```
#[must_use]
pub fn method() -> Method {
    Method(())
}

/// Finds the key in the method of the request; made by [`method()`].
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
            true => base.key_bytes(method.as_str().as_bytes()),
            false => base.key_bytes(b"other"),
        })
    }
}

/// The route that a request has matched in an axum router, such as `/users/{id}`.
///
/// The path itself is not a suitable key, because a client can invent any number of paths.
///
/// axum sets the route after a `Router` has matched it, so the key depends on the position of the
/// limit:
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

/// Finds the key in the matched route; made by [`matched_path`].
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
        // For the root of a router in `nest_service("/a", …)`, the client chooses between `/a/` and
        // `/a//`.
        while path.ends_with("//") {
            path = &path[..path.len() - 1];
        }
        Some(base.key_bytes(path.as_bytes()))
    }
}

/// The value of type `T` in the request's extensions, such as an identity that an authentication
/// layer has inserted.
///
/// An identity that the application has verified is the best key. A request without the value has
/// no key, such as one with missing or wrong credentials.
///
/// The key is the `Display` form of `T`, or a part of the value that [`key`](Extension::key)
/// chooses. It must be different for different identities and stable for one, such as the number of
/// an account. A name that users choose or change is neither.
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

/// Finds the key in the extensions; made by [`extension`].
///
/// # Examples
///
/// See [`extension`].
pub struct Extension<T>(PhantomData<fn() -> T>);

impl<T: Send + Sync + 'static> Extension<T> {
    /// Chooses the part of the value that is the key, such as the number of an account. `key`
    /// returns an owned value: clone a part that is not `Copy`.
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

/// Finds the key in a part of an extension; made by [`Extension::key`].
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
