//! Properties of each single operation of a bucket.

use super::random::{Rng, seed};
use crate::bucket::{AtOnce, Bucket, BucketParams, Reservation, TakenAll, take_all, take_at_once};

const ROUNDS: u32 = 4_000;

fn rng() -> Rng {
    let seed = seed();
    println!("THROTTLE_SEED={seed}");
    Rng::new(seed)
}

fn random_params(rng: &mut Rng) -> BucketParams {
    let cap = rng.pick(&[1.0, 2.0, 2.5, 10.0, 100.0, 1e6]) * rng.pick(&[1.0, 1.0, 0.7]);
    BucketParams::new(cap, rng.pick(&[1e-4, 0.3, 1.0, 7.3, 1e3, 1e6]))
}

fn random_cost(rng: &mut Rng, params: BucketParams) -> f64 {
    let part = rng.part().max(1e-3);
    let cost = rng.pick(&[
        1.0,
        1.0,
        params.capacity,
        params.capacity / 3.0,
        params.capacity * part,
    ]);
    // A cost over the capacity, as of a local share, is rare.
    if rng.percent(5) {
        params.capacity * rng.pick(&[1.25, 2.0, 3.5])
    } else {
        cost.min(params.capacity)
    }
}

/// A state that random operations lead to, at the time of the last one.
fn random_bucket(rng: &mut Rng, params: BucketParams) -> Bucket {
    let mut now = 1.7e15;
    let mut bucket = Bucket::full(now, params);
    for _ in 0..rng.below(12) {
        now += (rng.part() * rng.pick(&[0.0, 1.0, 3.0]) / params.per_us).ceil();
        bucket.advance(now, params);
        let cost = random_cost(rng, params);
        match rng.below(6) {
            0..3 => {
                let max_wait = rng.pick(&[0.0, 1e6, 1e12]);
                bucket.take(cost, 1 + rng.below(3), max_wait, params);
            }
            3..5 => bucket.give_back(cost, params),
            _ => bucket.charge(cost, params),
        }
    }
    bucket
}

#[test]
fn n_requests_at_once_equal_n_requests_one_by_one() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        // These numbers are not rounded, so both must agree to the last bit.
        let exact = rng.percent(50);
        let (params, cost) = if exact {
            let cap = f64::from(8 + rng.below(160)) / 8.0;
            let per_us = 0.5f64.powi(10 + rng.below(12) as i32);
            let cost = f64::from(1 + rng.below(80)) / 8.0;
            (
                BucketParams {
                    capacity: cap,
                    per_us,
                },
                cost,
            )
        } else {
            let params = random_params(&mut rng);
            (params, random_cost(&mut rng, params))
        };
        let mut start = random_bucket(&mut rng, params);
        if exact {
            start.level = (start.level * 1024.0).floor() / 1024.0;
            start.returned = (start.returned * 1024.0).floor() / 1024.0;
        }
        let max_wait = rng.pick(&[0.0, 1e3, 1e6, 1e12]);
        let n = 1 + rng.below(9);
        let (mut at_once, mut one_by_one) = (start.clone(), start.clone());
        let taken = at_once.take(cost, n, max_wait, params);
        let singles: Vec<_> = (0..n)
            .map(|_| one_by_one.take(cost, 1, max_wait, params))
            .collect();
        let context = format!("{params:?} {start:?}: {n} of {cost} in {max_wait}: {taken:?}");
        let granted: f64 = singles.iter().map(|single| single.granted).sum();
        let now: f64 = singles.iter().map(|single| single.now).sum();
        if granted != taken.granted || now != taken.now {
            // Three times a third is one, but one less three thirds is not zero.
            let one_off = (granted - taken.granted).abs() <= 1.0 && (now - taken.now).abs() <= 1.0;
            assert!(one_off && !exact, "{granted} {now}: {context}");
            continue;
        }
        // A whole microsecond from rounding up, and the rounding of doubles.
        let close = |a: f64, b: f64| (a - b).abs() <= 1.0 + 1e-9 * params.capacity / params.per_us;
        for (k, single) in singles.iter().enumerate() {
            if single.granted == 1.0 {
                let wait = taken.wait(k as u32, cost, params);
                assert!(
                    wait <= max_wait && close(wait, single.last),
                    "{k}: {context}"
                );
            }
        }
        if let Some(first) = singles.iter().find(|single| single.granted == 0.0) {
            assert!(close(first.retry_after, taken.retry_after), "{context}");
        }
        if exact {
            assert_eq!(at_once, one_by_one, "{context}");
        }
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * params.capacity * f64::from(n);
        assert!(near(at_once.level, one_by_one.level), "{context}");
        assert!(near(at_once.returned, one_by_one.returned), "{context}");
    }
}

