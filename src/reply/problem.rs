//! A refusal as `application/problem+json` (RFC 9457).

use std::fmt::Write;

use super::policy::policy_name;
use crate::{Reason, Rejected};

pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal has no body, unless another is said.
///
/// # Examples
///
/// ```
/// use tower_throttle::reply::{EmptyBody, HttpReply};
///
/// let reply: HttpReply<EmptyBody> = HttpReply::default();
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct EmptyBody;

/// A refusal has a problem document as its body; made by
/// [`RateLimitLayer::problem_json`](crate::RateLimitLayer::problem_json).
///
/// # Examples
///
/// ```
/// use tower_throttle::reply::{HttpReply, ProblemJson};
///
/// let reply: HttpReply<ProblemJson> = HttpReply::default().problem_json();
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ProblemJson;

/// A refusal as a problem document (RFC 9457), for a body of your own.
///
/// The types are those of the IETF's draft, as is `violated-policies`: the name of the scope
/// that refused, as the `RateLimit` field has it. A cost that can never be granted has no type
/// of its own there.
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
/// let refused = limiter.try_acquire(&api).await.unwrap_err();
/// assert!(problem_json(&refused).contains(r#""status":429"#));
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
    let status = super::http::status(rejected).as_u16();
    let mut json = format!(r#"{{"type":"{kind}","title":"{title}","status":{status},"detail":"#);
    push_string(&mut json, &rejected.to_string());
    json.push_str(r#","violated-policies":["#);
    push_string(&mut json, &policy_name(rejected.scope()));
    json.push_str("]}");
    json
}

/// RFC 8259, section 7.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Quota, Scope};

    #[test]
    fn any_name_makes_valid_json() {
        for name in ["plain", "\"\\\u{0}\u{1f}\n\t", "für 50%", "\u{2028}😀"] {
            let scope = Scope::new(name, Quota::per_second(1.0));
            let wait = Duration::from_millis(1_500);
            let rejected = Rejected::limited(&scope, wait, 0.0, false);
            let json: serde_json::Value =
                serde_json::from_str(&problem_json(&rejected)).expect("JSON");
            assert_eq!(json["status"], 429);
            assert_eq!(json["violated-policies"][0], *policy_name(name));
            assert_eq!(json["detail"], rejected.to_string());
        }
    }
}
