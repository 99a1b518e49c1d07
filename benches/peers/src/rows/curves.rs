//! Throughput by amount of work.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::{
    case::{Case, ops_per_second, rounds},
    load::{self, Load},
    plan::Plan,
    server::{self, Proxy},
    subjects::{Cell, HOT, Keys, Limit, MANY, MINIMAL, Minimal, NAIVE, Naive, THROTTLE, Throttle},
};

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
async fn point(plan: &Plan, curve: &mut Curve, x: f64, url: &str, limit: Limit, load: Load) {
    let keys = &Keys::new(load.scopes);
    let mut cases = vec![
        Case::new(NAIVE, Naive::new(url, limit, keys).await, load, None),
        Case::new(MINIMAL, Minimal::new(url, limit, keys).await, load, None),
        Case::new(
            THROTTLE,
            Throttle::redis(url, "bench", limit, keys),
            load,
            None,
        ),
    ];
    if server::cell_module().is_some() {
        let cell = Cell::new(url, limit, keys).await;
        cases.push(Case::new("redis-cell", cell, load, None));
    }
    for figures in rounds(&plan.short(), cases).await {
        curve.add(figures.name, x, figures.median(ops_per_second));
    }
}

fn points<'a>(plan: &Plan, full: &'a [usize], quick: &'a [usize]) -> &'a [usize] {
    if plan.quick { quick } else { full }
}

pub async fn tasks(plan: &Plan) -> Outcome {
    let mut curve = Curve::new("tasks");
    let full = &[1, 4, 16, 64, 256, 1_024, 4_096, 10_240];
    for &tasks in points(plan, full, &[1, 64, 1_024]) {
        let server = server::start().await;
        let load = Load { tasks, scopes: 1 };
        point(plan, &mut curve, tasks as f64, &server.url(), HOT, load).await;
    }
    curve.into_outcome()
}

pub async fn scopes(plan: &Plan) -> Outcome {
    let mut curve = Curve::new("scopes");
    let full = &[1, 10, 100, 1_000, 10_000, 100_000, 1_000_000];
    for &scopes in points(plan, full, &[1, 100, 10_000]) {
        let server = server::start().await;
        let limit = if scopes < 100 { HOT } else { MANY };
        let load = Load {
            tasks: 1_024,
            scopes,
        };
        point(plan, &mut curve, scopes as f64, &server.url(), limit, load).await;
    }
    curve.into_outcome()
}

pub async fn distance(plan: &Plan) -> Outcome {
    let mut curve = Curve::new("added round trip, ms");
    for &milliseconds in points(plan, &[0, 1, 5], &[0, 5]) {
        let server = server::start().await;
        let proxy = Proxy::start(server.port()).await;
        if milliseconds > 0 {
            proxy.delay(Duration::from_millis(milliseconds as u64) / 2);
        }
        let load = Load {
            tasks: 1_024,
            scopes: 1,
        };
        point(
            plan,
            &mut curve,
            milliseconds as f64,
            &proxy.url(),
            HOT,
            load,
        )
        .await;
    }
    curve.into_outcome()
}

const PROCESS_TASKS: usize = 256;

pub async fn processes(plan: &Plan) -> Outcome {
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
    let program = std::env::current_exe().expect("this program has a path");
    let children: Vec<_> = (0..processes)
        .map(|_| {
            Command::new(&program)
                .args(["--alone", subject, url, &slice.as_millis().to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a child process does not start")
        })
        .collect();
    let outputs = children.into_iter().map(|child| {
        child
            .wait_with_output()
            .expect("cannot wait for a child process")
    });
    let figures = outputs.map(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figure = text.trim().parse::<f64>();
        figure.unwrap_or_else(|_| panic!("a child process printed {text:?}"))
    });
    figures.sum()
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
    println!("{}", ops_per_second(&sample));
}

async fn of<S: load::Subject>(subject: &S, slice: Duration) -> load::Sample {
    let load = Load {
        tasks: PROCESS_TASKS,
        scopes: 1,
    };
    // Long enough for all processes to start.
    load::round(subject, load, None, Duration::from_millis(150)).await;
    load::round(subject, load, None, slice).await
}
