//! The headers that all providers share.

use http::HeaderMap;

use super::time::{self, When};

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // `HeaderValue::to_str` rejects `µs`.
    str::from_utf8(headers.get(name)?.as_bytes())
        .ok()
        .map(str::trim)
}

/// When an answer was made, by `now`, in seconds since 1970, if it has no `Date`.
pub(super) fn when(headers: &HeaderMap, now: f64) -> When {
    let age = text(headers, "age").and_then(time::age).unwrap_or(0.0);
    // A cache keeps the `Date` of the origin (RFC 9111, section 4.2.3).
    let date = text(headers, "date").and_then(time::http_date);
    When {
        now: date.map_or(now, |date| date + age),
        age,
    }
}

/// The seconds after which an answer asks to retry.
pub(super) fn retry_after(headers: &HeaderMap, when: When) -> Option<f64> {
    let millis = |name| text(headers, name).and_then(time::seconds);
    // Counts from the receipt, also in a cached answer (RFC 9110, section 10.2.3).
    let receipt = When { age: 0.0, ..when };
    millis("retry-after-ms")
        .or_else(|| millis("x-ms-retry-after-ms"))
        .map(|millis| millis / 1e3)
        .or_else(|| receipt.until(text(headers, "retry-after")?))
}
