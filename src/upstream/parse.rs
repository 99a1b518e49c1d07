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
    let bytes = text.as_bytes();
    if !(20..=LONGEST).contains(&bytes.len()) || !text.is_ascii() {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = &text[from..to];
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    let separated = matches!(bytes[10], b'T' | b't' | b' ');
    if !separated || marks.iter().any(|&(at, mark)| bytes[at] != mark) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        // A leap second is the last of its minute.
        && second <= 60;
    if !in_range {
        return None;
    }
    let rest = &text[19..];
    let (part, zone) = match rest.strip_prefix('.') {
        None => (0.0, rest),
        Some(digits) => {
            let end = digits.find(|c: char| !c.is_ascii_digit())?;
            let part = format!("0.{}", &digits[..end]).parse().ok()?;
            (if end == 0 { return None } else { part }, &digits[end..])
        }
    };
    let offset = match zone.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - 5;
            let (hours, minutes) = (number(at, at + 2)?, number(at + 3, at + 5)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 3_600 + minutes * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    let days = days_since_1970(year, month, day);
    let whole = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    Some(whole as f64 + part)
}

/// Howard Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// From a number of seconds; none below zero is more than nothing, and none is beyond `cap`.
pub(super) fn capped(seconds: f64, cap: Duration) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(cap, |hold| hold.min(cap))
}
