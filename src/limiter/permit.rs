//! What an acquisition ends in: [`Permit`].

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::core::{Core, unused};
use crate::{
    decision::DecidedBy,
    scope::{Scope, Scopes},
    telemetry::Cost,
};

/// Proof that the tokens were taken.
///
/// They count as used at the moment at which it is handed over: use it at once. Whoever keeps it
/// and uses it later may pass the limit in the window in which that happens. A
/// [`RateLimit`](crate::RateLimit) service keeps none for more than 100 ms.
///
/// Dropping it spends them, which is the common case. [`refund`](Self::refund) gives them back,
/// [`settle`](Self::settle) corrects a cost that was an estimate.
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

/// Settles a [`Permit`] from elsewhere and later, such as from the end of a stream.
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

/// What was taken, from where, and what it was corrected to.
pub(crate) struct Charged {
    pub(crate) core: Arc<Core>,
    pub(crate) scopes: Scopes,
    pub(crate) origin: Origins,
    /// The bits of the settled cost; NaN as long as the estimate stands, infinite once it was
    /// refunded.
    settled: AtomicU64,
}

/// Where the tokens of each scope came from.
#[derive(Clone, Debug)]
pub(crate) enum Origins {
    All(DecidedBy),
    /// In the order of the scopes.
    Each(Box<[DecidedBy]>),
}

impl Origins {
    pub(super) fn get(&self, index: usize) -> DecidedBy {
        match self {
            Self::All(origin) => *origin,
            Self::Each(origins) => origins[index],
        }
    }

    fn is_degraded(&self) -> bool {
        let degraded =
            |origin: &DecidedBy| matches!(origin, DecidedBy::LocalShare | DecidedBy::Unmetered);
        match self {
            Self::All(origin) => degraded(origin),
            Self::Each(origins) => origins.iter().any(degraded),
        }
    }
}

impl Charged {
    #[inline]
    pub(crate) fn new(core: Arc<Core>, scopes: Scopes, origin: Origins) -> Self {
        Self {
            core,
            scopes,
            origin,
            settled: AtomicU64::new(f64::NAN.to_bits()),
        }
    }

    fn settle(&self, actual: f64) {
        if !(actual >= 0.0 && actual.is_finite()) {
            return;
        }
        let Some(before) = self.swap(actual) else {
            return;
        };
        let costed = self.scopes.iter().any(Scope::is_costed);
        for (index, scope) in self.scopes.iter().enumerate() {
            if scope.is_costed() || !costed {
                // No more than one capacity beyond the estimate: a store clips larger debts, and
                // a later correction must not give back what was never charged.
                let most = scope.tokens() + scope.quota().capacity();
                let before = before.map_or(scope.tokens(), |before| before.min(most));
                self.correct(index, scope, before, actual.min(most));
            }
        }
    }

    fn refund(&self) {
        let Some(before) = self.swap(f64::INFINITY) else {
            return;
        };
        let costed = self.scopes.iter().any(Scope::is_costed);
        for (index, scope) in self.scopes.iter().enumerate() {
            let most = scope.tokens() + scope.quota().capacity();
            let settled = before
                .filter(|_| scope.is_costed() || !costed)
                .map(|before| before.min(most));
            self.correct(index, scope, settled.unwrap_or(scope.tokens()), 0.0);
        }
    }

    /// What was settled before, or none; nothing at all once it was refunded. Swapped as one,
    /// so that the corrections of several handles add up whatever their order.
    fn swap(&self, actual: f64) -> Option<Option<f64>> {
        let mut before = self.settled.load(Ordering::Relaxed);
        loop {
            let value = f64::from_bits(before);
            if value.is_infinite() {
                return None;
            }
            match self.settled.compare_exchange_weak(
                before,
                actual.to_bits(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some((!value.is_nan()).then_some(value)),
                Err(now) => before = now,
            }
        }
    }

    fn correct(&self, index: usize, scope: &Scope, before: f64, after: f64) {
        let origin = self.origin.get(index);
        let meter = self.core.observer.meter;
        if after > before {
            meter.corrected(scope, Cost::Settled, after - before);
            self.core.charge(scope, after - before, origin);
        } else if after < before {
            meter.corrected(scope, Cost::Refunded, before - after);
            self.core.give_back(scope, before - after, origin);
        }
    }
}

impl Permit {
    #[inline]
    pub(crate) fn new(taken: Charged, tightest: Option<(usize, f64)>) -> Self {
        Self {
            charge: Charge::Own(taken),
            tightest: tightest.map(|(which, level)| (which as u32, level)),
        }
    }

    /// Decided without a call to Redis, for one scope.
    #[inline]
    pub(super) fn at_once(core: Arc<Core>, scopes: Scopes, level: f64) -> Self {
        let origin = match core.redis {
            Some(_) => DecidedBy::Redis,
            None => DecidedBy::Memory,
        };
        Self {
            charge: Charge::Own(Charged {
                core,
                scopes,
                origin: Origins::All(origin),
                settled: AtomicU64::new(f64::NAN.to_bits()),
            }),
            tightest: Some((0, level)),
        }
    }

    fn taken(&self) -> &Charged {
        match &self.charge {
            Charge::Own(taken) => taken,
            Charge::Shared(taken) => taken,
        }
    }

    /// Holds one of the scopes back, for all processes.
    #[cfg(feature = "learn")]
    pub(crate) fn pause(&self, which: usize, hold: std::time::Duration) {
        let taken = self.taken();
        if let Some(scope) = self.scopes().get(which) {
            taken.core.pause(scope, hold);
        }
    }

    /// Leaves no more than so many tokens of one of the scopes.
    #[cfg(feature = "learn")]
    pub(crate) fn cap_level(&self, which: usize, tokens: f64) {
        let taken = self.taken();
        if let Some(scope) = self.scopes().get(which) {
            taken.core.cap_level(scope, tokens);
        }
    }

    /// Gives back what nobody used of tokens that were to be used at `due`.
    pub(crate) fn give_back_late(self, due: Instant) {
        let taken = self.taken();
        if taken.swap(f64::INFINITY) != Some(None) {
            return;
        }
        for (index, scope) in taken.scopes.iter().enumerate() {
            let lost = scope.tokens() - unused(scope, due);
            taken.correct(index, scope, scope.tokens(), lost);
        }
    }

    /// Gives all the tokens back; later settling does nothing.
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
        self.taken().refund();
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
        self.taken().settle(actual);
    }

    /// Something to settle by later.
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
                let shared = Arc::new(Charged {
                    core: own.core.clone(),
                    scopes: own.scopes.clone(),
                    origin: own.origin.clone(),
                    settled: AtomicU64::new(own.settled.load(Ordering::Relaxed)),
                });
                self.charge = Charge::Shared(shared.clone());
                shared
            }
        };
        PermitHandle { taken }
    }

    /// The scopes that were taken from.
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
        self.taken().scopes.as_slice()
    }

    /// The scope with the smallest part of its capacity left, and its level in tokens: what
    /// headers tell. A bucket that was waited for is empty. None when this was decided without
    /// the store.
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

    /// Whether this process decided from its own memory, because Redis could not be asked in
    /// time.
    ///
    /// ```
    /// # use tower_throttle::{Limiter, Quota};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let api = Quota::per_second(1.0).scope("api");
    /// assert!(!Limiter::in_memory().try_acquire(api).await.unwrap().is_degraded());
    /// # }
    /// ```
    pub fn is_degraded(&self) -> bool {
        self.taken().origin.is_degraded()
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

    /// The scopes that were taken from.
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
