//! Measures every window of admitted tokens: how far it exceeds the limit, and how far it stays below.

use std::time::Duration;

use super::{
    load::Admitted,
    plan::{Data, Fault, Kind, Limit, Plan, Role},
    run::Trace,
};
use crate::peers::MIN_PART;

/// A limiter that has been counted for so long is established.
const ESTABLISHED: Duration = Duration::from_millis(6_500);

/// The time from the start of a fault to the end of its effects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: f64,
    pub(crate) until: f64,
}

/// For each fault, the time in which it made any process degraded, and the recovery window after it.
pub(crate) fn spans(plan: &Plan, trace: &Trace) -> Vec<Span> {
    let end = plan.length.as_secs_f64();
    // Reservations that memory made are used later.
    let longest = plan.roles.iter().map(Role::longest_wait).max();
    let longest = longest.unwrap_or_default().as_secs_f64();
    let span = |(index, fault): (usize, &Fault)| {
        let from = fault.at.as_secs_f64();
        let mut healed = (fault.at + fault.lasts).as_secs_f64();
        if fault.kind == Kind::ProcessDies {
            // Until it counts as missing, and as long as a share is reserved for it.
            healed += 4.0 + plan.reserve_for.as_secs_f64();
        }
        let next = plan.faults.get(index + 1);
        // A process without requests detects it late.
        let next = next.map_or(end, |next| next.at.as_secs_f64() + 1.0);
        let outages = trace.record.outages.iter();
        let its = outages.filter(|outage| {
            let began = outage.from.as_secs_f64();
            began >= from && began < next
        });
        let back = its
            .map(|outage| outage.until.map_or(end, |until| until.as_secs_f64()))
            .fold(healed, f64::max);
        Span {
            from,
            until: back + 2.3 + longest,
        }
    };
    plan.faults.iter().enumerate().map(span).collect()
}

/// How far the worst window in this time exceeds `cap + rate * w`, in tokens.
pub(crate) fn excess(admitted: &[Admitted], (cap, rate): (f64, f64), from: f64, to: f64) -> f64 {
    let (mut above, mut worst, mut last) = (0.0_f64, 0.0_f64, from);
    for admitted in admitted {
        let at = admitted.at.as_secs_f64();
        if at < from || at >= to {
            continue;
        }
        above = (above - rate * (at - last)).max(0.0) + admitted.tokens;
        worst = worst.max(above);
        last = at;
    }
    worst - cap
}

/// How far the worst window in this time stays below `rate * w`, in tokens.
pub(crate) fn shortfall(admitted: &[Admitted], rate: f64, from: f64, to: f64) -> f64 {
    let (mut below, mut worst, mut last) = (0.0_f64, 0.0_f64, from);
    for admitted in admitted {
        let at = admitted.at.as_secs_f64();
        if at < from || at >= to {
            continue;
        }
        below += rate * (at - last);
        worst = worst.max(below);
        below = (below - admitted.tokens).max(0.0);
        last = at;
    }
    worst.max(below + rate * (to - last))
}

/// The results of one limit in one part of a run, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) limit: usize,
    /// The first and the last fault of this part.
    pub(crate) faults: Option<(usize, usize)>,
    pub(crate) excess: f64,
    pub(crate) allowed: f64,
    pub(crate) shortfall: f64,
    /// The bound for an outage that affects all processes evenly: far less than the worst case.
    pub(crate) even: Option<f64>,
    /// None if the load does not always request all tokens.
    pub(crate) allowed_shortfall: Option<f64>,
}

pub(crate) fn admitted(trace: &Trace, limit: usize) -> Vec<Admitted> {
    let admitted = trace.record.admitted.iter().copied();
    admitted.filter(|event| event.limit == limit).collect()
}

/// The bound without a fault: tokens in flight, and tokens that will be corrected.
fn slack(plan: &Plan, limit: usize) -> f64 {
    let rate = plan.limits[limit].rate;
    let held = plan.roles.iter().filter(|role| role.concerns(limit));
    let held = held.map(|role| match role {
        Role::Settles(_, cost) => *cost,
        Role::Both(_) => 1.0,
        _ => 0.0,
    });
    let held: f64 = held.sum();
    1e-6 + rate * 0.1 + held * plan.busy as f64 + plan.ahead(limit)
}

