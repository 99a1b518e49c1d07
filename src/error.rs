//! Why not: [`Rejected`] and [`ConfigError`].

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::{
    quota::Quota,
    scope::{Name, Scope, Scopes},
};

/// Why an acquisition was refused.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, Reason};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let scope = Quota::per_second(1.0).scope("api");
/// limiter.try_acquire(&scope).await.unwrap();
/// let refused = limiter.try_acquire(&scope).await.unwrap_err();
/// assert_eq!(refused.reason(), Reason::Limited);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The bucket is short of tokens; it will have them after
    /// [`retry_after`](Rejected::retry_after).
    Limited,
    /// The cost is more than the capacity, or no amount at all, or an acquisition has more than 128
    /// scopes: it can never be granted.
    ExceedsCapacity,
    /// Redis is unavailable, and the [`Fallback`](crate::Fallback) rejects requests then:
    /// `Closed`, or `Strict` for a cost over the share.
    Unavailable,
}

/// An acquisition that was refused: why, by which scope, and when to come back.
///
/// Cloning is cheap. It tells the scope's name, never its key.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, Reason};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let too_much = Quota::per_second(10.0).scope("api").cost(11.0);
/// let refused = limiter.try_acquire(too_much).await.unwrap_err();
/// assert_eq!(refused.reason(), Reason::ExceedsCapacity);
/// assert_eq!(refused.scope(), "api");
/// assert_eq!(refused.retry_after(), None);
/// # }
/// ```
#[derive(Clone)]
pub struct Rejected {
    why: Why,
    /// Not the whole scope: a refusal shall cost little.
    by: By,
    quota: Quota,
    degraded: bool,
}

/// The name of the scope that refused.
#[derive(Clone)]
enum By {
    Static(&'static str),
    Shared(Arc<str>),
    /// One of all scopes of the acquisition.
    OneOf(Arc<[Scope]>, u32),
}

#[derive(Clone)]
enum Why {
    /// For so long, until the bucket would hold so many tokens: the cost, less what comes while
    /// the caller waits.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "headers tell what follows from it")
    )]
    Limited(Duration, f64),
    /// The cost.
    Impossible(f64),
    Unavailable(Option<Arc<dyn Error + Send + Sync>>),
}

impl Rejected {
    pub(crate) fn limited(
        scope: &Scope,
        retry_after: Duration,
        max_wait_us: f64,
        degraded: bool,
    ) -> Self {
        let retry_after = retry_after.max(Duration::from_micros(1));
        let wanted = scope.tokens() - max_wait_us * scope.params().per_us;
        Self::new(Why::Limited(retry_after, wanted), scope, degraded)
    }

    pub(crate) fn exceeds_capacity(scope: &Scope) -> Self {
        Self::new(Why::Impossible(scope.tokens()), scope, false)
    }

    pub(crate) fn unavailable(scope: &Scope, source: Option<Arc<dyn Error + Send + Sync>>) -> Self {
        Self::new(Why::Unavailable(source), scope, true)
    }

    fn new(why: Why, scope: &Scope, degraded: bool) -> Self {
        Self {
            why,
            by: match scope.to_name() {
                Name::Static(name) => By::Static(name),
                Name::Shared(name) => By::Shared(name),
            },
            quota: scope.quota(),
            degraded,
        }
    }

    /// Knows all scopes of the acquisition, so that an answer can list them.
    pub(crate) fn with_scopes(mut self, scopes: &Scopes) -> Self {
        if let Some(several) = scopes.several() {
            let same = |scope: &Scope| (scope.name(), scope.quota()) == self.policy();
            if let Some(one) = several.iter().position(same) {
                self.by = By::OneOf(several, one as u32);
            }
        }
        self
    }

    /// Name and limit of the scope that refused.
    pub(crate) fn policy(&self) -> (&str, Quota) {
        (self.scope(), self.quota)
    }

    /// Why.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let refused = limiter.try_acquire(&day).await.unwrap_err();
    /// assert_eq!(refused.reason(), Reason::Limited);
    /// # }
    /// ```
    pub fn reason(&self) -> Reason {
        match self.why {
            Why::Limited(..) => Reason::Limited,
            Why::Impossible(_) => Reason::ExceedsCapacity,
            Why::Unavailable(_) => Reason::Unavailable,
        }
    }

