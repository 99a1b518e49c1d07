//! tower-throttle, through its public API.

use tower_throttle::{
    Limiter, RateLimitLayer, Scope, ScopeExtractor, extract::header, reply::HttpReply,
};

use super::{Keys, Limit};
use crate::load::Subject;

/// `Limiter::try_acquire`, with buckets in memory if `MEMORY`, in Redis otherwise.
#[derive(Clone)]
pub struct Throttle<const MEMORY: bool> {
    limiter: Limiter,
    scope: Scope,
    /// `None` if all tasks use one scope without a key.
    keys: Option<Keys>,
}

impl Throttle<false> {
    pub fn redis(url: &str, name: &'static str, limit: Limit, keys: &Keys) -> Self {
        let limiter = limiter(url);
        Self::with(limiter, name, limit, keys)
    }

    /// With a lease of this many tokens.
    pub fn leasing(url: &str, name: &'static str, limit: Limit, keys: &Keys, tokens: f64) -> Self {
        Self::with(leasing(url, tokens), name, limit, keys)
    }
}

impl Throttle<true> {
    pub fn memory(name: &'static str, limit: Limit, keys: &Keys) -> Self {
        Self::with(in_memory(), name, limit, keys)
    }
}

impl<const MEMORY: bool> Throttle<MEMORY> {
    fn with(limiter: Limiter, name: &'static str, limit: Limit, keys: &Keys) -> Self {
        Self {
            limiter,
            scope: limit.quota().scope(name),
            keys: (keys.count() != 1).then(|| keys.clone()),
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
        .expect("the configuration is valid")
}

/// The layer for HTTP, with a bucket per key in a header.
pub fn by_header<B>(
    limiter: &Limiter,
    limit: Limit,
) -> RateLimitLayer<
    impl ScopeExtractor<http::Request<B>> + Clone + Send + Sync + 'static + use<B>,
    HttpReply,
> {
    let scope = limit.quota().scope("bench").by(header("x-api-key"));
    RateLimitLayer::new(limiter, scope.or_unlimited()).respond_http()
}

impl<const MEMORY: bool> Subject for Throttle<MEMORY> {
    const IN_MEMORY: bool = MEMORY;

    async fn take(&mut self, scope: usize) -> bool {
        match &self.keys {
            None => self.limiter.try_acquire(&self.scope),
            Some(keys) => self.limiter.try_acquire(self.scope.key(&*keys.get(scope))),
        }
        .await
        .is_ok()
    }

    fn failures(&self) -> u64 {
        self.limiter.fallbacks()
    }
}
