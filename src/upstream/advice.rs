//! [`Advice`]: the pause and the levels that one answer of an upstream reports.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::{
    grpc, headers,
    profile::Upstream,
    providers::{Budget, Provider},
    time,
};

/// The pause and the levels that one answer reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Advice {
    /// For how long no request may be sent.
    pub(crate) pause: Option<Duration>,
    /// Fields, and the tokens that remain of each.
    pub(crate) remaining: Vec<(String, f64)>,
    /// The request was rejected without a time to retry.
    pub(crate) is_exhausted: bool,
}

impl Upstream {
    /// Reads an answer that is received at `now`, in seconds since 1970.
    pub(crate) fn read(&self, status: StatusCode, headers: &HeaderMap, now: f64) -> Advice {
        if self.provider == Provider::Grpc {
            return self.read_grpc(headers);
        }
        let when = headers::when(headers, now);
        let fields: Vec<_> = self.fields().collect();
        let mut budgets = self.provider.budgets(&fields, headers, when);
        if when.age > 0.0 {
            // A remainder from before a reset does not apply after it.
            budgets.retain(|budget| budget.reset.is_none_or(|reset| reset > 0.0));
        }
        let retry_after = headers::retry_after(headers, when);
        let none_left = budgets.iter().any(Budget::is_spent);
        let rejected = self
            .provider
            .is_rejection(status, retry_after.is_some(), none_left);
        // An upstream that rounds down may ask to retry after 0 s.
        let retry_after = retry_after.filter(|seconds| rejected && *seconds > 0.0);
        let pause = retry_after
            .or_else(|| self.last_reset(&budgets, rejected))
            .or_else(|| self.provider.default_pause(status));
        let remaining = budgets
            .into_iter()
            .filter_map(|budget| Some((budget.field, budget.remaining?)));
        Advice {
            pause: pause.map(|seconds| time::capped(seconds, self.cap)),
            remaining: remaining.collect(),
            // A 503 without further fields is an outage, not a limit.
            is_exhausted: pause.is_none() && rejected && status != StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn read_grpc(&self, headers: &HeaderMap) -> Advice {
        let Some(grpc::Rejection { pause }) = grpc::rejection(headers) else {
            return Advice::default();
        };
        Advice {
            pause: pause.map(|seconds| time::capped(seconds, self.cap)),
            remaining: Vec::new(),
            is_exhausted: pause.is_none(),
        }
    }

    /// The seconds until the last reset of the spent budgets, if a request must wait for it.
    fn last_reset(&self, budgets: &[Budget], rejected: bool) -> Option<f64> {
        if !rejected && !self.provider.has_windows() {
            return None;
        }
        // A budget without its remaining tokens is the one that a rejection is about.
        let counts =
            |budget: &&Budget| budget.is_spent() || (rejected && budget.remaining.is_none());
        let resets = budgets.iter().filter(counts);
        resets
            .filter_map(|budget| budget.reset.filter(|reset| *reset > 0.0))
            .max_by(f64::total_cmp)
    }
}