    /// The name of the scope that refused.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let refused = limiter.try_acquire(&day).await.unwrap_err();
    /// assert_eq!(refused.scope(), "day");
    /// # }
    /// ```
    pub fn scope(&self) -> &str {
        match &self.by {
            By::Static(name) => name,
            By::Shared(name) => name,
            By::OneOf(several, one) => several[*one as usize].name(),
        }
    }

    /// How long until the same acquisition could succeed, above zero; `None`: never, or nobody
    /// knows.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let refused = limiter.try_acquire(&day).await.unwrap_err();
    /// assert_eq!(refused.retry_after().unwrap().as_secs().div_ceil(3_600), 24);
    /// # }
    /// ```
    pub fn retry_after(&self) -> Option<Duration> {
        match self.why {
            Why::Limited(retry_after, _) => Some(retry_after),
            _ => None,
        }
    }

    /// Whether this process decided from its own memory, because Redis could not be asked in
    /// time.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let refused = limiter.try_acquire(&day).await.unwrap_err();
    /// assert!(!refused.is_degraded());
    /// # }
    /// ```
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }

    /// The first `Rejected` in the chain of sources of `error`, itself included.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_throttle::Rejected;
    ///
    /// let error = std::io::Error::other("unrelated");
    /// assert!(Rejected::find(&error).is_none());
    /// ```
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(rejected) = error.downcast_ref() {
                return Some(rejected);
            }
            next = error.source();
        }
        None
    }
}

/// What a client is told besides.
#[cfg(feature = "http")]
impl Rejected {
    /// Name and limit of each scope of the acquisition.
    pub(crate) fn policies(&self) -> impl Iterator<Item = (&str, Quota)> {
        let several: &[Scope] = match &self.by {
            By::OneOf(several, _) => several,
            By::Static(_) | By::Shared(_) => &[],
        };
        let one = several.is_empty().then(|| self.policy());
        let each = several.iter().map(|scope| (scope.name(), scope.quota()));
        one.into_iter().chain(each)
    }

    /// The level of the bucket that refused, in tokens; none where nobody knows it.
    pub(crate) fn level(&self) -> Option<f64> {
        let Why::Limited(retry_after, wanted) = self.why else {
            return None;
        };
        let missing = crate::clock::to_us(retry_after) * self.quota.params().per_us;
        // Refused, so not all of the whole tokens that were wanted are there.
        let level = (wanted - missing).min(wanted.ceil() - 1.0);
        (!self.degraded).then_some(level)
    }
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected")
            .field("reason", &self.reason())
            .field("scope", &self.scope())
            .field("retry_after", &self.retry_after())
            .field("degraded", &self.degraded)
            .finish()
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = self.scope();
        match &self.why {
            Why::Limited(retry_after, _) => write!(
                f,
                "rate limit \"{scope}\" exceeded, retry after {:.3} s",
                // Up: nobody is sent back early.
                (retry_after.as_secs_f64() * 1_000.0).ceil() / 1_000.0
            ),
            Why::Impossible(cost) => write!(
                f,
                "a cost of {} can never pass the rate limit \"{scope}\" of {}",
                cost, self.quota
            ),
            Why::Unavailable(_) => write!(f, "the rate limit \"{scope}\" cannot be checked now"),
        }
    }
}

impl Error for Rejected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.why {
            Why::Unavailable(Some(source)) => Some(&**source),
            _ => None,
        }
    }
}

/// A limiter that cannot be built: what is wrong with its configuration and what to change.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "redis")] {
/// use tower_throttle::Limiter;
///
/// let error = Limiter::redis("localhost:6379").unwrap_err();
/// assert!(error.to_string().contains("redis://"));
/// # }
/// ```
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigError({:?})", self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConfigError {}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_a_refusal_is_what_its_wait_tells() {
        let scope = Quota::per_second(2.0).burst(6.0).scope("s").cost(4.5);
        let level = |retry_after, max_wait_us, degraded| {
            Rejected::limited(&scope, retry_after, max_wait_us, degraded).level()
        };
        let second = Duration::from_secs(1);
        assert_eq!(level(second, 0.0, false), Some(2.5));
        assert_eq!(level(second, 1e6, false), Some(0.5));
        assert_eq!(level(5 * second, 0.0, false), Some(-5.5));
        // Less than a token short.
        assert_eq!(level(Duration::ZERO, 0.0, false), Some(4.0));
        assert_eq!(level(second, 0.0, true), None, "of a share, nobody knows");
        assert_eq!(Rejected::exceeds_capacity(&scope).level(), None);
    }
}
