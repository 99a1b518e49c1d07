//! What does not depend on the machine: allocations and bytes.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use super::{Claim, Outcome};
use crate::plan::Plan;

pub async fn allocations(_plan: &Plan) -> Outcome {
    let counts = count(&["allocations"]);
    let most = |what: &str, most| {
        let title = format!("allocations, {what}");
        Claim::at_most(title, most, counts[what], "")
    };
    Outcome {
        claims: vec![
            most("ours, fixed", 0.0),
            most("ours, literal key", 0.0),
            most("ours, `String` key", 2.0),
            most("ours, Redis", 1.0),
        ],
        counts: counts.into_iter().collect(),
        ..Outcome::default()
    }
}

pub async fn bytes(plan: &Plan) -> Outcome {
    let scopes = if plan.quick { "100000" } else { "1000000" };
    let mut counts = count(&["bytes", scopes]);
    let claims = vec![
        Claim::at_most(
            "bytes of a bucket in memory",
            72.0,
            counts["ours, memory"],
            "",
        ),
        Claim::at_most(
            "bytes kept of a bucket in Redis",
            96.0,
            counts["ours, Redis"],
            "",
        ),
    ];
    let scopes = scopes.parse().unwrap_or_default();
    counts.insert("scopes, with names of 15 bytes".to_owned(), scopes);
    Outcome {
        claims,
        counts: counts.into_iter().collect(),
        ..Outcome::default()
    }
}

/// What the counting program says: it lies beside this one.
fn count(arguments: &[&str]) -> BTreeMap<String, f64> {
    let own = std::env::current_exe().expect("this program has a path");
    let output = Command::new(own.with_file_name("costs"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("the counting program does not start");
    assert!(
        output.status.success(),
        "counting failed: {}",
        output.status
    );
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = lines.lines().filter_map(|line| line.split_once('\t'));
    figures
        .map(|(what, figure)| (what.to_owned(), figure.parse().expect("a figure")))
        .collect()
}