#[test]
fn a_wait_is_long_enough_and_no_longer() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let cost = random_cost(&mut rng, params);
        let start = random_bucket(&mut rng, params);
        let mut bucket = start.clone();
        let quoted = bucket.quote(cost, params);
        let taken = bucket.take(cost, 1, 1e30, params);
        assert_eq!(taken.granted, 1.0);
        assert_eq!(taken.last, quoted);
        assert_eq!(taken.last.fract(), 0.0);
        if taken.now == 1.0 {
            assert_eq!(taken.last, 0.0);
            continue;
        }
        // Rounded to the nearest microsecond this fails every other time.
        let exact = (cost.min(params.capacity) - start.level) / params.per_us;
        assert!(taken.last >= exact && taken.last - exact < 1.0);
        assert!(bucket.last_due >= bucket.at + taken.last);
        assert!(
            bucket.last_due >= start.last_due && bucket.largest_cost >= cost.min(params.capacity)
        );
    }
}

#[test]
fn a_retry_after_retry_after_is_granted() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let cost = random_cost(&mut rng, params);
        let mut bucket = random_bucket(&mut rng, params);
        let max_wait = rng.pick(&[0.0, 1e3, 1e6]);
        let before = bucket.clone();
        let taken = bucket.take(cost, 1, max_wait, params);
        if taken.granted == 1.0 {
            continue;
        }
        assert_eq!(bucket, before, "a rejection takes nothing");
        assert!(taken.retry_after >= 1.0);
        // A refill is rounded in the last bit.
        let later = taken.retry_after * (1.0 + 1e-9) + 1.0;
        bucket.advance(bucket.at + later.ceil(), params);
        let again = bucket.take(cost, 1, max_wait, params);
        assert_eq!(
            again.granted, 1.0,
            "{params:?} {before:?} {cost} {taken:?} {again:?}"
        );
    }
}

#[test]
fn due_times_are_in_order_and_returned_tokens_delay_no_waiter() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let cost = random_cost(&mut rng, params);
        let mut bucket = random_bucket(&mut rng, params);
        let before = bucket.clone();
        let taken = bucket.take(cost, 1, 1e30, params);
        if bucket.returned < before.returned {
            assert_eq!(taken.now, 1.0);
            let returned = before.returned;
            assert_eq!(Bucket { returned, ..bucket }, before);
        } else {
            let later = bucket.take(random_cost(&mut rng, params), 1, 1e30, params);
            assert!(later.last >= taken.last || later.now == 1.0);
        }
    }
}

#[test]
fn a_full_bucket_equals_an_absent_one() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let mut bucket = random_bucket(&mut rng, params);
        let full_in = bucket.full_in(params);
        assert!(full_in >= 0.0);
        let (mut early, then) = (bucket.clone(), bucket.at + full_in.ceil() + 1.0);
        bucket.advance(then, params);
        let absent = Bucket::full(then, params);
        assert!((bucket.level - absent.level).abs() <= 1e-9 * params.capacity);
        let level = absent.level;
        assert_eq!(Bucket { level, ..bucket }, absent);
        // And not before, unless returned tokens fill it when the last reservation is due.
        if full_in > 2.0 && early.returned == 0.0 && full_in < 1e12 {
            early.advance(early.at + (full_in - 2.0).floor(), params);
            assert!(early.level < params.capacity || early.last_due > early.at);
        }
    }
}

