//! Random plans.

use std::collections::BTreeMap;

use super::{
    invariants::{show, violations},
    plan::Plan,
    run::run,
    shrink::shrink,
};
use crate::bucket::law::{seed, sequences};

/// The worst of one kind of fault, over and under, in capacities.
#[derive(Debug, Default)]
struct Worst {
    runs: u32,
    excess: f64,
    of_allowed: f64,
    excess_seed: u64,
    shortfall: f64,
    shortfall_seed: u64,
}

#[test]
fn every_rule_holds_in_random_outages() {
    let (first, count) = (seed(), sequences(200, 10_000));
    println!("THROTTLE_SEED={first}");
    let mut table: BTreeMap<&str, Worst> = BTreeMap::new();
    let mut failed = 0;
    let mut decided = 0;
    for sequence in 0..count {
        let seed = first.wrapping_add(sequence);
        let plan = Plan::random(seed);
        let story = run(&plan);
        for shown in show(&plan, &story) {
            let name = match shown.faults {
                None => "none",
                Some((first, last)) if first == last => plan.faults[first].kind.name(),
                Some(_) => "several",
            };
            let worst = table.entry(name).or_default();
            worst.runs += 1;
            let cap = plan.limits[shown.limit].capacity;
            if shown.excess / cap > worst.excess {
                worst.excess = shown.excess / cap;
                worst.excess_seed = seed;
            }
            worst.of_allowed = worst.of_allowed.max(shown.excess / shown.allowed);
            let all = plan.busy == plan.processes;
            if all && shown.shortfall / cap > worst.shortfall {
                worst.shortfall = shown.shortfall / cap;
                worst.shortfall_seed = seed;
            }
        }
        decided += story.record.decided.len();
        let wrong = violations(&plan, &story);
        if !wrong.is_empty() {
            failed += 1;
            if failed == 1 {
                let smallest = shrink(&plan, &wrong[0]);
                println!("The smallest that breaks it:\n{smallest}");
                for wrong in violations(&smallest, &run(&smallest)) {
                    println!("  WRONG {wrong}");
                }
            }
            println!("THROTTLE_SEED={seed} THROTTLE_SEQUENCES=1 repeats it\n{plan}");
            for wrong in wrong.iter().take(5) {
                println!("  WRONG {wrong}");
            }
        }
    }
    println!("{decided} decided");
    for (name, worst) in table {
        println!("{name:20} {worst:?}");
    }
    assert_eq!(failed, 0);
}

/// For looking at one run: what was decided, in order.
#[test]
fn scratch() {
    let Ok(_) = std::env::var("SCRATCH") else {
        return;
    };
    let plan = Plan::random(seed());
    let story = run(&plan);
    println!("{plan}");
    for event in &story.record.admitted {
        println!(
            "{:.3} p{} limit {} {} {}",
            event.at.as_secs_f64(),
            event.process,
            event.limit,
            event.tokens,
            if event.degraded { "deg" } else { "" }
        );
    }
    for d in &story.record.decided {
        println!(
            "D {:.3} p{} took {:?} max {:?} {}",
            d.at.as_secs_f64(),
            d.process,
            d.took,
            d.max_wait,
            d.admitted
        );
    }
    println!("{:?} {:?}", story.paid, story.record.spells);
}
