//! Detects the changes that operators see: outages, reserved parts, and decisions without Redis.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    health::Health,
    labels::{Backend, Outcome},
    log,
    meter::Meter,
};
use crate::{
    decision::{Failure, FailureKind},
    rejected::{Reason, Rejected},
    scope::Scope,
};

/// While overload lasts, it is logged once in this time.
const OVERLOAD_LOGGED: Duration = Duration::from_secs(10);

/// A change of health, to be reported once no lock is held: watchers of health, subscribers and
/// recorders may run any code.
#[must_use]
#[derive(Debug)]
pub(crate) struct HealthChange {
    changed: bool,
    outage: Option<Outage>,
}

#[derive(Debug)]
enum Outage {
    Begins(Failure),
    /// It began then.
    Ends(Instant),
}

impl HealthChange {
    pub(crate) fn report(self, observer: &Observer) {
        if self.changed {
            observer.publish();
        }
        match self.outage {
            Some(Outage::Begins(failure)) => {
                observer.meter.degraded(1.0);
                log::redis_unavailable(&observer.redis, &failure);
            }
            Some(Outage::Ends(since)) => {
                observer.meter.degraded(-1.0);
                log::redis_recovered(&observer.redis, since);
            }
            None => {}
        }
    }
}

#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) meter: Meter,
    /// The address of Redis, without user and password.
    redis: String,
    health: Mutex<Health>,
    /// Follows `health`.
    published: watch::Sender<Health>,
    /// By kind, in the order of `FailureKind::ALL`.
    fallbacks: [AtomicU64; FailureKind::ALL.len()],
    /// The advice that was logged since the last outage ended.
    advised: Mutex<Vec<&'static str>>,
    /// When overload was last logged.
    overload_logged: Mutex<Option<Instant>>,
    /// The bits of the reserved part that was last reported.
    reserved: AtomicU64,
}

impl Observer {
    pub(crate) fn new(health: Health, redis: String) -> Self {
        Self {
            meter: Meter::new(),
            redis,
            health: Mutex::new(health.clone()),
            published: watch::Sender::new(health),
            fallbacks: Default::default(),
            advised: Mutex::default(),
            overload_logged: Mutex::default(),
            reserved: AtomicU64::new(0f64.to_bits()),
        }
    }

    pub(crate) fn health(&self) -> Health {
        self.lock().clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Health> {
        self.published.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called after each change of `health`. Reads it again, so that of several concurrent calls the
    /// last one publishes the newest value.
    fn publish(&self) {
        self.published.send_if_modified(|published| {
            let health = self.health();
            let changed = *published != health;
            *published = health;
            changed
        });
    }

    /// Redis is unavailable. Called under the lock of the connection, so that health changes in the
    /// same order as the connection.
    pub(crate) fn redis_failed(&self, failure: &Failure) -> HealthChange {
        let kind = failure.kind;
        let mut health = self.lock();
        match &mut *health {
            Health::Degraded { reason, .. } => {
                // An outage has one reason, except that one which needs the operator replaces
                // another.
                let changed = kind == FailureKind::Misconfigured && *reason != kind;
                if changed {
                    *reason = kind;
                }
                HealthChange {
                    changed,
                    outage: None,
                }
            }
            health => {
                *health = Health::Degraded {
                    since: Instant::now(),
                    reason: kind,
                };
                HealthChange {
                    changed: true,
                    outage: Some(Outage::Begins(failure.clone())),
                }
            }
        }
    }

    /// Redis is available again. Called as `redis_failed`.
    pub(crate) fn redis_recovered(&self) -> HealthChange {
        let mut health = self.lock();
        let outage = match &*health {
            Health::Degraded { since, .. } => Some(Outage::Ends(*since)),
            _ => None,
        };
        if outage.is_some() {
            *health = Health::Redis;
            self.advised().clear();
        }
        HealthChange {
            changed: outage.is_some(),
            outage,
        }
    }

    /// Logs what to do about a failure that does not pass without the operator: each advice once an
    /// outage.
    pub(crate) fn advise(&self, failure: &Failure) {
        let Some(advice) = failure.advice else {
            return;
        };
        let mut advised = self.advised();
        if advised.contains(&advice) {
            return;
        }
        advised.push(advice);
        drop(advised);
        log::advice(&self.redis, failure, advice);
    }

    fn advised(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.advised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This limiter uses `part` of each rate, and reserves the rest for so many missing limiters.
    /// Called by one task at a time, with no lock held.
    pub(crate) fn reserved(&self, missing: u32, part: f64) {
        let reserved = 1.0 - part;
        let before = f64::from_bits(self.reserved.swap(reserved.to_bits(), Ordering::Relaxed));
        // Also if nothing changes, so that the gauge exists.
        self.meter.reserved(reserved - before);
        if reserved != before {
            log::reserved(missing, reserved);
        }
    }

    /// A decision was made without Redis.
    pub(crate) fn fell_back(&self, kind: FailureKind) {
        self.fallbacks[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.meter.fell_back(kind);
        if kind == FailureKind::Overloaded {
            self.overloaded();
        }
    }

    /// Decisions made without Redis, for all reasons.
    pub(crate) fn fallbacks(&self) -> u64 {
        let counts = self.fallbacks.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn fallbacks_by(&self, kind: FailureKind) -> u64 {
        self.fallbacks[kind as usize].load(Ordering::Relaxed)
    }

    /// Overload is no outage: Redis makes most of the decisions.
    #[cold]
    fn overloaded(&self) {
        let now = Instant::now();
        let mut logged = self
            .overload_logged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.is_some_and(|at| now - at < OVERLOAD_LOGGED) {
            return;
        }
        *logged = Some(now);
        drop(logged);
        log::overloaded(&self.redis);
    }

    /// An acquisition was rejected, by `primary` unless it was degraded. In shadow mode it is only
    /// counted and logged.
    pub(crate) fn rejected(&self, rejected: &Rejected, primary: Backend, shadow: bool) {
        let backend = match rejected.is_degraded() {
            true => Backend::Share,
            false => primary,
        };
        let (scope, reason) = (rejected.scope(), rejected.reason());
        self.meter
            .ended(scope, Outcome::of(reason, shadow), backend);
        let (retry_after, degraded) = (rejected.retry_after(), rejected.is_degraded());
        log::rejected(scope, reason, retry_after, degraded, shadow);
    }

    /// The same for a decision that took neither a call nor a wait.
    #[inline]
    pub(crate) fn rejected_at_once(
        &self,
        scope: &Scope,
        retry_after: Duration,
        primary: Backend,
        shadow: bool,
    ) {
        let (scope, reason) = (scope.name(), Reason::Limited);
        self.meter
            .ended(scope, Outcome::of(reason, shadow), primary);
        log::rejected(scope, reason, Some(retry_after), false, shadow);
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if matches!(self.health(), Health::Degraded { .. }) {
            self.meter.degraded(-1.0);
        }
        let reserved = f64::from_bits(self.reserved.load(Ordering::Relaxed));
        if reserved > 0.0 {
            self.meter.reserved(-reserved);
        }
    }
}

#[cfg(test)]
mod tests;
