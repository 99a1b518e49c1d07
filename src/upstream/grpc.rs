//! The limit that a gRPC status reports.

use http::HeaderMap;

use crate::rpc_status::LimitDetails;

const RESOURCE_EXHAUSTED: &str = "8";
const UNAVAILABLE: &str = "14";

/// A rejection by a limit of the upstream.
pub(super) struct Rejection {
    /// The pause that the upstream requests, in seconds.
    pub(super) pause: Option<f64>,
}

/// None if the status is not about a limit: RESOURCE_EXHAUSTED also means a message that is too
/// large, and UNAVAILABLE a lost connection.
pub(super) fn rejection(headers: &HeaderMap) -> Option<Rejection> {
    let text = |name| headers.get(name)?.to_str().ok();
    if !matches!(text("grpc-status")?, RESOURCE_EXHAUSTED | UNAVAILABLE) {
        return None;
    }
    // gRFC A6: a negative or malformed number asks not to retry.
    let pushback = text("grpc-retry-pushback-ms").map(|text| text.parse::<i32>().unwrap_or(-1));
    let details = text("grpc-status-details-bin")
        .and_then(LimitDetails::from_header)
        .unwrap_or_default();
    if pushback.is_none() && details == LimitDetails::default() {
        return None;
    }
    let pushback = pushback.filter(|millis| *millis >= 0);
    let pause = pushback
        .map(|millis| f64::from(millis) / 1e3)
        .or(details.retry_delay);
    Some(Rejection { pause })
}
