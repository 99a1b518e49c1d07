//! What the callers in a process do, and what is written down of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::plan::{Limit, Plan, Role};
use crate::{
    error::{Reason, Rejected},
    limiter::{Limiter, Permit},
    scope::Scopes,
    telemetry::Health,
    verification::bucket_model::Rng,
};

/// A refused caller comes again after so long at the latest.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Tokens that were admitted, or, below zero, given back.
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
    /// Redis was known to be away when it was asked for, and when it was decided.
    pub(crate) away: bool,
    pub(crate) process: usize,
}

/// Redis was away for one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spell {
    pub(crate) process: usize,
    pub(crate) from: Duration,
    pub(crate) until: Option<Duration>,
}

/// An acquisition that is not decided yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking {
    pub(crate) at: Duration,
    pub(crate) max_wait: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Record {
    /// By process and task.
    pub(crate) asking: BTreeMap<(usize, usize), Asking>,
    pub(crate) admitted: Vec<Admitted>,
    pub(crate) decided: Vec<Decided>,
    pub(crate) spells: Vec<Spell>,
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
    /// When it may come again, if it was refused.
    pub(crate) refused: Option<Duration>,
}

impl Caller {
    pub(crate) async fn run(mut self) {
        loop {
            self.refused = None;
            self.act().await;
            sleep(self.pause(self.refused)).await;
        }
    }

    /// Whoever asks comes again at once, or when it was told to: all that there is is spent.
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
            (Role::Asks(..), None) => jitter,
            (_, Some(retry_after)) => retry_after.min(LONGEST_PAUSE) + jitter,
            (Role::Leaves(limit, ..) | Role::Waits(limit, ..) | Role::Settles(limit, _), None) => {
                let mean = self.plan.busy as f64 / self.plan.limits[limit].rate;
                Duration::from_secs_f64(mean * (0.5 + self.rng.part()))
            }
            (Role::Both(_), None) => 20 * jitter,
        }
    }

    async fn act(&mut self) {
        match self.role {
            Role::Asks(limit, cost) => {
                self.acquire(&[(limit, cost)], 0).await;
            }
            Role::Waits(limit, cost, max_wait) => {
                self.acquire(&[(limit, cost)], max_wait).await;
            }
            Role::Leaves(limit, cost, max_wait) => {
                let patience = Duration::from_millis(u64::from(self.rng.below(2 * max_wait)));
                // Its future is dropped, wherever it is.
                let _ = timeout(patience, self.acquire(&[(limit, cost)], max_wait)).await;
                self.note(|record| {
                    record.asking.remove(&(self.process, self.task));
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
        let asked = Instant::now();
        let is_away = || matches!(self.limiter.health(), Health::Degraded { .. });
        let away = is_away();
        let asking = Asking {
            at: asked - self.start,
            max_wait,
        };
        let task = (self.process, self.task);
        self.note(|record| {
            record.asking.insert(task, asking);
        });
        let result = self.limiter.acquire(scopes, max_wait).await;
        let away = away && is_away();
        // A strict share that is smaller than the cost admits nothing.
        let over_share = of.iter().any(|(limit, cost)| {
            let limit = &self.plan.limits[*limit];
            limit.strict && *cost > limit.capacity / self.plan.processes as f64
        });
        let unavailable = |error: &Rejected| error.reason() == Reason::Unavailable && !over_share;
        self.note(|record| {
            record.asking.remove(&task);
            record.decided.push(Decided {
                at: asked - self.start,
                took: asked.elapsed(),
                max_wait,
                unavailable: result.as_ref().is_err_and(unavailable),
                away,
                process: self.process,
            });
        });
        if let Err(error) = &result {
            self.refused = error.retry_after();
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

/// Writes down when Redis goes and comes for one process.
pub(crate) async fn watch(
    mut changes: tokio::sync::watch::Receiver<Health>,
    process: usize,
    record: Arc<Mutex<Record>>,
    start: Instant,
) {
    while changes.changed().await.is_ok() {
        let away = matches!(*changes.borrow_and_update(), Health::Degraded { .. });
        let at = start.elapsed();
        let mut record = record.lock().expect("no panic while it is held");
        let mut spells = record.spells.iter_mut();
        let open = spells
            .rfind(|spell| spell.process == process)
            .filter(|spell| spell.until.is_none());
        match open {
            // It went and came again before this task heard of it.
            Some(_) if away => {}
            Some(spell) => spell.until = Some(at),
            None if away => record.spells.push(Spell {
                process,
                from: at,
                until: None,
            }),
            None => {}
        }
    }
}
