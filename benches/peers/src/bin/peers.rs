//! Runs the rows and writes the report. See `USAGE`.

use std::time::Duration;

use peers::{
    plan::Plan,
    report::{Place, Report},
    rows::{Row, all, alone},
};
use tokio::{runtime::Builder, time::Instant};

const USAGE: &str = "usage: scripts/bench [--quick] [--list] [ROW…]
  --quick   short rounds: shows that everything runs, not how fast
  --list    prints the names of the rows
  ROW       runs the row of this name, or all whose names contain it
or: scripts/bench --redraw
  writes results.md and throughput.svg again from docs/benchmarks/results.json
or, for a profiler: peers --alone SUBJECT URL MILLISECONDS
  SUBJECT   naive, minimal, throttle or leased: 256 tasks on one scope of the Redis at URL;
            memory or layer: one thread without Redis";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("no runtime");
    if let [first, subject, url, milliseconds] = arguments.as_slice()
        && first == "--alone"
    {
        let slice =
            Duration::from_millis(milliseconds.parse().expect("MILLISECONDS is not a number"));
        return runtime.block_on(alone(subject, url, slice));
    }
    if arguments == ["--redraw"] {
        return Report::published().write(Place::Docs);
    }
    let (flags, filters): (Vec<String>, Vec<String>) = arguments
        .into_iter()
        .partition(|argument| argument.starts_with("--"));
    let known = ["--quick", "--list"];
    if flags.iter().any(|flag| !known.contains(&flag.as_str())) {
        eprintln!("{USAGE}");
        std::process::exit(2);
    }
    let is_name = |filter: &String| all().iter().any(|row| row.name == filter);
    let is_selected = |row: &Row| {
        let matches = |filter: &String| match is_name(filter) {
            true => row.name == filter,
            false => row.name.contains(filter.as_str()),
        };
        filters.is_empty() || filters.iter().any(matches)
    };
    let rows: Vec<Row> = all().into_iter().filter(is_selected).collect();
    if rows.is_empty() || flags.iter().any(|flag| flag == "--list") {
        for row in all() {
            println!("{:18} {}", row.name, row.title);
        }
        std::process::exit(i32::from(rows.is_empty()));
    }
    let plan = match flags.is_empty() {
        true => Plan::FULL,
        false => Plan::QUICK,
    };
    let whole = flags.is_empty() && filters.is_empty();
    let started = Instant::now();
    let mut report = Report::new(plan);
    for row in rows {
        eprintln!("[{:5.1} s] {}", started.elapsed().as_secs_f64(), row.title);
        let outcome = runtime.block_on((row.run)(&plan));
        report.add(&row, outcome);
    }
    report.finish(started.elapsed());
    report.write(if whole { Place::Docs } else { Place::Target });
}
