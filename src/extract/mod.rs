//! Finds the scopes of a request.
//!
//! - A [`KeyExtractor`] selects *one bucket of a limit*. It is the argument of
//!   [`Scope::by`](crate::Scope::by). A tuple of them has one bucket for each combination of keys.
//! - A [`ScopeExtractor`] selects *the limits*. It is the argument of
//!   [`RateLimitLayer::new`](crate::RateLimitLayer::new). A tuple of them takes from all limits, or
//!   from none.
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
//! /// Inserted into the request's extensions by the authentication of the application.
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
//!         PER_ACCOUNT.by(account).or_unlimited(), // clients without an account have a limit above
//!     ),
//! );
//! # }
//! ```
//!
//! A request without a key would not be limited, so a [`By`] is a limit only with
//! [`or`](By::or) or [`or_unlimited`](By::or_unlimited). With the feature `tracing`, a `By` and a
//! closure log one warning if their first 100 requests have no key or scope: then a layer or server
//! probably does not provide what they read.

#[cfg(feature = "http")]
mod address;
mod by;
#[cfg(feature = "http")]
mod client_ip;
#[cfg(feature = "http")]
mod header;
mod key;
mod misses;
mod or;
#[cfg(feature = "http")]
mod peer_ip;
#[cfg(feature = "http")]
mod proxies;
#[cfg(feature = "http")]
mod request;
mod scope;
mod tuple;
mod when;

pub(crate) use self::misses::Misses;
#[cfg(feature = "axum")]
pub use self::request::{MatchedPath, matched_path};
pub use self::{
    by::{By, WithQuota},
    key::KeyExtractor,
    or::Or,
    scope::ScopeExtractor,
    when::{When, when},
};
#[cfg(feature = "http")]
pub use self::{
    client_ip::{ClientIp, client_ip},
    header::{Header, header},
    peer_ip::{Peer, PeerIp, peer_ip},
    proxies::{ParseNetworkError, TrustedProxies},
    request::{Extension, ExtensionKey, Method, extension, method},
};
