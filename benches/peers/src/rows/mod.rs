//! What is claimed, row by row, and what it takes to know.

mod costs;
mod curves;
mod distant;
mod memory;
mod refused;
mod shared;
mod waiting;

use futures_util::future::LocalBoxFuture;

pub use self::curves::{Curve, alone};
use crate::{case::Figures, plan::Plan};

/// A figure that was promised.
#[derive(Clone, Debug)]
pub struct Claim {
    pub what: String,
    pub target: Target,
    pub value: f64,
    pub unit: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Claim {
    pub fn at_least(what: impl Into<String>, least: f64, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            target: Target::AtLeast(least),
            value,
            unit,
        }
    }

    pub fn at_most(what: impl Into<String>, most: f64, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            target: Target::AtMost(most),
            value,
            unit,
        }
    }

    pub fn is_reached(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
        }
    }
}

/// What one row came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub claims: Vec<Claim>,
    pub figures: Vec<Figures>,
    /// Plain counts, where there is nothing to time.
    pub counts: Vec<(String, f64)>,
    pub curve: Option<Curve>,
}

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    /// The case that ratios are to.
    pub base: &'static str,
    pub run: for<'a> fn(&'a Plan) -> LocalBoxFuture<'a, Outcome>,
}

macro_rules! row {
    ($name:literal, $base:literal, $title:literal, $run:expr) => {
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
        row!("hot-1", "direct", "One hot scope, 1 task", shared::hot_1),
        row!("hot-64", "naive", "One hot scope, 64 tasks", shared::hot_64),
        row!(
            "hot-1024",
            "naive",
            "One hot scope, 1,024 tasks",
            shared::hot_1024
        ),
        row!(
            "hot-10240",
            "naive",
            "One hot scope, 10,240 tasks",
            shared::hot_10240
        ),
        row!(
            "lease",
            "naive",
            "A lease of 1,024, one hot scope, 1,024 tasks",
            shared::lease
        ),
        row!(
            "scopes-10k",
            "naive",
            "10,000 scopes, 1,024 tasks",
            shared::scopes_10k
        ),
        row!(
            "scopes-100k",
            "naive",
            "100,000 scopes, 1,024 tasks",
            shared::scopes_100k
        ),
        row!(
            "refused-1",
            "governor",
            "One refused scope, 1,024 tasks",
            refused::one
        ),
        row!(
            "refused-10k",
            "governor",
            "10,000 refused scopes, 1,024 tasks",
            refused::many
        ),
        row!(
            "waiting",
            "ours",
            "512 waiters on 20,000 tokens a second, two limiters",
            waiting::patient
        ),
        row!(
            "waiting-cancelled",
            "ours",
            "The same, one in five gives up while it waits",
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
            "memory-refused",
            "governor",
            "In memory, one refused scope, 2 threads",
            memory::refused
        ),
        row!(
            "layer",
            "governor",
            "The whole layer over a service that does nothing, 1 thread",
            memory::layer
        ),
        row!(
            "layer-1024",
            "governor",
            "In memory under 1,024 tasks, with every peer",
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
            "Memory per scope that is not full",
            costs::bytes
        ),
        row!(
            "distant",
            "naive",
            "Redis 5 ms away, one hot scope, 64 tasks",
            distant::hot
        ),
        row!(
            "curve-tasks",
            "",
            "Cost as tasks grow: one hot scope",
            curves::tasks
        ),
        row!(
            "curve-scopes",
            "",
            "Cost as scopes grow: 1,024 tasks",
            curves::scopes
        ),
        row!(
            "curve-processes",
            "",
            "Cost as processes grow: one hot scope, 256 tasks each",
            curves::processes
        ),
        row!(
            "curve-distance",
            "",
            "Cost as the round trip grows: one hot scope, 1,024 tasks",
            curves::distance
        ),
    ]
}

/// The case of that name, which every row has that asks.
fn case<'a>(figures: &'a [Figures], name: &str) -> &'a Figures {
    let found = figures.iter().find(|figures| figures.name == name);
    found.unwrap_or_else(|| panic!("no case is called {name}"))
}
