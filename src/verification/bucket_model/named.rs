//! What looked right and was not: each case by its name, with the numbers that showed it.

use crate::bucket::{Bucket, BucketParams, Reservation};

use super::case::{BUCKETS, Case, Fate, Law, Op, Outcome};
use super::random::Rng;
use super::simulator::run;

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

fn held(id: u32, cost: f64) -> Op {
    take(id, [cost, 0.0, 0.0], Fate::Hold)
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

/// What was used of one bucket: seconds and tokens.
fn uses(outcome: &Outcome, bucket: usize) -> Vec<(f64, f64)> {
    let uses = outcome.records[bucket].uses.iter();
    uses.map(|used| (used.time / SECOND, used.tokens)).collect()
}

#[track_caller]
fn assert_near(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-9, "{left} is not {right}");
}

#[test]
fn a_plain_refund_pulls_a_promised_turn_forward() {
    // The debt of 0.5 is not what was promised for t = 1: half of that has refilled already.
    let case = case(
        &[(1.0, 1.0)],
        &[
            held(0, 1.0),
            Op::Wait(0.5 * SECOND),
            one(1, 1.0),
            Op::Finish(0),
            Op::Wait(0.5 * SECOND),
            one(2, 1.0),
        ],
    );
    let plain = run(&case, Law::Plain);
    assert_eq!(uses(&plain, 0), [(1.0, 1.0), (1.0, 1.0)]);
    assert_near(plain.excess, 1.0);
    let real = run(&case, Law::Real);
    assert_eq!(uses(&real, 0), [(1.0, 1.0), (2.0, 1.0)]);
    assert_near(real.excess, 0.0);
}

#[test]
fn a_plain_refund_of_a_whole_capacity_doubles_it() {
    let case = case(
        &[(10.0, 1.0)],
        &[
            held(0, 10.0),
            Op::Wait(9.0 * SECOND),
            one(1, 10.0),
            Op::Finish(0),
            one(2, 10.0),
        ],
    );
    assert_near(run(&case, Law::Plain).excess, 10.0);
    assert_near(run(&case, Law::Real).excess, 0.0);
}

#[test]
fn newcomers_take_the_places_of_cancelled_reservations() {
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
    let plain = run(&case, Law::Early);
    let real = run(&case, Law::Real);
    assert_near(plain.excess, 0.0);
    assert_near(real.excess, 0.0);
    assert_eq!(
        uses(&real, 0),
        [(0.0, 2.0), (0.5, 0.5), (2.5, 2.0), (4.5, 0.5)]
    );

    // Where the window of the sleepers has room, a slot may not be used before its turn either.
    let case = case_of_small_costs();
    assert_near(run(&case, Law::Early).excess, 1.0);
    assert_near(run(&case, Law::Real).excess, 0.0);
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
fn a_late_refund_is_late_by_what_was_held() {
    let case = case(
        &[(1.0, 1.0)],
        &[
            held(0, 1.0),
            Op::Wait(SECOND),
            one(1, 1.0),
            Op::Finish(0),
            one(2, 1.0),
            one(3, 1.0),
        ],
    );
    let outcome = run(&case, Law::Real);
    // The refund finds a bucket with a debt, but without sleepers: #2 may go, and that is stated.
    assert_eq!(uses(&outcome, 0), [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0)]);
    assert_near(outcome.excess, 0.0);
}

#[test]
fn several_buckets_taken_with_one_wait_overrun_the_faster() {
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
    let wrong = run(&case, Law::AllAtOnce);
    assert_eq!(uses(&wrong, 1), [(2.0, 2.0), (8.0, 4.0)]);
    assert_near(wrong.excess, 0.5);
    let real = run(&case, Law::Real);
    assert_eq!(uses(&real, 1), [(2.0, 2.0), (10.0, 4.0)]);
    assert_near(real.excess, 0.0);
}

#[test]
fn the_rest_refused_gives_the_slowest_back_at_its_turn() {
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
    let outcome = run(&case, Law::Real);
    assert_eq!(uses(&outcome, 0), [(0.0, 2.0), (2.0, 2.0)]);
    assert_eq!(uses(&outcome, 1), [(1.0, 4.0)]);
    assert_eq!(outcome.seen.second_refusals, 1);
    assert_near(outcome.excess, 0.0);
}

