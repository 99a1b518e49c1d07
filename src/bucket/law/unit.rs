//! The bucket by itself: what holds for each single operation.

use crate::bucket::{AtOnce, Bucket, Reservation, TakenAll, Terms, take_all, take_at_once};

use super::random::{Rng, seed};

const ROUNDS: u32 = 4_000;

fn rng() -> Rng {
    let seed = seed();
    println!("THROTTLE_SEED={seed}");
    Rng::new(seed)
}

fn random_terms(rng: &mut Rng) -> Terms {
    let cap = rng.pick(&[1.0, 2.0, 2.5, 10.0, 100.0, 1e6]) * rng.pick(&[1.0, 1.0, 0.7]);
    Terms::new(cap, rng.pick(&[1e-4, 0.3, 1.0, 7.3, 1e3, 1e6]))
}

fn random_cost(rng: &mut Rng, terms: Terms) -> f64 {
    let part = rng.part().max(1e-3);
    let cost = rng.pick(&[1.0, 1.0, terms.cap, terms.cap / 3.0, terms.cap * part]);
    // Over the whole, as of a share of a larger limit, is rare.
    if rng.percent(5) {
        terms.cap * rng.pick(&[1.25, 2.0, 3.5])
    } else {
        cost.min(terms.cap)
    }
}

/// Some state that operations lead to, at the time of its last visit.
fn random_bucket(rng: &mut Rng, terms: Terms) -> Bucket {
    let mut now = 1.7e15;
    let mut bucket = Bucket::full(now, terms);
    for _ in 0..rng.below(12) {
        now += (rng.part() * rng.pick(&[0.0, 1.0, 3.0]) / terms.per_us).ceil();
        bucket.visit(now, terms);
        let cost = random_cost(rng, terms);
        match rng.below(6) {
            0..3 => {
                let max_wait = rng.pick(&[0.0, 1e6, 1e12]);
                bucket.take(cost, 1 + rng.below(3), max_wait, terms);
            }
            3..5 => bucket.give_back(cost, terms),
            _ => bucket.charge(cost, terms),
        }
    }
    bucket
}

#[test]
fn one_take_of_n_is_n_takes_of_one() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        // In such numbers nothing is rounded, so that both must agree to the last bit.
        let exact = rng.percent(50);
        let (terms, cost) = if exact {
            let cap = f64::from(8 + rng.below(160)) / 8.0;
            let per_us = 0.5f64.powi(10 + rng.below(12) as i32);
            let cost = f64::from(1 + rng.below(80)) / 8.0;
            (Terms { cap, per_us }, cost)
        } else {
            let terms = random_terms(&mut rng);
            (terms, random_cost(&mut rng, terms))
        };
        let mut start = random_bucket(&mut rng, terms);
        if exact {
            start.level = (start.level * 1024.0).floor() / 1024.0;
            start.pool = (start.pool * 1024.0).floor() / 1024.0;
        }
        let max_wait = rng.pick(&[0.0, 1e3, 1e6, 1e12]);
        let n = 1 + rng.below(9);
        let (mut at_once, mut one_by_one) = (start.clone(), start.clone());
        let taken = at_once.take(cost, n, max_wait, terms);
        let singles: Vec<_> = (0..n)
            .map(|_| one_by_one.take(cost, 1, max_wait, terms))
            .collect();
        let said = format!("{terms:?} {start:?}: {n} of {cost} in {max_wait}: {taken:?}");
        let granted: f64 = singles.iter().map(|single| single.granted).sum();
        let now: f64 = singles.iter().map(|single| single.now).sum();
        if granted != taken.granted || now != taken.now {
            // One third three times is a whole, but a whole less three thirds is not zero.
            let one_off = (granted - taken.granted).abs() <= 1.0 && (now - taken.now).abs() <= 1.0;
            assert!(one_off && !exact, "{granted} {now}: {said}");
            continue;
        }
        // A whole microsecond from rounding up, and what doubles lose.
        let close = |a: f64, b: f64| (a - b).abs() <= 1.0 + 1e-9 * terms.cap / terms.per_us;
        for (k, single) in singles.iter().enumerate() {
            if single.granted == 1.0 {
                let wait = taken.wait(k as u32, cost, terms);
                assert!(wait <= max_wait && close(wait, single.last), "{k}: {said}");
            }
        }
        if let Some(first) = singles.iter().find(|single| single.granted == 0.0) {
            assert!(close(first.retry_after, taken.retry_after), "{said}");
        }
        if exact {
            assert_eq!(at_once, one_by_one, "{said}");
        }
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * terms.cap * f64::from(n);
        assert!(near(at_once.level, one_by_one.level), "{said}");
        assert!(near(at_once.pool, one_by_one.pool), "{said}");
    }
}

