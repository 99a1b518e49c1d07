//! The forms in which upstreams write times. Pure functions that return none for a malformed text.

use std::time::{Duration, UNIX_EPOCH};

/// Longer texts are in none of these forms and are not read.
const MAX_LENGTH: usize = 64;

/// Smaller numbers are a number of seconds to wait, the largest 31 years; larger ones are a time
/// since 1970, the smallest in 2001.
const FIRST_TIME: f64 = 1e9;

/// As seconds the year 5138, as milliseconds 1973.
const LAST_TIME: f64 = 1e11;

/// When an answer was made: `age` seconds before `now`, which is in seconds since 1970.
#[derive(Clone, Copy)]
pub(super) struct When {
    pub(super) now: f64,
    pub(super) age: f64,
}

impl When {
    /// The seconds from now until a reset, which is written as a number of seconds, a Go duration,
    /// or a time in one of the forms below. Negative if the reset has passed.
    pub(super) fn until(self, text: &str) -> Option<f64> {
        if let Some(number) = seconds(text) {
            return Some(self.until_number(number));
        }
        let time = || Some(rfc_3339(text).or_else(|| http_date(text))? - self.now);
        go_duration(text)
            .map(|seconds| seconds - self.age)
            .or_else(time)
    }

    /// As `until`, of a number: seconds, or a time in seconds, milliseconds, or a smaller unit.
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

/// Seconds, such as `2`, `2.0`, `.5`, without a sign, an exponent, or a word such as `inf`.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let digits = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    if text.is_empty() || text.len() > MAX_LENGTH || !text.bytes().all(digits) {
        return None;
    }
    text.parse()
        .ok()
        .filter(|seconds: &f64| seconds.is_finite())
}

/// A `time.Duration` as Go prints it, in seconds: `6m0s`, `1.5s`, `12ms`, `1h2m3.5s`.
pub(super) fn go_duration(text: &str) -> Option<f64> {
    if text.is_empty() || text.len() > MAX_LENGTH {
        return None;
    }
    let is_unit = |c: char| !c.is_ascii_digit() && c != '.';
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(is_unit)?);
        let end = after.find(|c| !is_unit(c)).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            // The micro sign, and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += seconds(number)? * unit;
        rest = after;
    }
    Some(sum)
}

/// An `Age` in seconds (RFC 9111, section 5.1): whole; the first of a list; at most 2^31
/// (section 1.2.2).
pub(super) fn age(text: &str) -> Option<f64> {
    let first = text.split(',').next()?.trim();
    let whole = first.bytes().all(|byte| byte.is_ascii_digit());
    let age = seconds(first).filter(|_| whole)?;
    Some(age.min(f64::from(1u32 << 31)))
}

/// An HTTP date, in seconds since 1970.
pub(super) fn http_date(text: &str) -> Option<f64> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let since = date.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

/// A time such as `2026-11-24T17:00:00.25+01:00`, in seconds since 1970.
pub(super) fn rfc_3339(text: &str) -> Option<f64> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    Some(time.timestamp() as f64 + f64::from(time.timestamp_subsec_nanos()) / 1e9)
}

/// A pause of so many seconds, from zero to `cap`.
pub(super) fn capped(seconds: f64, cap: Duration) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(cap, |pause| pause.min(cap))
}