#[test]
fn waits_of_a_batch_follow_from_the_last() {
    let params = BucketParams::new(5.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    bucket.level = 2.5;
    let taken = bucket.take(1.0, 5, 1e12, params);
    assert_eq!((taken.now, taken.granted, taken.last), (2.0, 5.0, 2.5e6));
    let waits: Vec<f64> = (0..5).map(|k| taken.wait(k, 1.0, params)).collect();
    assert_eq!(waits, [0.0, 0.0, 0.5e6, 1.5e6, 2.5e6]);
}

#[test]
fn a_clock_set_back_is_mended_even_by_a_refusal() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(100.0 * SECOND, params);
    bucket.take(1.0, 1, 0.0, params);
    // A refusal that forgot this would repeat itself until the clock has caught up.
    assert!(bucket.advance(40.0 * SECOND, params));
    assert_eq!(bucket.take(1.0, 1, 0.0, params).retry_after, SECOND);
    assert!(!bucket.advance(41.0 * SECOND, params));
    assert_eq!(bucket.take(1.0, 1, 0.0, params).granted, 1.0);
}

#[test]
fn a_clock_set_back_leaves_sleepers_where_they_are() {
    let params = BucketParams::new(2.0, 1.0);
    let mut bucket = Bucket::full(100.0 * SECOND, params);
    bucket.take(1.0, 5, 1e12, params);
    bucket.advance(101.0 * SECOND, params);
    bucket.advance(41.0 * SECOND, params);
    // Three seconds had been promised, one of them has passed; without the shift what is given
    // back would sit in the pool for another minute.
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
            held(0, 5.0),
            one(1, 5.0),
            Op::Wait(SECOND),
            Op::Step(-60.0 * SECOND),
            Op::Finish(0),
            one(2, 5.0),
            Op::Cancel(2),
            one(3, 5.0),
            one(4, 5.0),
        ],
    );
    assert_near(run(&case, Law::Real).excess, 0.0);
}

#[test]
fn a_clock_slightly_behind_refills_nothing_until_it_has_caught_up() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(100.0 * SECOND, params);
    bucket.take(1.0, 1, 0.0, params);
    assert!(!bucket.advance(99.0 * SECOND, params));
    assert_eq!((bucket.level, bucket.at), (0.0, 100.0 * SECOND));
    assert!(!bucket.advance(100.5 * SECOND, params));
    assert_eq!(bucket.level, 0.5);
}

#[test]
fn a_clock_set_forward_forgives_debts_and_then_cannot_tell_who_sleeps() {
    // A charge is a debt as well as a promise is.
    let charged = case(
        &[(2.0, 1.0)],
        &[
            take(0, [2.0, 0.0, 0.0], Fate::Over(2.0)),
            Op::Finish(0),
            Op::Step(60.0 * SECOND),
            one(1, 2.0),
        ],
    );
    let outcome = run(&charged, Law::Real);
    assert_eq!(uses(&outcome, 0), [(0.0, 2.0), (0.0, 2.0), (0.0, 2.0)]);
    assert_near(outcome.excess, 0.0);

    // By the server's clock #1 has gone at .4, so that the refund raises the level: .45 from the
    // step, and .25 more from that.
    let refunded = case(
        &[(1.0, 0.5)],
        &[
            take(0, [0.5, 0.0, 0.0], Fate::Part(0.5)),
            one(1, 1.0),
            Op::Step(0.9 * SECOND),
            Op::Wait(0.4 * SECOND),
            Op::Finish(0),
            one(2, 1.0),
        ],
    );
    let outcome = run(&refunded, Law::Real);
    assert_eq!(uses(&outcome, 0), [(0.0, 0.25), (1.0, 1.0), (1.6, 1.0)]);
    assert_near(outcome.records[0].jumps[0].tokens, 0.45 + 0.25);
    assert_near(outcome.excess, 0.0);
}

