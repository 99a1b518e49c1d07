//! What only the script has to deal with: foreign values, expiry, several quotas, sizes.

use redis::aio::MultiplexedConnection;

use crate::{
    bucket::{BucketParams, Reservation},
    redis::{
        op::Op,
        script::{ACQUIRE, Answer, Reply},
    },
    verification::reference_model::{Call, Step},
};

use super::support::RedisServer;

const SECOND: f64 = 1e6;
const KEY: &str = "bucket";
const TERMS: BucketParams = BucketParams {
    capacity: 10.0,
    per_us: 1e-6,
};

struct Answered {
    time: f64,
    takes: Vec<Answer>,
    levels: Vec<(f64, f64)>,
}

/// Each first demand goes with its key, as the batcher sends it; the answers are in the order of
/// the commands all the same.
async fn call(connection: &mut MultiplexedConnection, call: &Call) -> Answered {
    let hoisted = call.clone().hoisted();
    let mut command = redis::cmd("EVAL");
    command.arg(ACQUIRE.source).arg(call.keys.len());
    for (key, _) in &call.keys {
        command.arg(key);
    }
    let bytes: Vec<u8> = command
        .arg(hoisted.argument())
        .query_async(connection)
        .await
        .expect("the script runs");
    let (answers, keys) = (hoisted.answers(), call.keys.len());
    let reply = Reply::new(&bytes, keys, answers).expect("a readable reply");
    let firsts = hoisted.firsts.iter().enumerate();
    let mut firsts: Vec<_> = firsts
        .map(|(key, first)| (first.n > 0).then(|| reply.first(key)))
        .collect();
    let mut rest = (0..answers).map(|nth| reply.answer(nth));
    let answers = call.steps.iter().filter(|step| step.has_answer());
    let answers = answers.filter_map(|step| match step {
        Step::Take { costs, .. } if costs.len() == 1 => {
            firsts[costs[0].0].take().or_else(|| rest.next())
        }
        _ => rest.next(),
    });
    Answered {
        time: reply.time().unwrap_or_default(),
        takes: answers.collect(),
        levels: (0..keys).map(|key| reply.level(key)).collect(),
    }
}

fn take(cost: f64, max_wait: f64) -> Step {
    Step::Take {
        n: 1,
        max_wait,
        costs: vec![(0, cost)],
    }
}

fn write_back(tokens: f64) -> Op {
    Op::WriteBack {
        tokens,
        wait_us: 0.0,
        largest_cost: 0.0,
    }
}

fn one(params: BucketParams, step: Step) -> Call {
    Call::new(KEY, params, vec![step])
}

async fn run<T: redis::FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&[u8]],
) -> T {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query_async(connection).await.expect("no error")
}

async fn plant(connection: &mut MultiplexedConnection, numbers: &[f64]) {
    let value: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    run(connection, &[b"SET", KEY.as_bytes(), &value]).await
}

async fn value(connection: &mut MultiplexedConnection) -> Vec<f64> {
    let value: Vec<u8> = run(connection, &[b"GET", KEY.as_bytes()]).await;
    let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    value.chunks(8).map(number).collect()
}

async fn ttl_ms(connection: &mut MultiplexedConnection) -> i64 {
    run(connection, &[b"PTTL", KEY.as_bytes()]).await
}

/// The bucket counted as full, and the key holds one now.
async fn assert_heals(connection: &mut MultiplexedConnection, what: &str) {
    let answered = call(connection, &one(TERMS, take(3.0, 0.0))).await;
    assert_eq!(answered.takes[0].taken.now, 1.0, "{what}");
    assert_eq!(answered.levels, [(7.0, 0.0)], "{what}");
    let stored = value(connection).await;
    assert_eq!(stored[..2], [7.0, answered.time], "{what}");
}

#[tokio::test]
async fn foreign_values_count_as_full_and_are_overwritten() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let key = KEY.as_bytes();
    let types: [&[&[u8]]; 5] = [
        &[b"RPUSH", key, b"x"],
        &[b"HSET", key, b"x", b"1"],
        &[b"SADD", key, b"x"],
        &[b"ZADD", key, b"1", b"x"],
        &[b"XADD", key, b"*", b"x", b"1"],
    ];
    for words in types {
        let _: redis::Value = run(&mut connection, &[b"DEL", key]).await;
        let _: redis::Value = run(&mut connection, words).await;
        assert_heals(&mut connection, &String::from_utf8_lossy(words[0])).await;
    }
    for length in (0..=72).filter(|length| ![40, 64].contains(length)) {
        let bytes = vec![0; length];
        let _: () = run(&mut connection, &[b"SET", key, &bytes]).await;
        assert_heals(&mut connection, &format!("{length} bytes")).await;
    }
}