/// The bound of one fault (section 5 of ARCHITECTURE.md).
fn stated(plan: &Plan, index: usize, limit: usize) -> f64 {
    let fault = &plan.faults[index];
    let n = plan.processes as f64;
    let Limit { capacity, rate, .. } = plan.limits[limit];
    let largest = plan.largest(limit);
    let full = capacity + plan.reserved(limit);
    let start = (1.0 - 1.0 / n) * full + (n * largest - capacity).max(0.0);
    let part = fault.affected as f64 / n;
    let undetected = part * rate * 4.0;
    let lasts = fault.lasts.as_secs_f64();
    let reserve = plan.reserve_for.as_secs_f64();
    // However few limiters are left, they use a part of the rate.
    let floor = (MIN_PART - (1.0 - part)).max(0.0) * rate * lasts.min(reserve + 1.0);
    // Limiters do not count as missing if Redis never had their heartbeats, or if it lost the key
    // that only they would write again.
    let forgotten = index > 0 && {
        let before = &plan.faults[index - 1];
        before.kind == Kind::Evicted && fault.at - before.at < Duration::from_secs(2)
    };
    // Nor if they are not established yet.
    let first = &plan.faults[0];
    let reached = if first.at.is_zero() {
        first.lasts + Duration::from_secs(1)
    } else {
        Duration::ZERO
    };
    // Nor if they had no time to recover from the fault before.
    let just_recovered = index > 0 && {
        let before = &plan.faults[index - 1];
        !before.lasts.is_zero() && fault.at < before.at + before.lasts + Duration::from_secs(2)
    };
    let unseen = forgotten || just_recovered || fault.at < reached + ESTABLISHED;
    // Charges since the last heartbeat may be lost undetected.
    let old = |data| {
        if matches!(data, Data::Old(_)) {
            full
        } else {
            0.0
        }
    };
    match fault.kind {
        Kind::ClockSet(ms) => (rate * f64::from(ms.max(0)) / 1e3).min(full),
        Kind::ProcessDies => 0.0,
        // Without the epoch, all data counts as lost.
        Kind::Evicted => full.max(start),
        Kind::Down(data) | Kind::Flaps(_, data) => start + rate * 0.2 + old(data),
        // Any of the processes may be degraded while the others are not.
        Kind::Slow(_) => start + undetected + part * rate * lasts,
        _ if fault.affected == plan.processes => start + rate * 0.2,
        _ if unseen => start + undetected + part * rate * lasts,
        _ => start + undetected + floor + part * rate * (lasts - reserve - 3.0).max(0.0),
    }
}

/// 0.15 of the capacity and a few tokens, if all processes had the current level when the outage
/// began.
fn even(plan: &Plan, limit: usize, (first, last): (usize, usize)) -> Option<f64> {
    let n = plan.processes as f64;
    let Limit { capacity, rate, .. } = plan.limits[limit];
    let mut allowed = 2.0 + rate * 0.1 + plan.ahead(limit);
    if plan.reserved(limit) > 0.0 {
        // The last reservations are not known to all.
        allowed += 2.0;
    }
    // A large request may be in flight that the other processes do not know.
    if !plan.is_even(limit) || plan.largest(limit) > 1.0 || capacity < n {
        return None;
    }
    for fault in &plan.faults[first..=last] {
        let short = match fault.kind {
            // Charges may be lost undetected.
            Kind::Evicted | Kind::ClockSet(_) | Kind::ProcessDies | Kind::Slow(_) => return None,
            Kind::Down(Data::Old(_)) | Kind::Flaps(_, Data::Old(_)) => return None,
            _ if fault.affected < plan.processes || fault.at.is_zero() => return None,
            Kind::Flaps(..) => true,
            _ => fault.lasts < Duration::from_secs(4),
        };
        allowed += 0.15 * capacity;
        if short {
            // The last processes to recover still count as alive for the first ones.
            allowed += (1.0 - 1.0 / n) * rate;
        }
    }
    Some(allowed)
}