#[test]
fn a_quota_raised_under_debt_adds_what_was_promised() {
    let (old, new) = (BucketParams::new(5.0, 1.0), BucketParams::new(10.0, 10.0));
    let mut bucket = Bucket::full(0.0, old);
    bucket.take(5.0, 1, 0.0, old);
    // Promised for t = 5, and paid at the new rate by t = .5.
    assert_eq!(bucket.take(5.0, 1, 1e12, old).last, 5.0 * SECOND);
    bucket.advance(0.0, new);
    let mut used = 5.0;
    for tenth in 0..=50 {
        bucket.advance(f64::from(tenth) * 0.1 * SECOND, new);
        used += bucket.take(1.0, 100, 0.0, new).granted;
    }
    // From the raise to t = 5, the sleeper included.
    let beyond = used - (new.capacity + 5.0 * new.per_us * SECOND);
    assert!((-10.0..=5.0).contains(&beyond), "{beyond}");
    // From the moment at which the new capacity was first full: exactly the promise more.
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
fn a_quota_raised_under_debt_leaves_sleepers_their_window() {
    let (old, new) = (BucketParams::new(5.0, 1.0), BucketParams::new(5.0, 10.0));
    let mut bucket = Bucket::full(0.0, old);
    bucket.take(5.0, 1, 0.0, old);
    bucket.take(3.0, 2, 1e12, old);
    // Promised for t = 3 and 6, but at the new rate a later one comes first.
    bucket.advance(0.0, new);
    assert_eq!(bucket.take(1.0, 1, 1e12, new).last, 0.7 * SECOND);
    assert_eq!(bucket.last_due, 6.0 * SECOND);
    // There are tokens already, while somebody sleeps; beside both the pool has room for one.
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
fn settling_up_cannot_block_a_bucket_for_ever() {
    let params = BucketParams::new(10.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    bucket.take(10.0, 1, 0.0, params);
    bucket.take(5.0, 1, 1e12, params);
    bucket.charge(1e9, params);
    // One capacity beyond what was promised.
    assert_eq!(bucket.level, -15.0);
    bucket.charge(1e9, params);
    assert_eq!(bucket.level, -15.0);
}

/// The used part of the rate, in a queue that is never empty: everyone takes 3 of a capacity of
/// 20, uses 1 and settles.
fn settled_use(gives_back: bool) -> f64 {
    let params = BucketParams::new(20.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    let mut turns = Vec::new();
    let (end, mut now, mut used) = (2_000.0 * SECOND, 0.0, 0.0);
    while now < end {
        while turns.len() < 8 {
            let taken = bucket.take(3.0, 1, 1e12, params);
            turns.push(now + taken.last);
        }
        turns.sort_by(f64::total_cmp);
        now = turns.remove(0);
        used += 1.0;
        bucket.advance(now, params);
        if gives_back {
            bucket.give_back(2.0, params);
        }
    }
    used / (params.capacity + params.per_us * now)
}

#[test]
fn settling_down_helps_while_others_sleep() {
    assert!(settled_use(false) < 0.35);
    let used = settled_use(true);
    assert!((0.95..=1.0).contains(&used), "{used}");
}

/// The used part of the rate, in a queue that is never empty and from which every third goes away.
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
    let outcome = run(&case, Law::Real);
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

/// Reserves for `n` callers of cost 1 and cancels all of them, in this order.
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
fn after_all_waiters_are_gone_a_bucket_is_as_without_them() {
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
            // Of two processes, one after the other, whose callers stand in turn.
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
fn cancelled_reservations_beyond_those_remembered_come_back_by_the_refill() {
    let params = BucketParams::new(1.0, 1.0);
    // Of two processes whose callers stand in turn: none of the first are neighbours, and the last
    // of them is cancelled first.
    let order = |k| if k < 100 { 198 - 2 * k } else { 399 - 2 * k };
    let mut bucket = reserve_and_cancel(params, 200, order);
    let lost = 100.0 - 64.0;
    assert!((-2.0 * lost..=0.0).contains(&bucket.level), "{bucket:?}");
    bucket.advance(bucket.at + 2.0 * lost * SECOND, params);
    assert_eq!((bucket.last_due, bucket.gaps.len()), (0.0, 0));
    assert!((bucket.level - 1.0).abs() < 1e-6, "{bucket:?}");
}

#[test]
fn newcomers_are_not_told_a_wait_that_counts_cancelled_reservations() {
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
    // Somebody waits for t = 2; t = 1 is free.
    assert_eq!(bucket.quote(1.0, params), SECOND);
    assert_eq!(bucket.take(1.0, 1, 0.0, params).retry_after, SECOND);
    assert_eq!(bucket.take(1.0, 1, SECOND, params).last, SECOND);
    assert_eq!(bucket.quote(1.0, params), 3.0 * SECOND);
}

#[test]
fn a_pause_takes_cancelled_reservations_with_it() {
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
fn what_others_may_have_used_since_it_was_due_does_not_come_back() {
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
fn a_pause_keeps_cancelled_reservations_that_are_due_after_it() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(1.0, 1, 0.0, params);
    let at = bucket.at;
    let mut reserve = || Reservation::due(at + bucket.take(1.0, 1, 1e12, params).last, 1.0, params);
    let reserved: Vec<_> = (0..9).map(|_| reserve()).collect();
    // Due after 2 s, and after 8 s.
    bucket.undo(reserved[1], params);
    bucket.undo(reserved[7], params);
    bucket.pause(5.0 * SECOND, params);
    assert_eq!(bucket.gaps, [reserved[7]]);
    assert_eq!(bucket.quote(1.0, params), 8.0 * SECOND);
}
