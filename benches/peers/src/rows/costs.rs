//! Allocations and bytes, which do not depend on the machine.

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
            most("tower-throttle, fixed scope", 0.0),
            most("tower-throttle, literal key", 0.0),
            most("tower-throttle, `String` key", 2.0),
            most("tower-throttle, Redis", 1.0),
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
            "bytes per bucket in memory",
            72.0,
            counts["tower-throttle, memory"],
            "",
        ),
        Claim::at_most(
            "bytes in the process per bucket in Redis",
            96.0,
            counts["tower-throttle, Redis"],
            "",
        ),
    ];
    let scopes = scopes.parse().unwrap_or_default();
    counts.insert("number of scopes, names of 15 bytes".to_owned(), scopes);
    Outcome {
        claims,
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
