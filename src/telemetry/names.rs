//! The names of the metrics, and their descriptions.

use metrics::{Recorder, Unit};

pub(super) const REQUESTS: &str = "tower_throttle_requests_total";
pub(super) const WAIT: &str = "tower_throttle_wait_seconds";
pub(super) const QUEUE: &str = "tower_throttle_queue_length";
pub(super) const BATCH: &str = "tower_throttle_batch_size";
pub(super) const CALL: &str = "tower_throttle_redis_call_seconds";
pub(super) const SCOPES: &str = "tower_throttle_scopes";
pub(super) const FALLBACKS: &str = "tower_throttle_fallback_total";
pub(super) const COST: &str = "tower_throttle_cost_total";
pub(super) const OVERFLOW: &str = "tower_throttle_overflow_total";
pub(super) const DEGRADED: &str = "tower_throttle_degraded";
pub(super) const RESERVED: &str = "tower_throttle_reserved_ratio";

/// Describes all metrics. Repeating it changes nothing.
pub(super) fn describe(recorder: &dyn Recorder) {
    let counters = [
        (
            REQUESTS,
            "Acquisitions that ended, by scope, outcome and backend",
        ),
        (
            COST,
            "Tokens reserved by acquisitions, settled above that, and refunded",
        ),
        (
            OVERFLOW,
            "Decisions by an overflow bucket, which keys beyond max_scopes share",
        ),
        (
            FALLBACKS,
            "Decisions made without Redis, by the reason why Redis did not decide",
        ),
    ];
    for (name, text) in counters {
        recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
    }
    let gauges = [
        (
            QUEUE,
            "Requests and corrections queued for Redis and not sent yet",
        ),
        (SCOPES, "Buckets in the memory of this process"),
        (
            DEGRADED,
            "Limiters in degraded mode, because Redis is unavailable",
        ),
        (
            RESERVED,
            "Part of each rate reserved for missing limiters, from 0 to 0.75, summed over the \
             limiters of this process",
        ),
    ];
    for (name, text) in gauges {
        recorder.describe_gauge(name.into(), Some(Unit::Count), text.into());
    }
    let histograms = [
        (
            WAIT,
            Unit::Seconds,
            "Time from the request to the admission, of acquisitions that waited",
        ),
        (
            BATCH,
            Unit::Count,
            "Requests and corrections in one call to Redis",
        ),
        (
            CALL,
            Unit::Seconds,
            "Duration of calls to Redis, including failed ones",
        ),
    ];
    for (name, unit, text) in histograms {
        recorder.describe_histogram(name.into(), Some(unit), text.into());
    }
}
