//! Plans that once broke a rule, as small as they could be made.

use std::time::Duration;

use super::{
    invariants::violations,
    plan::{Data, Fault, Kind, Limit, Plan, Role},
    run::{Story, run},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn plan(processes: usize, roles: Vec<Role>, faults: &[(u64, u64, usize, Kind)]) -> Plan {
    let fault = |(at, lasts, meet, kind): &(u64, u64, usize, Kind)| Fault {
        at: ms(*at),
        lasts: ms(*lasts),
        meet: *meet,
        kind: *kind,
    };
    let faults: Vec<_> = faults.iter().map(fault).collect();
    let last = faults.iter().map(|fault| fault.at + fault.lasts).max();
    Plan {
        seed: 1,
        processes,
        hinted: true,
        delay: (0, 2),
        limits: vec![Limit {
            capacity: 8.0,
            rate: 16.0,
            strict: false,
        }],
        roles,
        busy: processes,
        faults,
        lull: Duration::ZERO,
        length: last.unwrap_or_default() + ms(9_000),
        lease: 0.0,
    }
}

fn holds(plan: &Plan) -> Story {
    let story = run(plan);
    let wrong = violations(plan, &story);
    assert!(wrong.is_empty(), "{plan}{wrong:#?}");
    story
}

const ASKS: Role = Role::Asks(0, 1.0);

/// Redis appears after they have started, and goes before they have heard of one another: those
/// who saw it counted one, two and three processes.
#[test]
fn who_has_barely_met_goes_by_the_hint() {
    let down = Kind::Down(Data::Kept);
    holds(&plan(
        3,
        vec![ASKS],
        &[(0, 482, 3, down), (827, 18_196, 3, down)],
    ));
}

/// The same after an outage that was longer than counts are remembered: the first to be back on
/// a Redis that lost its data sees nobody else.
#[test]
fn an_outage_of_over_a_minute_ages_no_count() {
    let down = Kind::Down(Data::Lost);
    let faults = [(4_000, 70_000, 3, down), (74_600, 18_000, 3, down)];
    holds(&plan(3, vec![ASKS], &faults));
}

/// Memory has promised turns when Redis comes back, is paid for, and loses its data before it is
/// asked for anything: what was charged is known all the same.
#[test]
fn what_was_paid_is_not_forgotten_with_the_data() {
    let faults = [
        (2_216, 527, 1, Kind::Down(Data::Lost)),
        (8_839, 7_067, 1, Kind::CutOff),
        (16_290, 0, 1, Kind::Flushed),
    ];
    let mut plan = plan(
        1,
        vec![Role::Leaves(1, 1.0, 1_186), Role::Both(904)],
        &faults,
    );
    let limit = |capacity, strict| Limit {
        capacity,
        rate: 4.0,
        strict,
    };
    plan.limits = vec![limit(2.0, true), limit(8.0, false)];
    plan.seed = 1_295;
    plan.delay = (3, 8);
    holds(&plan);
}

/// Two are cut off before they are heard of on a Redis that has lost its data: nobody there sees
/// that they have lapsed.
#[test]
fn who_is_not_back_on_an_empty_redis_is_expected() {
    let faults = [
        (5_291, 128, 5, Kind::Down(Data::Lost)),
        (5_420, 30_000, 2, Kind::HalfOpen),
    ];
    holds(&plan(5, vec![ASKS], &faults));
}

/// Whoever is first back cut the bucket down to its share, and the others then charged it for
/// what they had spent: nothing was left for two seconds.
#[test]
fn who_comes_back_first_leaves_the_bucket_whole() {
    let faults = [(6_000, 5_000, 5, Kind::Down(Data::Kept))];
    let mut plan = plan(5, vec![ASKS], &faults);
    plan.limits[0].capacity = 64.0;
    for seed in 0..8 {
        plan.seed = seed;
        holds(&plan);
    }
}

/// Payments are executed, and the answers come just too late: made again, they charge nothing.
#[test]
fn a_payment_that_is_not_confirmed_is_made_once() {
    let mut plan = plan(3, vec![ASKS], &[(5_000, 8_000, 3, Kind::Slow(40))]);
    let mut again = 0;
    for seed in 0..12 {
        plan.seed = seed;
        again += holds(&plan).paid_again;
    }
    assert!(again > 0, "no answer to a payment came too late");
}
