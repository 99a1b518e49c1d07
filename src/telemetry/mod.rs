//! What operators see: health, one log line per transition, counters.

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

pub(crate) use self::meter::{Backend, Cost, Meter, Outcome};
use crate::{
    decision::{Failure, FailureKind},
    error::{Reason, Rejected},
    scope::Scope,
};

#[cfg(feature = "metrics")]
mod handles;
mod meter;

/// Which store decides.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Health, Limiter};
///
/// assert_eq!(Limiter::in_memory().health(), Health::InMemory);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Redis, as far as anybody has noticed: a limiter that was never used has not asked.
    Redis,
    /// This process's memory, because Redis cannot be asked.
    #[non_exhaustive]
    Degraded {
        /// Since when.
        since: Instant,
        /// Why.
        reason: FailureKind,
    },
    /// This process's memory, by configuration.
    InMemory,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis => f.write_str("Redis decides"),
            Self::Degraded { since, reason } => write!(
                f,
                "memory decides for {:.1} s, because Redis cannot be asked: {reason}",
                since.elapsed().as_secs_f64()
            ),
            Self::InMemory => f.write_str("memory decides"),
        }
    }
}

/// How many limiters of this process decide from memory because Redis cannot be asked. A count,
/// so that one that recovers does not speak for another.
#[cfg(feature = "metrics")]
const DEGRADED: &str = "tower_throttle_degraded";

/// While overload lasts, it is logged once in this time.
const OVERLOAD_LOGGED: Duration = Duration::from_secs(10);

/// The part of each limit that the limiters of this process reserve for others that are missing,
/// summed over them.
#[cfg(feature = "metrics")]
const RESERVED: &str = "tower_throttle_reserved_ratio";

/// What others are to be told once no lock is held: watchers of health, subscribers and recorders
/// may run anything.
#[must_use]
#[derive(Debug)]
pub(crate) struct Noticed {
    changed: bool,
    transition: Option<Transition>,
}

impl Noticed {
    pub(crate) fn tell(self, observer: &Observer) {
        if self.changed {
            observer.publish();
        }
        self.transition.into_iter().for_each(Transition::tell);
    }
}

/// Redis went, or came back.
#[must_use]
#[derive(Debug)]
enum Transition {
    Gone(Failure),
    /// It was away since then.
    Back(Instant),
}

impl Transition {
    /// One log line and one metric.
    fn tell(self) {
        match self {
            Self::Gone(_failure) => {
                #[cfg(feature = "metrics")]
                metrics::gauge!(DEGRADED).increment(1.0);
                #[cfg(feature = "tracing")]
                tracing::warn!(
                    reason = %_failure.kind,
                    error = %_failure.source,
                    "Redis cannot be asked; deciding from memory"
                );
            }
            Self::Back(_since) => {
                #[cfg(feature = "metrics")]
                metrics::gauge!(DEGRADED).decrement(1.0);
                #[cfg(feature = "tracing")]
                tracing::info!(
                    away_seconds = _since.elapsed().as_secs_f64(),
                    "Redis answers again"
                );
            }
        }
    }
}

/// Notices when Redis goes and comes back, and how acquisitions end.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) meter: Meter,
    health: Mutex<Health>,
    /// Follows `health`.
    published: watch::Sender<Health>,
    /// By kind, in the order of `FailureKind::ALL`.
    fallbacks: [AtomicU64; FailureKind::ALL.len()],
    /// What was advised since the last outage ended.
    advised: Mutex<Vec<&'static str>>,
    /// When overload was logged last.
    overloaded: Mutex<Option<Instant>>,
    /// The bits of the part that was reported last.
    reserved: AtomicU64,
}

impl Observer {
    pub(crate) fn new(health: Health) -> Self {
        Self {
            meter: Meter::new(),
            health: Mutex::new(health.clone()),
            published: watch::Sender::new(health),
            fallbacks: Default::default(),
            advised: Mutex::default(),
            overloaded: Mutex::default(),
            reserved: AtomicU64::new(0f64.to_bits()),
        }
    }

