//! The search: generates cases, runs them, and shrinks those that violate the guarantee.

use std::fmt;

use super::{
    case::{BUCKETS, Case, Fate, Model, Op, Outcome, Seen},
    random::{Rng, seed, sequences},
    simulator::run,
};
use crate::bucket::BucketParams;

/// What may happen in a search, besides requests, waits and cancellations.
#[derive(Clone, Copy, Debug, Default)]
struct Profile {
    /// Refunds, late uses, settlements above and below the estimate, costs over the capacity.
    corrections: bool,
    /// The server's clock jumps.
    jumps: bool,
    /// Requests for several buckets.
    several: bool,
    /// No cancellations.
    no_cancels: bool,
    /// Each case begins with a queue, and more of it than usual is cancelled.
    queue: bool,
}

#[derive(Debug)]
struct Found {
    seed: u64,
    after: u64,
    excess: f64,
    out_of_order: bool,
    case: Case,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            excess,
            out_of_order,
            ..
        } = self;
        writeln!(f, "excess {excess}, out of order: {out_of_order}")?;
        writeln!(f, "THROTTLE_SEED={seed} THROTTLE_SEQUENCES=1 repeats it")?;
        for params in &self.case.params {
            writeln!(f, "cap {} rate {}", params.capacity, params.per_us * 1e6)?;
        }
        writeln!(f, "hand over: {}", self.case.hand_over)?;
        for op in &self.case.ops {
            writeln!(f, "  {op:?}")?;
        }
        Ok(())
    }
}

/// Tries `count` cases. Returns the first that violates the guarantee, after shrinking.
fn search(model: Model, profile: Profile, count: u64) -> (Option<Found>, Seen) {
    let first = seed();
    println!("THROTTLE_SEED={first}");
    let mut seen = Seen::default();
    for after in 0..count {
        let seed = first.wrapping_add(after);
        let case = random_case(&mut Rng::new(seed), profile);
        let outcome = run(&case, model);
        seen.add(&outcome.seen);
        if is_violation(&outcome, model) {
            let case = shrink(case, model);
            let outcome = run(&case, model);
            let found = Found {
                seed,
                after,
                excess: outcome.excess,
                out_of_order: outcome.out_of_order,
                case,
            };
            return (Some(found), seen);
        }
    }
    (None, seen)
}

/// The real model must also keep the order. Of a wrong one only the windows count.
fn is_violation(outcome: &Outcome, model: Model) -> bool {
    outcome.excess > 0.0 || model == Model::Real && outcome.out_of_order
}

fn random_case(rng: &mut Rng, profile: Profile) -> Case {
    let count = if profile.several {
        2 + rng.below(BUCKETS as u32 - 1)
    } else {
        1
    };
    let rate = rng.pick(&[1.0, 1.0, 1.0, 0.25, 0.5, 3.0, 7.3, 100.0, 10.0 / 86_400.0]);
    let params: Vec<BucketParams> = (0..count)
        .map(|_| {
            let cap = rng.pick(&[1.0, 1.0, 2.0, 2.5, 4.0, 5.0, 5.0, 10.0, 20.0]);
            BucketParams::new(cap, rate * rng.pick(&[1.0, 1.0, 0.25, 0.5, 2.0]))
        })
        .collect();
    // Few different costs, so that reservations are handed over.
    let costs: Vec<[f64; 2]> = params
        .iter()
        .map(|params| [(); 2].map(|()| random_cost(rng, profile, params.capacity)))
        .collect();
    let unit = 1.0 / params[0].per_us;
    let (mut ops, mut ids, mut unfinished) = (Vec::new(), Vec::new(), Vec::new());
    let queue = if profile.queue { 3 + rng.below(6) } else { 0 };
    for index in 0..queue + 6 + rng.below(24) {
        let dice = if index < queue { 99 } else { rng.below(100) };
        let op = match dice {
            0..30 => Op::Wait(random_wait(rng, unit, params[0].capacity)),
            30..60 if profile.queue => Op::Cancel(rng.pick(&ids)),
            30..45 if !profile.no_cancels && !ids.is_empty() => Op::Cancel(recent(rng, &ids)),
            45..57 if !unfinished.is_empty() => Op::Finish(recent(rng, &unfinished)),
            57..60 if !unfinished.is_empty() => Op::UseLate(recent(rng, &unfinished)),
            60..64 if profile.jumps => {
                let far = [unit, 10.0 * unit, 3e5, 9e5, 1.5e6, 6e7];
                Op::StepClock((rng.pick(&far) * rng.pick(&[-1.0, -1.0, -0.5, 1.0])).ceil())
            }
            _ => {
                let id = 8 * index;
                let (n, op) = random_take(rng, profile, id, &costs, unit);
                ids.extend(id..id + n);
                if !matches!(
                    op,
                    Op::Take {
                        fate: Fate::Use,
                        ..
                    }
                ) {
                    unfinished.extend(id..id + n);
                }
                op
            }
        };
        ops.push(op);
    }
    Case {
        params,
        hand_over: rng.percent(50),
        ops,
    }
}

