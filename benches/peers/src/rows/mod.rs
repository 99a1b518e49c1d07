//! The rows of the report. Each measures one workload and compares it to its targets.

mod costs;
mod curves;
mod memory;
mod rejected;
mod round_trip;
mod shared;
mod waiting;

use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

pub use self::curves::{Curve, Line, alone};
use crate::{
    case::Figures,
    plan::Plan,
    subjects::{MINIMAL, NAIVE, THROTTLE},
};

/// A figure with a target.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Claim {
    pub what: String,
    #[serde(flatten)]
    pub target: Target,
    #[serde(rename = "figure")]
    pub value: f64,
    pub unit: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Claim {
    pub fn at_least(what: impl Into<String>, least: f64, value: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: Target::AtLeast(least),
            value,
            unit: unit.to_owned(),
        }
    }

    pub fn at_most(what: impl Into<String>, most: f64, value: f64, unit: &str) -> Self {
        Self {
            what: what.into(),
            target: Target::AtMost(most),
            value,
            unit: unit.to_owned(),
        }
    }

    pub fn is_reached(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
        }
    }
}

/// The results of one row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub claims: Vec<Claim>,
    pub figures: Vec<Figures>,
    /// Counts that are not timed, such as allocations.
    pub counts: Vec<(String, f64)>,
    pub curve: Option<Curve>,
}

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    /// The case that ratios are relative to.
    pub base: &'static str,
    pub run: for<'a> fn(&'a Plan) -> LocalBoxFuture<'a, Outcome>,
}

macro_rules! row {
    ($name:literal, $base:expr, $title:literal, $run:expr) => {
        Row {
            name: $name,
            title: $title,
            base: $base,
            run: |plan| Box::pin($run(plan)),
        }
    };
}

pub fn all() -> Vec<Row> {
    vec![
        row!("hot-1", MINIMAL, "One hot scope, 1 task", shared::hot_1),
        row!("hot-64", NAIVE, "One hot scope, 64 tasks", shared::hot_64),
        row!(
            "hot-1024",
            NAIVE,
            "One hot scope, 1,024 tasks",
            shared::hot_1024
        ),
        row!(
            "hot-10240",
            NAIVE,
            "One hot scope, 10,240 tasks",
            shared::hot_10240
        ),
        row!(
            "lease",
            NAIVE,
            "One hot scope with a lease of 1,024 tokens, 1,024 tasks",
            shared::lease
        ),
        row!(
            "scopes-10k",
            NAIVE,
            "10,000 scopes, 1,024 tasks",
            shared::scopes_10k
        ),
        row!(
            "scopes-100k",
            NAIVE,
            "100,000 scopes, 1,024 tasks",
            shared::scopes_100k
        ),
        row!(
            "rejected-1",
            "governor",
            "One rejected scope, 1,024 tasks",
            rejected::one
        ),
        row!(
            "rejected-10k",
            "governor",
            "10,000 rejected scopes, 1,024 tasks",
            rejected::many
        ),
        row!(
            "waiting",
            THROTTLE,
            "512 waiters at 20,000 tokens/s, two limiters",
            waiting::patient
        ),
        row!(
            "waiting-cancelled",
            THROTTLE,
            "512 waiters at 20,000 tokens/s, one in five cancelled",
            waiting::cancelled
        ),
        row!(
            "memory-1",
            "governor",
            "In memory, one scope, 1 thread",
            memory::one
        ),
        row!(
            "memory-10k",
            "governor",
            "In memory, 10,000 scopes, 1 thread",
            memory::ten_thousand
        ),
        row!(
            "memory-1m",
            "governor",
            "In memory, 1,000,000 scopes, 1 thread",
            memory::million
        ),
        row!(
            "memory-rejected",
            "governor",
            "In memory, one rejected scope, 2 threads",
            memory::rejected
        ),
        row!(
            "layer",
            "governor",
            "The layer over a no-op service, in memory, 1 thread",
            memory::layer
        ),
        row!(
            "layer-1024",
            "governor",
            "In memory, one scope, 1,024 tasks, all peers",
            memory::tasks
        ),
        row!(
            "allocations",
            "",
            "Allocations per acquisition",
            costs::allocations
        ),
        row!(
            "bytes",
            "",
            "Bytes per bucket that is not full",
            costs::bytes
        ),
        row!(
            "round-trip",
            NAIVE,
            "Redis with a round trip of 5 ms, one hot scope, 64 tasks",
            round_trip::hot
        ),
        row!(
            "curve-tasks",
            "",
            "Throughput by number of tasks: one hot scope",
            curves::tasks
        ),
        row!(
            "curve-scopes",
            "",
            "Throughput by number of scopes: 1,024 tasks",
            curves::scopes
        ),
        row!(
            "curve-processes",
            "",
            "Throughput by number of processes: one hot scope, 256 tasks each",
            curves::processes
        ),
        row!(
            "curve-round-trip",
            "",
            "Throughput by round trip: one hot scope, 1,024 tasks",
            curves::distance
        ),
    ]
}

/// # Panics
///
/// If the row has no case of that name.
fn case<'a>(figures: &'a [Figures], name: &str) -> &'a Figures {
    let found = figures.iter().find(|figures| figures.name == name);
    found.unwrap_or_else(|| panic!("no case is called {name}"))
}