#[test]
fn a_wait_is_long_enough_and_no_longer() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let cost = random_cost(&mut rng, terms);
        let start = random_bucket(&mut rng, terms);
        let mut bucket = start.clone();
        let quoted = bucket.quote(cost, terms);
        let taken = bucket.take(cost, 1, 1e30, terms);
        assert_eq!(taken.granted, 1.0);
        assert_eq!(taken.last, quoted);
        assert_eq!(taken.last.fract(), 0.0);
        if taken.now == 1.0 {
            assert_eq!(taken.last, 0.0);
            continue;
        }
        // Rounded to the nearest microsecond this fails every other time.
        let exact = (cost.min(terms.cap) - start.level) / terms.per_us;
        assert!(taken.last >= exact && taken.last - exact < 1.0);
        assert!(bucket.tail >= bucket.at + taken.last);
        assert!(bucket.tail >= start.tail && bucket.big >= cost.min(terms.cap));
    }
}

#[test]
fn who_comes_back_after_retry_after_gets_in() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let cost = random_cost(&mut rng, terms);
        let mut bucket = random_bucket(&mut rng, terms);
        let max_wait = rng.pick(&[0.0, 1e3, 1e6]);
        let before = bucket.clone();
        let taken = bucket.take(cost, 1, max_wait, terms);
        if taken.granted == 1.0 {
            continue;
        }
        assert_eq!(bucket, before, "a refusal takes nothing");
        assert!(taken.retry_after >= 1.0);
        // A refill rounds in the last bit.
        let later = taken.retry_after * (1.0 + 1e-9) + 1.0;
        bucket.visit(bucket.at + later.ceil(), terms);
        let again = bucket.take(cost, 1, max_wait, terms);
        assert_eq!(
            again.granted, 1.0,
            "{terms:?} {before:?} {cost} {taken:?} {again:?}"
        );
    }
}

#[test]
fn turns_are_in_order_and_the_pool_delays_nobody() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let cost = random_cost(&mut rng, terms);
        let mut bucket = random_bucket(&mut rng, terms);
        let before = bucket.clone();
        let taken = bucket.take(cost, 1, 1e30, terms);
        if bucket.pool < before.pool {
            assert_eq!(taken.now, 1.0);
            let pool = before.pool;
            assert_eq!(Bucket { pool, ..bucket }, before);
        } else {
            let later = bucket.take(random_cost(&mut rng, terms), 1, 1e30, terms);
            assert!(later.last >= taken.last || later.now == 1.0);
        }
    }
}

#[test]
fn a_full_bucket_equals_an_absent_one() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let mut bucket = random_bucket(&mut rng, terms);
        let full_in = bucket.full_in(terms);
        assert!(full_in >= 0.0);
        let (mut early, then) = (bucket.clone(), bucket.at + full_in.ceil() + 1.0);
        bucket.visit(then, terms);
        let absent = Bucket::full(then, terms);
        assert!((bucket.level - absent.level).abs() <= 1e-9 * terms.cap);
        let level = absent.level;
        assert_eq!(Bucket { level, ..bucket }, absent);
        // And not before, unless a pool fills it when the last sleeper goes.
        if full_in > 2.0 && early.pool == 0.0 && full_in < 1e12 {
            early.visit(early.at + (full_in - 2.0).floor(), terms);
            assert!(early.level < terms.cap || early.tail > early.at);
        }
    }
}

