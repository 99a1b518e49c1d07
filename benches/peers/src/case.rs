//! A case is one subject under one load. The cases of a row alternate in rounds.

use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture};
use tokio::time::Instant;

use crate::{
    load::{self, Arrivals, Load, Subject},
    open,
    plan::Plan,
    sample::Sample,
    server::Probe,
    subjects::Limit,
};

type Run = Box<dyn Fn(Duration) -> LocalBoxFuture<'static, Sample>>;

/// How many tokens a limit allows, to which the admitted ones are compared.
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// All requests.
    Every,
    /// The limit of this many buckets, over all rounds together.
    Once(Limit, usize),
    /// The limit of one new bucket per round.
    EachRound(Limit),
}

pub struct Case {
    name: &'static str,
    allowed: Allowed,
    failures: Box<dyn Fn() -> u64>,
    run: Run,
}

impl Case {
    /// Runs as tasks of the runtime.
    pub fn new<S: Subject>(
        name: &'static str,
        subject: S,
        load: Load,
        probe: Option<&Probe>,
    ) -> Self {
        let probe = probe.cloned();
        let counted = subject.clone();
        let run = move |slice| {
            let (subject, probe) = (subject.clone(), probe.clone());
            let round = async move {
                match load.arrivals {
                    Arrivals::Open(rate) => {
                        open::round(&subject, load.scopes, rate, probe.as_ref(), slice).await
                    }
                    _ => load::round(&subject, load, probe.as_ref(), slice).await,
                }
            };
            round.boxed_local()
        };
        Self {
            failures: Box::new(move || counted.failures()),
            ..Self::of(name, Box::new(run))
        }
    }

    /// Runs in threads without a runtime.
    pub fn tight<S: Subject>(
        name: &'static str,
        subject: S,
        threads: usize,
        scopes: usize,
    ) -> Self {
        let run = move |slice| {
            let sample = load::tight(&subject, threads, scopes, slice);
            async move { sample }.boxed_local()
        };
        Self::of(name, Box::new(run))
    }

    /// Runs a loop of its own.
    pub fn of(name: &'static str, run: Run) -> Self {
        Self {
            name,
            allowed: Allowed::Every,
            failures: Box::new(|| 0),
            run,
        }
    }

    pub fn allowed(mut self, allowed: Allowed) -> Self {
        self.allowed = allowed;
        self
    }
}

/// The samples of a case.
#[derive(Clone, Debug)]
pub struct Figures {
    pub name: &'static str,
    pub samples: Vec<Sample>,
    /// Admitted / allowed: the lowest and the highest round.
    pub admitted: (f64, f64),
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| !value.is_nan());
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Warms up every case, then runs the cases in rounds. Each round begins with another case, so that
/// no case always runs after the same other one.
pub async fn rounds(plan: &Plan, cases: Vec<Case>) -> Vec<Figures> {
    let started = Instant::now();
    let mut lifetime = vec![0; cases.len()];
    for (case, total) in cases.iter().zip(&mut lifetime) {
        *total += (case.run)(plan.warm_up).await.total_admitted;
    }
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..plan.rounds {
        for offset in 0..cases.len() {
            let index = (offset + round) % cases.len();
            let failures = (cases[index].failures)();
            let mut sample = (cases[index].run)(plan.slice).await;
            sample.failures = (cases[index].failures)() - failures;
            lifetime[index] += sample.total_admitted;
            samples[index].push(sample);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let figures = cases.iter().zip(samples).zip(lifetime);
    figures
        .map(|((case, samples), lifetime)| {
            let each = |of: &dyn Fn(&Sample) -> f64| {
                let values: Vec<f64> = samples.iter().map(of).collect();
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                (least, values.iter().copied().fold(0.0, f64::max))
            };
            let admitted = match case.allowed {
                Allowed::Every => each(&|sample| sample.admitted as f64 / sample.ops as f64),
                Allowed::Once(limit, scopes) => {
                    let ratio = lifetime as f64 / (limit.allowed(seconds) * scopes as f64);
                    (ratio, ratio)
                }
                Allowed::EachRound(limit) => each(&|sample| {
                    sample.total_admitted as f64 / limit.allowed(sample.total_seconds)
                }),
            };
            Figures {
                name: case.name,
                samples,
                admitted,
            }
        })
        .collect()
}
