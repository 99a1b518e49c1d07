//! Which fields of which upstream speak of which scope: [`Upstream`].

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::{
    grpc, ietf,
    parse::{self, When},
};
use crate::scope::Scope;

const CAP: Duration = Duration::from_secs(60);
const JITTER: f64 = 0.05;

/// GitHub asks for at least a minute where it refuses without saying for how long.
const GITHUB_PAUSE: f64 = 60.0;

/// Anthropic's "overloaded".
const OVERLOADED: u16 = 529;

/// What one upstream says in its answers about its limits, and which of the scopes that let a
/// request through it speaks of.
///
/// Nothing is guessed: only the fields of the chosen profile are read, and what is malformed is
/// ignored. What is learned only ever **lowers** a bucket or holds it back. A refusal (429 or
/// 503; see each profile for more) that says when to come back holds back every scope that the
/// profile has a place for; one that does not say, or says zero, empties them.
///
/// A wait is cut to [`cap`](Self::cap), and made longer by up to [`jitter`](Self::jitter) within
/// it. In order of preference: `retry-after-ms`, `x-ms-retry-after-ms`, `Retry-After`; then the
/// reset of a budget of which nothing remains, or of which a refusal tells nothing else.
///
/// A reset, and `Retry-After`, may be a number of seconds (whole or not), a Go duration (`6m0s`,
/// `12ms`), an HTTP date, or a time in RFC 3339. A number from 10^9 (in the year 2001) is a time
/// since 1970, in seconds, or from 10^11 in milliseconds or finer. Times are compared with the
/// answer's own `Date`, if it has one, plus its `Age`; a reset that has passed is ignored.
///
/// Fields speak of scopes by position, in the order in which the layer was given them, unless
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
    provider: Provider,
    places: Vec<(String, Place)>,
    cap: Duration,
    jitter: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    RetryAfter,
    OpenAi,
    Anthropic,
    GitHub,
    Ietf,
    Grpc,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    At(usize),
    Named(String),
}

/// What one answer asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Advice {
    /// Nobody is to send for so long.
    pub(crate) hold: Option<Duration>,
    /// Field, and what remains of it.
    pub(crate) remaining: Vec<(String, f64)>,
    /// It was refused, and nothing said for how long.
    pub(crate) spent: bool,
}

/// A budget of an upstream: what remains, and in how many seconds it is reset.
struct Budget {
    field: String,
    /// None where the answer tells its reset only.
    remaining: Option<f64>,
    reset: Option<f64>,
}

impl Upstream {
    fn new(provider: Provider, fields: &[&str]) -> Self {
        let places = fields.iter().enumerate();
        Self {
            provider,
            places: places
                .map(|(at, field)| ((*field).to_owned(), Place::At(at)))
                .collect(),
            cap: CAP,
            jitter: JITTER,
        }
    }

    /// Only `retry-after-ms`, `x-ms-retry-after-ms` and `Retry-After`, of 429 and 503: what any HTTP
    /// service may send. They speak of the first scope.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::retry_after();
    /// ```
    pub fn retry_after() -> Self {
        Self::new(Provider::RetryAfter, &["requests"])
    }

    /// OpenAI: `x-ratelimit-remaining-requests` speaks of the first scope and
    /// `x-ratelimit-remaining-tokens` of the second; `x-ratelimit-reset-*`, which Azure also spells
    /// `x-rate-limit-reset-*`, counts where a 429 of an exhausted budget has no `Retry-After`.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::openai();
    /// ```
    pub fn openai() -> Self {
        Self::new(Provider::OpenAi, &["requests", "tokens"])
    }

    /// Anthropic: `anthropic-ratelimit-requests-remaining` speaks of the first scope and
    /// `anthropic-ratelimit-tokens-remaining` of the second; `input-tokens` and `output-tokens`
    /// of scopes that [`field`](Self::field) names. Resets count as for OpenAI. 529 is a refusal
    /// too.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::anthropic();
    /// ```
    pub fn anthropic() -> Self {
        Self::new(Provider::Anthropic, &["requests", "tokens"])
    }

    /// GitHub: `x-ratelimit-remaining` speaks of the first scope. Its limit is a window: where
    /// nothing remains, the scope is held back until `x-ratelimit-reset`. A 403 is a refusal where
    /// it has a `Retry-After` or nothing remains, else it is about rights. A 429 that says nothing
    /// holds back for a minute, as GitHub asks. Core, search and GraphQL have budgets of their own
    /// in the same fields: give each a layer and a scope.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::github();
    /// ```
    pub fn github() -> Self {
        Self::new(Provider::GitHub, &["requests"])
    }