#[tokio::test]
async fn numbers_that_are_none_count_as_full_and_are_overwritten() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    for length in [5, 8] {
        for field in 0..length {
            for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                // A level of 1, two seconds ago.
                let now = call(&mut connection, &one(TERMS, Step::Op(0, Op::Look)))
                    .await
                    .time;
                let at = now - 2.0 * SECOND;
                let mut numbers = [1.0, at, 10.0, 1e-6, now + 1e9, now + 1e9, 1.0, 1.0];
                numbers[field] = bad;
                plant(&mut connection, &numbers[..length]).await;
                let what = format!("{bad} in {field} of {length}");
                assert_heals(&mut connection, &what).await;
            }
        }
    }
    // A rate that is no rate would make a life of the wrong sign, or none.
    for rate in [0.0, -1.0] {
        let now = call(&mut connection, &one(TERMS, Step::Op(0, Op::Look)))
            .await
            .time;
        plant(&mut connection, &[1.0, now, 10.0, rate, now + 1e9]).await;
        assert_heals(&mut connection, &format!("rate {rate}")).await;
    }
}

#[tokio::test]
async fn whoever_knows_a_bucket_by_more_is_remembered() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let quotas = [(100.0, 1.0), (10.0, 1.0), (10.0, 50.0), (10.0, 0.1)];
    let [large, small, fast, slow] = quotas.map(|(cap, rate)| BucketParams::new(cap, rate));
    // In whatever order they come, the key must outlive the debt of the widest.
    for (first, second, seconds) in [
        (large, small, 100),
        (small, large, 100),
        (large, fast, 100),
        (slow, small, 100),
        (small, slow, 100),
        (large, slow, 1_000),
    ] {
        let _: redis::Value = run(&mut connection, &[b"FLUSHALL"]).await;
        call(&mut connection, &one(first, take(10.0, 0.0))).await;
        for _ in 0..2 {
            call(
                &mut connection,
                &one(second, Step::Op(0, Op::Charge { tokens: 1e9 })),
            )
            .await;
            let ttl = ttl_ms(&mut connection).await;
            assert!(
                ttl > 1_000 * seconds - 1_000,
                "{ttl}: {first:?}, {second:?}"
            );
        }
        // The debt of the larger one is still there when the smaller would be full.
        let looked = call(&mut connection, &one(second, Step::Op(0, Op::Look))).await;
        assert!(looked.levels[0].0 < 0.0);
    }
}

#[tokio::test]
async fn a_rolling_deploy_forgets_no_debt() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let (large, small) = (BucketParams::new(100.0, 1.0), BucketParams::new(10.0, 1.0));
    call(&mut connection, &one(large, take(10.0, 0.0))).await;
    call(&mut connection, &one(small, take(10.0, 0.0))).await;
    // After ten seconds the key was gone, and the larger quota found a full bucket: 100 more.
    let ttl = ttl_ms(&mut connection).await;
    assert!((199_000..=200_000).contains(&ttl), "{ttl}");
    let taken = call(&mut connection, &one(large, take(100.0, 0.0)))
        .await
        .takes[0];
    assert_eq!(taken.taken.granted, 0.0);
}