#[test]
fn giving_back_never_overfills() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let cost = random_cost(&mut rng, params);
        let mut bucket = random_bucket(&mut rng, params);
        let before = bucket.clone();
        bucket.give_back(cost, params);
        assert!(bucket.level <= params.capacity && bucket.returned <= params.capacity);
        if before.last_due > before.at {
            assert_eq!(bucket.level, before.level);
            let room = (params.capacity - bucket.largest_cost - bucket.level.max(0.0)).max(0.0);
            assert!(bucket.returned <= room);
        } else {
            assert_eq!(bucket.returned, 0.0);
        }
    }
}

#[test]
fn a_charge_never_raises_a_level_and_has_a_floor() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let mut bucket = random_bucket(&mut rng, params);
        // Far below the floor, as after a change of the quota.
        if rng.percent(20) {
            bucket.level -= 5.0 * params.capacity;
        }
        let before = bucket.clone();
        let x = random_cost(&mut rng, params) * rng.pick(&[0.1, 1.0, 1e12]);
        bucket.charge(x, params);
        let reserved = (before.last_due - before.at).max(0.0) * params.per_us;
        let floor = before.level.min(-params.capacity - reserved);
        assert!(bucket.level <= before.level && bucket.returned <= before.returned);
        assert!(bucket.level >= floor);
        let charged = before.level + before.returned - bucket.level - bucket.returned;
        assert_eq!(
            bucket.returned,
            (before.returned - x).max(0.0),
            "returned tokens are charged first"
        );
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (params.capacity + b);
        assert!(near(charged, x) || bucket.level == floor, "{before:?} {x}");
    }
}

#[test]
fn costs_from_zero_to_the_capacity_can_be_granted() {
    let params = BucketParams::new(1e15, 1.0);
    for cost in [1e15, 1.0, 0.05, 1e-300, 0.0] {
        assert!(params.can_grant(cost), "{cost}");
    }
    for cost in [1.1e15, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        assert!(!params.can_grant(cost), "{cost}");
    }
}

/// The largest bucket counts a cost of one exactly, and a smaller one up to its rounding.
#[test]
fn small_costs_are_counted_up_to_rounding() {
    let quota = crate::Quota::per_day(1.0).burst(u64::MAX as f64);
    let params = BucketParams::new(quota.capacity(), quota.rate());
    let spent = |cost: f64, n: u32| {
        let mut bucket = Bucket::full(1.7e15, params);
        for _ in 0..n {
            assert_eq!(bucket.take(cost, 1, 0.0, params).now, 1.0);
        }
        params.capacity - bucket.level
    };
    assert_eq!(spent(1.0, 1_000), 1_000.0);
    assert_eq!(spent(12_345.0, 1_000), 12_345_000.0);
    for cost in [0.9, 0.3, 1e-9, 1e-300] {
        let lost = (1_000.0 * cost - spent(cost, 1_000)).abs();
        assert!(
            lost <= 1_000.0 * params.capacity * 2f64.powi(-54),
            "{cost}: {lost}"
        );
    }
    // Near an empty bucket, where doubles are finest.
    let mut bucket = Bucket::full(1.7e15, params);
    bucket.take(params.capacity, 1, 0.0, params);
    bucket.give_back(1.0, params);
    for _ in 0..1_000 {
        assert_eq!(bucket.take(1e-9, 1, 0.0, params).now, 1.0);
    }
    assert!((bucket.level - (1.0 - 1e-6)).abs() < 1e-12, "{bucket:?}");
}

#[test]
fn a_cost_of_zero_takes_nothing() {
    let params = BucketParams::new(2.0, 1.0);
    for level in [2.0, 0.0, -1.0] {
        let mut bucket = Bucket::full(1e6, params);
        bucket.level = level;
        let before = bucket.clone();
        assert_eq!(bucket.quote(0.0, params), 0.0);
        let taken = bucket.take(0.0, 3, 0.0, params);
        assert_eq!((taken.now, taken.granted, taken.last), (3.0, 3.0, 0.0));
        assert_eq!(taken.retry_after, 0.0);
        assert_eq!(bucket, before);
    }
}

