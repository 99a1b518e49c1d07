//! governor, called directly.

use std::{num::NonZeroU32, sync::Arc};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::{Keys, Limit};
use crate::load::Subject;

/// governor's keyed limiter with `String` keys, called directly.
#[derive(Clone)]
pub struct Governor {
    limiter: Arc<DefaultKeyedRateLimiter<String>>,
    keys: Keys,
}

pub fn quota(limit: Limit) -> Quota {
    Quota::with_period(limit.per / limit.tokens)
        .expect("the period is not zero")
        .allow_burst(NonZeroU32::new(limit.tokens).expect("the limit is not zero"))
}

impl Governor {
    pub fn new(limit: Limit, keys: &Keys) -> Self {
        Self {
            limiter: Arc::new(RateLimiter::keyed(quota(limit))),
            keys: keys.clone(),
        }
    }
}

impl Subject for Governor {
    const IN_MEMORY: bool = true;

    async fn take(&mut self, scope: usize) -> bool {
        self.limiter.check_key(&self.keys.get(scope)).is_ok()
    }
}
