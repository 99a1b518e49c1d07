//! The callers in a process, and the record of their acquisitions.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::plan::{Limit, Plan, Role};
use crate::{
    limiter::{Limiter, Permit},
    rejected::{Reason, Rejected},
    scope::Scopes,
    telemetry::Health,
    verification::bucket_model::Rng,
};

/// The longest pause of a rejected caller.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Tokens that were admitted, or, below zero, returned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    pub(crate) at: Duration,
    pub(crate) process: usize,
    pub(crate) limit: usize,
    pub(crate) tokens: f64,
    pub(crate) degraded: bool,
}

/// An acquisition that was decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decided {
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    pub(crate) max_wait: Duration,
    pub(crate) unavailable: bool,
    /// The limiter was in degraded mode at the request and at the decision.
    pub(crate) degraded: bool,
    pub(crate) process: usize,
}

/// The time for which one process was in degraded mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    pub(crate) process: usize,
    pub(crate) from: Duration,
    pub(crate) until: Option<Duration>,
}

/// An acquisition that is not decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undecided {
    pub(crate) at: Duration,
    pub(crate) max_wait: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Record {
    /// By process and task.
    pub(crate) undecided: BTreeMap<(usize, usize), Undecided>,
    pub(crate) admitted: Vec<Admitted>,
    pub(crate) decided: Vec<Decided>,
    pub(crate) outages: Vec<Outage>,
}

/// One task of one process.
pub(crate) struct Caller {
    pub(crate) limiter: Limiter,
    pub(crate) process: usize,
    pub(crate) task: usize,
    pub(crate) role: Role,
    pub(crate) plan: Arc<Plan>,
    pub(crate) record: Arc<Mutex<Record>>,
    pub(crate) start: Instant,
    pub(crate) rng: Rng,
    /// The `retry_after` of the last rejection.
    pub(crate) retry_after: Option<Duration>,
}

impl Caller {
    pub(crate) async fn run(mut self) {
        loop {
            self.retry_after = None;
            self.act().await;
            sleep(self.pause(self.retry_after)).await;
        }
    }

    /// A caller that does not wait retries at once, or after `retry_after`, so that every token is
    /// spent.
    fn pause(&mut self, retry_after: Option<Duration>) -> Duration {
        let jitter = Duration::from_millis(u64::from(1 + self.rng.below(10)));
        let quiet = self.plan.quiet();
        let now = self.start.elapsed();
        if quiet.contains(&now) {
            let rate = self.plan.limits[0].rate;
            let tasks = self.plan.busy * self.plan.roles.len();
            let pause = Duration::from_secs_f64(4.0 * tasks as f64 / rate);
            return pause.mul_f64(0.5 + self.rng.part()).min(quiet.end - now) + jitter;
        }
        match (self.role, retry_after) {
            (Role::Tries(..), None) => jitter,
            (_, Some(retry_after)) => retry_after.min(LONGEST_PAUSE) + jitter,
            (Role::Cancels(limit, ..) | Role::Waits(limit, ..) | Role::Settles(limit, _), None) => {
                let mean = self.plan.busy as f64 / self.plan.limits[limit].rate;
                Duration::from_secs_f64(mean * (0.5 + self.rng.part()))
            }
            (Role::Both(_), None) => 20 * jitter,
        }
    }

    async fn act(&mut self) {
        match self.role {
            Role::Tries(limit, cost) => {
                self.acquire(&[(limit, cost)], 0).await;
            }
            Role::Waits(limit, cost, max_wait) => {
                self.acquire(&[(limit, cost)], max_wait).await;
            }
            Role::Cancels(limit, cost, max_wait) => {
                let patience = Duration::from_millis(u64::from(self.rng.below(2 * max_wait)));
                // Drops the future in any state.
                let _ = timeout(patience, self.acquire(&[(limit, cost)], max_wait)).await;
                self.note(|record| {
                    record.undecided.remove(&(self.process, self.task));
                });
            }
            Role::Settles(limit, cost) => {
                let Some(permit) = self.acquire(&[(limit, cost)], 0).await else {
                    return;
                };
                sleep(Duration::from_millis(u64::from(self.rng.below(300)))).await;
                let actual = (cost * self.rng.part()).floor();
                if self.rng.percent(50) {
                    permit.settle(actual);
                    self.admits(limit, actual - cost, permit.is_degraded());
                } else {
                    let degraded = permit.is_degraded();
                    permit.refund();
                    self.admits(limit, -cost, degraded);
                }
            }
            Role::Both(max_wait) => {
                self.acquire(&[(0, 1.0), (1, 1.0)], max_wait).await;
            }
        }
    }

    async fn acquire(&mut self, of: &[(usize, f64)], max_wait: u32) -> Option<Permit> {
        let scope = |(limit, cost): &(usize, f64)| {
            let limits: &[Limit] = &self.plan.limits;
            limits[*limit].scope(*limit).cost(*cost)
        };
        let scopes: Scopes = of.iter().map(scope).collect::<Vec<_>>().into();
        let max_wait = Duration::from_millis(u64::from(max_wait));
        let start = Instant::now();
        let is_degraded = || matches!(self.limiter.health(), Health::Degraded { .. });
        let degraded = is_degraded();
        let undecided = Undecided {
            at: start - self.start,
            max_wait,
        };
        let task = (self.process, self.task);
        self.note(|record| {
            record.undecided.insert(task, undecided);
        });
        let result = self.limiter.acquire(scopes, max_wait).await;
        let degraded = degraded && is_degraded();
        // A strict share that is smaller than the cost admits nothing.
        let over_share = of.iter().any(|(limit, cost)| {
            let limit = &self.plan.limits[*limit];
            limit.strict && *cost > limit.capacity / self.plan.processes as f64
        });
        let unavailable = |error: &Rejected| error.reason() == Reason::Unavailable && !over_share;
        self.note(|record| {
            record.undecided.remove(&task);
            record.decided.push(Decided {
                at: start - self.start,
                took: start.elapsed(),
                max_wait,
                unavailable: result.as_ref().is_err_and(unavailable),
                degraded,
                process: self.process,
            });
        });
        if let Err(error) = &result {
            self.retry_after = error.retry_after();
        }
        let permit = result.ok()?;
        for (limit, cost) in of {
            self.admits(*limit, *cost, permit.is_degraded());
        }
        Some(permit)
    }

    fn admits(&self, limit: usize, tokens: f64, degraded: bool) {
        let at = self.start.elapsed();
        self.note(|record| {
            record.admitted.push(Admitted {
                at,
                process: self.process,
                limit,
                tokens,
                degraded,
            });
        });
    }

    fn note(&self, f: impl FnOnce(&mut Record)) {
        f(&mut self.record.lock().expect("no panic while it is held"));
    }
}

/// Records the outages of one process.
pub(crate) async fn watch(
    mut changes: tokio::sync::watch::Receiver<Health>,
    process: usize,
    record: Arc<Mutex<Record>>,
    start: Instant,
) {
    while changes.changed().await.is_ok() {
        let degraded = matches!(*changes.borrow_and_update(), Health::Degraded { .. });
        let at = start.elapsed();
        let mut record = record.lock().expect("no panic while it is held");
        let mut outages = record.outages.iter_mut();
        let open = outages
            .rfind(|outage| outage.process == process)
            .filter(|outage| outage.until.is_none());
        match open {
            // It ended and began again before this task ran.
            Some(_) if degraded => {}
            Some(outage) => outage.until = Some(at),
            None if degraded => record.outages.push(Outage {
                process,
                from: at,
                until: None,
            }),
            None => {}
        }
    }
}