    /// This limiter uses a part of each limit, and reserves the rest for so many that are missing.
    /// Called with no lock held, by one task at a time.
    pub(crate) fn reserves(&self, _missing: u32, part: f64) {
        let reserved = 1.0 - part;
        let before = f64::from_bits(self.reserved.swap(reserved.to_bits(), Ordering::Relaxed));
        // Reported also where nothing changes: a gauge that is not there cannot be watched.
        #[cfg(feature = "metrics")]
        metrics::gauge!(RESERVED).increment(reserved - before);
        #[cfg(feature = "tracing")]
        if reserved != before {
            if reserved > 0.0 {
                tracing::info!(
                    missing = _missing,
                    reserved,
                    "a part of each limit is reserved for limiters that are missing"
                );
            } else {
                tracing::info!("nothing is reserved for missing limiters any more");
            }
        }
        #[cfg(not(any(feature = "metrics", feature = "tracing")))]
        let _ = before;
    }

    pub(crate) fn health(&self) -> Health {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever changes `health` calls this after that, so that the last of them leaves what holds.
    fn publish(&self) {
        self.published.send_if_modified(|published| {
            let health = self.health();
            let changed = *published != health;
            *published = health;
            changed
        });
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Health> {
        self.published.subscribe()
    }

    /// Decisions made from memory because Redis was away.
    pub(crate) fn fallbacks(&self) -> u64 {
        let counts = self.fallbacks.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn fallbacks_by(&self, kind: FailureKind) -> u64 {
        self.fallbacks[kind as usize].load(Ordering::Relaxed)
    }

    /// To be called where the transition is decided, so that health cannot fall behind it; to be
    /// told to others once no lock is held.
    pub(crate) fn redis_fails(&self, failure: &Failure) -> Noticed {
        let kind = failure.kind;
        let mut health = self.lock();
        let (changed, begins) = match &mut *health {
            Health::Degraded { reason: known, .. } => {
                // What does not pass by itself is worth knowing; else an outage has one cause.
                let worse = kind == FailureKind::Misconfigured && *known != kind;
                if worse {
                    *known = kind;
                }
                (worse, false)
            }
            health => {
                *health = Health::Degraded {
                    since: Instant::now(),
                    reason: kind,
                };
                (true, true)
            }
        };
        Noticed {
            changed,
            transition: begins.then(|| Transition::Gone(failure.clone())),
        }
    }

    /// As `redis_fails`.
    pub(crate) fn redis_answers(&self) -> Noticed {
        let mut health = self.lock();
        let transition = match &*health {
            Health::Degraded { since, .. } => Some(Transition::Back(*since)),
            _ => None,
        };
        if transition.is_some() {
            *health = Health::Redis;
            self.advised().clear();
        }
        Noticed {
            changed: transition.is_some(),
            transition,
        }
    }

    /// Says what to do about a failure that does not pass by itself, once.
    pub(crate) fn misconfigured(&self, failure: &Failure) {
        let Some(advice) = failure.advice else {
            return;
        };
        let mut advised = self.advised();
        if advised.contains(&advice) {
            return;
        }
        advised.push(advice);
        drop(advised);
        #[cfg(feature = "tracing")]
        match failure.kind {
            FailureKind::Panicked => tracing::error!(error = %failure.source, "{advice}"),
            _ => tracing::error!(error = %failure.source, "Redis refuses this client: {advice}"),
        }
    }

    fn advised(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.advised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An acquisition was refused; `home` decides unless Redis is away. In the shadow, only told.
    pub(crate) fn refused(&self, rejected: &Rejected, home: Backend, shadow: bool) {
        let backend = match rejected.is_degraded() {
            true => Backend::Share,
            false => home,
        };
        let outcome = Outcome::of(rejected.reason(), shadow);
        self.meter.ended(rejected.scope(), outcome, backend);
        #[cfg(feature = "tracing")]
        tracing::debug!(
            policy = rejected.scope(),
            reason = ?rejected.reason(),
            retry_after = ?rejected.retry_after(),
            degraded = rejected.is_degraded(),
            shadow,
            "a demand is refused"
        );
    }

    /// The same where it took no call and no wait to know.
    #[inline]
    pub(crate) fn refused_at_once(
        &self,
        scope: &Scope,
        _retry_after: Duration,
        home: Backend,
        shadow: bool,
    ) {
        let outcome = Outcome::of(Reason::Limited, shadow);
        self.meter.ended(scope.name(), outcome, home);
        #[cfg(feature = "tracing")]
        tracing::debug!(
            policy = scope.name(),
            reason = ?Reason::Limited,
            retry_after = ?Some(_retry_after),
            degraded = false,
            shadow,
            "a demand is refused"
        );
    }

    /// A decision was made without Redis.
    pub(crate) fn fell_back(&self, kind: FailureKind) {
        self.fallbacks[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.meter.fell_back(kind);
        if kind == FailureKind::Overloaded {
            self.overloaded();
        }
    }

    /// Logs that Redis answers, and is asked for more than it decides. No transition: most
    /// decisions are still those of Redis.
    #[cold]
    fn overloaded(&self) {
        let now = Instant::now();
        let mut logged = self
            .overloaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.is_some_and(|at| now - at < OVERLOAD_LOGGED) {
            return;
        }
        *logged = Some(now);
        drop(logged);
        #[cfg(feature = "tracing")]
        tracing::warn!(
            "Redis answers, but more requests are queued than it decides in time; \
             deciding those in excess from memory"
        );
    }
}

#[cfg(feature = "metrics")]
impl Drop for Observer {
    fn drop(&mut self) {
        if matches!(self.health(), Health::Degraded { .. }) {
            metrics::gauge!(DEGRADED).decrement(1.0);
        }
        let reserved = f64::from_bits(self.reserved.load(Ordering::Relaxed));
        if reserved > 0.0 {
            metrics::gauge!(RESERVED).decrement(reserved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "scripted")
    }

    #[test]
    fn one_transition_each_way() {
        let observer = Observer::new(Health::Redis);
        let mut changes = observer.changes();
        observer.redis_answers().tell(&observer);
        assert!(!changes.has_changed().expect("open"));
        observer
            .redis_fails(&failure(FailureKind::Timeout))
            .tell(&observer);
        assert!(changes.has_changed().expect("open"));
        let first = changes.borrow_and_update().clone();
        observer
            .redis_fails(&failure(FailureKind::Disconnected))
            .tell(&observer);
        assert!(!changes.has_changed().expect("open"), "an outage is one");
        assert_eq!(observer.health(), first);
        observer
            .redis_fails(&failure(FailureKind::Misconfigured))
            .tell(&observer);
        let (
            Health::Degraded { since, .. },
            Health::Degraded {
                since: later,
                reason,
            },
        ) = (first, observer.health())
        else {
            panic!("not degraded");
        };
        assert_eq!((later, reason), (since, FailureKind::Misconfigured));
        observer.redis_answers().tell(&observer);
        assert_eq!(observer.health(), Health::Redis);
    }

    #[test]
    fn fallbacks_are_counted_by_kind() {
        let observer = Observer::new(Health::Redis);
        for (n, kind) in FailureKind::ALL.into_iter().enumerate() {
            for _ in 0..=n {
                observer.fell_back(kind);
            }
        }
        for (n, kind) in FailureKind::ALL.into_iter().enumerate() {
            assert_eq!(observer.fallbacks_by(kind), n as u64 + 1);
        }
        assert_eq!(observer.fallbacks(), 28);
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn an_outage_is_counted_without_allocating() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let told = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let observer = Observer::new(Health::Redis);
            observer.fell_back(FailureKind::Timeout);
            let counted = allocation_counter::measure(|| {
                for _ in 0..100 {
                    observer.fell_back(FailureKind::Timeout);
                }
            });
            assert_eq!(counted.count_total, 0);
        });
        let counted = "tower_throttle_fallback_total{reason=\"timeout\"} 101";
        assert!(told.render().contains(counted), "{}", told.render());
    }

    #[test]
    fn advice_is_given_once_an_outage() {
        let observer = Observer::new(Health::Redis);
        let advised = || observer.advised().len();
        let misconfigured = |advice| Failure {
            advice,
            ..failure(FailureKind::Misconfigured)
        };
        observer.misconfigured(&misconfigured(None));
        assert_eq!(advised(), 0);
        for _ in 0..2 {
            observer.misconfigured(&misconfigured(Some("mend the URL")));
            observer.misconfigured(&misconfigured(Some("mend the user")));
        }
        assert_eq!(advised(), 2);
        observer.redis_fails(&misconfigured(None)).tell(&observer);
        observer.redis_answers().tell(&observer);
        assert_eq!(advised(), 0);
    }
}
