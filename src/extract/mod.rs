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
//!     extract::{TrustedProxies, client_ip, extension},
//! };
//!
//! const SITE: Scope = Quota::per_second(500.0).scope("site");
//! const PER_CLIENT: Scope = Quota::per_minute(120.0).scope("client");
//! const UNKNOWN: Scope = Quota::per_minute(120.0).scope("unknown-client");
//! const PER_ACCOUNT: Scope = Quota::per_minute(60.0).scope("account");
//!
//! /// What the application's own authentication inserts into a request's extensions.
//! #[derive(Clone)]
//! struct Account { id: u64 }
//!
//! let client = client_ip(TrustedProxies::private());
//! let account = extension::<Account>().key(|account| account.id);
//! let layer = RateLimitLayer::new(
//!     &Limiter::in_memory(),
//!     (
//!         SITE,
//!         PER_CLIENT.by(client).or(UNKNOWN),
//!         PER_ACCOUNT.by(account).or_unlimited(), // only besides the limit of the client
//!     ),
//! );
//! # }
//! ```
//!
//! A request without a key takes from nothing, so [`By`] is not a limit until
//! [`or`](By::or) or [`or_unlimited`](By::or_unlimited) says what becomes of it. With the feature
//! `tracing`, a `By`, and a closure that is given to a layer, log one warning when their first 100
//! requests had no key, because then most likely something does not provide what they read.

mod by;
#[cfg(feature = "http")]
mod client;
mod found;
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

pub(crate) use self::found::Found;
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
    parts::{Extension, ExtensionKey, Method, extension, method},
    peer::{Peer, peer_ip},
    proxies::{ParseNetworkError, TrustedProxies},
};
