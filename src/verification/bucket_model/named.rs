//! The counterexamples that shaped the model, with their numbers.

use super::{
    case::{BUCKETS, Case, Fate, Model, Op, Outcome},
    random::Rng,
    simulator::run,
};
use crate::bucket::{Bucket, BucketParams, Reservation};

const SECOND: f64 = 1e6;

fn take(id: u32, costs: [f64; BUCKETS], fate: Fate) -> Op {
    Op::Take {
        id,
        n: 1,
        costs,
        max_wait: 1e12,
        fate,
    }
}

fn one(id: u32, cost: f64) -> Op {
    take(id, [cost, 0.0, 0.0], Fate::Use)
}

fn deferred(id: u32, cost: f64) -> Op {
    take(id, [cost, 0.0, 0.0], Fate::Defer)
}

fn case(params: &[(f64, f64)], ops: &[Op]) -> Case {
    Case {
        params: params
            .iter()
            .map(|&(cap, rate)| BucketParams::new(cap, rate))
            .collect(),
        hand_over: false,
        ops: ops.to_vec(),
    }
}

/// The uses of one bucket: seconds and tokens.
fn uses(outcome: &Outcome, bucket: usize) -> Vec<(f64, f64)> {
    let uses = outcome.records[bucket].uses.iter();
    uses.map(|used| (used.time / SECOND, used.tokens)).collect()
}

#[track_caller]
fn assert_near(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-9, "{left} is not {right}");
}

#[test]
fn a_refund_that_raises_the_level_exceeds_the_window_of_a_waiter() {
    // The debt of 0.5 is not what is reserved for t = 1: half of that has refilled already.
    let case = case(
        &[(1.0, 1.0)],
        &[
            deferred(0, 1.0),
            Op::Wait(0.5 * SECOND),
            one(1, 1.0),
            Op::Finish(0),
            Op::Wait(0.5 * SECOND),
            one(2, 1.0),
        ],
    );
    let wrong = run(&case, Model::RaisesLevel);
    assert_eq!(uses(&wrong, 0), [(1.0, 1.0), (1.0, 1.0)]);
    assert_near(wrong.excess, 1.0);
    let real = run(&case, Model::Real);
    assert_eq!(uses(&real, 0), [(1.0, 1.0), (2.0, 1.0)]);
    assert_near(real.excess, 0.0);
}

#[test]
fn a_refund_of_a_whole_capacity_that_raises_the_level_doubles_it() {
    let case = case(
        &[(10.0, 1.0)],
        &[
            deferred(0, 10.0),
            Op::Wait(9.0 * SECOND),
            one(1, 10.0),
            Op::Finish(0),
            one(2, 10.0),
        ],
    );
    assert_near(run(&case, Model::RaisesLevel).excess, 10.0);
    assert_near(run(&case, Model::Real).excess, 0.0);
}

#[test]
fn new_requests_fill_gaps() {
    let case = case(
        &[(2.0, 1.0)],
        &[
            one(0, 2.0),
            one(1, 2.0),
            one(2, 2.0),
            one(3, 0.5),
            Op::Cancel(2),
            Op::Cancel(1),
            one(4, 0.5),
            one(5, 2.0),
        ],
    );
    let wrong = run(&case, Model::GivesBackEarly);
    let real = run(&case, Model::Real);
    assert_near(wrong.excess, 0.0);
    assert_near(real.excess, 0.0);
    assert_eq!(
        uses(&real, 0),
        [(0.0, 2.0), (0.5, 0.5), (2.5, 2.0), (4.5, 0.5)]
    );

    // Even if the waiters' window has room, a reservation may not be used before it is due.
    let case = case_of_small_costs();
    assert_near(run(&case, Model::GivesBackEarly).excess, 1.0);
    assert_near(run(&case, Model::Real).excess, 0.0);
}

fn case_of_small_costs() -> Case {
    case(
        &[(2.0, 1.0)],
        &[
            one(0, 1.0),
            one(1, 1.0),
            one(2, 1.0),
            Op::Cancel(2),
            one(3, 1.0),
        ],
    )
}

