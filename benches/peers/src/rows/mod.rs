//! The rows of the report. Each measures one workload; `table` has their targets.

mod claim;
mod costs;
mod curves;
mod distant;
mod http_server;
mod keys;
mod memory;
mod redis;
mod rejected;
mod table;
mod waiting;

use futures_util::future::LocalBoxFuture;

pub use self::{
    claim::{Claim, Goal, Target},
    curves::{ALONE, Curve, Line, alone},
    table::all,
};
use crate::{case::Figures, plan::Plan};

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    /// The case that the ratios of the table are relative to.
    pub base: &'static str,
    pub goals: Vec<Goal>,
    /// Whether it is left out of quick runs: another row runs the same code.
    pub is_long: bool,
    pub run: Box<dyn Fn(Plan) -> LocalBoxFuture<'static, Outcome>>,
}

/// The results of one row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub figures: Vec<Figures>,
    /// Figures that no case has.
    pub counts: Vec<(String, f64)>,
    pub curve: Option<Curve>,
}

impl Outcome {
    fn of(figures: Vec<Figures>) -> Self {
        Self {
            figures,
            ..Self::default()
        }
    }

    /// The figures of the case of this name.
    pub fn case(&self, name: &str) -> Option<&Figures> {
        self.figures.iter().find(|figures| figures.name == name)
    }
}

fn row<F: Future<Output = Outcome> + 'static>(
    name: &'static str,
    title: &'static str,
    base: &'static str,
    goals: impl Into<Vec<Goal>>,
    run: impl Fn(Plan) -> F + 'static,
) -> Row {
    Row {
        name,
        title,
        base,
        goals: goals.into(),
        is_long: false,
        run: Box::new(move |plan| Box::pin(run(plan))),
    }
}

impl Row {
    fn long(self) -> Self {
        Self {
            is_long: true,
            ..self
        }
    }
}
