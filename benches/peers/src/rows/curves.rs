//! Throughput by amount of work.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Outcome,
    redis::{self, SCRIPTS},
};
use crate::{
    case::rounds,
    helper::Helper,
    load::{self, Load},
    metric::{THROUGHPUT, throughput},
    plan::Plan,
    sample::Sample,
    server,
    subjects::{HOT, Keys, Limit, MANY, Minimal, NAIVE, Naive, THROTTLE, Throttle},
};

/// The first argument of a process that runs one limiter alone.
pub const ALONE: &str = "--alone";

/// Throughput by amount of work.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Curve {
    /// What the work is counted in.
    pub axis: String,
    pub lines: Vec<Line>,
}

/// One limiter: amount of work, and tokens/s.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    fn new(axis: &str) -> Self {
        Self {
            axis: axis.to_owned(),
            lines: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, x: f64, y: f64) {
        match self.lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push((x, y)),
            None => self.lines.push(Line {
                name: name.to_owned(),
                points: vec![(x, y)],
            }),
        }
    }

    fn into_outcome(self) -> Outcome {
        Outcome {
            curve: Some(self),
            ..Outcome::default()
        }
    }
}

/// Measures one point of each line.
async fn point(plan: Plan, curve: &mut Curve, x: usize, limit: Limit, load: Load) {
    let server = server::start().await;
    let cases = redis::cases(SCRIPTS, &server.url(), None, limit, load).await;
    for figures in rounds(&plan.short(), cases).await {
        curve.add(figures.name, x as f64, THROUGHPUT.median(&figures));
    }
}

fn points<'a>(plan: Plan, full: &'a [usize], quick: &'a [usize]) -> &'a [usize] {
    if plan.quick { quick } else { full }
}

pub async fn tasks(plan: Plan) -> Outcome {
    let mut curve = Curve::new("tasks");
    let full = &[1, 4, 16, 64, 256, 1_024, 4_096, 10_240];
    for &tasks in points(plan, full, &[1, 64]) {
        point(plan, &mut curve, tasks, HOT, Load::new(tasks, 1)).await;
    }
    curve.into_outcome()
}

pub async fn scopes(plan: Plan) -> Outcome {
    let mut curve = Curve::new("scopes");
    let full = &[1, 10, 100, 1_000, 10_000, 100_000];
    for &scopes in points(plan, full, &[1, 1_000]) {
        let limit = if scopes < 100 { HOT } else { MANY };
        point(plan, &mut curve, scopes, limit, Load::new(1_024, scopes)).await;
    }
    curve.into_outcome()
}

const PROCESS_TASKS: usize = 256;

pub async fn processes(plan: Plan) -> Outcome {
    let mut curve = Curve::new("processes");
    for &processes in points(plan, &[1, 2, 4, 8], &[1, 2]) {
        for (name, subject) in [(NAIVE, "naive"), (THROTTLE, "throttle")] {
            let server = server::start().await;
            let sum = swarm(&server.url(), subject, processes, plan.slice);
            curve.add(name, processes as f64, sum);
        }
    }
    curve.into_outcome()
}

/// Operations per second of all processes together.
fn swarm(url: &str, subject: &str, processes: usize, slice: Duration) -> f64 {
    let slice = slice.as_millis().to_string();
    let start = |_| Helper::start(&[ALONE, subject, url, &slice]);
    let helpers: Vec<_> = (0..processes).map(start).collect();
    let figure = |mut helper: Helper| helper.line().parse::<f64>().expect("it prints a number");
    helpers.into_iter().map(figure).sum()
}

/// Runs one subject, for a child process or a profiler, and prints its operations per second.
pub async fn alone(subject: &str, url: &str, slice: Duration) {
    let keys = &Keys::new(1);
    let sample = match subject {
        "naive" => of(&Naive::new(url, HOT, keys).await, slice).await,
        "minimal" => of(&Minimal::new(url, HOT, keys).await, slice).await,
        "leased" => {
            of(
                &Throttle::leasing(url, "leased", HOT, keys, 16_384.0),
                slice,
            )
            .await
        }
        "throttle" => of(&Throttle::redis(url, "bench", HOT, keys), slice).await,
        "memory" => load::tight(&Throttle::memory("bench", HOT, keys), 1, 1, slice),
        "layer" => load::tight(&super::memory::fixed_layer(), 1, 1, slice),
        unknown => panic!("no subject is named {unknown}"),
    };
    println!("{}", throughput(&sample));
}

async fn of<S: load::Subject>(subject: &S, slice: Duration) -> Sample {
    let load = Load::new(PROCESS_TASKS, 1);
    // Long enough for all processes to start.
    load::round(subject, load, None, Duration::from_millis(150)).await;
    load::round(subject, load, None, slice).await
}