#[test]
fn refilled_gaps_and_returned_tokens_fit_into_one_window() {
    let case = case(
        &[(2.0, 1.0)],
        &[
            one(0, 2.0),
            one(1, 1.0),
            one(2, 1.0),
            one(3, 1.0),
            one(4, 1.0),
            // Returned at t = 1.
            Op::Cancel(1),
            Op::Wait(1.5 * SECOND),
            // A gap of 2 tokens, of which 1.5 have refilled at t = 2.5.
            Op::Cancel(2),
            Op::Cancel(3),
            Op::Wait(SECOND),
            one(5, 1.0),
            one(6, 1.0),
            one(7, 0.5),
        ],
    );
    let outcome = run(&case, Model::Real);
    // Were the 0.5 beyond #6 returned once #5 has used the returned token, #7 would not wait.
    assert_eq!(
        uses(&outcome, 0),
        [(0.0, 2.0), (2.5, 1.0), (2.5, 1.0), (3.0, 0.5), (4.0, 1.0)]
    );
    assert_near(outcome.excess, 0.0);
}

#[test]
fn all_that_has_refilled_of_a_gap_is_used_at_once() {
    let mut ops = vec![one(0, 4.0)];
    ops.extend((1..=5).map(|id| one(id, 1.0)));
    ops.extend((1..=4).map(Op::Cancel));
    ops.push(Op::Wait(3.5 * SECOND));
    // Two of 1 from the returned tokens, one from the gap, and 0.5 of the returned tokens again.
    ops.extend((6..=8).map(|id| one(id, 1.0)));
    ops.extend((9..=10).map(|id| one(id, 0.5)));
    let outcome = run(&case(&[(4.0, 1.0)], &ops), Model::Real);
    assert_eq!(
        uses(&outcome, 0)[1..],
        [
            (3.5, 1.0),
            (3.5, 1.0),
            (3.5, 1.0),
            (3.5, 0.5),
            (4.0, 0.5),
            (5.0, 1.0)
        ]
    );
    assert_near(outcome.excess, 0.0);
}

#[test]
fn tokens_refunded_late_are_an_exception() {
    let case = case(
        &[(1.0, 1.0)],
        &[
            deferred(0, 1.0),
            Op::Wait(SECOND),
            one(1, 1.0),
            Op::Finish(0),
            one(2, 1.0),
            one(3, 1.0),
        ],
    );
    let outcome = run(&case, Model::Real);
    // The refund finds a bucket with debt, but without waiters: #2 is granted, as an exception.
    assert_eq!(uses(&outcome, 0), [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0)]);
    assert_near(outcome.excess, 0.0);
}

#[test]
fn a_late_refund_just_before_a_window_is_an_exception() {
    let rejected = Op::Take {
        id: 4,
        n: 1,
        costs: [2.0, 0.0, 0.0],
        max_wait: 0.0,
        fate: Fate::Use,
    };
    let case = case(
        &[(2.0, 0.25)],
        &[
            take(0, [2.0, 0.0, 0.0], Fate::UsePart(0.25)),
            // Granted nothing, but the refill in two steps is rounded.
            Op::Wait(0.1 * SECOND),
            rejected,
            Op::Wait(5.9 * SECOND),
            one(1, 2.0),
            Op::Wait(2.0 * SECOND),
            one(2, 2.0),
            Op::Cancel(2),
            Op::Finish(0),
            one(3, 2.0),
        ],
    );
    let outcome = run(&case, Model::Real);
    // #1 is due at t = 8, rounded up. When #2 is cancelled, the queue ends, and the refund raises
    // the level.
    assert_eq!(
        uses(&outcome, 0),
        [(0.0, 0.5), (8.000_001, 2.0), (10.0, 2.0)]
    );
    assert_near(outcome.excess, 0.0);
}

