//! What is measured: each takes one token from one scope.

mod layers;
mod memory;
mod ours;
#[cfg(feature = "peers")]
mod peers;
mod scripts;

use std::{sync::Arc, time::Duration};

#[cfg(feature = "peers")]
pub use self::peers::{Limitador, rate_limiter, rate_tier, tower_governor};
pub use self::{
    layers::{Layered, is_success, no_op, no_op_http, requests},
    memory::Governor,
    ours::{Ours, in_memory, limiter},
    scripts::{Cell, Direct, Naive, Serial},
};

/// A limit in whole tokens, as the least of the peers can say it: `tokens` at once, and as many
/// again over `per`.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub tokens: u32,
    pub per: Duration,
}

impl Terms {
    const fn new(tokens: u32, per: Duration) -> Self {
        Self { tokens, per }
    }

    pub fn rate(self) -> f64 {
        f64::from(self.tokens) / self.per.as_secs_f64()
    }

    /// What may be admitted in so many seconds, from a full bucket on.
    pub fn allowed(self, seconds: f64) -> f64 {
        f64::from(self.tokens) + self.rate() * seconds
    }

    pub fn quota(self) -> tower_throttle::Quota {
        tower_throttle::Quota::per(self.per, f64::from(self.tokens))
    }
}

/// Never spent by one run, and never full again during it: a full bucket may be forgotten, and
/// what is measured is a bucket that is kept. The least of the peers holds a year.
pub const HOT: Terms = Terms::new(1_000_000_000, Duration::from_secs(1_000_000));
pub const MANY: Terms = Terms::new(10_000_000, Duration::from_secs(10_000_000));
/// Spent by one request.
pub const SPENT: Terms = Terms::new(1, Duration::from_secs(86_400));
/// 20,000 tokens a second, for those who wait.
pub const SATURATED: Terms = Terms::new(1_000, Duration::from_millis(50));

/// Names of 15 bytes. They exist before the clock runs: where a name comes from is the user's
/// business.
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
