//! Runs the rows and writes the report. See `USAGE`.

use std::time::Duration;

use peers::{
    delay::{self, PROXY},
    http_client::{self, CLIENT},
    machine::cache_line_ns,
    plan::Plan,
    report::{Place, Report},
    rows::{ALONE, Row, all, alone},
};
use tokio::{runtime::Builder, time::Instant};

const USAGE: &str = "usage: scripts/bench [--quick] [--list] [ROW…]
  --quick   one short round of the rows that do not take long: shows that they run, not how fast
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
    let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| {
        text.parse()
            .unwrap_or_else(|_| panic!("{text} is not a number"))
    };
    match texts[..] {
        ["--redraw"] => return Report::published().write(Place::Docs),
        [ALONE, subject, url, ms] => {
            return runtime.block_on(alone(subject, url, Duration::from_millis(number(ms))));
        }
        [PROXY, port, us] => {
            let port = u16::try_from(number(port)).expect("it is not a port");
            return delay::serve(port, Duration::from_micros(number(us)));
        }
        [CLIENT, server, load, ms] => {
            let slice = Duration::from_millis(number(ms));
            return runtime.block_on(http_client::run(server, load, slice));
        }
        _ => {}
    }
    let (flags, filters): (Vec<String>, Vec<String>) = arguments
        .into_iter()
        .partition(|argument| argument.starts_with("--"));
    let known = ["--quick", "--list"];
    if flags.iter().any(|flag| !known.contains(&flag.as_str())) {
        eprintln!("{USAGE}");
        std::process::exit(2);
    }
    let is_quick = flags.iter().any(|flag| flag == "--quick");
    let is_name = |filter: &String| all().iter().any(|row| row.name == filter);
    let is_selected = |row: &Row| {
        let matches = |filter: &String| match is_name(filter) {
            true => row.name == filter,
            false => row.name.contains(filter.as_str()),
        };
        match filters.is_empty() {
            true => !(is_quick && row.is_long),
            false => filters.iter().any(matches),
        }
    };
    let rows: Vec<Row> = all().into_iter().filter(is_selected).collect();
    if rows.is_empty() || flags.iter().any(|flag| flag == "--list") {
        for row in all() {
            println!("{:18} {}", row.name, row.title);
        }
        std::process::exit(i32::from(rows.is_empty()));
    }
    let plan = if is_quick { Plan::QUICK } else { Plan::FULL };
    let whole = !is_quick && filters.is_empty();
    let started = Instant::now();
    let mut report = Report::new(plan);
    for row in rows {
        let before = cache_line_ns();
        eprintln!(
            "[{:5.1} s, cache line {:3.0} ns] {}",
            started.elapsed().as_secs_f64(),
            before.unwrap_or(f64::NAN),
            row.title
        );
        let outcome = runtime.block_on((row.run)(plan));
        report.add(&row, outcome, [before, cache_line_ns()]);
    }
    report.finish(started.elapsed());
    report.write(if whole { Place::Docs } else { Place::Target });
}
