//! A client that has just started: each operation connects and gets the first decision.

use super::{HOT, Keys, Naive, limiter};
use crate::load::Subject;

/// Connects, loads the script and calls it.
#[derive(Clone)]
pub struct StartingNaive {
    pub url: String,
    pub keys: Keys,
}

impl Subject for StartingNaive {
    async fn take(&mut self, scope: usize) -> bool {
        let mut naive = Naive::new(&self.url, HOT, &self.keys).await;
        naive.take(scope).await
    }
}

/// Builds a limiter and acquires, which connects.
#[derive(Clone)]
pub struct StartingThrottle {
    pub url: String,
}

impl Subject for StartingThrottle {
    async fn take(&mut self, _scope: usize) -> bool {
        let limiter = limiter(&self.url);
        let permit = limiter.try_acquire(HOT.quota().scope("bench")).await;
        permit.is_ok_and(|permit| !permit.is_degraded())
    }
}
