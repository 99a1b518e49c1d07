//! The peers, each used as its documentation describes.

use std::sync::Arc;

use limitador::{
    RateLimiter,
    limit::{Context, Namespace},
};
use redis::aio::MultiplexedConnection;
use tower::Layer;

use super::{
    Keys, Limit,
    layers::{KEY_HEADER, Layered, is_success, key_of, no_op_http, requests},
};
use crate::load::Subject;

/// tower_governor's layer.
pub mod tower_governor {
    use ::tower_governor::{
        GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor,
    };
    use governor::{clock::QuantaInstant, middleware::NoOpMiddleware};

    use super::*;

    #[derive(Clone)]
    pub struct Header;
    impl KeyExtractor for Header {
        type Key = String;
        fn extract<T>(&self, request: &http::Request<T>) -> Result<String, GovernorError> {
            let key = key_of(request).ok_or(GovernorError::UnableToExtractKey)?;
            Ok(key.to_owned())
        }
    }

    pub fn layer(
        limit: Limit,
    ) -> GovernorLayer<Header, NoOpMiddleware<QuantaInstant>, axum::body::Body> {
        let config = GovernorConfigBuilder::default()
            .key_extractor(Header)
            .period(limit.per / limit.tokens)
            .burst_size(limit.tokens)
            .finish()
            .expect("period and burst are not zero");
        GovernorLayer::new(config)
    }

    /// Over a no-op service.
    pub fn memory(limit: Limit, keys: &Keys) -> impl Subject + use<> {
        Layered::<_, _, _, true>::new(
            layer(limit).layer(no_op_http::<axum::body::Body>()),
            requests(keys),
            is_success,
        )
    }
}

/// tower-rate-limiter's layer over a no-op service.
pub mod rate_limiter {
    use tower_rate_limiter::{
        GcraQuota, KeyExtractor, MemoryGcra, RateLimitError, RateLimitLayer, RateLimitPolicy,
        RedisGcra,
    };

    use super::*;

    #[derive(Clone)]
    struct Header;
    impl KeyExtractor for Header {
        type Key = String;
        fn extract<T>(&self, request: &http::Request<T>) -> Result<String, RateLimitError> {
            let key = key_of(request).ok_or_else(|| {
                RateLimitError::Key("no_key".to_owned(), "no header has a key".to_owned())
            })?;
            Ok(key.to_owned())
        }
    }

    fn quota(limit: Limit) -> GcraQuota {
        GcraQuota::new(limit.tokens, limit.per, limit.tokens)
            .expect("the quota is within the bounds")
    }

    fn subject<P, const MEMORY: bool>(policy: P, keys: &Keys) -> impl Subject + use<P, MEMORY>
    where
        P: RateLimitPolicy + Send + Sync + 'static,
        P::Future: Send,
    {
        let layer = RateLimitLayer::builder(Header)
            .policy_name("bench")
            .with_policy(policy)
            .build()
            .expect("the name is valid");
        Layered::<_, _, _, MEMORY>::new(
            layer.layer(no_op_http::<String>()),
            requests(keys),
            is_success,
        )
    }

    pub fn memory(limit: Limit, keys: &Keys) -> impl Subject + use<> {
        subject::<_, true>(MemoryGcra::new(quota(limit)), keys)
    }

    pub fn redis(
        connection: MultiplexedConnection,
        limit: Limit,
        keys: &Keys,
    ) -> impl Subject + use<> {
        subject::<_, false>(RedisGcra::new(connection, quota(limit)), keys)
    }
}

/// tower-rate-tier's layer over a no-op service.
pub mod rate_tier {
    use std::time::Duration;

    use tower_rate_tier::{
        Quota, RateTier, RedisStorage, TierIdentity, TierLimitLayer,
        storage::{Storage, memory::MemoryStorage},
    };

    use super::*;

    fn over(storage: Arc<dyn Storage>, limit: Limit) -> TierLimitLayer {
        let tier = RateTier::builder()
            .tier("bench", Quota::with_window(limit.tokens, limit.per))
            .storage(storage)
            .build();
        TierLimitLayer::new(tier).identifier_fn(|headers| {
            let key = headers.get(KEY_HEADER)?.to_str().ok()?;
            Some(TierIdentity::new(key, "bench"))
        })
    }

    fn subject<const MEMORY: bool>(
        layer: TierLimitLayer,
        keys: &Keys,
    ) -> impl Subject + use<MEMORY> {
        Layered::<_, _, _, MEMORY>::new(
            layer.layer(no_op_http::<String>()),
            requests(keys),
            is_success,
        )
    }

    /// The layer, in memory.
    pub fn layer(limit: Limit) -> TierLimitLayer {
        over(Arc::new(MemoryStorage::new()), limit)
    }

    pub fn memory(limit: Limit, keys: &Keys) -> impl Subject + use<> {
        subject::<true>(layer(limit), keys)
    }

    /// The timeout is long enough for a saturated connection.
    pub fn redis(
        connection: MultiplexedConnection,
        limit: Limit,
        keys: &Keys,
    ) -> impl Subject + use<> {
        let storage = RedisStorage::new(connection).timeout(Duration::from_secs(10));
        subject::<false>(over(Arc::new(storage), limit), keys)
    }
}

/// limitador's in-memory limiter, called directly.
#[derive(Clone)]
pub struct Limitador {
    limiter: Arc<RateLimiter>,
    namespace: Namespace,
    keys: Keys,
}

impl Limitador {
    pub fn new(limit: Limit, keys: &Keys) -> Self {
        let limiter = RateLimiter::new(2_000_000);
        limiter.add_limit(limitador::limit::Limit::new(
            "bench",
            u64::from(limit.tokens),
            limit.per.as_secs(),
            [],
            ["tenant".try_into().expect("the expression is valid")],
        ));
        Self {
            limiter: Arc::new(limiter),
            namespace: "bench".into(),
            keys: keys.clone(),
        }
    }
}

impl Subject for Limitador {
    const IN_MEMORY: bool = true;

    async fn take(&mut self, scope: usize) -> bool {
        let tenant = self.keys.get(scope).into_owned();
        let context: Context =
            std::collections::HashMap::from([("tenant".to_owned(), tenant)]).into();
        let decision = self
            .limiter
            .check_rate_limited_and_update(&self.namespace, &context, 1);
        decision.is_ok_and(|decision| !decision.limited)
    }
}
