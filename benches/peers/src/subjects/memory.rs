//! governor, called directly.

use std::{num::NonZeroU32, sync::Arc};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::{Keys, Terms};
use crate::load::Subject;

/// governor's keyed limiter over `String` keys, called in the loop itself.
#[derive(Clone)]
pub struct Governor {
    limiter: Arc<DefaultKeyedRateLimiter<String>>,
    keys: Keys,
}

pub fn quota(terms: Terms) -> Quota {
    Quota::with_period(terms.per / terms.tokens)
        .expect("no period is zero")
        .allow_burst(NonZeroU32::new(terms.tokens).expect("no limit is zero"))
}

impl Governor {
    pub fn new(terms: Terms, keys: &Keys) -> Self {
        Self {
            limiter: Arc::new(RateLimiter::keyed(quota(terms))),
            keys: keys.clone(),
        }
    }
}

impl Subject for Governor {
    const IN_MEMORY: bool = true;

    async fn take(&mut self, scope: usize) -> bool {
        self.limiter.check_key(self.keys.get(scope)).is_ok()
    }
}
