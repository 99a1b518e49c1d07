//! [`Rejected`]: the error of an acquisition, and its [`Reason`].

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::{
    quota::Quota,
    scope::{Name, Scope, Scopes},
};

#[cfg(all(test, feature = "http"))]
mod tests;

/// The reason for which an acquisition was rejected.
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
/// let rejected = limiter.try_acquire(&scope).await.unwrap_err();
/// assert_eq!(rejected.reason(), Reason::Limited);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The bucket has too few tokens. It has enough after
    /// [`retry_after`](Rejected::retry_after).
    Limited,
    /// The cost is over the capacity, negative, infinite or not a number. The same acquisition is
    /// never granted.
    ExceedsCapacity,
    /// The acquisition has more than 128 scopes. It is never granted.
    TooManyScopes,
    /// Redis is unavailable, and the [`Fallback`](crate::Fallback) rejects the request:
    /// `FailClosed` rejects every request, `StrictShare` a cost over the share.
    Unavailable,
}

/// A rejected acquisition: the reason, the scope, and when to retry.
///
/// Cloning is cheap. The error holds the scope's name, never its key.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, Reason};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let over_capacity = Quota::per_second(10.0).scope("api").cost(11.0);
/// let rejected = limiter.try_acquire(over_capacity).await.unwrap_err();
/// assert_eq!(rejected.reason(), Reason::ExceedsCapacity);
/// assert_eq!(rejected.scope(), "api");
/// assert_eq!(rejected.retry_after(), None);
/// # }
/// ```
#[derive(Clone)]
pub struct Rejected {
    why: Why,
    /// The name only: cloning a whole scope would make a rejection more expensive.
    by: By,
    quota: Quota,
    degraded: bool,
}

/// The name of the scope that rejected the acquisition.
#[derive(Clone)]
enum By {
    Static(&'static str),
    Shared(Arc<str>),
    /// All scopes of the acquisition, and the index of this one.
    OneOf(Arc<[Scope]>, u32),
}

#[derive(Clone)]
enum Why {
    /// The time until the bucket holds this many tokens: the cost less what refills while the
    /// caller may wait.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "only headers use the tokens")
    )]
    Limited(Duration, f64),
    /// The cost in tokens.
    ExceedsCapacity(f64),
    /// The number of scopes, and the largest allowed number.
    TooManyScopes(usize, usize),
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
        Self::new(Why::ExceedsCapacity(scope.tokens()), scope, false)
    }

    /// Names the first of the scopes, because a reply would write all of them.
    pub(crate) fn too_many_scopes(first: &Scope, count: usize, max: usize) -> Self {
        Self::new(Why::TooManyScopes(count, max), first, false)
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

    /// Keeps all scopes of the acquisition, so that a reply can list them.
    pub(crate) fn with_scopes(mut self, scopes: &Scopes) -> Self {
        if let Some(several) = scopes.several() {
            let same = |scope: &Scope| (scope.name(), scope.quota()) == self.policy();
            if let Some(one) = several.iter().position(same) {
                self.by = By::OneOf(several, one as u32);
            }
        }
        self
    }

    /// Name and quota of the scope that rejected the acquisition.
    pub(crate) fn policy(&self) -> (&str, Quota) {
        (self.scope(), self.quota)
    }

    /// The reason of the rejection.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let rejected = limiter.try_acquire(&day).await.unwrap_err();
    /// assert_eq!(rejected.reason(), Reason::Limited);
    /// # }
    /// ```
    pub fn reason(&self) -> Reason {
        match self.why {
            Why::Limited(..) => Reason::Limited,
            Why::ExceedsCapacity(_) => Reason::ExceedsCapacity,
            Why::TooManyScopes(..) => Reason::TooManyScopes,
            Why::Unavailable(_) => Reason::Unavailable,
        }
    }

    /// The name of the scope that rejected the acquisition.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let rejected = limiter.try_acquire(&day).await.unwrap_err();
    /// assert_eq!(rejected.scope(), "day");
    /// # }
    /// ```
    pub fn scope(&self) -> &str {
        match &self.by {
            By::Static(name) => name,
            By::Shared(name) => name,
            By::OneOf(several, one) => several[*one as usize].name(),
        }
    }

    /// How long until the same acquisition could succeed, above zero.
    ///
    /// `None` if it can never succeed, or if the time is unknown because Redis is unavailable.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let rejected = limiter.try_acquire(&day).await.unwrap_err();
    /// assert_eq!(rejected.retry_after().unwrap().as_secs().div_ceil(3_600), 24);
    /// # }
    /// ```
    pub fn retry_after(&self) -> Option<Duration> {
        match self.why {
            Why::Limited(retry_after, _) => Some(retry_after),
            _ => None,
        }
    }

    /// Whether the fallback decided, because Redis did not answer in time.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota, Reason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("day");
    /// limiter.try_acquire(&day).await.unwrap();
    /// let rejected = limiter.try_acquire(&day).await.unwrap_err();
    /// assert!(!rejected.is_degraded());
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

/// The values of rate-limit headers.
#[cfg(feature = "http")]
impl Rejected {
    /// Name and quota of each scope of the acquisition.
    pub(crate) fn policies(&self) -> impl Iterator<Item = (&str, Quota)> {
        let several: &[Scope] = match &self.by {
            By::OneOf(several, _) => several,
            By::Static(_) | By::Shared(_) => &[],
        };
        let one = several.is_empty().then(|| self.policy());
        let each = several.iter().map(|scope| (scope.name(), scope.quota()));
        one.into_iter().chain(each)
    }

    /// The level in tokens of the bucket that rejected the acquisition; `None` if it is unknown.
    pub(crate) fn level(&self) -> Option<f64> {
        let Why::Limited(retry_after, wanted) = self.why else {
            return None;
        };
        let missing = crate::clock::to_us(retry_after) * self.quota.params().per_us;
        // The acquisition was rejected, so the level is below the whole tokens that it wanted.
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
                // Rounded up, so that no client retries too early.
                (retry_after.as_secs_f64() * 1_000.0).ceil() / 1_000.0
            ),
            Why::ExceedsCapacity(cost) => write!(
                f,
                "a cost of {} can never pass the rate limit \"{scope}\" of {}",
                cost, self.quota
            ),
            Why::TooManyScopes(count, max) => write!(
                f,
                "an acquisition may have at most {max} scopes, this one has {count}, the first is \
                 \"{scope}\""
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
