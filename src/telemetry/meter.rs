//! [`Meter`] counts, through the `metrics` facade. Without the feature `metrics` it does nothing.
#![cfg_attr(
    not(feature = "metrics"),
    allow(
        unused_variables,
        clippy::unused_self,
        reason = "nothing is counted without the feature"
    )
)]

use std::time::Duration;

use super::labels::{Backend, Cost, Outcome};
#[cfg(feature = "metrics")]
use super::recorder;
use crate::{decision::FailureKind, scope::Scope};

/// Runs code with the handles of this thread.
macro_rules! with_handles {
    ($meter:expr, |$handles:ident, $recorder:ident| $count:expr) => {{
        #[cfg(feature = "metrics")]
        recorder::with($meter.id, |$handles, $recorder| $count);
    }};
}

/// Counts for one limiter.
///
/// Each thread caches handles for its current recorder. So counting takes no lock and, once a
/// thread has the handles of a scope, no allocation. A recorder may be installed late, or for one
/// thread only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    #[cfg(feature = "metrics")]
    id: u64,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(feature = "metrics")]
            id: recorder::next_id(),
        }
    }

    /// An acquisition was admitted by this scope.
    #[inline]
    pub(crate) fn admitted(self, scope: &Scope, backend: Backend) {
        with_handles!(self, |handles, recorder| {
            let of_scope = handles.scope(scope.name());
            of_scope.count(recorder, Outcome::Admitted, backend);
            of_scope.cost(recorder, Cost::Reserved, scope.tokens());
        });
    }

    /// An acquisition ended otherwise.
    #[inline]
    pub(crate) fn ended(self, scope: &str, outcome: Outcome, backend: Backend) {
        with_handles!(self, |handles, recorder| {
            handles.scope(scope).count(recorder, outcome, backend);
        });
    }

    /// An acquisition was admitted after a wait.
    pub(crate) fn waited(self, scope: &Scope, wait: Duration) {
        with_handles!(self, |handles, recorder| {
            handles.scope(scope.name()).wait(recorder, wait);
        });
    }

    /// Tokens were charged or returned after the acquisition.
    pub(crate) fn corrected(self, scope: &Scope, cost: Cost, tokens: f64) {
        with_handles!(self, |handles, recorder| {
            handles.scope(scope.name()).cost(recorder, cost, tokens);
        });
    }

    /// The length of the queue for Redis has changed.
    pub(crate) fn queue(self, before: usize, now: usize) {
        if before != now {
            let more = now as f64 - before as f64;
            with_handles!(self, |handles, recorder| handles.queue(recorder, more));
        }
    }

    /// Memory holds more buckets, or, below zero, fewer.
    pub(crate) fn scopes(self, more: f64) {
        if more != 0.0 {
            with_handles!(self, |handles, recorder| handles.scopes(recorder, more));
        }
    }

    /// A decision used an overflow bucket of the scope `name`.
    pub(crate) fn overflowed(self, name: &[u8]) {
        with_handles!(self, |handles, recorder| {
            // Of a long name only the hash is known.
            let name = std::str::from_utf8(name).unwrap_or(super::handles::OTHER);
            handles.scope(name).overflow(recorder);
        });
    }

    /// A decision was made without Redis.
    pub(crate) fn fell_back(self, kind: FailureKind) {
        with_handles!(self, |handles, recorder| handles.fell_back(recorder, kind));
    }

    /// Redis was called for so many requests and corrections, with success or without.
    pub(crate) fn call(self, commands: usize, took: Duration) {
        with_handles!(self, |handles, recorder| {
            handles.call(recorder, commands, took);
        });
    }

    /// A limiter enters degraded mode (1), or leaves it (-1).
    pub(crate) fn degraded(self, more: f64) {
        with_handles!(self, |handles, recorder| handles.degraded(recorder, more));
    }

    /// A limiter reserves a larger part of each rate for missing limiters, or, below zero, a
    /// smaller one.
    pub(crate) fn reserved(self, more: f64) {
        with_handles!(self, |handles, recorder| handles.reserved(recorder, more));
    }
}
