//! What is written down: Markdown for people, JSON for programs, a chart.

mod chart;
mod markdown;

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::{
    case::{Figures, client_us, commands_per_op, ops_per_second, p50, p99, redis_us},
    plan::Plan,
    rows::{Outcome, Row, Target},
};

pub struct Report {
    plan: Plan,
    rows: Vec<(Row, Outcome)>,
}

impl Report {
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, row: Row, outcome: Outcome) {
        self.rows.push((row, outcome));
    }

    /// A whole run replaces what is published; any other goes where builds go.
    pub fn write(&self, whole: bool, took: Duration) {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let dir = root.join(if whole {
            "docs/benchmarks"
        } else {
            "target/benchmarks"
        });
        let markdown = markdown::page(self, took);
        println!("{markdown}");
        let write = |name: &str, text: String| {
            let written = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(name), text));
            written.unwrap_or_else(|error| panic!("{name} was not written: {error}"));
        };
        write("results.md", markdown);
        let json = serde_json::to_string_pretty(&self.json(took)).expect("values without surprise");
        write("results.json", json + "\n");
        let curves: Vec<_> = self
            .rows
            .iter()
            .filter_map(|(row, outcome)| Some((row.title, outcome.curve.as_ref()?)))
            .collect();
        if !curves.is_empty() {
            write("curves.svg", chart::draw(&curves));
        }
        eprintln!("written to {}", dir.display());
    }

    fn json(&self, took: Duration) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(row, outcome)| of_row(row, outcome))
            .collect();
        json!({
            "quick": self.plan.quick,
            "rounds": self.plan.rounds,
            "round_ms": self.plan.slice.as_millis() as u64,
            "took_s": took.as_secs(),
            "rows": rows,
        })
    }
}

fn of_row(row: &Row, outcome: &Outcome) -> Value {
    let claims = outcome.claims.iter().map(|claim| {
        let (kind, target) = match claim.target {
            Target::AtLeast(least) => ("at_least", least),
            Target::AtMost(most) => ("at_most", most),
        };
        json!({
            "what": claim.what,
            kind: target,
            "figure": claim.value,
            "reached": claim.is_reached(),
        })
    });
    let cases = outcome
        .figures
        .iter()
        .map(|figures| of_case(row, outcome, figures));
    let curve = outcome.curve.as_ref().map(|curve| {
        let lines = curve.lines.iter();
        let lines: Vec<Value> = lines
            .map(|(name, points)| json!({ "name": name, "points": points }))
            .collect();
        json!({ "axis": curve.axis, "lines": lines })
    });
    json!({
        "name": row.name,
        "title": row.title,
        "claims": claims.collect::<Vec<_>>(),
        "cases": cases.collect::<Vec<_>>(),
        "counts": outcome.counts,
        "curve": curve,
    })
}

fn of_case(row: &Row, outcome: &Outcome, figures: &Figures) -> Value {
    let base = outcome.figures.iter().find(|base| base.name == row.base);
    json!({
        "name": figures.name,
        "ops_per_s": figures.median(ops_per_second),
        "p50_us": figures.median(p50),
        "p99_us": figures.median(p99),
        "redis_us_per_op": figures.median(redis_us),
        "client_us_per_op": figures.median(client_us),
        "commands_per_op": figures.median(commands_per_op),
        "admitted_of_allowed": [figures.admitted.0, figures.admitted.1],
        "ratio": base.map(|base| figures.ratio(base, ops_per_second)),
        "rounds_ops_per_s": figures.samples.iter().map(ops_per_second).collect::<Vec<_>>(),
        "failures": figures.failures,
    })
}
