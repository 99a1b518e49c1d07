//! Searches random plans for violations.

use std::{collections::BTreeMap, fmt, thread, time::Duration};

use super::{
    invariants::violations,
    plan::{Fault, Kind, Plan},
    run::run,
    shrink::shrink,
    windows::{Measured, measure},
};
use crate::verification::bucket_model::{seed, sequences};

/// The worst results of one kind of fault, in capacities, with their seeds.
#[derive(Debug, Default)]
struct Worst {
    parts: u32,
    over: (f64, u64),
    of_allowed: f64,
    under: (f64, u64),
}

impl Worst {
    fn see(&mut self, measured: &Measured, capacity: f64, seed: u64) {
        self.parts += 1;
        self.of_allowed = self.of_allowed.max(measured.excess / measured.allowed);
        let over = measured.excess / capacity;
        if over > self.over.0 {
            self.over = (over, seed);
        }
        let under = measured.shortfall / capacity;
        if measured.allowed_shortfall.is_some() && under > self.under.0 {
            self.under = (under, seed);
        }
    }

    fn join(&mut self, other: Self) {
        self.parts += other.parts;
        self.of_allowed = self.of_allowed.max(other.of_allowed);
        if other.over.0 > self.over.0 {
            self.over = other.over;
        }
        if other.under.0 > self.under.0 {
            self.under = other.under;
        }
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parts,
            over: (over, over_seed),
            of_allowed,
            under: (under, under_seed),
        } = self;
        write!(
            f,
            "{parts:6} {over:7.2} {of_allowed:7.2} {under:7.2}   {over_seed} {under_seed}"
        )
    }
}

#[derive(Default)]
struct Seen {
    table: BTreeMap<String, Worst>,
    decided: usize,
    leased: f64,
    broken: Vec<(Plan, Vec<String>)>,
}

/// The name of a part of a run in the table: its kind of fault, and whether it affects all.
fn name(plan: &Plan, measured: &Measured) -> String {
    let Some((first, last)) = measured.faults else {
        return "none".to_owned();
    };
    if first < last {
        return "several".to_owned();
    }
    let fault = &plan.faults[first];
    let some = match fault.kind {
        Kind::ProcessDies => "",
        _ if fault.affected < plan.processes => ", some affected",
        _ if plan.busy < plan.processes => ", one busy",
        _ => "",
    };
    format!("{}{some}", fault.kind.name())
}

/// Longer than a limiter counts as alive without a heartbeat.
fn is_long(fault: &Fault) -> bool {
    fault.lasts >= Duration::from_secs(4) && !matches!(fault.kind, Kind::Flaps(..))
}

/// The usual run has fixed seeds, so that what it finds comes from a change of the code. About one
/// random run in 2,000 exceeds a bound, in combinations of faults for which none was derived;
/// `THROTTLE_FULL=1` searches for those.
fn first_seed() -> u64 {
    const USUAL: u64 = 1;
    let variables = ["THROTTLE_SEED", "THROTTLE_FULL"];
    if variables
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        seed()
    } else {
        USUAL
    }
}

fn search(seeds: impl Iterator<Item = u64>) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        let plan = Plan::random(seed);
        let trace = run(&plan);
        seen.decided += trace.record.decided.len();
        seen.leased += trace.leased;
        for measured in measure(&plan, &trace) {
            let worst = seen.table.entry(name(&plan, &measured)).or_default();
            let capacity = plan.limits[measured.limit].capacity;
            worst.see(&measured, capacity, seed);
            if measured.even.is_some() && plan.faults.iter().all(is_long) {
                let worst = seen.table.entry("all evenly, over 4 s".to_owned());
                worst.or_default().see(&measured, capacity, seed);
            }
        }
        let wrong = violations(&plan, &trace);
        if !wrong.is_empty() {
            seen.broken.push((plan, wrong));
        }
    }
    seen
}

#[test]
fn random_outages_violate_no_invariant() {
    let (first, count) = (first_seed(), sequences(200, 10_000));
    println!("THROTTLE_SEED={first}");
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get().min(8));
    let parts = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let seeds = (0..count).skip(thread).step_by(threads);
                scope.spawn(move || search(seeds.map(|n| first.wrapping_add(n))))
            })
            .collect();
        let join = |handle: thread::ScopedJoinHandle<'_, Seen>| handle.join().expect("no panic");
        handles.into_iter().map(join).collect::<Vec<_>>()
    });
    let mut seen = Seen::default();
    for part in parts {
        seen.decided += part.decided;
        seen.leased += part.leased;
        seen.broken.extend(part.broken);
        for (name, worst) in part.table {
            seen.table.entry(name).or_default().join(worst);
        }
    }
    println!(
        "{count} runs, {} decisions, {} tokens leased; the worst, in capacities:",
        seen.decided, seen.leased
    );
    assert!(count < 100 || seen.leased > 0.0, "no tokens were leased");
    println!("{:28} parts    over of bound under   seeds", "");
    for (name, worst) in &seen.table {
        println!("{name:28} {worst}");
    }
    seen.broken.sort_by_key(|(plan, _)| plan.seed);
    for (plan, wrong) in &seen.broken {
        let seed = plan.seed;
        println!("THROTTLE_SEED={seed} THROTTLE_SEQUENCES=1 repeats it\n{plan}");
        for wrong in wrong.iter().take(5) {
            println!("  {wrong}");
        }
    }
    if let Some((plan, wrong)) = seen.broken.first() {
        let smallest = shrink(plan, &wrong[0]);
        println!("The smallest that breaks it:\n{smallest}");
        let broken = violations(&smallest, &run(&smallest));
        panic!(
            "{} of {count} runs break a rule: {broken:#?}",
            seen.broken.len()
        );
    }
}
