//! What an acquisition ends in: [`Permit`].

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use super::{
    charge::{Charged, Origins},
    core::Core,
};
use crate::scope::{Scope, Scopes};

/// Proof that the tokens were taken.
///
/// The tokens count as used when the permit is returned, so use it at once: what is kept and used
/// later may exceed the limit in a later window. A [`RateLimit`](crate::RateLimit) service keeps
/// no permit for more than 100 ms.
///
/// Dropping the permit spends the tokens, which is the common case. [`refund`](Self::refund) gives
/// them back, [`settle`](Self::settle) corrects a cost that was an estimate.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Rejected> {
/// let limiter = Limiter::in_memory();
/// let tokens = Quota::per_hour(1_000.0).scope("llm-tokens");
/// let permit = limiter.try_acquire(tokens.clone().cost(400.0)).await?;
/// permit.settle(150.0);
/// assert_eq!(limiter.bucket(&tokens).level().await.unwrap().floor(), 850.0);
/// # Ok(()) }
/// ```
pub struct Permit {
    charge: Charge,
    /// One of at most 128 scopes.
    tightest: Option<(u32, f64)>,
}

/// Settles the cost of a [`Permit`] later and from elsewhere, such as from the end of a stream.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_throttle::Rejected> {
/// let limiter = Limiter::in_memory();
/// let tokens = Quota::per_hour(1_000.0).scope("llm-tokens");
/// let handle = limiter.try_acquire(tokens.clone().cost(400.0)).await?.handle();
/// handle.settle(500.0);
/// assert_eq!(limiter.bucket(&tokens).level().await.unwrap().floor(), 500.0);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PermitHandle {
    taken: Arc<Charged>,
}

enum Charge {
    Own(Charged),
    Shared(Arc<Charged>),
}

impl Permit {
    #[inline]
    pub(crate) fn new(taken: Charged, tightest: Option<(usize, f64)>) -> Self {
        Self {
            charge: Charge::Own(taken),
            tightest: tightest.map(|(which, level)| (which as u32, level)),
        }
    }

    /// A permit for one scope that was decided without a call to Redis.
    #[inline]
    pub(super) fn at_once(core: Arc<Core>, scopes: Scopes, level: f64) -> Self {
        let origins = Origins::All(core.primary());
        Self {
            charge: Charge::Own(Charged::new(core, scopes, origins)),
            tightest: Some((0, level)),
        }
    }

    fn charged(&self) -> &Charged {
        match &self.charge {
            Charge::Own(taken) => taken,
            Charge::Shared(taken) => taken,
        }
    }

    /// Pauses one of the scopes, for all processes.
    #[cfg(feature = "learn")]
    pub(crate) fn pause(&self, which: usize, hold: std::time::Duration) {
        let taken = self.charged();
        if let Some(scope) = self.scopes().get(which) {
            taken.core.pause(scope, hold);
        }
    }

    /// Caps the level of one of the scopes.
    #[cfg(feature = "learn")]
    pub(crate) fn cap_level(&self, which: usize, tokens: f64) {
        let taken = self.charged();
        if let Some(scope) = self.scopes().get(which) {
            taken.core.cap_level(scope, tokens);
        }
    }

    /// Gives back what is left of tokens that were due at `due` and were not used.
    pub(crate) fn give_back_late(self, due: Instant) {
        self.charged().give_back_late(due);
    }

    /// Gives all tokens back. Settling has no effect after that.
    ///
    /// A bucket never holds more than its capacity. While callers wait for it, it holds at most the
    /// capacity less the largest of their costs; tokens that are given back beyond that are lost. So
    /// keep costs well below the capacity where corrections are expected.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let day = Quota::per_day(1.0).scope("reports");
    /// limiter.try_acquire(&day).await.unwrap().refund();
    /// assert!(limiter.try_acquire(&day).await.is_ok());
    /// # }
    /// ```
    pub fn refund(self) {
        self.charged().refund();
    }

    /// Corrects the cost to `actual` tokens: of the scopes that were given a
    /// [`cost`](Scope::cost), or of all, if none was. May be called again with a better number.
    ///
    /// More than was taken is charged as debt, at most one capacity beyond what was taken. A
    /// negative, NaN or infinite number is ignored.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let tokens = Quota::per_hour(100.0).scope("llm-tokens");
    /// let permit = limiter.try_acquire(tokens.clone().cost(10.0)).await.unwrap();
    /// permit.settle(105.0);
    /// assert_eq!(limiter.bucket(&tokens).level().await.unwrap().floor(), -5.0);
    /// # }
    /// ```
    pub fn settle(&self, actual: f64) {
        self.charged().settle(actual);
    }

    /// Returns a handle that settles the cost later.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let tokens = Quota::per_hour(100.0).scope("llm-tokens").cost(10.0);
    /// let mut permit = limiter.try_acquire(tokens).await.unwrap();
    /// let handle = permit.handle();
    /// std::thread::spawn(move || handle.settle(7.0)).join().unwrap();
    /// # }
    /// ```
    pub fn handle(&mut self) -> PermitHandle {
        let taken = match &self.charge {
            Charge::Shared(taken) => taken.clone(),
            Charge::Own(own) => {
                let shared = Arc::new(own.clone());
                self.charge = Charge::Shared(shared.clone());
                shared
            }
        };
        PermitHandle { taken }
    }

    /// The scopes from which tokens were taken.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_second(1.0).scope("api");
    /// let permit = Limiter::in_memory().try_acquire(&api).await.unwrap();
    /// assert_eq!(permit.scopes(), [api]);
    /// # }
    /// ```
    pub fn scopes(&self) -> &[Scope] {
        self.charged().scopes.as_slice()
    }

    /// The scope with the smallest part of its capacity left, and its level in tokens, as in
    /// response headers. A bucket that was waited for is empty. `None` if the permit is
    /// [degraded](Self::is_degraded).
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_hour(10.0).scope("api");
    /// let permit = Limiter::in_memory().try_acquire(&api).await.unwrap();
    /// assert_eq!(permit.tightest(), Some((&api, 9.0)));
    /// # }
    /// ```
    pub fn tightest(&self) -> Option<(&Scope, f64)> {
        let (index, level) = self.tightest.filter(|_| !self.is_degraded())?;
        Some((self.scopes().get(index as usize)?, level))
    }

    /// Whether this process decided from its own memory because Redis was unavailable.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_second(1.0).scope("api");
    /// assert!(!Limiter::in_memory().try_acquire(api).await.unwrap().is_degraded());
    /// # }
    /// ```
    pub fn is_degraded(&self) -> bool {
        self.charged().origin.is_degraded()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("scopes", &self.scopes())
            .field("degraded", &self.is_degraded())
            .finish_non_exhaustive()
    }
}

impl PermitHandle {
    /// As [`Permit::settle`].
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let limiter = Limiter::in_memory();
    /// let tokens = Quota::per_hour(100.0).scope("llm-tokens").cost(10.0);
    /// limiter.try_acquire(tokens).await.unwrap().handle().settle(7.0);
    /// # }
    /// ```
    pub fn settle(&self, actual: f64) {
        self.taken.settle(actual);
    }

    /// The scopes from which tokens were taken.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_second(1.0).scope("api");
    /// let handle = Limiter::in_memory().try_acquire(&api).await.unwrap().handle();
    /// assert_eq!(handle.scopes(), [api]);
    /// # }
    /// ```
    pub fn scopes(&self) -> &[Scope] {
        self.taken.scopes.as_slice()
    }
}

impl fmt::Debug for PermitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PermitHandle")
            .field("scopes", &self.scopes())
            .finish_non_exhaustive()
    }
}
