//! What an error of Redis means for the limiter.

use redis::RedisError;

use crate::decision::{Failure, FailureKind};

/// Server errors by which Redis says that it cannot decide now, though the next call might.
const UNAVAILABLE: [&str; 11] = [
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "READONLY",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
];

/// Every failure is survived; this says only how it is counted and logged.
///
/// The code is what the server wrote first, and tells more than the driver's classes: those
/// call a time-out retriable and a missing inner permission an ordinary error.
pub(crate) fn classify(error: RedisError) -> Failure {
    let kind = if error.is_timeout() {
        FailureKind::Timeout
    } else if error.is_io_error() {
        FailureKind::Disconnected
    } else if error.code().is_some_and(|code| UNAVAILABLE.contains(&code)) {
        FailureKind::Unavailable
    } else {
        FailureKind::Misconfigured
    };
    Failure::new(kind, error)
}
