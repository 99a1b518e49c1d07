//! Keys from what a request is, rather than who sent it.

use std::{any::type_name, fmt, marker::PhantomData};

use http::Request;

use super::KeyExtractor;
use crate::scope::Scope;

/// The request's method, such as `GET`; all that are not in RFC 9110 or RFC 5789 are one, because
/// a client can make up as many as it likes.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{header, method}};
///
/// const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
/// let by = PER_KEY.by((method(), header("x-api-key"))); // reads and writes apart
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
/// No key where there is no route, as in a fallback.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::matched_path};
///
/// const PER_ROUTE: Scope = Quota::per_second(50.0).scope("route");
/// let limit = RateLimitLayer::new(&Limiter::in_memory(), PER_ROUTE.by(matched_path()));
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
        let path = req.extensions().get::<axum::extract::MatchedPath>()?;
        Some(base.key(path.as_str()))
    }
}

/// A value of type `T` among the request's extensions, where an authentication layer outside of
/// this one has put it: what it has checked is the best of keys.
///
/// No key where there is none. If it is a secret, say so: `SCOPE.secret().by(…)`.
///
/// # Examples
///
/// ```
/// use std::fmt;
/// use tower_throttle::{Quota, Scope, extract::{ScopeExtractor, extension}};
///
/// #[derive(Clone)]
/// struct UserId(u64);
///
/// impl fmt::Display for UserId {
///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         self.0.fmt(f)
///     }
/// }
///
/// const PER_USER: Scope = Quota::per_minute(60.0).scope("user");
/// let by = PER_USER.by(extension::<UserId>());
///
/// let mut request = http::Request::new(());
/// assert_eq!(by.extract(&request).iter().count(), 0);
/// request.extensions_mut().insert(UserId(7));
/// assert_eq!(by.extract(&request).iter().count(), 1);
/// ```
#[must_use]
pub fn extension<T: fmt::Display + Clone + Send + Sync + 'static>() -> Extension<T> {
    Extension(PhantomData)
}

/// Finds a key among the extensions; made by [`extension`].
///
/// # Examples
///
/// See [`extension`].
pub struct Extension<T>(PhantomData<fn() -> T>);

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
    T: fmt::Display + Clone + Send + Sync + 'static,
{
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        Some(base.key(req.extensions().get::<T>()?))
    }
}
