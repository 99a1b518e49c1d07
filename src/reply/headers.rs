//! [`HeaderStyle`]: what a client can read of its limits.

use http::{
    HeaderMap, HeaderName,
    header::{CACHE_CONTROL, HeaderValue, RETRY_AFTER},
};
use sfv::{Integer, KeyRef, ListSerializer, RefBareItem, StringRef, key_ref};

use super::policy::Policy;
use crate::{Permit, Rejected};

/// A refusal is for one client at one time, so no cache may give it to another (RFC 9111, 5.2.2.5).
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

const Q: &KeyRef = key_ref("q");
const W: &KeyRef = key_ref("w");
const R: &KeyRef = key_ref("r");
const T: &KeyRef = key_ref("t");

/// All fields that an answer may carry, as a value for `Access-Control-Expose-Headers`.
///
/// A script in a browser sees none of them on an answer from another origin unless they are
/// exposed; the wildcard `*` does not do it for requests with credentials.
///
/// # Examples
///
/// ```
/// use tower_throttle::reply::EXPOSE_HEADERS;
///
/// let response = http::Response::builder()
///     .header("access-control-expose-headers", EXPOSE_HEADERS)
///     .body(())
///     .unwrap();
/// assert!(EXPOSE_HEADERS.split(", ").any(|name| name == "retry-after"));
/// # let _ = response;
/// ```
pub const EXPOSE_HEADERS: &str = "retry-after, ratelimit, ratelimit-policy, x-ratelimit-limit, \
     x-ratelimit-remaining, x-ratelimit-reset, grpc-status, grpc-message, \
     grpc-status-details-bin, grpc-retry-pushback-ms";

/// Which fields tell a client of its limits; said by
/// [`RateLimitLayer::headers`](crate::RateLimitLayer::headers).
///
/// | style | fields |
/// |---|---|
/// | `Draft` | `RateLimit-Policy: "api";q=20;w=20` and `RateLimit: "api";r=19;t=1` |
/// | `Legacy` | `X-RateLimit-Limit: 20`, `X-RateLimit-Remaining: 19`, `X-RateLimit-Reset: 1` |
/// | `Both` | all of these |
/// | `None` | none |
///
/// `q` and `Limit` are the capacity, `w` the seconds in which an empty bucket fills, `r` and
/// `Remaining` the whole tokens that are left, and `t` and `Reset` a number of seconds from now:
/// after a refusal when to come back, the same as in `Retry-After`; else until the bucket is
/// full. The policy lists every scope, by its name and never by its key; the rest tells of the
/// scope that refused, or of the one with the smallest part left. An answer that was decided
/// without the store tells the limits only, because nobody knows what is left.
///
/// The draft is [draft-ietf-httpapi-ratelimit-headers-11][draft]; it is not a standard yet, and
/// `Draft` follows it. A name that is not printable ASCII is percent-encoded, as is the percent
/// sign; numbers are cut to fifteen digits.
///
/// Where a response already carries such fields, from another limit inside this one, those of
/// the draft become lists of both, and of the legacy ones those with the smaller `Remaining`
/// stay. A `RateLimit` as of draft 07, which was no list, gives way.
///
/// [draft]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, reply::HeaderStyle};
///
/// let api = Quota::per_minute(60.0).burst(20.0).scope("api");
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), api)
///     .respond_http()
///     .headers(HeaderStyle::Both);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderStyle {
    /// The fields of the IETF's draft, which are structured.
    #[default]
    Draft,
    /// The fields that most clients know, with seconds from now in `X-RateLimit-Reset`.
    Legacy,
    /// Both kinds.
    Both,
    /// Neither: an answer that is no refusal is left alone.
    None,
}