/// How many tokens may have been taken and not used, or not granted.
fn allowed_shortfall(plan: &Plan, limit: usize, faults: Option<(usize, usize)>) -> Option<f64> {
    let roles = plan.roles.iter().filter(|role| role.concerns(limit));
    let (first, last) = faults.unwrap_or_default();
    if !plan.is_even(limit) || (first == 0 && !plan.lull.is_zero()) {
        return None;
    }
    let n = plan.processes as f64;
    let (rate, largest) = (plan.limits[limit].rate, plan.largest(limit));
    let without_fault = largest + 1.0 + 0.5 * rate + plan.ahead(limit);
    // Of each process: tokens in flight, and those left in its share at the end of the outage.
    let mut in_flight = roles.map(Role::cost).sum::<f64>() + largest;
    in_flight += plan.ahead(limit) / n;
    if plan.limits[limit].strict {
        in_flight += largest;
    }
    // A process that died is counted for a minute: no bound for an outage in that time.
    let until = if faults.is_some() {
        last + 1
    } else {
        plan.faults.len()
    };
    let deaths = plan.faults[..until].iter();
    let deaths = deaths
        .filter(|fault| fault.kind == Kind::ProcessDies)
        .count();
    if deaths > 0 && deaths < until {
        return None;
    }
    let Some(_) = faults else {
        return Some(without_fault);
    };
    let mut lack = without_fault;
    for (index, fault) in plan.faults.iter().enumerate().take(last + 1).skip(first) {
        let affected = fault.affected as f64;
        // The clock was set back before the recovery: what refilled in that time is lost.
        if matches!(fault.kind, Kind::ClockSet(ms) if ms < 0) && index > 0 {
            let before = &plan.faults[index - 1];
            if fault.at < before.at + before.lasts + Duration::from_secs(2) {
                lack += plan.limits[limit].capacity;
            }
        }
        lack += match fault.kind {
            // Each call that takes longer than the time-out is executed, and its tokens are lost.
            Kind::Slow(_) => return None,
            Kind::ClockSet(_) => 2.5 * rate,
            // Its part of the rate, while it is reserved.
            Kind::ProcessDies => in_flight + rate / n * (plan.reserve_for.as_secs_f64() + 1.0),
            Kind::Flaps(period, _) => {
                in_flight * affected * (fault.lasts.as_secs_f64() / period.as_secs_f64() + 1.0)
            }
            _ => in_flight * affected,
        };
        if fault.affected < plan.processes && fault.kind != Kind::ProcessDies {
            // Until the next heartbeats, recovered processes are not counted; and they write back
            // at most their shares, even if more was reserved for them.
            lack += affected / n * (rate * 2.5 + plan.limits[limit].capacity);
        }
    }
    Some(lack)
}

/// Measures every part of a run: those without a fault, and those with one or more in a row.
pub(crate) fn measure(plan: &Plan, trace: &Trace) -> Vec<Measured> {
    let spans = spans(plan, trace);
    let end = plan.length.as_secs_f64();
    let mut measured = Vec::new();
    for limit in 0..plan.limits.len() {
        let admitted = admitted(trace, limit);
        let (cap, rate) = (plan.limits[limit].capacity, plan.limits[limit].rate);
        let mut part = |faults: Option<(usize, usize)>, from: f64, to: f64| {
            if to <= from {
                return;
            }
            let allowed = match faults {
                None => 0.0,
                Some((first, last)) => (first..=last).map(|fault| stated(plan, fault, limit)).sum(),
            };
            measured.push(Measured {
                limit,
                faults,
                excess: excess(&admitted, (cap, rate), from, to),
                allowed: allowed + slack(plan, limit),
                shortfall: shortfall(&admitted, rate, from, to),
                even: faults.and_then(|faults| even(plan, limit, faults)),
                allowed_shortfall: allowed_shortfall(plan, limit, faults),
            });
        };
        let before = |index: usize| match index {
            0 => 0.0,
            _ => spans[index - 1].until,
        };
        let after = |index: usize| spans.get(index).map_or(end, |span| span.from);
        for first in 0..=spans.len() {
            part(None, before(first), after(first));
            for last in first..spans.len() {
                part(Some((first, last)), before(first), after(last + 1));
            }
        }
    }
    measured
}
