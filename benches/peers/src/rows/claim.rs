//! Figures with targets.

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::{metric::Metric, report::nan, subjects::THROTTLE};

/// A figure of a row that has a target. Written in the table of the rows as
/// `THROUGHPUT.of(THROTTLE).over(NAIVE).at_least(4.5)` or `count("name").at_most(1.0)`.
pub struct Goal {
    figure: Figure,
    target: Target,
}

pub enum Figure {
    /// Of a case, relative to another one if there is a second name.
    Metric(Metric, &'static str, Option<&'static str>),
    /// One of [`Outcome::counts`].
    Count(&'static str),
}

impl Metric {
    pub const fn of(self, case: &'static str) -> Figure {
        Figure::Metric(self, case, None)
    }
}

pub const fn count(name: &'static str) -> Figure {
    Figure::Count(name)
}

impl Figure {
    pub fn over(self, base: &'static str) -> Self {
        match self {
            Self::Metric(metric, case, _) => Self::Metric(metric, case, Some(base)),
            Self::Count(name) => Self::Count(name),
        }
    }

    pub fn at_least(self, least: f64) -> Goal {
        Goal {
            figure: self,
            target: Target::AtLeast(least),
        }
    }

    pub fn at_most(self, most: f64) -> Goal {
        Goal {
            figure: self,
            target: Target::AtMost(most),
        }
    }
}

impl Goal {
    /// `None` if a case was not measured: redis-cell, if it could not be built.
    pub fn claim(&self, outcome: &Outcome) -> Option<Claim> {
        let (what, value, unit) = match self.figure {
            Figure::Metric(metric, case, base) => {
                let of_case = match case {
                    THROTTLE => String::new(),
                    other => format!(" of {other}"),
                };
                let what = format!("{}{of_case}", metric.name);
                let figures = outcome.case(case)?;
                match base {
                    None => (what, metric.median(figures), metric.unit),
                    Some(base) => (
                        format!("{what} relative to {base}"),
                        metric.ratio(figures, outcome.case(base)?),
                        "x",
                    ),
                }
            }
            Figure::Count(name) => {
                let count = outcome.counts.iter().find(|(what, _)| what == name);
                let (what, count) = count.unwrap_or_else(|| panic!("nothing counts {name:?}"));
                (what.clone(), *count, "")
            }
        };
        Some(Claim {
            what,
            target: self.target,
            value,
            unit: unit.to_owned(),
        })
    }
}

/// The result of a [`Goal`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Claim {
    pub what: String,
    #[serde(flatten)]
    pub target: Target,
    #[serde(rename = "figure", deserialize_with = "nan")]
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
    pub fn is_reached(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
        }
    }
}
