//! Adjusts buckets by the answers of an upstream: a bucket is lowered to the reported remainder,
//! and paused in all processes if the upstream reports when to retry.
//!
//! ```
//! use std::time::Duration;
//! use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, upstream::Upstream};
//!
//! const RPM: Scope = Quota::per_minute(500.0).scope("openai:rpm");
//! const TPM: Scope = Quota::per_minute(90_000.0).scope("openai:tpm");
//!
//! let layer = RateLimitLayer::new(&Limiter::in_memory(), [RPM, TPM.cost(1_200.0)])
//!     .max_wait(Duration::from_secs(30))
//!     .learn(Upstream::openai());
//! ```

mod advice;
mod grpc;
mod headers;
mod ietf;
mod learn;
mod profile;
mod providers;
#[cfg(test)]
mod tests;
mod time;

pub use self::{
    learn::{HttpParts, Learn, Parts},
    profile::Upstream,
};
