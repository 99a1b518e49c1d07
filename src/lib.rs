//! One rate limit, held by all processes together.
//!
//! [`RateLimitLayer`] makes any tower `Service` keep a token bucket that lives in Redis:
//! *inbound*, where a server answers 429 or RESOURCE_EXHAUSTED, and *outbound*, where a client
//! waits for its turn. [`Limiter`] is the same without a service around it.
//!
//! - **Exact.** Over any window of `w` seconds a scope admits at most `capacity + rate * w`
//!   tokens, summed over all processes; see [the law](#the-law) for what may come on top.
//! - **Combined.** Concurrent acquisitions go to Redis as one script call, so that the hotter a
//!   scope is, the fewer round trips a token costs.
//! - **Fair.** Waiters get their turns in the order in which Redis saw them, at once and for
//!   certain: nobody polls.
//! - **Nothing is lost.** A caller that goes away gives its token back.
//! - **Never in the way.** When Redis is slow or gone, the process decides from its own memory
//!   within one [`redis_timeout`](LimiterBuilder::redis_timeout) after it has stopped answering.
//!
//! # Examples
//!
//! In front of an HTTP service, a bucket per client, and one per account that the application has
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
//! /// Inserted into a request's extensions by a layer outside of this one, for a valid key only.
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
//! Two limits at once, waiting for up to half a minute, without a service:
//!
//! ```
//! use std::time::Duration;
//! use tower_throttle::{Limiter, Quota, Scope};
//!
//! const RPM: Scope = Quota::per_minute(500.0).scope("openai:rpm");
//! const TPM: Scope = Quota::per_minute(90_000.0).scope("openai:tpm");
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
//! # The law
//!
//! A bucket holds up to `capacity` tokens and refills at `rate`; a demand that finds too few is
//! promised a turn, and the level goes below zero by what was promised. What may come on top of
//! `capacity + rate * w` in a window of uses:
//!
//! - tokens that were charged earlier and used, refunded or settled late: a token is used up to
//!   100 ms after its reservation, also where a request waits for several scopes or a service was
//!   made ready earlier, else it is given back and asked for again. A [`Permit`] counts as used
//!   when it is handed over;
//! - what is settled to more than its estimate while others have been promised turns: their turns
//!   stay, and those who come later pay;
//! - what had been promised when a quota was raised, or lowered, for the same name;
//! - with [leases](LimiterBuilder::lease), which are off unless asked for, what all processes have
//!   taken ahead: at most an eighth of the capacity each;
//! - one jump of the server's clock forward by `s` seconds: `rate * s`, at most the capacity and
//!   what was promised; after a jump back by `s` seconds, the same for reservations that are
//!   cancelled while the queue lasts;
//! - while Redis is away, what the shares of the processes allow (see [`Fallback`]).
//!
//! # Stacking
//!
//! From the outside in: `Retry` (each attempt pays), `ConcurrencyLimit`, this layer, `Timeout`
//! (per attempt, the wait excluded), the client. A `Timeout` outside does not cover a wait in
//! `poll_ready`; [`max_wait`](RateLimitLayer::max_wait) does. `Steer` and `Balance` make all of
//! their services ready for one call, so put this layer outside them, or limit by a closure. An
//! inner service that is not `Clone` goes behind a `Buffer`.
//!
//! # Features
//!
//! `redis` and `http` are on by default. All others only add: `tls` (`rediss://`), `axum` and
//! `tonic` (whose peers `extract::peer_ip` and `extract::client_ip` find), `learn` (lower limits by
//! what an upstream says), `serde` ([`Quota`] as text), `metrics`, `tracing`.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bucket;
mod clock;
mod decision;
mod error;
pub mod extract;
mod fallback;
#[cfg(all(fuzzing, feature = "learn", feature = "redis"))]
#[doc(hidden)]
pub mod fuzz;
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
pub mod reply;
#[cfg(feature = "http")]
mod rpc_status;
mod runtime;
mod scope;
mod task;
mod telemetry;
#[cfg(feature = "learn")]
pub mod upstream;
#[cfg(test)]
mod verification;

pub use self::{
    decision::FailureKind,
    error::{ConfigError, Reason, Rejected},
    extract::ScopeExtractor,
    fallback::{Fallback, Share},
    limiter::{Acquire, BucketHandle, Limiter, LimiterBuilder, Permit, PermitHandle, Unavailable},
    middleware::{RateLimit, RateLimitLayer, ResponseFuture},
    quota::{LiveQuota, ParseQuotaError, Quota},
    reply::Reply,
    scope::{IntoScopes, LiveScope, Scope, Scopes},
    telemetry::Health,
};

/// The README's examples run as tests.
#[cfg(all(doctest, feature = "redis", feature = "axum", feature = "tonic"))]
#[doc = include_str!("../README.md")]
struct Readme;