impl HeaderStyle {
    /// Writes the fields of a refusal, for a response of your own: these, and in any style
    /// `Cache-Control: no-store`, and `Retry-After` where it is known when to come back.
    ///
    /// ```
    /// # use http::Response;
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected};
    /// # use tower_throttle::reply::{HeaderStyle, status};
    /// let api = Quota::per_minute(60.0).scope("api");
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), api).respond(|rejected: &Rejected| {
    ///     let mut response = Response::new(format!("<h1>Slow down</h1>{rejected}"));
    ///     *response.status_mut() = status(rejected);
    ///     HeaderStyle::Draft.refused(rejected, response.headers_mut());
    ///     response
    /// });
    /// ```
    pub fn write_rejected(self, rejected: &Rejected, headers: &mut HeaderMap) {
        headers.insert(CACHE_CONTROL, NO_STORE);
        let seconds = retry_after(rejected);
        if let Some(seconds) = seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Self::None {
            return;
        }
        let (name, quota) = rejected.policy();
        let tightest = Policy::new(name, quota);
        let left = rejected
            .level()
            .zip(seconds)
            .map(|(level, seconds)| tightest.left_until(level, seconds));
        let policies = rejected.policies();
        let policies = policies.map(|(name, quota)| Policy::new(name, quota));
        self.write(policies, &tightest, left, headers);
    }

    /// Writes the fields of an answer that is no refusal; nothing where no scope was asked.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, reply::HeaderStyle};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_minute(60.0).burst(20.0).scope("api");
    /// let permit = Limiter::in_memory().try_acquire(api).await.unwrap();
    /// let mut headers = http::HeaderMap::new();
    /// HeaderStyle::Draft.admitted(&permit, &mut headers);
    /// assert_eq!(headers["ratelimit-policy"], r#""api";q=20;w=20"#);
    /// assert_eq!(headers["ratelimit"], r#""api";r=19;t=1"#);
    /// # }
    /// ```
    pub fn write_admitted(self, permit: &Permit, headers: &mut HeaderMap) {
        let [first, ..] = permit.scopes() else {
            return;
        };
        let tightest = permit.tightest();
        let scope = tightest.map_or(first, |(scope, _)| scope);
        let policy = Policy::of(scope);
        let left = tightest.map(|(_, level)| policy.left(level));
        let policies = permit.scopes().iter().map(Policy::of);
        self.write(policies, &policy, left, headers);
    }

    fn write<'a>(
        self,
        policies: impl Iterator<Item = Policy<'a>>,
        tightest: &Policy<'_>,
        left: Option<Left>,
        headers: &mut HeaderMap,
    ) {
        if matches!(self, Self::Draft | Self::Both) {
            write_draft(policies, tightest, left, headers);
        }
        if matches!(self, Self::Legacy | Self::Both) {
            write_legacy(tightest, left, headers);
        }
    }
}

/// What is left of a limit, in whole tokens, and for how many seconds.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) tokens: i64,
    pub(super) seconds: i64,
}

/// Whole seconds, rounded up so that nobody is sent back early, and never 0.
pub(super) fn retry_after(rejected: &Rejected) -> Option<u64> {
    let retry_after = rejected.retry_after()?;
    let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    Some(seconds.max(1))
}

fn write_draft<'a>(
    policies: impl Iterator<Item = Policy<'a>>,
    tightest: &Policy<'_>,
    left: Option<Left>,
    headers: &mut HeaderMap,
) {
    let mut value = String::with_capacity(128);
    let mut list = ListSerializer::with_buffer(&mut value);
    let mut listed: Vec<Policy<'_>> = Vec::new();
    for policy in policies {
        // Two keys of one name are one policy.
        if !listed.contains(&policy) {
            let parameters = [(Q, policy.capacity()), (W, policy.window())];
            member(&mut list, &policy, parameters);
            listed.push(policy);
        }
    }
    append(headers, RATE_LIMIT_POLICY, &value);
    if let Some(left) = left {
        value.clear();
        let mut list = ListSerializer::with_buffer(&mut value);
        member(&mut list, tightest, [(R, left.tokens), (T, left.seconds)]);
        append(headers, RATE_LIMIT, &value);
    }
}

