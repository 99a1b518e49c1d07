//! The limiters under load. Each operation takes one token from one scope.

mod fallback;
mod layers;
mod memory;
#[cfg(feature = "peers")]
mod peers;
mod scripts;
mod throttle;

use std::{sync::Arc, time::Duration};

#[cfg(feature = "peers")]
pub use self::peers::{Limitador, rate_limiter, rate_tier, tower_governor};
pub use self::{
    fallback::NaiveWithFallback,
    layers::{Layered, is_success, no_op, no_op_http, requests},
    memory::Governor,
    scripts::{Cell, Minimal, Naive, Serial},
    throttle::{Throttle, in_memory, limiter},
};

/// Names of the cases that occur in several rows.
pub const THROTTLE: &str = "tower-throttle";
pub const NAIVE: &str = "naive script";
pub const MINIMAL: &str = "minimal script";

/// A limit that all peers can express: a burst of `tokens`, and `tokens` per `per`.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub tokens: u32,
    pub per: Duration,
}

impl Limit {
    const fn new(tokens: u32, per: Duration) -> Self {
        Self { tokens, per }
    }

    pub fn rate(self) -> f64 {
        f64::from(self.tokens) / self.per.as_secs_f64()
    }

    /// Tokens that a full bucket admits in this many seconds.
    pub fn allowed(self, seconds: f64) -> f64 {
        f64::from(self.tokens) + self.rate() * seconds
    }

    pub fn quota(self) -> tower_throttle::Quota {
        tower_throttle::Quota::per(self.per, f64::from(self.tokens))
    }
}

/// Neither empty nor full during a run: a full bucket may be dropped, and a bucket that is kept is
/// to be measured. Some peers support periods of up to a year.
pub const HOT: Limit = Limit::new(1_000_000_000, Duration::from_secs(1_000_000));
pub const MANY: Limit = Limit::new(10_000_000, Duration::from_secs(10_000_000));
/// Empty after one request.
pub const SPENT: Limit = Limit::new(1, Duration::from_secs(86_400));
/// 20,000 tokens/s, for callers that wait.
pub const SATURATED: Limit = Limit::new(1_000, Duration::from_millis(50));

/// Keys of 15 bytes. They are allocated before the measurement, which does not include the cost of
/// obtaining a key.
#[derive(Clone)]
pub struct Keys(Arc<[String]>);

impl Keys {
    pub fn new(scopes: usize) -> Self {
        Self((0..scopes).map(|n| format!("tenant-{n:08}")).collect())
    }

    pub fn get(&self, scope: usize) -> &String {
        &self.0[scope]
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &String> {
        self.0.iter()
    }
}
