//! Makes a plan that violates a rule smaller, as long as it violates a rule of the same kind.

use super::{invariants::violations, plan::Plan, run::run};

/// The kind of a violation: its text up to the numbers.
fn kind(violation: &str) -> &str {
    violation.split(':').next().unwrap_or_default()
}

fn breaks(plan: &Plan, wanted: &str) -> bool {
    let wrong = violations(plan, &run(plan));
    wrong.iter().any(|wrong| kind(wrong) == wanted)
}

/// The smallest plan that greedy steps find.
pub(crate) fn shrink(plan: &Plan, violation: &str) -> Plan {
    let wanted = kind(violation);
    let mut smallest = plan.clone();
    while let Some(smaller) = smaller(&smallest)
        .into_iter()
        .find(|plan| breaks(plan, wanted))
    {
        smallest = smaller;
    }
    smallest
}

fn smaller(plan: &Plan) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut with = |f: &dyn Fn(&mut Plan)| {
        let mut smaller = plan.clone();
        f(&mut smaller);
        plans.push(smaller);
    };
    for fault in 0..plan.faults.len() {
        with(&|plan| {
            plan.faults.remove(fault);
        });
    }
    for role in 0..plan.roles.len() {
        if plan.roles.len() > 1 {
            with(&|plan| {
                plan.roles.remove(role);
            });
        }
    }
    if plan.delay != (0, 0) {
        with(&|plan| plan.delay = (0, 0));
    }
    if plan.processes > 1
        && plan
            .faults
            .iter()
            .all(|fault| fault.affected < plan.processes)
    {
        with(&|plan| {
            plan.processes -= 1;
            plan.busy = plan.busy.min(plan.processes);
        });
    }
    for fault in 0..plan.faults.len() {
        if plan.faults[fault].lasts.as_millis() > 200 {
            with(&|plan| plan.faults[fault].lasts /= 2);
        }
    }
    plans
}