    /// The IETF draft "RateLimit header fields for HTTP": the list of drafts 08 and later
    /// (`"burst";r=50;t=30`, in 08 `burst;r=50;t=30`), the dictionary of 07, and the three fields of
    /// 00 to 06, as GitLab sends them, with a time in `RateLimit-Reset`. The only policy
    /// speaks of the first scope; where there are several, each of the scope that
    /// [`field`](Self::field) names for it, and the others are ignored. Where nothing remains,
    /// the scope is held back for `t` seconds.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::ietf().field("tokens", "llm:tpm");
    /// ```
    pub fn ietf() -> Self {
        Self::new(Provider::Ietf, &[""])
    }

    /// gRPC: RESOURCE_EXHAUSTED and UNAVAILABLE, where `RetryInfo`, `QuotaFailure` or
    /// `grpc-retry-pushback-ms` shows that they are about a limit, in an answer that has its
    /// status in the headers, as refusals have. They speak of the first scope.
    ///
    /// ```
    /// let upstream = tower_throttle::upstream::Upstream::grpc();
    /// ```
    pub fn grpc() -> Self {
        Self::new(Provider::Grpc, &["requests"])
    }

    /// What the upstream calls `field` (`requests`, `tokens`, `input-tokens`, `output-tokens`; in
    /// the IETF draft the name of a policy) is the scope of this name.
    ///
    /// ```
    /// # use tower_throttle::upstream::Upstream;
    /// let upstream = Upstream::openai().field("tokens", "openai:tpm");
    /// ```
    #[must_use]
    pub fn field(mut self, field: &str, scope: impl Into<String>) -> Self {
        let named = Place::Named(scope.into());
        match self.places.iter_mut().find(|(known, _)| known == field) {
            Some((_, place)) => *place = named,
            None => self.places.push((field.to_owned(), named)),
        }
        self
    }

    /// The longest hold, whatever an upstream asks for: a minute unless said.
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

    /// By up to which part a hold is made longer, so that those who share no Redis do not all
    /// come back at once; from 0 to 1, and 0.05 unless said. Never shorter.
    ///
    /// ```
    /// # use tower_throttle::upstream::Upstream;
    /// let upstream = Upstream::openai().jitter(0.0);
    /// ```
    #[must_use]
    pub fn jitter(mut self, part: f64) -> Self {
        // NaN becomes nothing.
        self.jitter = part.clamp(0.0, 1.0).max(0.0);
        self
    }

    /// A hold, made longer by this part of the jitter, from 0 to 1.
    pub(crate) fn jittered(&self, hold: Duration, part: f64) -> Duration {
        let longer = hold.as_secs_f64() * (1.0 + self.jitter * part);
        parse::capped(longer, self.cap).max(hold.min(self.cap))
    }

    /// The scopes that this field speaks of, by their places among `scopes`.
    pub(crate) fn scope_of(&self, field: &str, scopes: &[Scope]) -> Option<usize> {
        let (_, place) = self.places.iter().find(|(known, _)| known == field)?;
        match place {
            Place::At(at) => (*at < scopes.len()).then_some(*at),
            Place::Named(name) => scopes.iter().position(|scope| scope.name() == name),
        }
    }