#[test]
fn redis_remembers_until_full() {
    let terms = Terms::new(10.0, 1.0);
    let mut bucket = Bucket::full(5e6, terms);
    assert_eq!(
        bucket.ttl_ms(5e6, 1.0, terms),
        Some(1.0),
        "PX 0 is an error"
    );
    bucket.take(3.0, 1, 0.0, terms);
    assert_eq!(bucket.ttl_ms(5e6, 0.0, terms), Some(6_000.0));
    // Neither too short, nor too long.
    assert_eq!(bucket.ttl_ms(5e6, 2.999e6, terms), Some(6_000.0));
    assert_eq!(bucket.ttl_ms(5e6, 3e6, terms), None);
    assert_eq!(bucket.ttl_ms(5e6, 12e6, terms), None);
    assert_eq!(bucket.ttl_ms(5e6, 12.001e6, terms), Some(6_000.0));
    // A server whose clock is behind `at` also needs to get there.
    assert_eq!(bucket.ttl_ms(4.5e6, 3e6, terms), Some(7_000.0));
    bucket.take(0.0001, 1, 0.0, terms);
    assert_eq!(bucket.ttl_ms(5e6, 0.0, terms), Some(6_001.0));
    bucket.take(9.0, 1, 1e12, terms);
    bucket.level = terms.cap;
    let ttl = bucket.ttl_ms(5e6, 0.0, terms);
    assert_eq!(ttl, Some(4_001.0), "somebody sleeps");
    let never = Terms::new(1e15, 1e-12);
    bucket.level = 0.0;
    let ttl = bucket.ttl_ms(5e6, 0.0, never);
    assert_eq!(ttl, Some(9_007_199_254_740_992.0));
}

#[test]
fn giving_back_never_overfills() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let cost = random_cost(&mut rng, terms);
        let mut bucket = random_bucket(&mut rng, terms);
        let before = bucket.clone();
        bucket.give_back(cost, terms);
        assert!(bucket.level <= terms.cap && bucket.pool <= terms.cap);
        if before.tail > before.at {
            assert_eq!(bucket.level, before.level);
            let room = (terms.cap - bucket.big - bucket.level.max(0.0)).max(0.0);
            assert!(bucket.pool <= room);
        } else {
            assert_eq!(bucket.pool, 0.0);
        }
    }
}

#[test]
fn a_charge_never_raises_a_level_and_has_a_floor() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let mut bucket = random_bucket(&mut rng, terms);
        // Far below the floor, as after a change of the quota.
        if rng.percent(20) {
            bucket.level -= 5.0 * terms.cap;
        }
        let before = bucket.clone();
        let x = random_cost(&mut rng, terms) * rng.pick(&[0.1, 1.0, 1e12]);
        bucket.charge(x, terms);
        let promised = (before.tail - before.at).max(0.0) * terms.per_us;
        let floor = before.level.min(-terms.cap - promised);
        assert!(bucket.level <= before.level && bucket.pool <= before.pool);
        assert!(bucket.level >= floor);
        let paid = before.level + before.pool - bucket.level - bucket.pool;
        assert_eq!(
            bucket.pool,
            (before.pool - x).max(0.0),
            "the pool pays first"
        );
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (terms.cap + b);
        assert!(near(paid, x) || bucket.level == floor, "{before:?} {x}");
    }
}

#[test]
fn tells_what_can_ever_be_granted() {
    let terms = Terms::new(1e15, 1.0);
    for cost in [1e15, 1.0, 0.05, 1e-300, 0.0] {
        assert!(terms.can_grant(cost), "{cost}");
    }
    for cost in [1.1e15, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        assert!(!terms.can_grant(cost), "{cost}");
    }
}

/// Of a cost of one the largest bucket loses nothing, of one below that no more than its rounding.
#[test]
fn small_costs_are_counted_up_to_rounding() {
    let quota = crate::Quota::per_day(1.0).burst(u64::MAX as f64);
    let terms = Terms::new(quota.capacity(), quota.rate());
    let spent = |cost: f64, n: u32| {
        let mut bucket = Bucket::full(1.7e15, terms);
        for _ in 0..n {
            assert_eq!(bucket.take(cost, 1, 0.0, terms).now, 1.0);
        }
        terms.cap - bucket.level
    };
    assert_eq!(spent(1.0, 1_000), 1_000.0);
    assert_eq!(spent(12_345.0, 1_000), 12_345_000.0);
    for cost in [0.9, 0.3, 1e-9, 1e-300] {
        let lost = (1_000.0 * cost - spent(cost, 1_000)).abs();
        assert!(
            lost <= 1_000.0 * terms.cap * 2f64.powi(-54),
            "{cost}: {lost}"
        );
    }
    // Not from the burst: the level is near zero, where a double is finest.
    let mut bucket = Bucket::full(1.7e15, terms);
    bucket.take(terms.cap, 1, 0.0, terms);
    bucket.give_back(1.0, terms);
    for _ in 0..1_000 {
        assert_eq!(bucket.take(1e-9, 1, 0.0, terms).now, 1.0);
    }
    assert!((bucket.level - (1.0 - 1e-6)).abs() < 1e-12, "{bucket:?}");
}

