//! The forms in which upstreams write times. Pure; what is malformed is none.

use std::time::{Duration, UNIX_EPOCH};

/// Longer texts than any of these forms are not read at all.
const LONGEST: usize = 64;

/// Seconds, whole or not: `2`, `2.0`, `.5`. No sign, no exponent, no word.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let digits = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    if text.is_empty() || text.len() > LONGEST || !text.bytes().all(digits) {
        return None;
    }
    text.parse()
        .ok()
        .filter(|seconds: &f64| seconds.is_finite())
}

/// What a Go program prints of a `time.Duration`: `6m0s`, `1.5s`, `12ms`, `1h2m3.5s`.
pub(super) fn go_duration(text: &str) -> Option<f64> {
    if text.is_empty() || text.len() > LONGEST {
        return None;
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = seconds(&rest[..end])?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        sum += number
            * match &rest[..end] {
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Some(sum)
}

/// Smaller numbers are seconds to wait, of which this many are 31 years; larger ones times since
/// 1970, of which this is 2001.
const FIRST_TIME: f64 = 1e9;

/// The year 5138 in seconds, and 1973 in milliseconds.
const LAST_TIME: f64 = 1e11;

/// When an answer says what it says: `now` in seconds since 1970, `age` seconds after it was made.
#[derive(Clone, Copy)]
pub(super) struct When {
    pub(super) now: f64,
    pub(super) age: f64,
}

impl When {
    /// In how many seconds something is reset: a number of seconds, a Go duration, or a time in any
    /// of the forms here. Below zero, it has passed.
    pub(super) fn until(self, text: &str) -> Option<f64> {
        if let Some(number) = seconds(text) {
            return Some(self.until_number(number));
        }
        let time = || Some(rfc_3339(text).or_else(|| http_date(text))? - self.now);
        go_duration(text)
            .map(|seconds| seconds - self.age)
            .or_else(time)
    }

    /// As `until`: seconds, or a time in seconds, milliseconds, or finer.
    pub(super) fn until_number(self, mut number: f64) -> f64 {
        if number < FIRST_TIME {
            return number - self.age;
        }
        while number >= LAST_TIME {
            number /= 1e3;
        }
        number - self.now
    }
}

/// RFC 9111, section 5.1: whole seconds; of a list the first, and none beyond 2^31 (section 1.2.2).
pub(super) fn age(text: &str) -> Option<f64> {
    let first = text.split(',').next()?.trim();
    let whole = first.bytes().all(|byte| byte.is_ascii_digit());
    let age = seconds(first).filter(|_| whole)?;
    Some(age.min(f64::from(1u32 << 31)))
}

/// An HTTP date, as seconds since 1970.
pub(super) fn http_date(text: &str) -> Option<f64> {
    if text.len() > LONGEST {
        return None;
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let since = date.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

/// `2026-11-24T17:00:00Z`, with any part of a second and any offset, as seconds since 1970.
pub(super) fn rfc_3339(text: &str) -> Option<f64> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    Some(time.timestamp() as f64 + f64::from(time.timestamp_subsec_nanos()) / 1e9)
}

/// From a number of seconds; none below zero is more than nothing, and none is beyond `cap`.
pub(super) fn capped(seconds: f64, cap: Duration) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(cap, |hold| hold.min(cap))
}
