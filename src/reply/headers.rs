//! [`HeaderStyle`]: rate-limit fields of HTTP responses.

use http::{
    HeaderMap, HeaderName,
    header::{CACHE_CONTROL, Entry, HeaderValue, RETRY_AFTER},
};

use super::{
    policy::{Left, Policy},
    policy_text::{PolicyText, value},
    structured::number,
};
use crate::{limiter::Permit, rejected::Rejected};

#[cfg(test)]
mod tests;

/// A rejection concerns one client at one time: no cache may give it to another (RFC 9111, section
/// 5.2.2.5).
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// All fields that a response may carry, as a value for `Access-Control-Expose-Headers`.
///
/// A script in a browser can read a field of a cross-origin response only if the field is exposed.
/// The wildcard `*` does not expose it for requests with credentials.
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

/// The rate-limit fields of responses; set by
/// [`RateLimitLayer::headers`](crate::RateLimitLayer::headers).
///
/// | style | fields |
/// |---|---|
/// | `Draft` | `RateLimit-Policy: "api";q=20;w=20` and `RateLimit: "api";r=19;t=1` |
/// | `Legacy` | `X-RateLimit-Limit: 20`, `X-RateLimit-Remaining: 19`, `X-RateLimit-Reset: 1` |
/// | `Both` | all of these |
/// | `None` | none |
///
/// | value | meaning |
/// |---|---|
/// | `q`, `Limit` | the capacity, in tokens |
/// | `w` | the time in which an empty bucket fills, in seconds |
/// | `r`, `Remaining` | the whole tokens that are left |
/// | `t`, `Reset` | seconds from now: of a rejection the same as in `Retry-After`, else until the bucket is full |
///
/// `RateLimit-Policy` lists every scope by its name, never by its key. The other fields describe
/// the scope that rejected the request, or the one with the smallest part of its capacity left. In
/// degraded mode only the limits are written, because the level in Redis is unknown.
///
/// `Draft` follows [draft-ietf-httpapi-ratelimit-headers-11][draft], which is not a standard yet.
/// In a name, `%` and everything but printable ASCII is percent-encoded. Numbers are capped at
/// fifteen digits.
///
/// If the response has such fields already, from a limit inside this one, the fields of the draft
/// become lists of both, and of the legacy fields those with the smaller `Remaining` stay. A
/// `RateLimit` field of draft 07, which is not a list, is replaced.
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
    /// The structured fields of the IETF's draft.
    #[default]
    Draft,
    /// The fields that most clients support. `X-RateLimit-Reset` is in seconds from now.
    Legacy,
    /// The fields of `Draft` and `Legacy`.
    Both,
    /// No fields: responses to admitted requests are unchanged.
    None,
}

impl HeaderStyle {
    /// Writes the fields of a rejection, for a response of your own.
    ///
    /// Writes `Cache-Control: no-store` in any style, and `Retry-After` if the time is known.
    ///
    /// ```
    /// # use http::Response;
    /// # use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected};
    /// # use tower_throttle::reply::{HeaderStyle, status};
    /// let api = Quota::per_minute(60.0).scope("api");
    /// let layer = RateLimitLayer::new(&Limiter::in_memory(), api).respond(|rejected: &Rejected| {
    ///     let mut response = Response::new(format!("<h1>Slow down</h1>{rejected}"));
    ///     *response.status_mut() = status(rejected);
    ///     HeaderStyle::Draft.write_rejected(rejected, response.headers_mut());
    ///     response
    /// });
    /// ```
    pub fn write_rejected(self, rejected: &Rejected, headers: &mut HeaderMap) {
        headers.insert(CACHE_CONTROL, NO_STORE);
        let seconds = retry_after(rejected);
        if let Some(seconds) = seconds {
            headers.insert(RETRY_AFTER, number(seconds));
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

    /// Writes the fields of a response to an admitted request. Writes nothing if the permit has no
    /// scopes.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, reply::HeaderStyle};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_minute(60.0).burst(20.0).scope("api");
    /// let permit = Limiter::in_memory().try_acquire(api).await.unwrap();
    /// let mut headers = http::HeaderMap::new();
    /// HeaderStyle::Draft.write_admitted(&permit, &mut headers);
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

/// Whole seconds, rounded up so that no client retries too early, at least 1.
fn retry_after(rejected: &Rejected) -> Option<u64> {
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
    let mut policies = policies.peekable();
    let Some(first) = policies.next() else {
        return;
    };
    let mut field = PolicyText::with(&first, |text| text.policy().clone());
    if policies.peek().is_some() {
        let mut list = field.as_bytes().to_vec();
        let mut listed = vec![first];
        for policy in policies {
            // Two keys of one name are the same policy.
            if !listed.contains(&policy) {
                list.extend_from_slice(b", ");
                let member = PolicyText::with(&policy, |text| text.policy().clone());
                list.extend_from_slice(member.as_bytes());
                listed.push(policy);
            }
        }
        field = value(list);
    }
    append(headers, RATE_LIMIT_POLICY, field);
    if let Some(left) = left {
        let field = PolicyText::with(tightest, |text| text.left(left));
        append(headers, RATE_LIMIT, field);
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(value);
        }
        Entry::Occupied(mut entry) => match entry.iter().all(is_list) {
            true => entry.append(value),
            false => {
                entry.insert_mult(value);
            }
        },
    }
}

/// Whether `value` can be continued as a list. The dictionary of draft 07,
/// `limit=100, remaining=50`, cannot: together with a list member it does not parse.
fn is_list(value: &HeaderValue) -> bool {
    let mut pieces = value.as_bytes().split(|byte| b"\",;".contains(byte));
    pieces.next().is_none_or(|first| !first.contains(&b'='))
}

fn write_legacy(tightest: &Policy<'_>, left: Option<Left>, headers: &mut HeaderMap) {
    let existing = |name| {
        let value: Option<&HeaderValue> = headers.get(name);
        value?.to_str().ok()?.trim().parse::<f64>().ok()
    };
    let keep = match (left, existing(REMAINING)) {
        (Some(left), Some(remaining)) => remaining <= left.tokens as f64,
        (Some(_), None) => false,
        (None, remaining) => remaining.or_else(|| existing(LIMIT)).is_some(),
    };
    if keep {
        return;
    }
    headers.insert(LIMIT, number(tightest.capacity()));
    if let Some(left) = left {
        headers.insert(REMAINING, number(left.tokens));
        headers.insert(RESET, number(left.seconds));
    }
}