#[test]
fn a_cost_over_the_capacity_is_granted_when_the_bucket_is_full() {
    let params = BucketParams::new(2.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    assert_eq!(bucket.quote(5.0, params), 0.0);
    let taken = bucket.take(5.0, 2, 1e12, params);
    // The second one when the debt of the first has refilled.
    assert_eq!((taken.now, taken.granted, taken.last), (1.0, 2.0, 5e6));
    assert_eq!((bucket.level, bucket.largest_cost), (-8.0, 2.0));
    // While it waits, no returned token may overtake it: its window is full.
    bucket.give_back(1.0, params);
    assert_eq!(bucket.returned, 0.0);
    let mut bucket = Bucket::full(0.0, params);
    bucket.take(0.5, 1, 0.0, params);
    let rejected = bucket.take(5.0, 1, 0.0, params);
    assert_eq!((rejected.granted, rejected.retry_after), (0.0, 0.5e6));
}

#[test]
fn a_share_is_a_part_and_at_least_a_token() {
    let share = BucketParams::new(100.0, 8.0).share(4.0);
    assert_eq!(share, BucketParams::new(25.0, 2.0));
    assert_eq!(
        BucketParams::new(2.0, 8.0).share(8.0),
        BucketParams::new(1.0, 1.0)
    );
    assert_eq!(
        BucketParams::new(0.5, 8.0).share(8.0),
        BucketParams::new(0.5, 1.0)
    );
}

#[test]
fn any_number_of_requests_is_computed_at_once() {
    let params = BucketParams::new(3.0, 1e6);
    let mut bucket = Bucket::full(0.0, params);
    let taken = bucket.take(1.0, u32::MAX, 1e12, params);
    assert_eq!((taken.now, taken.granted), (3.0, f64::from(u32::MAX)));
    let mut bucket = Bucket::full(0.0, params);
    let taken = bucket.take(1.0, u32::MAX, 7.0, params);
    assert_eq!(
        (taken.granted, taken.last, taken.retry_after),
        (10.0, 7.0, 1.0)
    );
}

#[test]
fn several_buckets_are_all_or_one_or_none() {
    let (fast, slow) = (BucketParams::new(4.0, 2.0), BucketParams::new(2.0, 1.0));
    let mut buckets = [Bucket::full(0.0, fast), Bucket::full(0.0, slow)];
    let mut ask = |max_wait| {
        let before = buckets.clone();
        let [a, b] = &mut buckets;
        let answer = take_all([(a, 2.0, fast), (b, 2.0, slow)].into_iter(), max_wait);
        let spent = [0, 1].map(|i| before[i].level - buckets[i].level);
        (answer, spent)
    };
    assert_eq!(ask(0.0), (TakenAll::All, [2.0, 2.0]));
    let rejected = TakenAll::Rejected {
        which: 1,
        retry_after: 1.5e6,
    };
    assert_eq!(ask(0.5e6), (rejected, [0.0, 0.0]));
    let slowest = TakenAll::Slowest {
        which: 1,
        wait: 2e6,
        reservation: Reservation::due(2e6, 2.0, slow),
    };
    assert_eq!(ask(2e6), (slowest, [0.0, 2.0]));

    let mut equal = std::array::from_fn::<_, 2, _>(|_| Bucket::full(0.0, slow));
    let mut ask = |max_wait| {
        let [a, b] = &mut equal;
        take_all([(a, 2.0, slow), (b, 2.0, slow)].into_iter(), max_wait)
    };
    assert_eq!(ask(0.0), TakenAll::All);
    // `retry_after` is never zero, whatever fraction of a microsecond is left.
    let (which, retry_after) = (0, 1.0);
    let rejected = TakenAll::Rejected { which, retry_after };
    assert_eq!(ask(2e6 - 0.5), rejected);
    let wait = 2e6;
    let reservation = Reservation::due(wait, 2.0, slow);
    let slowest = TakenAll::Slowest {
        which,
        wait,
        reservation,
    };
    assert_eq!(ask(2e6), slowest);
}

/// All processes have spent their shares and made reservations beyond them. They recover one after
/// another, charge that, and continue to spend a share each. After that, the bucket has neither
/// tokens left over nor debt.
#[test]
fn processes_that_recover_one_by_one_leave_a_consistent_bucket() {
    const N: usize = 4;
    const STEP: f64 = 5e3;
    let whole = BucketParams::new(100.0, 200.0);
    let share = whole.share(N as f64);
    let mut rng = rng();
    for round in 0..ROUNDS / 10 {
        let start = 1.7e15;
        let outage = rng.pick(&[5e4, 2e5, 5e5, 3e6]);
        let spread = rng.pick(&[1e4, 1e5, 5e5]);
        // Each share has reservations this far ahead all the time.
        let ahead = rng.pick(&[0.0, 1e5, 4e5]);
        let reserved = ahead * share.per_us;
        let mut bucket = Bucket::full(start, whole);
        bucket.level = -reserved * N as f64;
        let mut shares = std::array::from_fn::<_, N, _>(|_| Bucket::full(start, share));
        let mut debts = [0.0; N];
        for bucket in &mut shares {
            bucket.level = -reserved;
        }
        let mut back: [f64; N] =
            std::array::from_fn(|_| start + outage + (rng.part() * spread).floor());
        back.sort_by(f64::total_cmp);
        let end = back[N - 1] + 1e6;
        let mut now = start;
        while now < end {
            now += STEP;
            let returned = back.iter().filter(|at| **at <= now).count();
            for process in 0..N {
                let own = &mut shares[process];
                own.advance(now, share);
                let mut spent = own.take(0.25, 99, ahead, share).granted * 0.25;
                debts[process] = (debts[process] + spent).min(share.capacity - own.level);
                if now < back[process] {
                    continue;
                }
                let since = now - back[process];
                if since < STEP {
                    let before = back.iter().filter(|at| **at < back[process]).count();
                    bucket.advance_in_recovery(now, whole, before as f64 / N as f64);
                    bucket.write_back(debts[process], ahead, 0.25);
                }
                // Reservations made by memory are charged already. New requests wait for a
                // reservation in memory first, and are sent to Redis when it is due.
                if since <= ahead {
                    spent = 0.0;
                } else {
                    spent = share.per_us * STEP;
                }
                bucket.advance_in_recovery(now, whole, returned as f64 / N as f64);
                bucket.level -= spent;
            }
        }
        let left = bucket.level;
        assert!(
            left.abs() <= 15.0,
            "round {round}: {left} left after {outage}, {spread}, {ahead}"
        );
    }
}

/// The short cut equals the model to the last bit.
#[test]
fn take_at_once_equals_advance_and_take() {
    let mut rng = rng();
    let (mut taken, mut rejected) = (0, 0);
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let mut bucket = Bucket::full(1.7e15, params);
        for _ in 0..8 {
            let behind = rng.pick(&[0.0, 0.0, -500_000.0, -3_000_000.0]);
            let now = bucket.at + behind + rng.part() * rng.pick(&[0.0, 0.5, 2.0]) / params.per_us;
            let cost = random_cost(&mut rng, params).min(params.capacity);
            let (mut level, mut at) = (bucket.level, bucket.at);
            let at_once = take_at_once(&mut level, &mut at, now, cost, params);
            let before = bucket.clone();
            let repaired = bucket.advance(now, params);
            let by_model = bucket.take(cost, 1, 0.0, params);
            match at_once {
                AtOnce::Taken => {
                    assert_eq!((level, at), (bucket.level, bucket.at));
                    assert!(by_model.now == 1.0 && !repaired);
                    taken += 1;
                }
                AtOnce::Rejected(wait) => {
                    assert_eq!((level, at), (before.level, before.at));
                    assert!(by_model.now == 0.0 && !repaired);
                    assert_eq!(wait, by_model.retry_after);
                    rejected += 1;
                }
                AtOnce::ClockWasSetBack => assert!(repaired),
            }
        }
    }
    assert!(taken > ROUNDS && rejected > ROUNDS);
}