    /// All the scopes that any field speaks of.
    pub(crate) fn scopes(&self, scopes: &[Scope]) -> Vec<usize> {
        let fields = self.places.iter();
        let mut all: Vec<_> = fields
            .filter_map(|(field, _)| self.scope_of(field, scopes))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What an answer asks for, at a time in seconds since 1970.
    pub(crate) fn read(&self, status: StatusCode, headers: &HeaderMap, now: f64) -> Advice {
        if self.provider == Provider::Grpc {
            let Some(limited) = grpc::limited(headers) else {
                return Advice::default();
            };
            return Advice {
                hold: limited.hold.map(|hold| parse::capped(hold, self.cap)),
                remaining: Vec::new(),
                spent: limited.hold.is_none(),
            };
        }
        let age = text(headers, "age").and_then(parse::age).unwrap_or(0.0);
        // A cache keeps the date of the origin (RFC 9111, section 4.2.3).
        let date = text(headers, "date").and_then(parse::http_date);
        let when = When {
            now: date.map_or(now, |date| date + age),
            age,
        };
        let mut budgets = self.budgets(headers, when);
        if age > 0.0 {
            // What remained before a reset says nothing of what remains after it.
            budgets.retain(|budget| budget.reset.is_none_or(|reset| reset > 0.0));
        }
        let asked = asked(headers, when);
        let none_left = budgets
            .iter()
            .any(|budget| budget.remaining.is_some_and(|left| left <= 0.0));
        let refused = match (status, self.provider) {
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => true,
            (StatusCode::FORBIDDEN, Provider::GitHub) => asked.is_some() || none_left,
            (status, Provider::Anthropic) => status.as_u16() == OVERLOADED,
            _ => false,
        };
        // The others refill all the time, and go on when some has refilled.
        let window = matches!(self.provider, Provider::GitHub | Provider::Ietf);
        // To come back at once is what they say who round a part of a second down.
        let mut hold = asked.filter(|seconds| refused && *seconds > 0.0);
        if hold.is_none() && (refused || window) {
            // A refusal that tells a reset, and not what remains, is about that budget.
            let spent = |budget: &&Budget| budget.remaining.map_or(refused, |left| left <= 0.0);
            let resets = budgets.iter().filter(spent);
            hold = resets
                .filter_map(|budget| budget.reset.filter(|reset| *reset > 0.0))
                .max_by(f64::total_cmp);
        }
        let is_github = self.provider == Provider::GitHub;
        if hold.is_none() && is_github && status == StatusCode::TOO_MANY_REQUESTS {
            hold = Some(GITHUB_PAUSE);
        }
        let remaining = budgets
            .into_iter()
            .filter_map(|budget| Some((budget.field, budget.remaining?)));
        Advice {
            hold: hold.map(|hold| parse::capped(hold, self.cap)),
            remaining: remaining.collect(),
            // 503 without a word is an outage, not a limit.
            spent: hold.is_none() && refused && status != StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn budgets(&self, headers: &HeaderMap, when: When) -> Vec<Budget> {
        let budget = |field: &str, remaining: &str, resets: &[&str]| {
            let mut resets = resets.iter().filter_map(|name| text(headers, name));
            let reset = resets.find_map(|text| when.until(text));
            let remaining = text(headers, remaining).and_then(parse::seconds);
            (remaining.is_some() || reset.is_some()).then(|| Budget {
                field: field.to_owned(),
                remaining,
                reset,
            })
        };
        let fields = self.places.iter().map(|(field, _)| field.as_str());
        match self.provider {
            Provider::RetryAfter | Provider::Grpc => Vec::new(),
            Provider::OpenAi => fields
                .filter_map(|field| {
                    let remaining = format!("x-ratelimit-remaining-{field}");
                    let reset = format!("x-ratelimit-reset-{field}");
                    // As Azure spells it.
                    let other = format!("x-rate-limit-reset-{field}");
                    budget(field, &remaining, &[&reset, &other])
                })
                .collect(),
            Provider::Anthropic => fields
                .filter_map(|field| {
                    let remaining = format!("anthropic-ratelimit-{field}-remaining");
                    let reset = format!("anthropic-ratelimit-{field}-reset");
                    budget(field, &remaining, &[&reset])
                })
                .collect(),
            Provider::GitHub => budget("requests", "x-ratelimit-remaining", &["x-ratelimit-reset"])
                .into_iter()
                .collect(),
            Provider::Ietf => {
                let policies = ietf::policies(headers);
                let alone = policies.len() == 1;
                let is_known = |name: &str| self.places.iter().any(|(field, _)| field == name);
                policies
                    .into_iter()
                    .filter_map(|policy| {
                        let known = is_known(&policy.name) && !policy.name.is_empty();
                        (known || alone).then(|| Budget {
                            field: if known { policy.name } else { String::new() },
                            remaining: Some(policy.remaining),
                            reset: policy.reset.map(|reset| when.until_number(reset)),
                        })
                    })
                    .collect()
            }
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // Not `to_str`, which takes no `µs`.
    str::from_utf8(headers.get(name)?.as_bytes())
        .ok()
        .map(str::trim)
}

/// In how many seconds to come back, as the upstream says.
fn asked(headers: &HeaderMap, when: When) -> Option<f64> {
    let millis = |name| text(headers, name).and_then(parse::seconds);
    // Not before the receipt, as a cache may have it: RFC 9110, section 10.2.3.
    let receipt = When { age: 0.0, ..when };
    millis("retry-after-ms")
        .or_else(|| millis("x-ms-retry-after-ms"))
        .map(|millis| millis / 1e3)
        .or_else(|| receipt.until(text(headers, "retry-after")?))
}