/// One of the last few.
fn recent(rng: &mut Rng, ids: &[u32]) -> u32 {
    rng.pick(&ids[ids.len().saturating_sub(6)..])
}

fn random_cost(rng: &mut Rng, profile: Profile, cap: f64) -> f64 {
    if profile.corrections && rng.percent(6) {
        return cap * rng.pick(&[1.25, 2.0, 3.5]);
    }
    let part = rng.part().max(0.01);
    rng.pick(&[1.0, 1.0, 2.0, 0.5, cap, cap / 2.0, cap / 3.0, cap * part])
        .min(cap)
}

fn random_wait(rng: &mut Rng, unit: f64, cap: f64) -> f64 {
    let part = rng.part();
    let us = rng.pick(&[
        unit,
        unit,
        0.5 * unit,
        2.0 * unit,
        unit * part,
        cap * unit * part,
    ]);
    us.ceil()
}

fn random_take(
    rng: &mut Rng,
    profile: Profile,
    id: u32,
    costs: &[[f64; 2]],
    unit: f64,
) -> (u32, Op) {
    let mut asked = [0.0; BUCKETS];
    for (asked, costs) in asked.iter_mut().zip(costs) {
        if rng.percent(60) {
            *asked = rng.pick(costs);
        }
    }
    let one = rng.below(costs.len() as u32) as usize;
    if asked.iter().all(|&cost| cost == 0.0) {
        asked[one] = rng.pick(&costs[one]);
    }
    let several = asked.iter().filter(|&&cost| cost > 0.0).count() > 1;
    let n = if several || rng.percent(80) {
        1
    } else {
        1 + rng.below(5)
    };
    let fate = match rng.below(100) {
        0..15 if profile.corrections => Fate::Defer,
        15..25 if profile.corrections => Fate::UsePart(rng.pick(&[0.0, 0.25, 0.5])),
        25..30 if profile.corrections => Fate::UseMore(rng.pick(&[0.5, 1.0, 3.0, 50.0])),
        _ => Fate::Use,
    };
    let waits = if profile.queue {
        [0.0, 5.0 * unit, 1e12, 1e12, 1e12, 1e12]
    } else {
        [0.0, unit, 2.5 * unit, 5.0 * unit, 10.0 * unit, 1e12]
    };
    let op = Op::Take {
        id,
        n,
        costs: asked,
        max_wait: rng.pick(&waits).ceil(),
        fate,
    };
    (n, op)
}

/// Removes and simplifies operations as long as the case still violates the guarantee.
fn shrink(mut case: Case, model: Model) -> Case {
    loop {
        let mut simpler = Vec::new();
        for index in 0..case.ops.len() {
            let mut without = case.clone();
            without.ops.remove(index);
            simpler.push(without);
            for op in simpler_ops(case.ops[index]) {
                let mut with = case.clone();
                with.ops[index] = op;
                simpler.push(with);
            }
        }
        if case.hand_over {
            simpler.push(Case {
                hand_over: false,
                ..case.clone()
            });
        }
        match simpler
            .into_iter()
            .find(|case| is_violation(&run(case, model), model))
        {
            Some(found) => case = found,
            None => return case,
        }
    }
}