#[tokio::test]
async fn a_refusal_writes_nothing_but_a_mended_clock() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(TERMS, take(10.0, 0.0))).await;
    let before = value(&mut connection).await;
    server.reset_stats().await;
    let three = Call::of(
        vec![(KEY.to_owned(), TERMS), ("other".to_owned(), TERMS)],
        vec![
            take(5.0, 0.0),
            Step::Take {
                n: 1,
                max_wait: 0.0,
                costs: vec![(1, 5.0), (0, 5.0)],
            },
            Step::Op(1, Op::Look),
            take(0.0, 0.0),
        ],
    );
    let answered = call(&mut connection, &three).await;
    assert_eq!(answered.takes[0].taken.granted, 0.0);
    assert!(answered.takes[0].taken.retry_after > 4.9 * SECOND);
    assert_eq!(
        (answered.takes[1].taken.granted, answered.takes[1].which),
        (0.0, 1)
    );
    assert_eq!(answered.takes[2].taken.granted, 1.0);
    assert_eq!(server.calls("set").await, 0);
    assert_eq!(value(&mut connection).await, before);
    let exists: bool = run(&mut connection, &[b"EXISTS", b"other"]).await;
    assert!(!exists);

    // The value of a server whose clock was a minute ahead: kept, it would refuse for that long.
    let ahead = answered.time + 60.0 * SECOND;
    plant(&mut connection, &[0.0, ahead, 10.0, 1e-6, ahead]).await;
    server.reset_stats().await;
    let answered = call(&mut connection, &one(TERMS, take(5.0, 0.0))).await;
    assert_eq!(answered.takes[0].taken.retry_after, 5.0 * SECOND);
    assert_eq!(server.calls("set").await, 1);
    assert_eq!(value(&mut connection).await[..2], [0.0, answered.time]);
}

#[tokio::test]
async fn a_key_outlives_the_time_until_its_bucket_is_full() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    // Full at once, which `PX 0` would make an error.
    call(
        &mut connection,
        &one(TERMS, Step::Op(0, Op::GiveBack { tokens: 1.0 })),
    )
    .await;
    call(&mut connection, &one(TERMS, Step::Op(0, Op::Reset))).await;
    // Twice as long as needed; then, as long as it is enough and not too much, as before.
    for (tokens, ms) in [
        (3.0, 6_000),
        (2.0, 6_000),
        (8.0, 26_000),
        (2.0, 26_000),
        (-8.0, 26_000),
        (-2.0, 10_000),
        (-1.0, 10_000),
    ] {
        let command = match tokens > 0.0 {
            true => Step::Op(0, Op::Charge { tokens }),
            false => Step::Op(0, Op::GiveBack { tokens: -tokens }),
        };
        call(&mut connection, &one(TERMS, command)).await;
        let ttl = ttl_ms(&mut connection).await;
        assert!((ms - 1_000..=ms).contains(&ttl), "{tokens}: {ttl}");
    }
    call(&mut connection, &one(TERMS, Step::Op(0, Op::Reset))).await;
    let ttl = ttl_ms(&mut connection).await;
    assert!(ttl <= 1, "{ttl}");
    // 2^53 ms is the longest; beyond 9.2e18 Redis refuses to run.
    let _: () = run(&mut connection, &[b"FLUSHALL"]).await;
    let never = BucketParams::new(1e15, 1e-12);
    call(
        &mut connection,
        &Call::new(KEY, never, vec![take(1e15, 0.0)]),
    )
    .await;
    let ttl = ttl_ms(&mut connection).await;
    let longest = 1i64 << 53;
    assert!((longest - 1_000..=longest).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn sleepers_are_kept_while_they_sleep() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(TERMS, take(10.0, 0.0))).await;
    assert_eq!(value(&mut connection).await.len(), 5);
    let answered = call(&mut connection, &one(TERMS, take(2.0, 1e12))).await;
    let wait = answered.takes[0].taken.last;
    assert!(wait > SECOND && wait <= 2.0 * SECOND);
    let stored = value(&mut connection).await;
    assert_eq!(stored.len(), 8);
    assert_eq!(stored[1..4], [answered.time, 10.0, 1e-6]);
    assert!(stored[4] >= answered.time + wait, "kept as long as that");
    assert_eq!(stored[5..], [answered.time + wait, 2.0, 0.0]);
    // Given back while somebody sleeps: for a newcomer, not for the level.
    let answered = call(
        &mut connection,
        &one(TERMS, Step::Op(0, Op::GiveBack { tokens: 3.0 })),
    )
    .await;
    assert!(answered.levels[0].0 < 0.0 && answered.levels[0].1 == 3.0);
    assert_eq!(value(&mut connection).await[7], 3.0);
    call(&mut connection, &one(TERMS, Step::Op(0, Op::Reset))).await;
    // Full: without sleepers, and gone within a millisecond.
    assert!(matches!(value(&mut connection).await.len(), 0 | 5));
}

