//! The report of a run: JSON, from which the Markdown page and the picture are made.

mod markdown;
mod throughput;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    case::{Figures, client_us, commands_per_op, ops_per_second, p50, p99, redis_us},
    plan::Plan,
    rows::{Claim, Curve, Outcome, Row},
};

/// The contents of `results.json`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    quick: bool,
    rounds: usize,
    round_ms: u64,
    took_s: u64,
    cores: usize,
    rows: Vec<RowReport>,
}

#[derive(Debug, Deserialize, Serialize)]
struct RowReport {
    name: String,
    title: String,
    /// The case that ratios are relative to.
    base: String,
    claims: Vec<Claim>,
    cases: Vec<CaseReport>,
    counts: Vec<(String, f64)>,
    curve: Option<Curve>,
}

/// Medians over the rounds.
#[derive(Debug, Deserialize, Serialize)]
struct CaseReport {
    name: String,
    ops_per_s: f64,
    ratio: Option<f64>,
    p50_us: f64,
    p99_us: f64,
    redis_us_per_op: f64,
    client_us_per_op: f64,
    commands_per_op: f64,
    /// The lowest and the highest of the rounds.
    admitted_of_allowed: (f64, f64),
    rounds_ops_per_s: Vec<f64>,
    failures: u64,
}

/// Where files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `docs`, for whole runs.
    Docs,
    /// `target`, for all others.
    Target,
}

impl Place {
    fn path(self, file: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().unwrap_or(root);
        let folder = match self {
            Self::Docs => "docs",
            Self::Target => "target",
        };
        root.join(folder).join(file)
    }

    /// # Panics
    ///
    /// If the file cannot be written.
    pub fn write(self, file: &str, text: &str) {
        let path = self.path(file);
        let written = match path.parent() {
            Some(folder) => fs::create_dir_all(folder),
            None => Ok(()),
        };
        let written = written.and_then(|()| fs::write(&path, text));
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        eprintln!("wrote {}", path.display());
    }

    /// # Panics
    ///
    /// If the file cannot be read.
    pub fn read(self, file: &str) -> String {
        let path = self.path(file);
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
    }
}

const JSON: &str = "benchmarks/results.json";

impl Report {
    pub fn new(plan: Plan) -> Self {
        Self {
            quick: plan.quick,
            rounds: plan.rounds,
            round_ms: plan.slice.as_millis() as u64,
            took_s: 0,
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            rows: Vec::new(),
        }
    }

    /// Reads the report of the last whole run.
    pub fn published() -> Self {
        serde_json::from_str(&Place::Docs.read(JSON)).expect("results.json is not a report")
    }

    fn plan(&self) -> Plan {
        if self.quick { Plan::QUICK } else { Plan::FULL }
    }

    pub fn add(&mut self, row: &Row, outcome: Outcome) {
        let base = outcome.figures.iter().find(|case| case.name == row.base);
        let cases = outcome.figures.iter();
        let cases = cases.map(|case| CaseReport::new(case, base)).collect();
        self.rows.push(RowReport {
            name: row.name.to_owned(),
            title: row.title.to_owned(),
            base: row.base.to_owned(),
            claims: outcome.claims,
            cases,
            counts: outcome.counts,
            curve: outcome.curve,
        });
    }

    pub fn finish(&mut self, took: Duration) {
        self.took_s = took.as_secs();
    }

    pub fn write(&self, place: Place) {
        let markdown = markdown::page(self);
        println!("{markdown}");
        place.write("benchmarks/results.md", &markdown);
        let json = serde_json::to_string_pretty(self).expect("numbers and strings");
        place.write(JSON, &(json + "\n"));
        if let Some(picture) = throughput::draw(self) {
            place.write("benchmarks/throughput.svg", &picture);
        }
    }
}

impl CaseReport {
    fn new(case: &Figures, base: Option<&Figures>) -> Self {
        Self {
            name: case.name.to_owned(),
            ops_per_s: case.median(ops_per_second),
            ratio: base.map(|base| case.ratio(base, ops_per_second)),
            p50_us: case.median(p50),
            p99_us: case.median(p99),
            redis_us_per_op: case.median(redis_us),
            client_us_per_op: case.median(client_us),
            commands_per_op: case.median(commands_per_op),
            admitted_of_allowed: case.admitted,
            rounds_ops_per_s: case.samples.iter().map(ops_per_second).collect(),
            failures: case.failures,
        }
    }
}
