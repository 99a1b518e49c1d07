//! Learning from the answers of an upstream: what it says remains lowers the shared bucket, and
//! when it says to come back later, every process holds back.
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

mod grpc;
mod ietf;
mod learn;
mod parse;
mod profile;
#[cfg(test)]
mod tests;

pub use self::{
    learn::{HttpParts, Learn, Parts},
    profile::Upstream,
};