#[test]
fn several_buckets_taken_with_one_wait_exceed_the_window_of_the_faster() {
    let (a, both, b) = ([2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [0.0, 4.0, 0.0]);
    let case = case(
        &[(2.0, 1.0), (4.0, 0.25)],
        &[
            take(0, a, Fate::Use),
            take(1, both, Fate::Use),
            Op::Wait(2.0 * SECOND),
            take(2, b, Fate::Use),
        ],
    );
    let wrong = run(&case, Model::AllAtOnce);
    assert_eq!(uses(&wrong, 1), [(2.0, 2.0), (8.0, 4.0)]);
    assert_near(wrong.excess, 0.5);
    let real = run(&case, Model::Real);
    assert_eq!(uses(&real, 1), [(2.0, 2.0), (10.0, 4.0)]);
    assert_near(real.excess, 0.0);
}

#[test]
fn a_second_rejection_gives_the_slowest_back_when_it_is_due() {
    let ask = |id, costs, max_wait| Op::Take {
        id,
        n: 1,
        costs,
        max_wait,
        fate: Fate::Use,
    };
    let case = case(
        &[(2.0, 1.0), (4.0, 0.25)],
        &[
            ask(0, [2.0, 0.0, 0.0], 0.0),
            ask(1, [2.0, 4.0, 0.0], 3.0 * SECOND),
            Op::Wait(SECOND),
            ask(2, [0.0, 4.0, 0.0], 0.0),
            Op::Wait(SECOND),
            ask(3, [2.0, 0.0, 0.0], 0.0),
        ],
    );
    let outcome = run(&case, Model::Real);
    assert_eq!(uses(&outcome, 0), [(0.0, 2.0), (2.0, 2.0)]);
    assert_eq!(uses(&outcome, 1), [(1.0, 4.0)]);
    assert_eq!(outcome.seen.second_rejections, 1);
    assert_near(outcome.excess, 0.0);
}

#[test]
fn waits_of_a_batch_follow_from_the_last_wait() {
    let params = BucketParams::new(5.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    bucket.level = 2.5;
    let taken = bucket.take(1.0, 5, 1e12, params);
    assert_eq!((taken.now, taken.granted, taken.last), (2.0, 5.0, 2.5e6));
    let waits: Vec<f64> = (0..5).map(|k| taken.wait(k, 1.0, params)).collect();
    assert_eq!(waits, [0.0, 0.0, 0.5e6, 1.5e6, 2.5e6]);
}

#[test]
fn a_clock_set_back_is_repaired_even_by_a_rejection() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(100.0 * SECOND, params);
    bucket.take(1.0, 1, 0.0, params);
    // If a rejection did not store this, all requests would be rejected until the clock catches up.
    assert!(bucket.advance(40.0 * SECOND, params));
    assert_eq!(bucket.take(1.0, 1, 0.0, params).retry_after, SECOND);
    assert!(!bucket.advance(41.0 * SECOND, params));
    assert_eq!(bucket.take(1.0, 1, 0.0, params).granted, 1.0);
}

#[test]
fn a_clock_set_back_keeps_waits() {
    let params = BucketParams::new(2.0, 1.0);
    let mut bucket = Bucket::full(100.0 * SECOND, params);
    bucket.take(1.0, 5, 1e12, params);
    bucket.advance(101.0 * SECOND, params);
    bucket.advance(41.0 * SECOND, params);
    // Three seconds were reserved, of which one has passed. Without the shift, returned tokens
    // would be kept apart for another minute.
    assert_eq!(bucket.last_due, 43.0 * SECOND);
    bucket.give_back(1.0, params);
    assert_eq!((bucket.level, bucket.returned), (-2.0, 1.0));
    bucket.advance(43.0 * SECOND, params);
    assert_eq!((bucket.level, bucket.returned), (1.0, 0.0));
}

#[test]
fn a_clock_set_back_after_a_grant_frees_nothing() {
    let case = case(
        &[(5.0, 1.0)],
        &[
            deferred(0, 5.0),
            one(1, 5.0),
            Op::Wait(SECOND),
            Op::StepClock(-60.0 * SECOND),
            Op::Finish(0),
            one(2, 5.0),
            Op::Cancel(2),
            one(3, 5.0),
            one(4, 5.0),
        ],
    );
    assert_near(run(&case, Model::Real).excess, 0.0);
}

#[test]
fn a_clock_slightly_behind_refills_nothing_until_it_catches_up() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(100.0 * SECOND, params);
    bucket.take(1.0, 1, 0.0, params);
    assert!(!bucket.advance(99.0 * SECOND, params));
    assert_eq!((bucket.level, bucket.at), (0.0, 100.0 * SECOND));
    assert!(!bucket.advance(100.5 * SECOND, params));
    assert_eq!(bucket.level, 0.5);
}

