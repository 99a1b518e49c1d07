//! The report of a run: JSON, from which the Markdown page and the picture are made.

mod markdown;
mod throughput;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    case::Figures,
    machine::{Machine, load_average},
    metric::{CLIENT_CPU, COMMANDS, P50, P99, REDIS_CPU, THROUGHPUT, throughput},
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
    machine: Machine,
    /// At the start and at the end.
    load_average: [Option<f64>; 2],
    rows: Vec<RowReport>,
}

#[derive(Debug, Deserialize, Serialize)]
struct RowReport {
    name: String,
    title: String,
    /// The case that ratios are relative to.
    base: String,
    /// Before and after the row.
    cache_line_ns: [Option<f64>; 2],
    claims: Vec<Claim>,
    cases: Vec<CaseReport>,
    counts: Vec<(String, f64)>,
    curve: Option<Curve>,
}

/// Medians over the rounds.
#[derive(Debug, Deserialize, Serialize)]
struct CaseReport {
    name: String,
    #[serde(deserialize_with = "nan")]
    ops_per_s: f64,
    ratio: Option<f64>,
    #[serde(deserialize_with = "nan")]
    p50_us: f64,
    #[serde(deserialize_with = "nan")]
    p99_us: f64,
    #[serde(deserialize_with = "nan")]
    redis_us_per_op: f64,
    #[serde(deserialize_with = "nan")]
    client_us_per_op: f64,
    #[serde(deserialize_with = "nan")]
    commands_per_op: f64,
    /// The lowest and the highest of the rounds.
    admitted_of_allowed: (f64, f64),
    rounds_ops_per_s: Vec<f64>,
    /// Decisions without Redis in each round. The medians leave out the rounds that have some.
    failures: Vec<u64>,
}

/// JSON has no `NaN`: it is written as `null`.
pub fn nan<'de, D: Deserializer<'de>>(number: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(number)?.unwrap_or(f64::NAN))
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
            machine: Machine::this(),
            load_average: [load_average(), None],
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

    pub fn add(&mut self, row: &Row, outcome: Outcome, cache_line_ns: [Option<f64>; 2]) {
        let base = outcome.case(row.base);
        let claims = row.goals.iter().filter_map(|goal| goal.claim(&outcome));
        let claims = claims.collect();
        let cases = outcome.figures.iter();
        let cases = cases.map(|case| CaseReport::new(case, base)).collect();
        self.rows.push(RowReport {
            name: row.name.to_owned(),
            title: row.title.to_owned(),
            base: row.base.to_owned(),
            cache_line_ns,
            claims,
            cases,
            counts: outcome.counts,
            curve: outcome.curve,
        });
    }

    pub fn finish(&mut self, took: Duration) {
        self.took_s = took.as_secs();
        self.load_average[1] = load_average();
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
            ops_per_s: THROUGHPUT.median(case),
            ratio: base.map(|base| THROUGHPUT.ratio(case, base)),
            p50_us: P50.median(case),
            p99_us: P99.median(case),
            redis_us_per_op: REDIS_CPU.median(case),
            client_us_per_op: CLIENT_CPU.median(case),
            commands_per_op: COMMANDS.median(case),
            admitted_of_allowed: case.admitted,
            rounds_ops_per_s: case.samples.iter().map(throughput).collect(),
            failures: case.samples.iter().map(|sample| sample.failures).collect(),
        }
    }
    /// The noise: the highest less the lowest of the rounds, relative to their median.
    fn spread(&self) -> f64 {
        let rounds = self.rounds_ops_per_s.iter().copied();
        let highest = rounds.clone().fold(f64::NEG_INFINITY, f64::max);
        (highest - rounds.fold(f64::INFINITY, f64::min)) / self.ops_per_s
    }
}