#[tokio::test]
async fn a_call_of_many_keys_and_demands_is_answered_in_full() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let keys: Vec<_> = (0..300).map(|key| (format!("k{key}"), TERMS)).collect();
    let commands = (0..300).map(|index| Step::Take {
        n: 3,
        max_wait: 1e12,
        costs: vec![(index, (index % 10 + 1) as f64)],
    });
    let mut call_of_all = Call::of(keys, commands.collect());
    let all = (0..300).map(|index| (index, 1.0)).collect();
    call_of_all.steps.push(Step::Take {
        n: 1,
        max_wait: 1e12,
        costs: all,
    });
    let answered = call(&mut connection, &call_of_all).await;
    for (index, answer) in answered.takes[..300].iter().enumerate() {
        let cost = (index % 10 + 1) as f64;
        assert_eq!(answer.taken.granted, 3.0);
        assert_eq!(answer.taken.now, (10.0 / cost).floor().min(3.0));
    }
    // Of all the first that is in deepest debt decides, and it alone is taken.
    assert_eq!(
        (answered.takes[300].which, answered.takes[300].taken.now),
        (9, 0.0)
    );
    for (index, (level, pool)) in answered.levels.iter().enumerate() {
        let cost = (index % 10 + 1) as f64;
        let more = if index == 9 { 1.0 } else { 0.0 };
        assert_eq!((*level, *pool), (10.0 - 3.0 * cost - more, 0.0), "{index}");
    }
}

#[tokio::test]
async fn a_payment_is_charged_once_and_a_bound_lowers() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let once = BucketParams {
        capacity: 1.0,
        per_us: 1.0 / (3_600.0 * SECOND),
    };
    let slow = BucketParams {
        capacity: 10.0,
        per_us: 1e-12,
    };
    let payment = |marker: &str, tokens: f64| {
        Call::of(
            vec![(marker.to_owned(), once), (KEY.to_owned(), slow)],
            vec![
                Step::Op(0, Op::EmptyOrStop),
                Step::Op(1, write_back(tokens)),
            ],
        )
    };
    for (marker, tokens, level) in [
        ("paid:1", 3.0, 7.0),
        // The reply was lost, and it is sent again: with whatever amount.
        ("paid:1", 3.0, 7.0),
        ("paid:1", 5.0, 7.0),
        ("paid:2", 1.0, 6.0),
    ] {
        let answered = call(&mut connection, &payment(marker, tokens)).await;
        assert!(
            (answered.levels[1].0 - level).abs() < 1e-3,
            "{marker} {tokens}"
        );
    }
    for (bound, level) in [(8.0, 6.0), (2.0, 2.0), (-4.0, -4.0), (5.0, -4.0)] {
        let lower = one(slow, Step::Op(0, Op::CapLevel { tokens: bound }));
        let answered = call(&mut connection, &lower).await;
        assert!((answered.levels[0].0 - level).abs() < 1e-3, "{bound}");
    }
    // What was promised meanwhile may be many capacities; a settlement is cut at one.
    for (command, level) in [
        (Step::Op(0, write_back(100.0)), -104.0),
        (Step::Op(0, Op::Charge { tokens: 100.0 }), -104.0),
    ] {
        let answered = call(&mut connection, &one(slow, command)).await;
        assert!((answered.levels[0].0 - level).abs() < 1e-3);
    }
}

/// Reservations of a fast quota are due in the same microsecond; what the script writes of them is
/// what it reads.
#[tokio::test]
async fn cancelled_reservations_that_are_due_together_are_remembered() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let fast = BucketParams::new(1e9, 1e7);
    let mut reserved = Vec::new();
    for cost in [1e9, 1e9, 3.0, 3.0, 3.0, 1e9] {
        let answered = call(&mut connection, &one(fast, take(cost, 1e12))).await;
        let due = answered.time + answered.takes[0].taken.last;
        reserved.push(Reservation::due(due, cost, fast));
    }
    // The first was taken at once, and the last stands behind the others.
    for gone in &reserved[1..5] {
        call(&mut connection, &one(fast, Step::Op(0, Op::Undo(*gone)))).await;
    }
    let looked = call(&mut connection, &one(fast, Step::Op(0, Op::Look))).await;
    let (level, _) = looked.levels[0];
    assert!((-1.1e9..0.0).contains(&level), "{level}");
    assert!(
        value(&mut connection).await.len() > 10,
        "none is remembered"
    );
}
