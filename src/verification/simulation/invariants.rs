//! The rules that every run must keep.

use std::{collections::BTreeSet, time::Duration};

use super::{
    load::Decided,
    plan::{Fault, Kind, Limit, Plan, Role},
    run::Trace,
    windows::measure,
};
use crate::bucket::BucketParams;

const REDIS_TIMEOUT: Duration = Duration::from_millis(100);

/// How late a timer may be.
const TICK: Duration = Duration::from_millis(2);

/// All violations of the rules in a run.
pub(crate) fn violations(plan: &Plan, trace: &Trace) -> Vec<String> {
    let mut wrong = Vec::new();
    decisions(plan, trace, &mut wrong);
    for measured in measure(plan, trace) {
        if measured.excess > measured.allowed {
            wrong.push(format!("too much: {measured:?}"));
        }
        if measured.even.is_some_and(|even| measured.excess > even) {
            wrong.push(format!("too much for an even load: {measured:?}"));
        }
        if measured
            .allowed_shortfall
            .is_some_and(|may| measured.shortfall > may)
        {
            wrong.push(format!("too little: {measured:?}"));
        }
    }
    shares(plan, trace, &mut wrong);
    write_backs(plan, trace, &mut wrong);
    if trace.tasks_left > 0 {
        wrong.push(format!("{} tasks are left", trace.tasks_left));
    }
    if trace.scopes_held > plan.limits.len() {
        wrong.push(format!("{} buckets are held", trace.scopes_held));
    }
    wrong
}

/// Each acquisition is decided, in time.
fn decisions(plan: &Plan, trace: &Trace, wrong: &mut Vec<String>) {
    let most = |max_wait: Duration| {
        if max_wait.is_zero() {
            // Behind a call in flight, it takes two calls.
            2 * REDIS_TIMEOUT + TICK
        } else {
            max_wait + 4 * REDIS_TIMEOUT + TICK
        }
    };
    for decided in &trace.record.decided {
        let Decided {
            at,
            took,
            max_wait,
            unavailable,
            degraded,
            process,
        } = *decided;
        if unavailable {
            wrong.push(format!("unavailable: for process {process} at {at:?}"));
        }
        if took > most(max_wait) || (degraded && max_wait.is_zero() && !took.is_zero()) {
            wrong.push(format!(
                "too late: process {process} at {at:?} took {took:?} of {max_wait:?}, degraded: {degraded}"
            ));
        }
    }
    for ((process, task), undecided) in &trace.record.undecided {
        let end = trace.died.get(process).copied().unwrap_or(plan.length);
        if end > undecided.at + most(undecided.max_wait) {
            wrong.push(format!(
                "undecided: task {task} of process {process}, {undecided:?}"
            ));
        }
    }
}

/// While Redis is unavailable, each process admits its local share.
fn shares(plan: &Plan, trace: &Trace, wrong: &mut Vec<String>) {
    let n = plan.processes as f64;
    for outage in &trace.record.outages {
        let died = trace.died.get(&outage.process).copied();
        let until = outage.until.unwrap_or(plan.length);
        let (from, until) = (outage.from, until.min(died.unwrap_or(until)));
        let seconds = (until.min(plan.length).saturating_sub(from)).as_secs_f64();
        if outage.process >= plan.busy || seconds < 4.0 {
            continue;
        }
        for (limit, of_limit) in plan.limits.iter().enumerate() {
            let Limit {
                capacity,
                rate,
                strict,
            } = of_limit;
            let mut roles = plan.roles.iter().filter(|role| role.concerns(limit));
            // A strict share that is smaller than the cost admits nothing.
            if !roles.all(Role::is_plain) || (*strict && plan.largest(limit) > capacity / n) {
                continue;
            }
            let its = trace.record.admitted.iter().filter(|event| {
                (event.limit, event.process) == (limit, outage.process)
                    && event.at >= from
                    && event.at <= until
            });
            let admitted: f64 = its.map(|event| event.tokens).sum();
            // Earlier reservations are used first, here or elsewhere; then the share fills.
            let mut missing = plan.reserved(limit) / n + 2.0 * plan.largest(limit) + 1.0;
            if outage.from > plan.faults.get(1).map_or(outage.from, |second| second.at) {
                // The debt of an earlier outage may not have refilled.
                missing += capacity / n;
            }
            if admitted + missing < 0.9 * rate / n * seconds {
                wrong.push(format!(
                    "less than a share: {admitted} of limit {limit} in {seconds} s of {outage:?}"
                ));
            }
        }
    }
}

/// What memory granted is written back, and charged once.
fn write_backs(plan: &Plan, trace: &Trace, wrong: &mut Vec<String>) {
    let unkept = |fault: &Fault| matches!(fault.kind, Kind::ProcessDies | Kind::ClockSet(_));
    if !plan.keeps_data() || plan.faults.iter().any(unkept) {
        return;
    }
    let mut seen = BTreeSet::new();
    for write_back in &trace.written_back {
        if !seen.insert((&write_back.limiter, &write_back.number)) {
            wrong.push(format!("charged twice: {write_back:?}"));
        }
    }
    let ([limit], true) = (&plan.limits[..], plan.roles.iter().all(Role::is_plain)) else {
        return;
    };
    let share = BucketParams::new(limit.capacity, limit.rate).share(plan.processes as f64);
    let largest = plan.largest(0);
    for (process, name) in trace.names.iter().enumerate() {
        let granted = |from: Duration, until: Duration| {
            let its = trace.record.admitted.iter().filter(|event| {
                event.process == process && event.degraded && event.at >= from && event.at < until
            });
            its.map(|event| event.tokens).sum::<f64>()
        };
        let its = trace
            .written_back
            .iter()
            .filter(|done| done.limiter == *name);
        let charged: f64 = its.map(|done| done.tokens).sum();
        // Waiters at the end were charged, and not admitted.
        let waiting = plan.reserved(0);
        let most = granted(Duration::ZERO, plan.length) + waiting;
        if charged > most + 1e-6 {
            wrong.push(format!(
                "charged too much: {charged} of {most} by {process}"
            ));
        }
        // What has refilled is not charged: a share lacks at most its capacity.
        let outages = trace.record.outages.iter();
        let due = outages
            .filter(|outage| outage.process == process)
            .filter_map(|outage| Some(granted(outage.from, outage.until?)))
            .map(|granted| (granted.min(share.capacity) - 2.0 * largest).max(0.0));
        let due: f64 = due.sum();
        // Unused leases are returned with it.
        if charged < due - plan.ahead(0) - 1e-6 {
            wrong.push(format!(
                "charged too little: {charged} of {due} by {process}"
            ));
        }
    }
}