#[test]
fn a_clock_set_forward_forgives_debt_and_forgets_waiters() {
    // A charge is a debt as a reservation is.
    let charged = case(
        &[(2.0, 1.0)],
        &[
            take(0, [2.0, 0.0, 0.0], Fate::UseMore(2.0)),
            Op::Finish(0),
            Op::StepClock(60.0 * SECOND),
            one(1, 2.0),
        ],
    );
    let outcome = run(&charged, Model::Real);
    assert_eq!(uses(&outcome, 0), [(0.0, 2.0), (0.0, 2.0), (0.0, 2.0)]);
    assert_near(outcome.excess, 0.0);

    // By the server's clock #1 is granted at .4, so the refund raises the level: .45 from the jump,
    // and .25 more from the refund.
    let refunded = case(
        &[(1.0, 0.5)],
        &[
            take(0, [0.5, 0.0, 0.0], Fate::UsePart(0.5)),
            one(1, 1.0),
            Op::StepClock(0.9 * SECOND),
            Op::Wait(0.4 * SECOND),
            Op::Finish(0),
            one(2, 1.0),
        ],
    );
    let outcome = run(&refunded, Model::Real);
    assert_eq!(uses(&outcome, 0), [(0.0, 0.25), (1.0, 1.0), (1.6, 1.0)]);
    assert_near(outcome.records[0].jumps[0].tokens, 0.45 + 0.25);
    assert_near(outcome.excess, 0.0);
}

#[test]
fn a_quota_raised_under_debt_adds_what_was_reserved() {
    let (old, new) = (BucketParams::new(5.0, 1.0), BucketParams::new(10.0, 10.0));
    let mut bucket = Bucket::full(0.0, old);
    bucket.take(5.0, 1, 0.0, old);
    // Due at t = 5; at the new rate its tokens have refilled at t = .5.
    assert_eq!(bucket.take(5.0, 1, 1e12, old).last, 5.0 * SECOND);
    bucket.advance(0.0, new);
    let mut used = 5.0;
    for tenth in 0..=50 {
        bucket.advance(f64::from(tenth) * 0.1 * SECOND, new);
        used += bucket.take(1.0, 100, 0.0, new).granted;
    }
    // From the raise to t = 5, the waiter included.
    let beyond = used - (new.capacity + 5.0 * new.per_us * SECOND);
    assert!((-10.0..=5.0).contains(&beyond), "{beyond}");
    // From the moment at which the new capacity is first full: exactly the reservation more.
    let mut bucket = Bucket::full(0.0, old);
    bucket.take(5.0, 2, 1e12, old);
    bucket.advance(1.5 * SECOND, new);
    assert_near(bucket.level, 10.0);
    let mut used = 5.0;
    for tenth in 15..=50 {
        bucket.advance(f64::from(tenth) * 0.1 * SECOND, new);
        used += bucket.take(1.0, 100, 0.0, new).granted;
    }
    assert_near(used - (new.capacity + 3.5 * new.per_us * SECOND), 5.0);
}

#[test]
fn a_quota_raised_under_debt_keeps_the_window_of_waiters() {
    let (old, new) = (BucketParams::new(5.0, 1.0), BucketParams::new(5.0, 10.0));
    let mut bucket = Bucket::full(0.0, old);
    bucket.take(5.0, 1, 0.0, old);
    bucket.take(3.0, 2, 1e12, old);
    // Due at t = 3 and 6, but at the new rate a later reservation is due first.
    bucket.advance(0.0, new);
    assert_eq!(bucket.take(1.0, 1, 1e12, new).last, 0.7 * SECOND);
    assert_eq!(bucket.last_due, 6.0 * SECOND);
    // There are tokens already while a request waits. Besides both, one token may be returned.
    bucket.advance(0.8 * SECOND, new);
    assert_near(bucket.level, 1.0);
    bucket.give_back(5.0, new);
    assert_near(bucket.returned, 1.0);
}

