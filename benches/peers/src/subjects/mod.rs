//! The limiters under load. Each operation takes one token from one scope.

mod fallback;
mod layers;
mod memory;
mod peers;
mod scripts;
mod starting;
mod throttle;

use std::{borrow::Cow, sync::Arc, time::Duration};

pub use self::{
    fallback::NaiveWithFallback,
    layers::{HttpRequest, KEY_HEADER, Layered, is_success, no_op, no_op_http, requests},
    memory::Governor,
    peers::{Limitador, rate_limiter, rate_tier, tower_governor},
    scripts::{Cell, Minimal, Naive, Ping},
    starting::{StartingNaive, StartingThrottle},
    throttle::{Throttle, by_header, in_memory, limiter},
};

/// Names of the cases that occur in several rows.
pub const THROTTLE: &str = "tower-throttle";
pub const NAIVE: &str = "naive script";
pub const MINIMAL: &str = "minimal script";
pub const CELL: &str = "redis-cell";
pub const GOVERNOR: &str = "governor";
pub const RATE_LIMITER: &str = "tower-rate-limiter";
pub const RATE_TIER: &str = "tower-rate-tier";

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

/// Neither empty nor full during a run, because what is measured is a bucket that is kept. Some
/// peers support periods of up to a year.
pub const HOT: Limit = Limit::new(1_000_000_000, Duration::from_secs(1_000_000));
/// As [`HOT`], for scopes that are requested rarely: a token takes 100 s.
pub const MANY: Limit = Limit::new(100_000, Duration::from_secs(10_000_000));
/// Empty after one request.
pub const SPENT: Limit = Limit::new(1, Duration::from_secs(86_400));
/// Full again after 4 s, for keys that come once.
pub const BRIEF: Limit = Limit::new(1, Duration::from_secs(4));
/// 20,000 tokens/s, for callers that wait.
pub const SATURATED: Limit = Limit::new(1_000, Duration::from_millis(50));

/// Keys of 15 bytes. They are allocated before the measurement, which does not include the cost of
/// obtaining a key, except those that are [unseen](Self::unseen).
#[derive(Clone)]
pub struct Keys {
    prefix: &'static str,
    allocated: Arc<[String]>,
}

impl Keys {
    pub fn new(scopes: usize) -> Self {
        Self {
            prefix: "",
            allocated: (0..scopes).map(|scope| key("", scope)).collect(),
        }
    }

    /// Any number of keys, made when they are used.
    pub fn unseen() -> Self {
        Self::new(0)
    }

    fn prefixed(&self, prefix: &'static str) -> Self {
        let scopes = 0..self.count();
        Self {
            prefix,
            allocated: scopes.map(|scope| key(prefix, scope)).collect(),
        }
    }

    pub fn get(&self, scope: usize) -> Cow<'_, String> {
        match self.allocated.get(scope) {
            Some(key) => Cow::Borrowed(key),
            None => Cow::Owned(key(self.prefix, scope)),
        }
    }

    pub fn count(&self) -> usize {
        self.allocated.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &String> {
        self.allocated.iter()
    }
}

fn key(prefix: &str, scope: usize) -> String {
    format!("{prefix}tenant-{scope:08}")
}
