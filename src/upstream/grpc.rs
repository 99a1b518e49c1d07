//! What a gRPC status says of a limit.

use http::HeaderMap;

use crate::rpc_status::LimitDetails;

const RESOURCE_EXHAUSTED: &str = "8";
const UNAVAILABLE: &str = "14";

/// A limit was met; for how many seconds nothing comes, if the upstream says.
pub(super) struct Limited {
    pub(super) hold: Option<f64>,
}

/// None where the status does not speak of a limit: RESOURCE_EXHAUSTED is also a message that is
/// too large, and UNAVAILABLE a lost connection.
pub(super) fn limited(headers: &HeaderMap) -> Option<Limited> {
    let text = |name| headers.get(name)?.to_str().ok();
    if !matches!(text("grpc-status")?, RESOURCE_EXHAUSTED | UNAVAILABLE) {
        return None;
    }
    // gRFC A6: a number that is negative, or none, says not to retry.
    let pushback = text("grpc-retry-pushback-ms").map(|text| text.parse::<i32>().unwrap_or(-1));
    let details = text("grpc-status-details-bin")
        .and_then(LimitDetails::from_header)
        .unwrap_or_default();
    if pushback.is_none() && details == LimitDetails::default() {
        return None;
    }
    let pushback = pushback.filter(|millis| *millis >= 0);
    let hold = pushback
        .map(|millis| f64::from(millis) / 1e3)
        .or(details.retry_delay);
    Some(Limited { hold })
}
