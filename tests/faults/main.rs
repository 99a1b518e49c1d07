//! The fault matrix: four processes under load on one Redis, and the ways in which it can fail.
//!
//! Each row is one fault. By default the most common ones run, in a short form. With
//! `THROTTLE_FULL=1` all run at full length, and times are checked too. The figures are printed as
//! a table. `THROTTLE_FIGURES=FILE` also writes the table between the marks in that file.
//! `./scripts/faults` does both. With `THROTTLE_LEASE=TOKENS` each process leases that many tokens.
//! Arguments are those of any test program: a filter, `--list`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "processes meet in real time, on the machine's clock"
)]

#[path = "../support/mod.rs"]
mod support;

mod child;
mod figures;
mod record;
mod rows;
mod stage;
mod table;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(order) = child::Order::from_env() {
        child::run(order);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // The rows run one at a time.
    arguments.test_threads = Some(1);
    let full = std::env::var_os("THROTTLE_FULL").is_some();
    let table = Arc::new(table::Table::default());
    let trials = rows::all(full)
        .into_iter()
        .map(|row| {
            let table = table.clone();
            Trial::test(row.name, move || {
                let figures = row.run(full);
                table.add(&row, &figures);
                figures.judge(&row, full).map_err(Into::into)
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    table.print();
    if let Some(file) = std::env::var_os("THROTTLE_FIGURES") {
        table.write(file.as_ref());
    }
    conclusion.exit_code()
}
