//! Log lines, through `tracing`. Without the feature `tracing` they do nothing.
#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, reason = "nothing is logged without the feature")
)]

use std::time::Duration;

use tokio::time::Instant;

use crate::{decision::Failure, rejected::Reason};

macro_rules! log {
    ($level:ident, $($line:tt)*) => {{
        #[cfg(feature = "tracing")]
        tracing::$level!($($line)*);
    }};
}

/// An outage begins.
pub(super) fn redis_unavailable(redis: &str, failure: &Failure) {
    log!(
        warn,
        redis,
        reason = %failure.kind,
        error = %failure.source,
        "Redis is unavailable; limiting in degraded mode, by the fallback of each scope"
    );
}

/// An outage ends.
pub(super) fn redis_recovered(redis: &str, since: Instant) {
    let outage_seconds = since.elapsed().as_secs_f64();
    log!(info, redis, outage_seconds, "Redis has recovered");
}

/// A failure that does not pass without the operator.
pub(super) fn advice(redis: &str, failure: &Failure, advice: &'static str) {
    log!(
        error,
        redis,
        reason = %failure.kind,
        error = %failure.source,
        "{advice}"
    );
}

/// Redis is available, but has more requests than it can decide.
pub(super) fn overloaded(redis: &str) {
    log!(
        warn,
        redis,
        "more requests are queued for Redis than it decides in time; the excess is decided by the \
         fallback of each scope. If this lasts, use leases, or split the keys over several Redis"
    );
}

/// The part of each rate that is reserved has changed.
pub(super) fn reserved(missing: u32, reserved: f64) {
    let what = match reserved > 0.0 {
        true => "the heartbeats of limiters are missing; a part of each rate is reserved for them",
        false => "no part of the rates is reserved for missing limiters any more",
    };
    log!(info, missing, reserved, "{what}");
}

/// An acquisition was rejected.
#[inline]
pub(super) fn rejected(
    scope: &str,
    reason: Reason,
    retry_after: Option<Duration>,
    degraded: bool,
    shadow: bool,
) {
    log!(
        debug,
        scope,
        ?reason,
        ?retry_after,
        degraded,
        shadow,
        "request rejected"
    );
}
