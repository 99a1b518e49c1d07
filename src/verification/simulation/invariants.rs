//! What must hold of every run.

use std::{collections::BTreeSet, time::Duration};

use super::{
    load::Decided,
    plan::{Fault, Kind, Limit, Plan, Role},
    run::Story,
    windows::show,
};
use crate::bucket::BucketParams;

const REDIS_TIMEOUT: Duration = Duration::from_millis(100);

/// Timers go off up to so much late.
const TICK: Duration = Duration::from_millis(2);

/// All that is wrong with a run.
pub(crate) fn violations(plan: &Plan, story: &Story) -> Vec<String> {
    let mut wrong = Vec::new();
    decisions(plan, story, &mut wrong);
    for shown in show(plan, story) {
        if shown.excess > shown.allowed {
            wrong.push(format!("too much: {shown:?}"));
        }
        if shown.even.is_some_and(|even| shown.excess > even) {
            wrong.push(format!("too much for an even load: {shown:?}"));
        }
        if shown.may_lack.is_some_and(|may| shown.shortfall > may) {
            wrong.push(format!("too little: {shown:?}"));
        }
    }
    shares(plan, story, &mut wrong);
    payments(plan, story, &mut wrong);
    if story.tasks_left > 0 {
        wrong.push(format!("{} tasks are left", story.tasks_left));
    }
    if story.scopes_held > plan.limits.len() {
        wrong.push(format!("{} buckets are held", story.scopes_held));
    }
    wrong
}

/// Everybody is answered, and in time.
fn decisions(plan: &Plan, story: &Story, wrong: &mut Vec<String>) {
    let most = |max_wait: Duration| {
        if max_wait.is_zero() {
            // Behind a call in flight it is two calls.
            2 * REDIS_TIMEOUT + TICK
        } else {
            max_wait + 4 * REDIS_TIMEOUT + TICK
        }
    };
    for decided in &story.record.decided {
        let Decided {
            at,
            took,
            max_wait,
            unavailable,
            away,
            process,
        } = *decided;
        if unavailable {
            wrong.push(format!("unavailable: for {process} at {at:?}"));
        }
        if took > most(max_wait) || (away && max_wait.is_zero() && !took.is_zero()) {
            wrong.push(format!(
                "too late: {process} at {at:?} took {took:?} of {max_wait:?}, away: {away}"
            ));
        }
    }
    for ((process, task), asking) in &story.record.asking {
        let end = story.died.get(process).copied().unwrap_or(plan.length);
        if end > asking.at + most(asking.max_wait) {
            wrong.push(format!("unanswered: task {task} of {process}, {asking:?}"));
        }
    }
}

/// While Redis is away, each process admits its share.
fn shares(plan: &Plan, story: &Story, wrong: &mut Vec<String>) {
    let n = plan.processes as f64;
    for spell in &story.record.spells {
        let died = story.died.get(&spell.process).copied();
        let until = spell.until.unwrap_or(plan.length);
        let (from, until) = (spell.from, until.min(died.unwrap_or(until)));
        let seconds = (until.min(plan.length).saturating_sub(from)).as_secs_f64();
        if spell.process >= plan.busy || seconds < 4.0 {
            continue;
        }
        for (limit, of_limit) in plan.limits.iter().enumerate() {
            let Limit {
                capacity,
                rate,
                strict,
            } = of_limit;
            let mut roles = plan.roles.iter().filter(|role| role.concerns(limit));
            // A strict share that is smaller than the costs admits nothing.
            if !roles.all(Role::is_plain) || (*strict && plan.largest(limit) > capacity / n) {
                continue;
            }
            let its = story.record.admitted.iter().filter(|event| {
                (event.limit, event.process) == (limit, spell.process)
                    && event.at >= from
                    && event.at <= until
            });
            let admitted: f64 = its.map(|event| event.tokens).sum();
            // Those who were promised more have it, here or elsewhere; then the share fills.
            let mut missing = plan.promised(limit) / n + 2.0 * plan.largest(limit) + 1.0;
            if spell.from > plan.faults.get(1).map_or(spell.from, |second| second.at) {
                // What an earlier outage was charged may not have refilled.
                missing += capacity / n;
            }
            if admitted + missing < 0.9 * rate / n * seconds {
                wrong.push(format!(
                    "less than a share: {admitted} of limit {limit} in {seconds} s of {spell:?}"
                ));
            }
        }
    }
}

/// What memory granted is charged, and charged once.
fn payments(plan: &Plan, story: &Story, wrong: &mut Vec<String>) {
    let unkept = |fault: &Fault| matches!(fault.kind, Kind::Dies | Kind::ClockSet(_));
    if !plan.keeps_data() || plan.faults.iter().any(unkept) {
        return;
    }
    let mut seen = BTreeSet::new();
    for payment in &story.paid {
        if !seen.insert((&payment.limiter, &payment.number)) {
            wrong.push(format!("paid twice: {payment:?}"));
        }
    }
    let ([limit], true) = (&plan.limits[..], plan.roles.iter().all(Role::is_plain)) else {
        return;
    };
    let share = BucketParams::new(limit.capacity, limit.rate).share(plan.processes as f64);
    let largest = plan.largest(0);
    for (process, name) in story.names.iter().enumerate() {
        let granted = |from: Duration, until: Duration| {
            let its = story.record.admitted.iter().filter(|event| {
                event.process == process && event.degraded && event.at >= from && event.at < until
            });
            its.map(|event| event.tokens).sum::<f64>()
        };
        let its = story.paid.iter().filter(|paid| paid.limiter == *name);
        let paid: f64 = its.map(|paid| paid.tokens).sum();
        // Those who still slept at the end were charged, and did not go.
        let asleep = plan.promised(0);
        let most = granted(Duration::ZERO, plan.length) + asleep;
        if paid > most + 1e-6 {
            wrong.push(format!("paid too much: {paid} of {most} by {process}"));
        }
        // What has refilled meanwhile is not charged: a share lacks at most its capacity.
        let spells = story.record.spells.iter();
        let owed = spells
            .filter(|spell| spell.process == process)
            .filter_map(|spell| Some(granted(spell.from, spell.until?)))
            .map(|granted| (granted.min(share.capacity) - 2.0 * largest).max(0.0));
        let owed: f64 = owed.sum();
        // What was taken ahead and not used is given back with it.
        if paid < owed - plan.ahead(0) - 1e-6 {
            wrong.push(format!("paid too little: {paid} of {owed} by {process}"));
        }
    }
}
