//! Which upstream is read, and which of its fields belong to which scope: [`Upstream`].

use std::time::Duration;

use super::{providers::Provider, time};
use crate::scope::Scope;

const CAP: Duration = Duration::from_secs(60);
const JITTER: f64 = 0.05;

/// How an upstream reports its limits, and which scopes its reports belong to.
///
/// Only the headers of the chosen profile are read, and malformed ones are ignored. A report
/// only **lowers** the level of a bucket or pauses the bucket. A rejection (429 or 503; see each
/// profile for others) with a time to retry pauses all scopes that the profile has a field for. A
/// rejection without that time, or with a time of zero, empties their buckets.
///
/// A pause is cut to [`cap`](Self::cap), and lengthened by up to [`jitter`](Self::jitter) within
/// that. Its length is the first of these that the answer has: `retry-after-ms`,
/// `x-ms-retry-after-ms`, `Retry-After`, and the last reset of the budgets of which nothing remains,
/// or whose remainder a rejection does not report.
///
/// A reset, and `Retry-After`, is a number of seconds (whole or not), a Go duration (`6m0s`,
/// `12ms`), an HTTP date, or a time as of RFC 3339. A number from 10^9 (in the year 2001) is a time
/// since 1970 in seconds, from 10^11 in milliseconds or a smaller unit. Times are compared with the
/// `Date` of the answer plus its `Age`, and with the local clock if it has no `Date`. A reset that
/// has passed is ignored.
///
/// Fields belong to scopes by position, in the order of the scopes of the layer, unless
/// [`field`](Self::field) names a scope.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_throttle::upstream::Upstream;
///
/// let anthropic = Upstream::anthropic()
///     .field("input-tokens", "claude:itpm")
///     .field("output-tokens", "claude:otpm")
///     .cap(Duration::from_secs(30));
/// ```
#[derive(Clone, Debug)]
pub struct Upstream {
    pub(super) provider: Provider,
    targets: Vec<(String, Target)>,
    pub(super) cap: Duration,
    jitter: f64,
}

/// The scope that a field belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Position(usize),
    Name(String),
}

impl Upstream {
    fn new(provider: Provider, fields: &[&str]) -> Self {
        let fields = fields.iter().enumerate();
        Self {
            provider,
            targets: fields
                .map(|(position, field)| ((*field).to_owned(), Target::Position(position)))
                .collect(),
            cap: CAP,
            jitter: JITTER,
        }
    }

    /// Any HTTP service: reads only `retry-after-ms`, `x-ms-retry-after-ms` and `Retry-After`, of
    /// answers with the status 429 or 503. They belong to the first scope.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::retry_after();
    /// ```
    pub fn retry_after() -> Self {
        Self::new(Provider::RetryAfter, &["requests"])
    }

    /// OpenAI: `x-ratelimit-remaining-requests` belongs to the first scope and
    /// `x-ratelimit-remaining-tokens` to the second. `x-ratelimit-reset-*`, which Azure also spells
    /// `x-rate-limit-reset-*`, is read if a 429 for a spent budget has no `Retry-After`.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::openai();
    /// ```
    pub fn openai() -> Self {
        Self::new(Provider::OpenAi, &["requests", "tokens"])
    }

    /// Anthropic: `anthropic-ratelimit-requests-remaining` belongs to the first scope and
    /// `anthropic-ratelimit-tokens-remaining` to the second; those of `input-tokens` and
    /// `output-tokens` to the scopes that [`field`](Self::field) names. Resets are read as for
    /// OpenAI. The status 529 is a rejection too.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::anthropic();
    /// ```
    pub fn anthropic() -> Self {
        Self::new(Provider::Anthropic, &["requests", "tokens"])
    }

