//! Every window of what was admitted: how far it passes the limit, and how far it stays below.

use std::time::Duration;

use super::{
    load::Admitted,
    plan::{Data, Fault, Kind, Limit, Plan, Role},
    run::Story,
};
use crate::peers::MIN_PART;

/// Whoever has been counted for so long has lived for long enough to be missed, and has said so.
const LIVED: Duration = Duration::from_millis(6_500);

/// From when a fault begins to when nothing of it is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: f64,
    pub(crate) until: f64,
}

/// When Redis was away for anybody because of a fault, and the grace after it.
pub(crate) fn spans(plan: &Plan, story: &Story) -> Vec<Span> {
    let end = plan.length.as_secs_f64();
    // Turns that memory promised come afterwards.
    let longest = plan.roles.iter().map(Role::longest_wait).max();
    let longest = longest.unwrap_or_default().as_secs_f64();
    let span = |(index, fault): (usize, &Fault)| {
        let from = fault.at.as_secs_f64();
        let mut healed = (fault.at + fault.lasts).as_secs_f64();
        if fault.kind == Kind::Dies {
            // Until its silence is noticed, and as long as a share is reserved for it.
            healed += 4.0 + plan.reserve_for.as_secs_f64();
        }
        let next = plan.faults.get(index + 1);
        // Who has nothing to ask finds out late.
        let next = next.map_or(end, |next| next.at.as_secs_f64() + 1.0);
        let spells = story.record.spells.iter();
        let its = spells.filter(|spell| {
            let began = spell.from.as_secs_f64();
            began >= from && began < next
        });
        let back = its
            .map(|spell| spell.until.map_or(end, |until| until.as_secs_f64()))
            .fold(healed, f64::max);
        Span {
            from,
            until: back + 2.3 + longest,
        }
    };
    plan.faults.iter().enumerate().map(span).collect()
}

/// By how much the worst window in here passes `cap + rate * w`, in tokens.
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

/// By how much the worst window in here stays below `rate * w`, in tokens.
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

/// What one run showed of one limit, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) limit: usize,
    /// The faults of this part of the run, the first and the last.
    pub(crate) faults: Option<(usize, usize)>,
    pub(crate) excess: f64,
    pub(crate) allowed: f64,
    pub(crate) shortfall: f64,
    /// What an outage of all may exceed where all processes know the same: far less than what
    /// is stated for the worst case.
    pub(crate) even: Option<f64>,
    /// None where the load does not always ask for all that there is.
    pub(crate) may_lack: Option<f64>,
}

pub(crate) fn admitted(story: &Story, limit: usize) -> Vec<Admitted> {
    let admitted = story.record.admitted.iter().copied();
    admitted.filter(|event| event.limit == limit).collect()
}

/// What may come on top without any fault: what is on its way, and what is held to be corrected.
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

/// The bound that section 6 of the design states, of one fault.
fn stated(plan: &Plan, index: usize, limit: usize) -> f64 {
    let fault = &plan.faults[index];
    let n = plan.processes as f64;
    let Limit { capacity, rate, .. } = plan.limits[limit];
    let largest = plan.largest(limit);
    let full = capacity + plan.promised(limit);
    let start = (1.0 - 1.0 / n) * full + (n * largest - capacity).max(0.0);
    let part = fault.meet as f64 / n;
    let unheard = part * rate * 4.0;
    let lasts = fault.lasts.as_secs_f64();
    let reserve = plan.reserve_for.as_secs_f64();
    // However few are left, they keep a part of the rate.
    let floor = (MIN_PART - (1.0 - part)).max(0.0) * rate * lasts.min(reserve + 1.0);
    // Nobody misses those who were never met, or who are forgotten with a key that only they
    // would write again.
    let forgotten = index > 0 && {
        let before = &plan.faults[index - 1];
        before.kind == Kind::Evicted && fault.at - before.at < Duration::from_secs(2)
    };
    // Nor those who have not lived for long enough since they first reached Redis.
    let first = &plan.faults[0];
    let reached = if first.at.is_zero() {
        first.lasts + Duration::from_secs(1)
    } else {
        Duration::ZERO
    };
    // Nor, again, those who had no time to return from the fault before.
    let barely_back = index > 0 && {
        let before = &plan.faults[index - 1];
        !before.lasts.is_zero() && fault.at < before.at + before.lasts + Duration::from_secs(2)
    };
    let unseen = forgotten || barely_back || fault.at < reached + LIVED;
    // What was charged since the last beat may be lost without a sign.
    let old = |data| {
        if matches!(data, Data::Old(_)) {
            full
        } else {
            0.0
        }
    };
    match fault.kind {
        Kind::ClockSet(ms) => (rate * f64::from(ms.max(0)) / 1e3).min(full),
        Kind::Dies => 0.0,
        // Without the key that tells whether data was kept, it is as if none was.
        Kind::Evicted => full.max(start),
        Kind::Down(data) | Kind::Flaps(_, data) => start + rate * 0.2 + old(data),
        // Some pass while others do not, whoever it is.
        Kind::Slow(_) => start + unheard + part * rate * lasts,
        _ if fault.meet == plan.processes => start + rate * 0.2,
        _ if unseen => start + unheard + part * rate * lasts,
        _ => start + unheard + floor + part * rate * (lasts - reserve - 3.0).max(0.0),
    }
}

