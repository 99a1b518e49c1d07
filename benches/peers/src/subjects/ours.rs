//! tower-throttle, through its public face.

use tower_throttle::{Limiter, Scope};

use super::{Keys, Terms};
use crate::load::Subject;

/// `Limiter::try_acquire`; its buckets in Redis, or in memory where `MEMORY`.
#[derive(Clone)]
pub struct Ours<const MEMORY: bool> {
    limiter: Limiter,
    scope: Scope,
    /// Without keys, all tasks ask for the one scope.
    keys: Option<Keys>,
}

impl Ours<false> {
    pub fn redis(url: &str, name: &'static str, terms: Terms, keys: &Keys) -> Self {
        let limiter = limiter(url);
        Self::with(limiter, name, terms, keys)
    }

    /// That takes so many tokens ahead.
    pub fn leasing(url: &str, name: &'static str, terms: Terms, keys: &Keys, tokens: f64) -> Self {
        Self::with(leasing(url, tokens), name, terms, keys)
    }
}

impl Ours<true> {
    pub fn memory(name: &'static str, terms: Terms, keys: &Keys) -> Self {
        Self::with(in_memory(), name, terms, keys)
    }
}

impl<const MEMORY: bool> Ours<MEMORY> {
    fn with(limiter: Limiter, name: &'static str, terms: Terms, keys: &Keys) -> Self {
        Self {
            limiter,
            scope: terms.quota().scope(name),
            keys: (keys.count() > 1).then(|| keys.clone()),
        }
    }

    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

pub fn limiter(url: &str) -> Limiter {
    leasing(url, 0.0)
}

fn leasing(url: &str, tokens: f64) -> Limiter {
    Limiter::builder()
        .redis(url)
        .lease(tokens)
        .max_scopes(2_000_000)
        .build()
        .expect("our own URL parses")
}

pub fn in_memory() -> Limiter {
    Limiter::builder()
        .max_scopes(2_000_000)
        .build()
        .expect("nothing can be wrong without Redis")
}

impl<const MEMORY: bool> Subject for Ours<MEMORY> {
    const IN_MEMORY: bool = MEMORY;

    async fn take(&mut self, scope: usize) -> bool {
        match &self.keys {
            None => self.limiter.try_acquire(&self.scope),
            Some(keys) => self.limiter.try_acquire(self.scope.key(keys.get(scope))),
        }
        .await
        .is_ok()
    }

    fn failures(&self) -> u64 {
        self.limiter.fallbacks()
    }
}
