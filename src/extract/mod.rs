//! From a request to the scopes it takes from.
//!
//! Two traits, which look alike and are not: a [`KeyExtractor`] finds *which bucket of one limit*,
//! and stands in [`Scope::by`](crate::Scope::by); a [`ScopeExtractor`] finds *which limits*, and
//! stands in [`RateLimitLayer::new`](crate::RateLimitLayer::new). So it is with tuples: of keys,
//! one bucket for each combination; of limits, all of them at once, or none.
//!
//! ```
//! # #[cfg(feature = "http")] {
//! use tower_throttle::{
//!     Limiter, Quota, RateLimitLayer, Scope,
//!     extract::{TrustedProxies, client_ip, header, method},
//! };
//!
//! const SITE: Scope = Quota::per_second(500.0).scope("site");
//! const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
//! const PER_CLIENT: Scope = Quota::per_minute(10.0).scope("client");
//!
//! let client = client_ip(TrustedProxies::private());
//! let layer = RateLimitLayer::new(
//!     &Limiter::in_memory(),
//!     (
//!         SITE,
//!         PER_KEY
//!             .by(header("x-api-key"))
//!             .or(PER_CLIENT.by((method(), client))),
//!     ),
//! );
//! # }
//! ```

mod by;
#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod header;
mod join;
#[cfg(feature = "http")]
mod parts;
#[cfg(feature = "http")]
mod peer;
#[cfg(feature = "http")]
mod proxies;
mod scopes;
mod when;

#[cfg(feature = "axum")]
pub use self::parts::{MatchedPath, matched_path};
pub use self::{
    by::{By, KeyExtractor, Or, WithQuota},
    scopes::ScopeExtractor,
    when::{When, when},
};
#[cfg(feature = "http")]
pub use self::{
    client::{ClientIp, client_ip},
    header::{Header, header},
    parts::{Extension, Method, extension, method},
    peer::{Peer, peer_ip},
    proxies::{ParseNetworkError, TrustedProxies},
};