fn member(
    list: &mut ListSerializer<&mut String>,
    policy: &Policy<'_>,
    parameters: [(&KeyRef, i64); 2],
) {
    // The name is encoded, and the numbers are cut, so that neither can fail.
    let Ok(name) = StringRef::from_str(policy.name()) else {
        return;
    };
    let mut member = list.bare_item(RefBareItem::String(name));
    for (key, number) in parameters {
        if let Ok(number) = Integer::try_from(number) {
            member = member.parameter(key, RefBareItem::Integer(number));
        }
    }
    let _ = member.finish();
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // What is serialized is printable ASCII.
    let Ok(value) = HeaderValue::from_str(value) else {
        return;
    };
    if headers.get_all(&name).iter().all(is_list) {
        headers.append(name, value);
    } else {
        headers.insert(name, value);
    }
}

/// Whether a list can go on behind this: the dictionary of draft 07, `limit=100, remaining=50`,
/// would make one field of both that nobody can read.
fn is_list(value: &HeaderValue) -> bool {
    let mut pieces = value.as_bytes().split(|byte| b"\",;".contains(byte));
    pieces.next().is_none_or(|first| !first.contains(&b'='))
}

fn write_legacy(tightest: &Policy<'_>, left: Option<Left>, headers: &mut HeaderMap) {
    let there = |name| {
        let value: Option<&HeaderValue> = headers.get(name);
        value?.to_str().ok()?.trim().parse::<f64>().ok()
    };
    let keep = match (left, there(REMAINING)) {
        (Some(left), Some(remaining)) => remaining <= left.tokens as f64,
        (Some(_), None) => false,
        // Some limit is told already, or what is left of it.
        (None, remaining) => remaining.or_else(|| there(LIMIT)).is_some(),
    };
    if keep {
        return;
    }
    headers.insert(LIMIT, HeaderValue::from(tightest.capacity()));
    if let Some(left) = left {
        headers.insert(REMAINING, HeaderValue::from(left.tokens));
        headers.insert(RESET, HeaderValue::from(left.seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quota;

    #[test]
    fn what_is_there_goes_on_as_a_list_or_gives_way() {
        let policy = Policy::new("p", Quota::per_minute(60.0));
        let left = Some(Left {
            tokens: 5,
            seconds: 1,
        });
        for (there, stays) in [
            ("\"a\";r=1;t=2", true),
            ("\"a=b\";r=1", true),
            ("a;r=1", true),
            ("limit=100, remaining=50, reset=5", false),
            ("limit=100", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RATE_LIMIT, HeaderValue::from_static(there));
            write_draft([policy.clone()].into_iter(), &policy, left, &mut headers);
            let lines: Vec<_> = headers.get_all(RATE_LIMIT).iter().collect();
            let ours = "\"p\";r=5;t=1";
            match stays {
                true => assert_eq!(lines, [there, ours]),
                false => assert_eq!(lines, [ours]),
            }
            let field: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
            let list = sfv::Parser::new(&field.join(&b", "[..])).parse::<sfv::List>();
            assert_eq!(list.expect("a list").len(), lines.len());
        }
    }

    #[test]
    fn of_two_limits_the_legacy_fields_tell_the_smaller() {
        let policy = Policy::new("p", Quota::per_minute(60.0));
        let left = |tokens| Some(Left { tokens, seconds: 1 });
        for (there, ours, remaining) in [
            (None, left(5), Some("5")),
            (Some("4"), left(5), Some("4")),
            (Some("6"), left(5), Some("5")),
            (Some("unknown"), left(5), Some("5")),
            (Some("4"), None, Some("4")),
            (None, None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(there) = there {
                headers.insert(LIMIT, HeaderValue::from_static("10"));
                headers.insert(REMAINING, HeaderValue::from_static(there));
            }
            write_legacy(&policy, ours, &mut headers);
            assert_eq!(
                headers.get(REMAINING).map(HeaderValue::as_bytes),
                remaining.map(str::as_bytes)
            );
            // Of one limit all.
            let limit = if remaining.is_some() && remaining == there {
                "10"
            } else {
                "60"
            };
            assert_eq!(headers[LIMIT], limit, "{there:?}");
        }
    }
}
