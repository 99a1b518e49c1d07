//! [`problem_json`]: a rejection as `application/problem+json` (RFC 9457).

use std::fmt::Write;

use super::{policy::policy_name, status::status};
use crate::rejected::{Reason, Rejected};

#[cfg(test)]
mod tests;

/// A rejection as a problem document (RFC 9457), for a body of your own.
///
/// The types are those of the IETF's draft, except for an acquisition that can never be granted,
/// for which the draft has none. So is `violated-policies`: it holds the name of the scope that
/// rejected the request, as written in the `RateLimit` field.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, reply::problem_json};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let api = Quota::per_day(1.0).scope("api");
/// limiter.try_acquire(&api).await.unwrap();
/// let rejected = limiter.try_acquire(&api).await.unwrap_err();
/// assert!(problem_json(&rejected).contains(r#""status":429"#));
/// # }
/// ```
pub fn problem_json(rejected: &Rejected) -> String {
    let (kind, title) = match rejected.reason() {
        Reason::Limited => (
            "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "Request cannot be satisfied as assigned quota has been exceeded",
        ),
        Reason::ExceedsCapacity | Reason::TooManyScopes => ("about:blank", "Forbidden"),
        Reason::Unavailable => (
            "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            "Request cannot be satisfied due to temporary server capacity constraints",
        ),
    };
    let status = status(rejected).as_u16();
    let mut json = format!(r#"{{"type":"{kind}","title":"{title}","status":{status},"detail":"#);
    push_string(&mut json, &rejected.to_string());
    json.push_str(r#","violated-policies":["#);
    push_string(&mut json, &policy_name(rejected.scope()));
    json.push_str("]}");
    json
}

/// Appends a JSON string (RFC 8259, section 7).
fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\0'..='\x1f' => {
                // Writing to a string cannot fail.
                let _ = write!(json, "\\u{:04x}", u32::from(character));
            }
            _ => json.push(character),
        }
    }
    json.push('"');
}
