//! Allocations and bytes, which do not depend on the machine.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use super::Outcome;
use crate::plan::Plan;

pub async fn allocations(_plan: Plan) -> Outcome {
    of(count(&["allocations"]))
}

pub async fn bytes(plan: Plan) -> Outcome {
    let scopes = plan.scopes(1_000_000);
    let mut counts = count(&["bytes", &scopes.to_string()]);
    counts.insert("buckets".to_owned(), scopes as f64);
    of(counts)
}

fn of(counts: BTreeMap<String, f64>) -> Outcome {
    Outcome {
        counts: counts.into_iter().collect(),
        ..Outcome::default()
    }
}

/// The output of the program `costs`, which is built into the same directory as this one.
fn count(arguments: &[&str]) -> BTreeMap<String, f64> {
    let own = std::env::current_exe().expect("this program has a path");
    let output = Command::new(own.with_file_name("costs"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("the program `costs` does not start");
    assert!(
        output.status.success(),
        "counting failed: {}",
        output.status
    );
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = lines.lines().filter_map(|line| line.split_once('\t'));
    figures
        .map(|(what, figure)| (what.to_owned(), figure.parse().expect("not a number")))
        .collect()
}
