//! A limit as a client is told of it: a name that is fit for a header, and whole numbers.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::headers::Left;
use crate::{Quota, Scope};

/// The largest number of a structured field.
const MOST: i64 = 999_999_999_999_999;

/// Seconds that are no more than the noise of a double: a bucket knows microseconds.
const NOISE: f64 = 1e-6;

#[derive(Clone, PartialEq)]
pub(super) struct Policy<'a> {
    name: Cow<'a, str>,
    quota: Quota,
}

impl<'a> Policy<'a> {
    pub(super) fn new(name: &'a str, quota: Quota) -> Self {
        let name = policy_name(name);
        Self { name, quota }
    }

    pub(super) fn of(scope: &'a Scope) -> Self {
        Self::new(scope.name(), scope.quota())
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whole tokens.
    pub(super) fn capacity(&self) -> i64 {
        whole(self.quota.capacity())
    }

    /// Whole seconds in which an empty bucket fills, at least one.
    pub(super) fn window(&self) -> i64 {
        seconds(self.quota.capacity() / self.quota.rate())
    }

    /// At this level, until the bucket is full.
    pub(super) fn left(&self, level: f64) -> Left {
        Left {
            tokens: whole(level),
            seconds: seconds((self.quota.capacity() - level) / self.quota.rate()),
        }
    }

    /// At this level, until a refused client may come back.
    pub(super) fn left_until(&self, level: f64, seconds: u64) -> Left {
        Left {
            tokens: whole(level),
            seconds: i64::try_from(seconds).map_or(MOST, |seconds| seconds.min(MOST)),
        }
    }
}

/// Down, and never below zero.
fn whole(tokens: f64) -> i64 {
    // A double that is no number, or too large for one, is cut.
    (tokens.floor() as i64).clamp(0, MOST)
}

/// Up, and never below one.
fn seconds(seconds: f64) -> i64 {
    ((seconds - NOISE).ceil() as i64).clamp(1, MOST)
}

/// The name in printable ASCII: anything else, and the percent sign, is percent-encoded.
pub(super) fn policy_name(name: &str) -> Cow<'_, str> {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
    utf8_percent_encode(name, ESCAPED).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_are_whole_and_bounded() {
        let numbers = |quota: Quota| {
            let policy = Policy::new("p", quota);
            (policy.capacity(), policy.window())
        };
        assert_eq!(numbers(Quota::per_minute(60.0).burst(20.0)), (20, 20));
        assert_eq!(numbers(Quota::per_second(1_000.0).burst(1.0)), (1, 1));
        assert_eq!(numbers(Quota::per_second(0.5)), (1, 2));
        for tokens in [1.0, 3.0, 7.0, 11.0, 59.0, 61.0] {
            let (q, w) = numbers(Quota::per_minute(tokens));
            assert_eq!((q, w), (tokens as i64, 60), "{tokens} a minute");
            assert_eq!(numbers(Quota::per_day(tokens)).1, 86_400, "{tokens} a day");
        }
        let tiny = Quota::per(Duration::from_secs(86_400 * 365), 1e-9).burst(1e18);
        assert_eq!(numbers(tiny), (MOST, MOST));
        let left = Policy::new("p", tiny).left(f64::NEG_INFINITY);
        assert_eq!((left.tokens, left.seconds), (0, MOST));
        let left = Policy::new("p", tiny).left_until(1e300, u64::MAX);
        assert_eq!((left.tokens, left.seconds), (MOST, MOST));
    }

    #[test]
    fn names_are_printable_ascii() {
        assert_eq!(policy_name("a \"b\\c\" ~"), "a \"b\\c\" ~");
        assert_eq!(policy_name("für\n50%"), "f%C3%BCr%0A50%25");
    }
}
