//! [`Config`]: the configuration that a layer gives to each of its services.

use std::{fmt, time::Duration};

use crate::{
    extract::{Misses, ScopeExtractor},
    limiter::Limiter,
    scope::Scopes,
};

#[derive(Clone)]
pub(super) struct Config<K> {
    pub(super) limiter: Limiter,
    pub(super) extractor: K,
    pub(super) max_wait: Duration,
    pub(super) shadow: bool,
    pub(super) misses: Misses,
}

impl<K> Config<K> {
    /// The scopes of this request.
    #[inline]
    pub(super) fn scopes<Req>(&self, req: &Req) -> Scopes
    where
        K: ScopeExtractor<Req>,
    {
        if let Some(scopes) = self.extractor.fixed() {
            return scopes;
        }
        let scopes = self.extractor.extract(req);
        if self.extractor.is_unwatched() && self.misses.reach_limit(scopes.as_slice().is_empty()) {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                extractor = std::any::type_name::<K>(),
                "a layer has limited none of its first {} requests: its closure returned no scope",
                Misses::LIMIT,
            );
        }
        scopes
    }
}

impl<K> fmt::Debug for Config<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("limiter", &self.limiter)
            .field("max_wait", &self.max_wait)
            .field("shadow", &self.shadow)
            .finish_non_exhaustive()
    }
}