#[test]
fn nothing_takes_nothing() {
    let terms = Terms::new(2.0, 1.0);
    for level in [2.0, 0.0, -1.0] {
        let mut bucket = Bucket::full(1e6, terms);
        bucket.level = level;
        let before = bucket.clone();
        assert_eq!(bucket.quote(0.0, terms), 0.0);
        let taken = bucket.take(0.0, 3, 0.0, terms);
        assert_eq!((taken.now, taken.granted, taken.last), (3.0, 3.0, 0.0));
        assert_eq!(taken.retry_after, 0.0);
        assert_eq!(bucket, before);
    }
}

#[test]
fn what_costs_more_than_all_goes_when_all_is_there() {
    let terms = Terms::new(2.0, 1.0);
    let mut bucket = Bucket::full(0.0, terms);
    assert_eq!(bucket.quote(5.0, terms), 0.0);
    let taken = bucket.take(5.0, 2, 1e12, terms);
    // The second when the first has been paid for.
    assert_eq!((taken.now, taken.granted, taken.last), (1.0, 2.0, 5e6));
    assert_eq!((bucket.level, bucket.big), (-8.0, 2.0));
    // While it sleeps, nothing may pass it: its window is full.
    bucket.give_back(1.0, terms);
    assert_eq!(bucket.pool, 0.0);
    let mut bucket = Bucket::full(0.0, terms);
    bucket.take(0.5, 1, 0.0, terms);
    let refused = bucket.take(5.0, 1, 0.0, terms);
    assert_eq!((refused.granted, refused.retry_after), (0.0, 0.5e6));
}

#[test]
fn a_share_is_a_part_and_at_least_a_token() {
    let share = Terms::new(100.0, 8.0).share(4.0);
    assert_eq!(share, Terms::new(25.0, 2.0));
    assert_eq!(Terms::new(2.0, 8.0).share(8.0), Terms::new(1.0, 1.0));
    assert_eq!(Terms::new(0.5, 8.0).share(8.0), Terms::new(0.5, 1.0));
}

#[test]
fn any_number_of_demands_is_one_sum() {
    let terms = Terms::new(3.0, 1e6);
    let mut bucket = Bucket::full(0.0, terms);
    let taken = bucket.take(1.0, u32::MAX, 1e12, terms);
    assert_eq!((taken.now, taken.granted), (3.0, f64::from(u32::MAX)));
    let mut bucket = Bucket::full(0.0, terms);
    let taken = bucket.take(1.0, u32::MAX, 7.0, terms);
    assert_eq!(
        (taken.granted, taken.last, taken.retry_after),
        (10.0, 7.0, 1.0)
    );
}

#[test]
fn several_buckets_are_all_or_one_or_none() {
    let (fast, slow) = (Terms::new(4.0, 2.0), Terms::new(2.0, 1.0));
    let mut buckets = [Bucket::full(0.0, fast), Bucket::full(0.0, slow)];
    let mut ask = |max_wait| {
        let before = buckets.clone();
        let [a, b] = &mut buckets;
        let answer = take_all([(a, 2.0, fast), (b, 2.0, slow)].into_iter(), max_wait);
        let spent = [0, 1].map(|i| before[i].level - buckets[i].level);
        (answer, spent)
    };
    assert_eq!(ask(0.0), (TakenAll::All, [2.0, 2.0]));
    let refused = TakenAll::Refused {
        which: 1,
        retry_after: 1.5e6,
    };
    assert_eq!(ask(0.5e6), (refused, [0.0, 0.0]));
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
    // Never "again in nothing", whatever fraction a wait may have.
    let (which, retry_after) = (0, 1.0);
    let refused = TakenAll::Refused { which, retry_after };
    assert_eq!(ask(2e6 - 0.5), refused);
    let wait = 2e6;
    let reservation = Reservation::due(wait, 2.0, slow);
    let slowest = TakenAll::Slowest {
        which,
        wait,
        reservation,
    };
    assert_eq!(ask(2e6), slowest);
}