#[test]
fn a_pause_grants_nothing_and_ends_without_a_burst() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let params = random_params(&mut rng);
        let mut bucket = random_bucket(&mut rng, params);
        let start = bucket.at;
        let unit = params.capacity / params.per_us;
        // Well above the resolution of a double of microseconds.
        let pause = (unit * rng.pick(&[0.01, 0.5, 3.0])).ceil().max(64.0);
        bucket.pause(pause, params);
        let end = start + pause;
        let mut now = start;
        // Whatever happens meanwhile, nothing is granted in that time.
        for _ in 0..8 {
            now = (now + (pause * 0.3 * rng.part()).floor()).min(end - 32.0);
            bucket.advance(now, params);
            let cost = random_cost(&mut rng, params);
            match rng.below(5) {
                0 => bucket.give_back(cost, params),
                1 => bucket.charge(cost * 0.1, params),
                // Neither pause shortens the other.
                2 => bucket.pause((pause * rng.part() * 0.1).floor(), params),
                _ => {
                    let taken = bucket.take(cost, 2, rng.pick(&[0.0, pause, 1e15]), params);
                    assert_eq!(taken.now, 0.0, "{bucket:?} at {now}, paused until {end}");
                    let first = taken.wait(0, cost, params);
                    assert!(
                        taken.granted == 0.0 || now + first >= end - 32.0,
                        "{bucket:?}"
                    );
                }
            }
            assert!(bucket.pause_left() >= end - now && bucket.returned == 0.0);
        }
        let end = now + bucket.pause_left();
        bucket.advance(end, params);
        let rounding = 1e-6 * params.capacity + params.per_us;
        assert!(bucket.level <= rounding, "a burst: {bucket:?}");
        assert_eq!(bucket.paused_until, 0.0);
        if bucket.last_due == 0.0 {
            let before = bucket.clone();
            bucket.give_back(params.capacity / 2.0, params);
            assert_ne!(bucket, before, "tokens are given back again after it");
        }
    }
}