/// A seventh of the capacity and two tokens, where all know what was left when Redis went.
fn even(plan: &Plan, limit: usize, (first, last): (usize, usize)) -> Option<f64> {
    let n = plan.processes as f64;
    let Limit { capacity, rate, .. } = plan.limits[limit];
    let mut allowed = 2.0 + rate * 0.1 + plan.ahead(limit);
    if plan.promised(limit) > 0.0 {
        // Nor is it heard at once what was promised last.
        allowed += 2.0;
    }
    // Of larger ones, one may be under way that the others have not heard of.
    if !plan.is_even(limit) || plan.largest(limit) > 1.0 || capacity < n {
        return None;
    }
    for fault in &plan.faults[first..=last] {
        let short = match fault.kind {
            // All that was charged since may be lost, and nobody knows.
            Kind::Evicted | Kind::ClockSet(_) | Kind::Dies | Kind::Slow(_) => return None,
            Kind::Down(Data::Old(_)) | Kind::Flaps(_, Data::Old(_)) => return None,
            _ if fault.meet < plan.processes || fault.at.is_zero() => return None,
            Kind::Flaps(..) => true,
            _ => fault.lasts < Duration::from_secs(4),
        };
        allowed += 0.15 * capacity;
        if short {
            // Those who come back last still count as alive for those who are first.
            allowed += (1.0 - 1.0 / n) * rate;
        }
    }
    Some(allowed)
}

/// How many tokens may have been taken and not used, or not been there to be taken.
fn may_lack(plan: &Plan, limit: usize, faults: Option<(usize, usize)>) -> Option<f64> {
    let roles = plan.roles.iter().filter(|role| role.concerns(limit));
    let (first, last) = faults.unwrap_or_default();
    if !plan.is_even(limit) || (first == 0 && !plan.lull.is_zero()) {
        return None;
    }
    let n = plan.processes as f64;
    let (rate, largest) = (plan.limits[limit].rate, plan.largest(limit));
    let calm = largest + 1.0 + 0.5 * rate + plan.ahead(limit);
    // Of each process: what is in flight, and what its share held when it was no longer asked.
    let mut in_flight = roles.map(Role::cost).sum::<f64>() + largest;
    in_flight += plan.ahead(limit) / n;
    if plan.limits[limit].strict {
        in_flight += largest;
    }
    // Whoever died is counted for a minute: what an outage in that time grants is not known here.
    let until = if faults.is_some() {
        last + 1
    } else {
        plan.faults.len()
    };
    let die = plan.faults[..until].iter();
    let die = die.filter(|fault| fault.kind == Kind::Dies).count();
    if die > 0 && die < until {
        return None;
    }
    let Some(_) = faults else {
        return Some(calm);
    };
    let mut lack = calm;
    for (index, fault) in plan.faults.iter().enumerate().take(last + 1).skip(first) {
        let meet = fault.meet as f64;
        // A clock that is set back before anybody is back from an outage: what would have
        // refilled in that is lost.
        if matches!(fault.kind, Kind::ClockSet(ms) if ms < 0) && index > 0 {
            let before = &plan.faults[index - 1];
            if fault.at < before.at + before.lasts + Duration::from_secs(2) {
                lack += plan.limits[limit].capacity;
            }
        }
        lack += match fault.kind {
            // Each call over the time-out is executed, and its tokens are lost.
            Kind::Slow(_) => return None,
            Kind::ClockSet(_) => 2.5 * rate,
            // Its part of the rate, while that is reserved.
            Kind::Dies => in_flight + rate / n * (plan.reserve_for.as_secs_f64() + 1.0),
            Kind::Flaps(period, _) => {
                in_flight * meet * (fault.lasts.as_secs_f64() / period.as_secs_f64() + 1.0)
            }
            _ => in_flight * meet,
        };
        if fault.meet < plan.processes && fault.kind != Kind::Dies {
            // Until the next beats, those who come back are not yet counted; and they are charged
            // at most their shares, though those had been left for them.
            lack += meet / n * (rate * 2.5 + plan.limits[limit].capacity);
        }
    }
    Some(lack)
}

/// Every part of a run: those without a fault, and those with one or several in a row.
pub(crate) fn show(plan: &Plan, story: &Story) -> Vec<Shown> {
    let spans = spans(plan, story);
    let end = plan.length.as_secs_f64();
    let mut shown = Vec::new();
    for limit in 0..plan.limits.len() {
        let admitted = admitted(story, limit);
        let (cap, rate) = (plan.limits[limit].capacity, plan.limits[limit].rate);
        let mut part = |faults: Option<(usize, usize)>, from: f64, to: f64| {
            if to <= from {
                return;
            }
            let allowed = match faults {
                None => 0.0,
                Some((first, last)) => (first..=last).map(|fault| stated(plan, fault, limit)).sum(),
            };
            shown.push(Shown {
                limit,
                faults,
                excess: excess(&admitted, (cap, rate), from, to),
                allowed: allowed + slack(plan, limit),
                shortfall: shortfall(&admitted, rate, from, to),
                even: faults.and_then(|faults| even(plan, limit, faults)),
                may_lack: may_lack(plan, limit, faults),
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
    shown
}
