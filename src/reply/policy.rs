//! [`Policy`]: a limit in the form that headers need, an encoded name and whole numbers.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{quota::Quota, scope::Scope};

#[cfg(test)]
mod tests;

/// The largest number of a structured field.
const MAX: i64 = 999_999_999_999_999;

/// A rest of this many seconds is a rounding error of `f64`: buckets count microseconds.
const NOISE: f64 = 1e-6;

/// What is left of a limit.
#[derive(Clone, Copy)]
pub(super) struct Left {
    /// Whole tokens.
    pub(super) tokens: i64,
    /// Until the bucket is full, or until a rejected client may retry.
    pub(super) seconds: i64,
}

/// The name and the quota of a scope.
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

    /// The capacity in whole tokens.
    pub(super) fn capacity(&self) -> i64 {
        whole(self.quota.capacity())
    }

    /// The time in which an empty bucket fills, in whole seconds, at least 1.
    pub(super) fn window(&self) -> i64 {
        seconds(self.quota.capacity() / self.quota.rate())
    }

    /// What is left at this level, and the time until the bucket is full.
    pub(super) fn left(&self, level: f64) -> Left {
        Left {
            tokens: whole(level),
            seconds: seconds((self.quota.capacity() - level) / self.quota.rate()),
        }
    }

    /// What is left at this level, and the time until a rejected client may retry.
    pub(super) fn left_until(&self, level: f64, seconds: u64) -> Left {
        Left {
            tokens: whole(level),
            seconds: i64::try_from(seconds).map_or(MAX, |seconds| seconds.min(MAX)),
        }
    }
}

/// Rounds down, to 0 at least.
fn whole(tokens: f64) -> i64 {
    // The conversion saturates, and turns NaN into 0.
    (tokens.floor() as i64).clamp(0, MAX)
}

/// Rounds up, to 1 at least.
fn seconds(seconds: f64) -> i64 {
    ((seconds - NOISE).ceil() as i64).clamp(1, MAX)
}

/// The name in printable ASCII: all other bytes and `%` are percent-encoded.
pub(super) fn policy_name(name: &str) -> Cow<'_, str> {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
    utf8_percent_encode(name, ESCAPED).into()
}