/// The level counts a pause by a rate. A change of the rate does not change its length.
#[test]
fn a_pause_keeps_its_length_when_the_rate_changes() {
    for part in [0.01, 0.5, 3.0] {
        let params = BucketParams::new(10.0, 10.0);
        let other = params.slower(part);
        let mut bucket = Bucket::full(0.0, params);
        bucket.pause(60e6, params);
        bucket.charge(5.0, params);
        bucket.advance(20e6, other);
        bucket.advance(30e6, params);
        bucket.advance(40e6, other);
        let level = bucket.level;
        assert!((level + 20e6 * other.per_us).abs() < 1e-6, "{bucket:?}");
        // A reservation after it is due by the rate of that time.
        assert_eq!(bucket.take(1.0, 1, 1e12, other).granted, 1.0);
        bucket.advance(60e6, other);
        assert!((bucket.level + 1.0).abs() < 1e-6, "{bucket:?}");
        assert_eq!((bucket.paused_until, bucket.pause_rate), (0.0, 0.0));
    }
}

#[test]
fn reservations_within_a_pause_are_charged_for_it() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(0.0, params);
    // One is granted at once, and ten wait, a second apart.
    assert_eq!(bucket.take(1.0, 11, 1e12, params).granted, 11.0);
    bucket.pause(4e6, params);
    // The first four ask again, and queue behind the other six, which keep their due times.
    let again = bucket.take(1.0, 4, 1e12, params);
    assert_eq!(again.wait(0, 1.0, params), 11e6);
    assert_eq!(again.last, 14e6);
    // If the pause is longer than the queue, they are due after the pause.
    let mut bucket = Bucket::full(0.0, params);
    assert_eq!(bucket.take(1.0, 3, 1e12, params).granted, 3.0);
    bucket.pause(4e6, params);
    assert_eq!(bucket.take(1.0, 2, 1e12, params).wait(0, 1.0, params), 5e6);
}

#[test]
fn a_repaired_clock_keeps_the_rest_of_a_pause() {
    let params = BucketParams::new(1.0, 1.0);
    let mut bucket = Bucket::full(1e9, params);
    bucket.pause(4e6, params);
    assert!(bucket.advance(1e8, params));
    assert_eq!(bucket.pause_left(), 4e6);
    assert!(!bucket.advance(1e8 + 3e6, params));
    assert_eq!(bucket.pause_left(), 1e6);
    assert_eq!(bucket.level, -1.0);
}