#[test]
fn a_changed_quota_keeps_the_level_in_tokens() {
    let (large, small) = (BucketParams::new(100.0, 1.0), BucketParams::new(10.0, 1.0));
    let mut bucket = Bucket::full(0.0, large);
    bucket.take(95.0, 1, 0.0, large);
    bucket.advance(0.0, small);
    assert_eq!(bucket.level, 5.0);
    bucket.advance(0.0, large);
    assert_eq!(bucket.level, 5.0);
    bucket.advance(50.0 * SECOND, small);
    assert_eq!(bucket.level, 10.0);
}

#[test]
fn a_charge_cannot_block_a_bucket_for_ever() {
    let params = BucketParams::new(10.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    bucket.take(10.0, 1, 0.0, params);
    bucket.take(5.0, 1, 1e12, params);
    bucket.charge(1e9, params);
    // One capacity beyond what is reserved.
    assert_eq!(bucket.level, -15.0);
    bucket.charge(1e9, params);
    assert_eq!(bucket.level, -15.0);
}

/// The part of the rate that is used by a queue that is never empty, in which each request takes 3
/// of a capacity of 20, uses 1 and settles.
fn settled_use(gives_back: bool) -> f64 {
    let params = BucketParams::new(20.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    let mut due_times = Vec::new();
    let (end, mut now, mut used) = (2_000.0 * SECOND, 0.0, 0.0);
    while now < end {
        while due_times.len() < 8 {
            let taken = bucket.take(3.0, 1, 1e12, params);
            due_times.push(now + taken.last);
        }
        due_times.sort_by(f64::total_cmp);
        now = due_times.remove(0);
        used += 1.0;
        bucket.advance(now, params);
        if gives_back {
            bucket.give_back(2.0, params);
        }
    }
    used / (params.capacity + params.per_us * now)
}

#[test]
fn tokens_returned_while_others_wait_are_used() {
    assert!(settled_use(false) < 0.35);
    let used = settled_use(true);
    assert!((0.95..=1.0).contains(&used), "{used}");
}

/// The part of the rate that is used by a queue that is never empty, of which a third is
/// cancelled.
fn cancelled_use(hand_over: bool) -> f64 {
    let mut rng = Rng::new(1);
    let mut ops = Vec::new();
    let seconds = 2_000;
    for id in 0..2 * seconds {
        ops.push(Op::Take {
            id,
            n: 1,
            costs: [1.0, 0.0, 0.0],
            max_wait: 10.0 * SECOND,
            fate: Fate::Use,
        });
        if rng.percent(30) {
            ops.push(Op::Cancel(id.saturating_sub(rng.below(4))));
        }
        ops.push(Op::Wait(0.5 * SECOND));
    }
    let case = Case {
        hand_over,
        ..case(&[(1.0, 1.0)], &ops)
    };
    let outcome = run(&case, Model::Real);
    assert_near(outcome.excess, 0.0);
    let used: f64 = uses(&outcome, 0).iter().map(|(_, tokens)| tokens).sum();
    used / f64::from(seconds)
}

#[test]
fn cancelled_reservations_lose_no_tokens() {
    for hand_over in [false, true] {
        let used = cancelled_use(hand_over);
        assert!(used > 0.99, "{used}");
    }
}

/// Makes `n` reservations of cost 1 and cancels all of them, in this order.
fn reserve_and_cancel(params: BucketParams, n: u32, order: impl Fn(u32) -> u32) -> Bucket {
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(params.capacity, 1, 0.0, params);
    let reservations: Vec<_> = (0..n)
        .map(|_| {
            let taken = bucket.take(1.0, 1, 1e12, params);
            Reservation::due(bucket.at + taken.last, 1.0, params)
        })
        .collect();
    for k in 0..n {
        bucket.undo(reservations[order(k) as usize], params);
    }
    bucket
}

#[test]
fn after_all_waiters_have_cancelled_a_bucket_is_as_without_them() {
    for params in [
        BucketParams::new(1.0, 1.0),
        BucketParams::new(10.0, 3.0),
        BucketParams::new(100.0, 1e4),
    ] {
        let mut empty = Bucket::full(1.7e15, params);
        empty.take(params.capacity, 1, 0.0, params);
        let orders: [fn(u32) -> u32; 4] = [
            |k| k,
            |k| 19 - k,
            |k| (7 * k) % 20,
            // Of two processes with alternating reservations, one process after the other.
            |k| if k < 10 { 2 * k } else { 2 * k - 19 },
        ];
        for order in orders {
            let bucket = reserve_and_cancel(params, 20, order);
            assert!((bucket.level - empty.level).abs() < 1e-6, "{bucket:?}");
            assert_eq!((bucket.last_due, bucket.largest_cost), (0.0, 0.0));
            assert_eq!((bucket.returned, bucket.gaps.len()), (0.0, 0));
        }
    }
}

#[test]
fn tokens_of_gaps_beyond_the_limit_return_by_the_refill() {
    let params = BucketParams::new(1.0, 1.0);
    // Of two processes with alternating reservations: those of the first are no neighbours, and its
    // last one is cancelled first.
    let order = |k| if k < 100 { 198 - 2 * k } else { 399 - 2 * k };
    let mut bucket = reserve_and_cancel(params, 200, order);
    let lost = 100.0 - 64.0;
    assert!((-2.0 * lost..=0.0).contains(&bucket.level), "{bucket:?}");
    bucket.advance(bucket.at + 2.0 * lost * SECOND, params);
    assert_eq!((bucket.last_due, bucket.gaps.len()), (0.0, 0));
    assert!((bucket.level - 1.0).abs() < 1e-6, "{bucket:?}");
}

#[test]
fn a_quoted_wait_does_not_count_gaps() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(1.0, 1, 0.0, params);
    let first = Reservation::due(
        bucket.at + bucket.take(1.0, 1, 1e12, params).last,
        1.0,
        params,
    );
    bucket.take(1.0, 1, 1e12, params);
    bucket.undo(first, params);
    // A request waits for t = 2. A gap is due at t = 1.
    assert_eq!(bucket.quote(1.0, params), SECOND);
    assert_eq!(bucket.take(1.0, 1, 0.0, params).retry_after, SECOND);
    assert_eq!(bucket.take(1.0, 1, SECOND, params).last, SECOND);
    assert_eq!(bucket.quote(1.0, params), 3.0 * SECOND);
}

#[test]
fn a_pause_drops_gaps_that_are_due_within_it() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(1.0, 1, 0.0, params);
    let first = Reservation::due(
        bucket.at + bucket.take(1.0, 1, 1e12, params).last,
        1.0,
        params,
    );
    bucket.take(1.0, 1, 1e12, params);
    bucket.undo(first, params);
    bucket.pause(5.0 * SECOND, params);
    assert!(bucket.quote(1.0, params) >= 5.0 * SECOND);
}

