//! Tables.

use std::fmt::Write;

use super::{CaseReport, Report, RowReport};
use crate::{
    case::median,
    rows::{Claim, Target},
};

pub fn page(report: &Report) -> String {
    let mut page = String::from("# Benchmarks\n\n");
    let note = if report.quick {
        " Do not quote these figures: the rounds are too short."
    } else {
        ""
    };
    let _ = writeln!(
        page,
        "Written by `./scripts/bench` in {} s. Each figure is the median of {} rounds of {} ms, in \
         which the cases of a row alternate; each ratio is the median of the ratios within a \
         round.{note} [benches/peers](../../benches/peers/README.md) describes what is measured \
         and how.\n\n![Throughput](throughput.svg)\n",
        report.took_s, report.rounds, report.round_ms,
    );
    machine(&mut page, report);
    claims(&mut page, report);
    for row in &report.rows {
        section(&mut page, row);
    }
    page
}

fn machine(page: &mut String, report: &Report) {
    let machine = &report.machine;
    let versions = machine.versions.iter();
    let versions: Vec<_> = versions
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    let _ = writeln!(
        page,
        "Machine: {}, {} cores, shared by the load and redis-server; Linux {}. Versions: {}.\n",
        machine.cpu,
        machine.cores,
        machine.kernel,
        versions.join(", ")
    );
    let lines = || {
        report
            .rows
            .iter()
            .flat_map(|row| row.cache_line_ns)
            .flatten()
    };
    let cases = report.rows.iter().flat_map(|row| &row.cases);
    let mut spreads: Vec<f64> = cases.map(CaseReport::spread).collect();
    spreads.sort_unstable_by(f64::total_cmp);
    let spread = |part: usize| match spreads.len() {
        0 => f64::NAN,
        cases => 100.0 * spreads[(cases - 1) * part / 100],
    };
    let [before, after] = report
        .load_average
        .map(|load| number(load.unwrap_or(f64::NAN)));
    let _ = writeln!(
        page,
        "Noise: the throughput of a case varies between its rounds (highest less lowest, relative \
         to the median) by {:.0} % in the median case and by {:.0} % in the worst tenth. A cache \
         line takes {:.0} to {:.0} ns from one core to the other and back, median {:.0} ns. Load \
         average: {before} before, {after} after.\n",
        spread(50),
        spread(90),
        lines().fold(f64::INFINITY, f64::min),
        lines().fold(0.0, f64::max),
        median(lines().collect()),
    );
}

fn claims(page: &mut String, report: &Report) {
    page.push_str("| workload | figure | target | measured | |\n|---|---|---|---|---|\n");
    for row in &report.rows {
        for claim in &row.claims {
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
            let title = &row.title;
            let _ = writeln!(
                page,
                "| {title} | {what} | {target} {unit} | {value} {unit} | {reached} |"
            );
        }
    }
    page.push('\n');
}

/// With as many digits as distinguish it from its target.
fn beside(claim: &Claim) -> String {
    let (Target::AtLeast(target) | Target::AtMost(target)) = claim.target;
    let short = number(claim.value);
    if short == number(target) && claim.value != target {
        format!("{:.4}", claim.value)
    } else {
        short
    }
}

fn section(page: &mut String, row: &RowReport) {
    let [before, after] = row
        .cache_line_ns
        .map(|time| number(time.unwrap_or(f64::NAN)));
    let _ = writeln!(page, "## {}\n", row.title);
    let _ = writeln!(
        page,
        "`{}`; cache line {before} ns before, {after} ns after.\n",
        row.name
    );
    if !row.cases.is_empty() {
        cases(page, row);
    }
    if !row.counts.is_empty() {
        page.push_str("| | |\n|---|---|\n");
        for (what, count) in &row.counts {
            let _ = writeln!(page, "| {what} | {} |", number(*count));
        }
        page.push('\n');
    }
    if let Some(curve) = &row.curve {
        page.push_str("Tokens/s:\n\n");
        let _ = write!(page, "| {} |", curve.axis);
        let names: Vec<_> = curve.lines.iter().map(|line| &*line.name).collect();
        let _ = writeln!(page, " {} |", names.join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(names.len()));
        let first = curve.lines.first().map_or(&[][..], |line| &line.points);
        for (index, (x, _)) in first.iter().enumerate() {
            let each = curve.lines.iter().map(|line| number(line.points[index].1));
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

fn cases(page: &mut String, row: &RowReport) {
    let _ = writeln!(
        page,
        "| | ops/s | x {} | p50 µs | p99 µs | Redis CPU µs/op | commands/op | client CPU µs/op | \
         admitted / allowed | spread |\n|---|---|---|---|---|---|---|---|---|---|",
        row.base
    );
    for case in &row.cases {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} % |",
            case.name,
            number(case.ops_per_s),
            number(case.ratio.unwrap_or(f64::NAN)),
            positive(case.p50_us),
            positive(case.p99_us),
            positive(case.redis_us_per_op),
            positive(case.commands_per_op),
            positive(case.client_us_per_op),
            admitted(case),
            100.0 * case.spread(),
        );
    }
    page.push('\n');
    for case in &row.cases {
        let CaseReport { name, failures, .. } = case;
        let failed = failures.iter().filter(|failures| **failures > 0).count();
        if failed > 0 {
            let rounds = failures.len();
            let decisions: u64 = failures.iter().sum();
            let _ = writeln!(
                page,
                "{name} made {decisions} decisions without Redis in {failed} of {rounds} rounds, \
                 which its figures leave out.\n"
            );
        }
    }
}

fn admitted(case: &CaseReport) -> String {
    let (least, most) = case.admitted_of_allowed;
    if most - least < 0.0005 {
        format!("{most:.3}")
    } else {
        format!("{least:.3} to {most:.3}")
    }
}

/// A figure, or a dash where nothing was measured.
fn positive(value: f64) -> String {
    if value > 0.0 {
        number(value)
    } else {
        "–".to_owned()
    }
}

/// Three significant digits.
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