fn simpler_ops(op: Op) -> Vec<Op> {
    let mut simpler = Vec::new();
    if let Op::Take {
        id,
        n,
        costs,
        max_wait,
        fate,
    } = op
    {
        let with = |n, max_wait, fate| Op::Take {
            id,
            n,
            costs,
            max_wait,
            fate,
        };
        if n > 1 {
            simpler.push(with(n - 1, max_wait, fate));
        }
        let asked = (0..BUCKETS).filter(|&index| costs[index] > 0.0);
        let asked: Vec<usize> = asked.collect();
        for index in asked.iter().copied().filter(|_| asked.len() > 1) {
            let mut costs = costs;
            costs[index] = 0.0;
            simpler.push(Op::Take {
                id,
                n,
                costs,
                max_wait,
                fate,
            });
        }
        if max_wait < 1e12 {
            simpler.push(with(n, 1e12, fate));
        }
        if fate != Fate::Use {
            simpler.push(with(n, max_wait, Fate::Use));
        }
    }
    simpler
}

/// A run consists of five of these searches: 50,000 cases, or five million.
fn check(profile: Profile) -> Seen {
    let count = sequences(10_000, 1_000_000);
    let (found, seen) = search(Model::Real, profile, count);
    if let Some(found) = found {
        panic!("{profile:?}: {found}");
    }
    println!("{profile:?}, {count} sequences: {seen:?}");
    if count >= 1_000 {
        assert!(seen.waited > count && seen.handed_over > 0 && seen.cancelled > 0);
        assert!(seen.from_returned > 0, "no request used returned tokens");
    }
    seen
}

#[test]
fn requests_and_cancellations_never_exceed_a_window() {
    let seen = check(Profile::default());
    // There is no exception here: no late use, charge or jump.
    assert_eq!(seen.exceptions, 0);
}

#[test]
fn cancellations_in_a_queue_never_exceed_a_window() {
    let seen = check(Profile {
        queue: true,
        ..Profile::default()
    });
    assert_eq!(seen.exceptions, 0);
}

#[test]
fn refunds_and_settlements_exceed_windows_by_the_exceptions_only() {
    let seen = check(Profile {
        corrections: true,
        ..Profile::default()
    });
    assert!(seen.exceptions > 0 && seen.charged > 0 || sequences(10_000, 10_000) < 1_000);
}

#[test]
fn jumps_of_the_servers_clock_exceed_windows_by_the_exceptions_only() {
    check(Profile {
        corrections: true,
        jumps: true,
        ..Profile::default()
    });
}

#[test]
fn requests_for_several_buckets_exceed_windows_by_the_exceptions_only() {
    let seen = check(Profile {
        corrections: true,
        several: true,
        ..Profile::default()
    });
    let enough = seen.second_waits > 0 && seen.second_rejections > 0 && seen.realigned > 0;
    assert!(enough || sequences(10_000, 10_000) < 1_000);
}

/// The search finds a wrong model. If it did not, finding nothing in the real one would prove
/// nothing.
fn finds(model: Model, profile: Profile) {
    let (found, _) = search(model, profile, 20_000);
    let found = found.unwrap_or_else(|| panic!("{model:?} was not found wrong"));
    println!("{model:?} after {}: {found}", found.after);
}

#[test]
fn finds_that_raising_the_level_while_requests_wait_admits_too_much() {
    let profile = Profile {
        corrections: true,
        ..Profile::default()
    };
    finds(Model::RaisesLevel, profile);
}

#[test]
fn finds_that_giving_a_reservation_back_before_it_is_due_admits_too_much() {
    finds(Model::GivesBackEarly, Profile::default());
}

#[test]
fn finds_that_several_buckets_taken_with_one_wait_admit_too_much() {
    let profile = Profile {
        several: true,
        no_cancels: true,
        ..Profile::default()
    };
    finds(Model::AllAtOnce, profile);
}

#[test]
fn finds_that_keeping_the_slowest_for_the_others_admits_too_much() {
    let profile = Profile {
        several: true,
        no_cancels: true,
        ..Profile::default()
    };
    finds(Model::KeepsSlowest, profile);
}
