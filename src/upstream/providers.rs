//! What the providers differ in: [`Provider`].

use http::{HeaderMap, StatusCode};

use super::{
    headers::text,
    ietf,
    time::{self, When},
};

/// GitHub requires at least a minute after a rejection without a time to retry.
const GITHUB_PAUSE: f64 = 60.0;

/// Anthropic's status for "overloaded".
const OVERLOADED: u16 = 529;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    RetryAfter,
    OpenAi,
    Anthropic,
    GitHub,
    Ietf,
    Grpc,
}

/// One limit of an upstream as an answer reports it.
pub(super) struct Budget {
    pub(super) field: String,
    /// Tokens; none if the answer has the reset only.
    pub(super) remaining: Option<f64>,
    /// The seconds until the reset.
    pub(super) reset: Option<f64>,
}

impl Budget {
    pub(super) fn is_spent(&self) -> bool {
        self.remaining.is_some_and(|remaining| remaining <= 0.0)
    }
}

impl Provider {
    /// The budgets of the `fields` that the answer has.
    pub(super) fn budgets(self, fields: &[&str], headers: &HeaderMap, when: When) -> Vec<Budget> {
        let budget = |field: &str, remaining: &str, resets: &[&str]| {
            let mut resets = resets.iter().filter_map(|name| text(headers, name));
            let reset = resets.find_map(|text| when.until(text));
            let remaining = text(headers, remaining).and_then(time::seconds);
            (remaining.is_some() || reset.is_some()).then(|| Budget {
                field: field.to_owned(),
                remaining,
                reset,
            })
        };
        let of_openai = |field: &&str| {
            let remaining = format!("x-ratelimit-remaining-{field}");
            let reset = format!("x-ratelimit-reset-{field}");
            let reset_of_azure = format!("x-rate-limit-reset-{field}");
            budget(field, &remaining, &[&reset, &reset_of_azure])
        };
        let of_anthropic = |field: &&str| {
            let remaining = format!("anthropic-ratelimit-{field}-remaining");
            let reset = format!("anthropic-ratelimit-{field}-reset");
            budget(field, &remaining, &[&reset])
        };
        match self {
            Self::RetryAfter | Self::Grpc => Vec::new(),
            Self::OpenAi => fields.iter().filter_map(of_openai).collect(),
            Self::Anthropic => fields.iter().filter_map(of_anthropic).collect(),
            Self::GitHub => Vec::from_iter(budget(
                "requests",
                "x-ratelimit-remaining",
                &["x-ratelimit-reset"],
            )),
            Self::Ietf => of_ietf(fields, headers, when),
        }
    }

    /// Whether an answer is a rejection. `asks_to_wait`: it has a time to retry. `none_left`: one
    /// of its budgets is spent.
    pub(super) fn is_rejection(
        self,
        status: StatusCode,
        asks_to_wait: bool,
        none_left: bool,
    ) -> bool {
        match (status, self) {
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => true,
            // Otherwise it is about permissions.
            (StatusCode::FORBIDDEN, Self::GitHub) => asks_to_wait || none_left,
            (status, Self::Anthropic) => status.as_u16() == OVERLOADED,
            _ => false,
        }
    }

    /// Whether a spent budget stays empty until its reset. The budgets of the other providers
    /// refill all the time.
    pub(super) fn has_windows(self) -> bool {
        matches!(self, Self::GitHub | Self::Ietf)
    }

    /// The pause in seconds after a rejection without a time to retry.
    pub(super) fn default_pause(self, status: StatusCode) -> Option<f64> {
        let applies = self == Self::GitHub && status == StatusCode::TOO_MANY_REQUESTS;
        applies.then_some(GITHUB_PAUSE)
    }
}

/// Of several policies those with a name in `fields`; a single one also without.
fn of_ietf(fields: &[&str], headers: &HeaderMap, when: When) -> Vec<Budget> {
    let policies = ietf::policies(headers);
    let alone = policies.len() == 1;
    let budgets = policies.into_iter().filter_map(|policy| {
        let known = !policy.name.is_empty() && fields.contains(&policy.name.as_str());
        (known || alone).then(|| Budget {
            field: if known { policy.name } else { String::new() },
            remaining: Some(policy.remaining),
            reset: policy.reset.map(|reset| when.until_number(reset)),
        })
    });
    budgets.collect()
}
