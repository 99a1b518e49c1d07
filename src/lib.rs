//! A [tower](https://docs.rs/tower) layer that enforces one rate limit across all processes.
//!
//! [`RateLimitLayer`] limits any tower `Service` by token buckets in Redis: a server rejects requests
//! over the limit with 429 or RESOURCE_EXHAUSTED, and a client waits until its tokens are due.
//! [`Limiter`] does the same without a service.
//!
//! - **Exact.** Over any window of `w` seconds a scope admits at most `capacity + rate * w` tokens,
//!   summed over all processes. [Guarantees](#guarantees) lists the exceptions.
//! - **Batched.** Concurrent requests share one script call: the hotter a scope is, the fewer round
//!   trips a token costs.
//! - **Fair.** Waiters are served in the order in which Redis received their requests. A waiter has
//!   a reservation with a due time and does not poll.
//! - **Cancel safe.** Dropping a future returns its tokens.
//! - **Bounded latency.** If Redis is slow or unavailable, the process decides from memory after at
//!   most one [`redis_timeout`](LimiterBuilder::redis_timeout).
//!
//! # Examples
//!
//! An HTTP service with a bucket for each client, and one for each account that the application has
//! authenticated. A request takes from both, or from neither:
//!
//! ```
//! # #[cfg(feature = "http")] {
//! use tower::{ServiceBuilder, service_fn};
//! use tower_throttle::{
//!     Limiter, Quota, RateLimitLayer, Scope,
//!     extract::{TrustedProxies, client_ip, extension},
//! };
//!
//! const PER_CLIENT: Scope = Quota::per_minute(300.0).scope("client");
//! const UNKNOWN: Scope = Quota::per_minute(300.0).scope("unknown-client");
//! const PER_ACCOUNT: Scope = Quota::per_minute(60.0).burst(20.0).scope("account");
//!
//! /// Inserted into the request's extensions by a layer outside this one, for a valid key only.
//! #[derive(Clone)]
//! struct Account { id: u64 }
//!
//! let limiter = Limiter::in_memory(); // or Limiter::redis("redis://127.0.0.1:6379")?
//! let limits = (
//!     PER_CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN),
//!     PER_ACCOUNT.by(extension::<Account>().key(|account| account.id)).or_unlimited(),
//! );
//! let service = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(&limiter, limits).respond_http())
//!     .service(service_fn(async |_: http::Request<String>| {
//!         Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
//!     }));
//! # let _ = tower::ServiceExt::oneshot(service, http::Request::new(String::new()));
//! # }
//! ```
//!
//! Two limits at once without a service, with a wait of up to 30 s:
//!
//! ```
//! use std::time::Duration;
//! use tower_throttle::{Limiter, Quota, Scope};
//!
//! const RPM: Scope = Quota::per_minute(500.0).scope("llm:requests");
//! const TPM: Scope = Quota::per_minute(90_000.0).scope("llm:tokens");
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Rejected> {
//! let limiter = Limiter::in_memory();
//! let permit = limiter
//!     .acquire([RPM, TPM.cost(1_200.0)], Duration::from_secs(30))
//!     .await?;
//! // … send the request, then correct the estimate:
//! permit.settle(873.0);
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//!
//! A bucket holds up to `capacity` tokens and refills at `rate` tokens/s. A request that finds too few
//! tokens and may wait reserves them: the level falls below zero, and the request is admitted when
//! its reservation is due.
//!
//! Over any window of `w` seconds, at most `capacity + rate * w` tokens of a bucket are used by all
//! processes together. Only the following can come on top:
//!
//! - **Late use.** Tokens that were charged earlier and are used, refunded or settled late. A service
//!   and a request for several scopes use a token at most 100 ms after its reservation; otherwise it
//!   is given back and requested again. A [`Permit`] counts as used when it is returned.
//! - **Estimates that were too low.** Tokens that are settled above the estimate while others have
//!   reservations: the reservations stay, and later requests wait for longer.
//! - **Changed quotas.** What was reserved when the quota of a name was raised or lowered.
//! - **[Leases](LimiterBuilder::lease)**, which are off by default: what the processes have taken
//!   ahead, at most an eighth of the capacity each.
//! - **Clock steps of the Redis server.** After one forward step of `s` seconds `rate * s`, at most the
//!   capacity and what was reserved. After a backward step of `s` seconds the same, for
//!   reservations that are cancelled while the wait queue lasts.
//! - **Outages.** While Redis is unavailable, what the local shares of the processes allow: see
//!   [`Fallback`].
//!
//! # Stacking order
//!
//! From the outside in: `Retry` (each attempt takes tokens), `ConcurrencyLimit`, this layer, `Timeout`
//! (for each attempt, without the wait), the client.
//!
//! A `Timeout` outside this layer does not cover a wait in `poll_ready`;
//! [`max_wait`](RateLimitLayer::max_wait) does. `Steer` and `Balance` make all of their services ready
//! for one call, so put this layer outside them, or find the scopes by a closure. Put a `Buffer` around
//! an inner service that is not `Clone`.
//!
//! # Features
//!
//! Defaults to `redis` and `http`. No feature changes what another one provides.
//!
//! | feature | provides |
//! |---|---|
//! | `redis` | buckets in Redis |
//! | `http` | `RateLimitLayer::respond_http` and extractors for `http::Request` |
//! | `axum`, `tonic` | the peer's address for `extract::client_ip` and `extract::peer_ip` |
//! | `learn` | limits that an upstream reports |
//! | `tls` | `rediss://` |
//! | `serde` | [`Quota`] as text |
//! | `metrics`, `tracing` | metrics and log lines |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bucket;
mod clock;
mod config_error;
mod decision;
pub mod extract;
mod fallback;
#[cfg(all(fuzzing, feature = "learn", feature = "redis"))]
#[doc(hidden)]
pub mod fuzz;
pub mod hook;
mod last_rejection;
mod limiter;
mod memory;
mod middleware;
mod packed_map;
mod peers;
mod quota;
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "there is no transport to reach Redis by")
)]
mod redis;
mod rejected;
pub mod reply;
#[cfg(feature = "http")]
mod rpc_status;
mod runtime;
mod scope;
mod sharded;
mod task;
mod telemetry;
#[cfg(feature = "learn")]
pub mod upstream;
#[cfg(test)]
mod verification;

pub use self::{
    config_error::ConfigError,
    decision::FailureKind,
    extract::ScopeExtractor,
    fallback::{Fallback, Share},
    limiter::{Acquire, BucketHandle, Limiter, LimiterBuilder, Permit, PermitHandle, Unavailable},
    middleware::{RateLimit, RateLimitLayer, ResponseFuture},
    quota::{LiveQuota, ParseQuotaError, Quota},
    rejected::{Reason, Rejected},
    reply::Reply,
    scope::{IntoScopes, LiveScope, Scope, Scopes},
    telemetry::Health,
};

/// The examples of the README are compiled as tests.
#[cfg(all(doctest, feature = "redis", feature = "axum", feature = "tonic"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The examples of this page are compiled as tests.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../docs/keys.md")]
struct Keys;