#[test]
fn a_reservation_undone_late_returns_what_has_not_refilled_since() {
    let params = BucketParams::new(10.0, 1.0);
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(10.0, 1, 0.0, params);
    let wait = bucket.take(4.0, 1, 1e12, params).last;
    let gone = Reservation::due(bucket.at + wait, 4.0, params);
    for (late, comes_back) in [(0.0, 4.0), (1.0, 3.0), (9.0, 0.0)] {
        let mut bucket = bucket.clone();
        bucket.advance(gone.until + late * SECOND, params);
        let before = bucket.level;
        bucket.undo(gone, params);
        assert_near(bucket.level - before, comes_back);
    }
}

#[test]
fn a_pause_keeps_gaps_that_are_due_after_it() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(1.0, 1, 0.0, params);
    let at = bucket.at;
    let mut reserve = || Reservation::due(at + bucket.take(1.0, 1, 1e12, params).last, 1.0, params);
    let reserved: Vec<_> = (0..9).map(|_| reserve()).collect();
    // Due at 2 s and at 8 s.
    bucket.undo(reserved[1], params);
    bucket.undo(reserved[7], params);
    bucket.pause(5.0 * SECOND, params);
    assert_eq!(bucket.gaps, [reserved[7]]);
    assert_eq!(bucket.quote(1.0, params), 8.0 * SECOND);
}
