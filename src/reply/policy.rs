//! [`Policy`]: a limit in the form that headers need, whole numbers and an encoded name.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{quota::Quota, scope::Scope};

#[cfg(test)]
mod tests;

/// The largest number of a structured field.
const MAX: u64 = 999_999_999_999_999;

/// A rest of this many seconds is a rounding error of `f64`: buckets count microseconds.
const NOISE: f64 = 1e-6;

/// What is left of a limit.
#[derive(Clone, Copy)]
pub(super) struct Left {
    /// Whole tokens.
    pub(super) tokens: u64,
    /// Until the bucket is full, or until a rejected client may retry.
    pub(super) seconds: u64,
}

/// The name and the quota of a scope.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Policy<'a> {
    name: &'a str,
    quota: Quota,
}

impl<'a> Policy<'a> {
    pub(super) fn new(name: &'a str, quota: Quota) -> Self {
        Self { name, quota }
    }

    pub(super) fn of(scope: &'a Scope) -> Self {
        Self::new(scope.name(), scope.quota())
    }

    /// The name as it is, not encoded.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    /// The capacity in whole tokens.
    pub(super) fn capacity(&self) -> u64 {
        whole(self.quota.capacity())
    }

    /// The time in which an empty bucket fills, in whole seconds, at least 1.
    pub(super) fn window(&self) -> u64 {
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
            seconds: seconds.min(MAX),
        }
    }
}

/// Rounds down, to 0 at least.
fn whole(tokens: f64) -> u64 {
    // The conversion saturates, rounds towards 0, and turns NaN into 0.
    (tokens as u64).min(MAX)
}

/// Rounds up, to 1 at least.
fn seconds(seconds: f64) -> u64 {
    ((seconds - NOISE).ceil() as u64).clamp(1, MAX)
}

/// The name in printable ASCII: all other bytes and `%` are percent-encoded.
pub(super) fn policy_name(name: &str) -> Cow<'_, str> {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
    utf8_percent_encode(name, ESCAPED).into()
}