/// All processes have spent their shares to the last token, and have promised turns beyond; they
/// come back one after another, charge that, and go on spending a share each. Then nothing is
/// left over, and nothing lacks.
#[test]
fn those_who_come_back_one_by_one_leave_one_bucket() {
    const N: usize = 4;
    const STEP: f64 = 5e3;
    let whole = Terms::new(100.0, 200.0);
    let share = whole.share(N as f64);
    let mut rng = rng();
    for round in 0..ROUNDS / 10 {
        let start = 1.7e15;
        let outage = rng.pick(&[5e4, 2e5, 5e5, 3e6]);
        let spread = rng.pick(&[1e4, 1e5, 5e5]);
        // For so long ahead each share has promised turns all the time.
        let ahead = rng.pick(&[0.0, 1e5, 4e5]);
        let promised = ahead * share.per_us;
        let mut bucket = Bucket::full(start, whole);
        bucket.level = -promised * N as f64;
        let mut shares = std::array::from_fn::<_, N, _>(|_| Bucket::full(start, share));
        let mut owed = [0.0; N];
        for bucket in &mut shares {
            bucket.level = -promised;
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
                own.visit(now, share);
                let mut spent = own.take(0.25, 99, ahead, share).granted * 0.25;
                owed[process] = (owed[process] + spent).min(share.cap - own.level);
                if now < back[process] {
                    continue;
                }
                let since = now - back[process];
                if since < STEP {
                    let before = back.iter().filter(|at| **at < back[process]).count();
                    bucket.visit_by(now, whole, before as f64 / N as f64);
                    bucket.pay(owed[process], ahead, 0.25);
                }
                // Those who were promised a turn by memory have been paid for; those who ask
                // now wait for their turn in memory, and ask Redis only then.
                if since <= ahead {
                    spent = 0.0;
                } else {
                    spent = share.per_us * STEP;
                }
                bucket.visit_by(now, whole, returned as f64 / N as f64);
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

/// The short cut is the law, to the last bit, wherever it is taken.
#[test]
fn taken_at_once_is_visited_and_taken() {
    let mut rng = rng();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let mut bucket = Bucket::full(1.7e15, terms);
        for _ in 0..8 {
            let behind = rng.pick(&[0.0, 0.0, -500_000.0, -3_000_000.0]);
            let now = bucket.at + behind + rng.part() * rng.pick(&[0.0, 0.5, 2.0]) / terms.per_us;
            let cost = random_cost(&mut rng, terms).min(terms.cap);
            let (mut level, mut at) = (bucket.level, bucket.at);
            let at_once = take_at_once(&mut level, &mut at, now, cost, terms);
            let before = bucket.clone();
            let mended = bucket.visit(now, terms);
            let by_law = bucket.take(cost, 1, 0.0, terms);
            match at_once {
                AtOnce::Taken => {
                    assert_eq!((level, at), (bucket.level, bucket.at));
                    assert!(by_law.now == 1.0 && !mended);
                    taken += 1;
                }
                AtOnce::Short(wait) => {
                    assert_eq!((level, at), (before.level, before.at));
                    assert!(by_law.now == 0.0 && !mended);
                    assert_eq!(wait, by_law.retry_after);
                    refused += 1;
                }
                AtOnce::Mends => assert!(mended),
            }
        }
    }
    assert!(taken > ROUNDS && refused > ROUNDS);
}

#[test]
fn a_hold_grants_nobody_and_ends_without_a_burst() {
    let mut rng = rng();
    for _ in 0..ROUNDS {
        let terms = random_terms(&mut rng);
        let mut bucket = random_bucket(&mut rng, terms);
        let start = bucket.at;
        let unit = terms.cap / terms.per_us;
        // Well above the last bit of a double of microseconds.
        let hold = (unit * rng.pick(&[0.01, 0.5, 3.0])).ceil().max(64.0);
        bucket.hold_back(hold, terms);
        let end = start + hold;
        let mut now = start;
        // Whatever happens meanwhile, nobody has a turn in that time.
        for _ in 0..8 {
            now = (now + (hold * 0.3 * rng.part()).floor()).min(end - 32.0);
            bucket.visit(now, terms);
            let cost = random_cost(&mut rng, terms);
            match rng.below(5) {
                0 => bucket.give_back(cost, terms),
                1 => bucket.charge(cost * 0.1, terms),
                // Neither shortens the other.
                2 => bucket.hold_back((hold * rng.part() * 0.1).floor(), terms),
                _ => {
                    let taken = bucket.take(cost, 2, rng.pick(&[0.0, hold, 1e15]), terms);
                    assert_eq!(taken.now, 0.0, "{bucket:?} at {now}, held to {end}");
                    let first = taken.wait(0, cost, terms);
                    assert!(
                        taken.granted == 0.0 || now + first >= end - 32.0,
                        "{bucket:?}"
                    );
                }
            }
            assert!(bucket.held_for() >= end - now && bucket.pool == 0.0);
        }
        let end = now + bucket.held_for();
        bucket.visit(end, terms);
        let rounding = 1e-6 * terms.cap + terms.per_us;
        assert!(bucket.level <= rounding, "a burst: {bucket:?}");
        assert_eq!(bucket.held, 0.0);
        if bucket.tail == 0.0 {
            let before = bucket.clone();
            bucket.give_back(terms.cap / 2.0, terms);
            assert_ne!(bucket, before, "what comes after it is given back as ever");
        }
    }
}

/// The level counts a hold by a rate; by another one the hold is as long.
#[test]
fn a_hold_is_as_long_by_another_rate() {
    for part in [0.01, 0.5, 3.0] {
        let terms = Terms::new(10.0, 10.0);
        let other = terms.slower(part);
        let mut bucket = Bucket::full(0.0, terms);
        bucket.hold_back(60e6, terms);
        bucket.charge(5.0, terms);
        bucket.visit(20e6, other);
        bucket.visit(30e6, terms);
        bucket.visit(40e6, other);
        let level = bucket.level;
        assert!((level + 20e6 * other.per_us).abs() < 1e-6, "{bucket:?}");
        // Who is promised a turn after it has it by the rate of then.
        assert_eq!(bucket.take(1.0, 1, 1e12, other).granted, 1.0);
        bucket.visit(60e6, other);
        assert!((bucket.level + 1.0).abs() < 1e-6, "{bucket:?}");
        assert_eq!((bucket.held, bucket.by), (0.0, 0.0));
    }
}

#[test]
fn the_turns_in_a_hold_pay_for_it() {
    let terms = Terms::new(1.0, 1.0);
    let mut bucket = Bucket::full(0.0, terms);
    // One at once, and ten sleepers, a second apart.
    assert_eq!(bucket.take(1.0, 11, 1e12, terms).granted, 11.0);
    bucket.hold_back(4e6, terms);
    // The first four ask again, and follow the other six, which keep their turns.
    let again = bucket.take(1.0, 4, 1e12, terms);
    assert_eq!(again.wait(0, 1.0, terms), 11e6);
    assert_eq!(again.last, 14e6);
    // Where the hold is longer than the queue, they follow it.
    let mut bucket = Bucket::full(0.0, terms);
    assert_eq!(bucket.take(1.0, 3, 1e12, terms).granted, 3.0);
    bucket.hold_back(4e6, terms);
    assert_eq!(bucket.take(1.0, 2, 1e12, terms).wait(0, 1.0, terms), 5e6);
}

#[test]
fn a_mended_clock_keeps_the_rest_of_a_hold() {
    let terms = Terms::new(1.0, 1.0);
    let mut bucket = Bucket::full(1e9, terms);
    bucket.hold_back(4e6, terms);
    assert!(bucket.visit(1e8, terms));
    assert_eq!(bucket.held_for(), 4e6);
    assert!(!bucket.visit(1e8 + 3e6, terms));
    assert_eq!(bucket.held_for(), 1e6);
    assert_eq!(bucket.level, -1.0);
}