    /// GitHub: `x-ratelimit-remaining` belongs to the first scope. GitHub counts in windows: when
    /// nothing remains, the scope is paused until `x-ratelimit-reset`. A 403 is a rejection if it
    /// has a `Retry-After` or nothing remains; otherwise it is about permissions. A 429 without
    /// a time to retry pauses the scope for a minute, as GitHub requires. Core, search and GraphQL
    /// report their own budgets in the same headers: give each a layer and a scope.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::github();
    /// ```
    pub fn github() -> Self {
        Self::new(Provider::GitHub, &["requests"])
    }

    /// The IETF draft "RateLimit header fields for HTTP": the list of drafts 08 and later
    /// (`"burst";r=50;t=30`, in 08 `burst;r=50;t=30`), the dictionary of 07, and the three headers
    /// of 00 to 06, as GitLab sends them, with a time in `RateLimit-Reset`. A single policy belongs
    /// to the first scope. Of several policies, each belongs to the scope that
    /// [`field`](Self::field) names for it, and the others are ignored. When nothing remains, the
    /// scope is paused for `t` seconds.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::ietf().field("tokens", "llm:tpm");
    /// ```
    pub fn ietf() -> Self {
        Self::new(Provider::Ietf, &[""])
    }

    /// gRPC: RESOURCE_EXHAUSTED and UNAVAILABLE are rejections if `RetryInfo`, `QuotaFailure` or
    /// `grpc-retry-pushback-ms` shows that they are about a limit. Only the status in the headers
    /// is read, not the one in the trailers of a body; rejections have it in the headers. They
    /// belong to the first scope.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::grpc();
    /// ```
    pub fn grpc() -> Self {
        Self::new(Provider::Grpc, &["requests"])
    }

    /// Assigns `field` to the scope with this name. A field is `requests`, `tokens`,
    /// `input-tokens` or `output-tokens`; in the IETF draft, the name of a policy.
    ///
    /// ```
    /// # use tower_throttle::upstream::Upstream;
    /// let upstream = Upstream::openai().field("tokens", "openai:tpm");
    /// ```
    #[must_use]
    pub fn field(mut self, field: &str, scope: impl Into<String>) -> Self {
        let named = Target::Name(scope.into());
        match self.targets.iter_mut().find(|(known, _)| known == field) {
            Some((_, target)) => *target = named,
            None => self.targets.push((field.to_owned(), named)),
        }
        self
    }

    /// The longest pause; a longer one that an upstream requests is cut to it. Defaults to 60 s.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::upstream::Upstream;
    /// let upstream = Upstream::github().cap(Duration::from_secs(3_600));
    /// ```
    #[must_use]
    pub fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// The largest part, from 0 to 1, by which a pause is lengthened at random, so that limiters on
    /// different Redis servers do not resume at once. Defaults to 0.05. A pause is never shortened.
    ///
    /// ```
    /// # use tower_throttle::upstream::Upstream;
    /// let upstream = Upstream::openai().jitter(0.0);
    /// ```
    #[must_use]
    pub fn jitter(mut self, part: f64) -> Self {
        // `max` turns NaN into zero.
        self.jitter = part.clamp(0.0, 1.0).max(0.0);
        self
    }

    /// A pause, lengthened by this part of the jitter, from 0 to 1.
    pub(crate) fn jittered(&self, pause: Duration, part: f64) -> Duration {
        let longer = pause.as_secs_f64() * (1.0 + self.jitter * part);
        time::capped(longer, self.cap).max(pause.min(self.cap))
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|(field, _)| field.as_str())
    }

    /// The index in `scopes` of the scope that a field belongs to.
    pub(crate) fn scope_of(&self, field: &str, scopes: &[Scope]) -> Option<usize> {
        let (_, target) = self.targets.iter().find(|(known, _)| known == field)?;
        match target {
            Target::Position(position) => (*position < scopes.len()).then_some(*position),
            Target::Name(name) => scopes.iter().position(|scope| scope.name() == name),
        }
    }

    /// The indices in `scopes` of all scopes that a field belongs to.
    pub(crate) fn scopes(&self, scopes: &[Scope]) -> Vec<usize> {
        let mut all: Vec<_> = self
            .fields()
            .filter_map(|field| self.scope_of(field, scopes))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
