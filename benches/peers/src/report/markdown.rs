//! Tables.

use std::{fmt::Write, time::Duration};

use super::Report;
use crate::{
    case::{Figures, client_us, commands_per_op, ops_per_second, p50, p99, redis_us},
    rows::{Claim, Outcome, Row, Target},
};

pub fn page(report: &Report, took: Duration) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    let plan = &report.plan;
    let note = if plan.quick {
        " These rounds are too short for figures to be quoted."
    } else {
        ""
    };
    let _ = writeln!(
        page,
        "Written by `./scripts/bench` in {} s: medians of {} rounds of {} ms, in which the cases \
         of a row take turns; a ratio is the median of the ratios within a round.{note} What is \
         measured and how: [benches/peers](../../benches/peers/README.md).\n",
        took.as_secs(),
        plan.rounds,
        plan.slice.as_millis(),
    );
    claims(&mut page, report);
    for (row, outcome) in &report.rows {
        section(&mut page, row, outcome);
    }
    page
}

fn claims(page: &mut String, report: &Report) {
    page.push_str("| work | figure | target | here | |\n|---|---|---|---|---|\n");
    for (row, outcome) in &report.rows {
        for claim in &outcome.claims {
            let Claim { what, unit, .. } = claim;
            let target = match claim.target {
                Target::AtLeast(least) => format!(">= {}", number(least)),
                Target::AtMost(most) => format!("<= {}", number(most)),
            };
            let reached = if claim.is_reached() {
                "reached"
            } else {
                "**not reached**"
            };
            let value = beside(claim);
            let title = row.title;
            let _ = writeln!(
                page,
                "| {title} | {what} | {target} {unit} | {value} {unit} | {reached} |"
            );
        }
    }
    page.push('\n');
}

/// In as many digits as it takes to tell it from its target.
fn beside(claim: &Claim) -> String {
    let (Target::AtLeast(target) | Target::AtMost(target)) = claim.target;
    let short = number(claim.value);
    if short == number(target) && claim.value != target {
        format!("{:.4}", claim.value)
    } else {
        short
    }
}

fn section(page: &mut String, row: &Row, outcome: &Outcome) {
    let _ = writeln!(page, "## {}\n", row.title);
    if !outcome.figures.is_empty() {
        cases(page, row, outcome);
    }
    if !outcome.counts.is_empty() {
        page.push_str("| | |\n|---|---|\n");
        for (what, count) in &outcome.counts {
            let _ = writeln!(page, "| {what} | {} |", number(*count));
        }
        page.push('\n');
    }
    if let Some(curve) = &outcome.curve {
        page.push_str("Operations a second ([chart](curves.svg)):\n\n");
        let _ = write!(page, "| {} |", curve.axis);
        let names: Vec<_> = curve.lines.iter().map(|(name, _)| *name).collect();
        let _ = writeln!(page, " {} |", names.join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(names.len()));
        let first = curve.lines.first().map_or(&[][..], |(_, points)| points);
        for (index, (x, _)) in first.iter().enumerate() {
            let each = curve
                .lines
                .iter()
                .map(|(_, points)| number(points[index].1));
            let _ = writeln!(
                page,
                "| {} | {} |",
                number(*x),
                each.collect::<Vec<_>>().join(" | ")
            );
        }
        page.push('\n');
    }
}

fn cases(page: &mut String, row: &Row, outcome: &Outcome) {
    let base = outcome.figures.iter().find(|base| base.name == row.base);
    let _ = writeln!(
        page,
        "| | ops/s | x {} | p50 µs | p99 µs | Redis CPU µs/op | commands/op | client CPU µs/op | \
         admitted / allowed |\n|---|---|---|---|---|---|---|---|---|",
        row.base
    );
    for figures in &outcome.figures {
        let ratio = base.map_or(f64::NAN, |base| figures.ratio(base, ops_per_second));
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            figures.name,
            number(figures.median(ops_per_second)),
            number(ratio),
            positive(figures.median(p50)),
            positive(figures.median(p99)),
            positive(figures.median(redis_us)),
            positive(figures.median(commands_per_op)),
            positive(figures.median(client_us)),
            admitted(figures),
        );
    }
    page.push('\n');
    for figures in outcome
        .figures
        .iter()
        .filter(|figures| figures.failures > 0)
    {
        let Figures { name, failures, .. } = figures;
        let _ = writeln!(
            page,
            "{failures} decisions of {name} were made without Redis.\n"
        );
    }
}

fn admitted(figures: &Figures) -> String {
    let (least, most) = figures.admitted;
    if most - least < 0.0005 {
        format!("{most:.3}")
    } else {
        format!("{least:.3} to {most:.3}")
    }
}

/// What was not measured is not shown as zero.
fn positive(value: f64) -> String {
    if value > 0.0 {
        number(value)
    } else {
        "–".to_owned()
    }
}

/// Three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        0.0 => "0".to_owned(),
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.0} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => trimmed(format!("{value:.1}")),
        size if size >= 1.0 => trimmed(format!("{value:.2}")),
        size => {
            let digits = (2.0 - size.log10().floor()).clamp(0.0, 9.0) as usize;
            trimmed(format!("{value:.digits$}"))
        }
    }
}

fn trimmed(number: String) -> String {
    number
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}
