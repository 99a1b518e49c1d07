//! What only the script has to handle: foreign values, classes and their periods, several quotas,
//! large calls.

use redis::aio::MultiplexedConnection;

use super::support::RedisServer;
use crate::{
    bucket::{BucketParams, Reservation},
    redis::{
        op::Op,
        script::{ACQUIRE, Answer, Reply},
    },
    scope::Keyspace,
    verification::reference_model::{Call, Step},
};

const SECOND: f64 = 1e6;
const KEY: &str = "bucket";
const PARAMS: BucketParams = BucketParams {
    capacity: 10.0,
    per_us: 1e-6,
};

struct Answered {
    time: f64,
    takes: Vec<Answer>,
    levels: Vec<(f64, f64)>,
}

/// First requests go with their keys, as the batcher sends them. The answers are in the order of the
/// steps all the same.
async fn call(connection: &mut MultiplexedConnection, call: &Call) -> Answered {
    let hoisted = call.clone().hoisted();
    let arguments = hoisted.arguments(&keyspace());
    let mut command = redis::cmd("EVAL");
    command.arg(ACQUIRE.source);
    command.arg(arguments.keys.len()).arg(&arguments.keys);
    command.arg(arguments.numbers()).arg("").arg("");
    for field in arguments.fields() {
        command.arg(field);
    }
    let bytes: Vec<u8> = command
        .query_async(connection)
        .await
        .expect("the script runs");
    let (answers, keys) = (hoisted.answers(), call.keys.len());
    let reply = Reply::new(&bytes, keys, answers).expect("a readable reply");
    let firsts = hoisted.firsts.iter().enumerate();
    let mut firsts: Vec<_> = firsts
        .map(|(key, first)| (first.n > 0).then(|| reply.first(key, first.n)))
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

fn keyspace() -> Keyspace {
    Keyspace::new("p", [0; 32])
}

/// A hash of buckets.
struct Hash {
    key: Vec<u8>,
    /// In seconds.
    period: u64,
    /// Whether it is that of the present period.
    is_current: bool,
}

/// All hashes of buckets that there may be.
async fn hashes(connection: &mut MultiplexedConnection) -> Vec<Hash> {
    let [seconds, _]: [u64; 2] = run(connection, &[b"TIME"]).await;
    let periods = (4..44).map(|power| 1 << power);
    let hashes = periods.flat_map(|period: u64| {
        let hashes = keyspace().class(period).into_iter().enumerate();
        hashes.map(move |(index, key)| Hash {
            key,
            period,
            is_current: seconds / period % 2 == index as u64,
        })
    });
    hashes.collect()
}

/// Sets a field of the present hash of a bucket by [`PARAMS`], which exists.
async fn plant_bytes(connection: &mut MultiplexedConnection, field: &str, value: &[u8]) {
    let hashes = hashes(connection).await;
    let current = hashes.iter().find(|hash| hash.is_current);
    let key = &current.expect("a class of 16 s").key;
    let added: u64 = run(connection, &[b"HSET", key, field.as_bytes(), value]).await;
    assert_eq!(added, 0, "the bucket was there");
}

async fn plant(connection: &mut MultiplexedConnection, numbers: &[f64]) {
    let value: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    plant_bytes(connection, KEY, &value).await;
}

/// The present value of a bucket, and the period of its class in seconds.
async fn find(connection: &mut MultiplexedConnection, field: &str) -> Option<(Vec<f64>, u64)> {
    let mut found = Vec::new();
    for hash in hashes(connection).await {
        let value: Option<Vec<u8>> = run(connection, &[b"HGET", &hash.key, field.as_bytes()]).await;
        if let Some(value) = value {
            let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            let value: Vec<_> = value.chunks(8).map(number).collect();
            found.push((value, hash.period));
        }
    }
    let class = found.first()?.1;
    let one_class = found.iter().all(|(_, period)| *period == class);
    assert!(one_class, "in two classes: {found:?}");
    // The later one of the two hashes.
    found
        .into_iter()
        .max_by(|(a, _), (b, _)| a[1].total_cmp(&b[1]))
}

async fn value(connection: &mut MultiplexedConnection) -> Vec<f64> {
    find(connection, KEY).await.expect("a value").0
}

/// The period of the class in which the bucket is, in seconds.
async fn period(connection: &mut MultiplexedConnection) -> u64 {
    find(connection, KEY).await.expect("a value").1
}

/// The bucket counted as full, and its value is a regular one now.
async fn assert_overwritten(connection: &mut MultiplexedConnection, what: &str) {
    let answered = call(connection, &one(PARAMS, take(3.0, 0.0))).await;
    assert_eq!(answered.takes[0].taken.now, 1.0, "{what}");
    assert_eq!(answered.levels, [(7.0, 0.0)], "{what}");
    let stored = value(connection).await;
    assert_eq!(stored[..2], [7.0, answered.time], "{what}");
}

#[tokio::test]
async fn keys_of_another_type_are_replaced() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let mut keys = keyspace().class(16).to_vec();
    keys.push(keyspace().directory());
    for words in [
        &[&b"SET"[..], b"", b"x"][..],
        &[b"RPUSH", b"", b"x"],
        &[b"SADD", b"", b"x"],
        &[b"ZADD", b"", b"1", b"x"],
        &[b"XADD", b"", b"*", b"x", b"1"],
    ] {
        for key in &keys {
            let _: redis::Value = run(&mut connection, &[b"DEL", key]).await;
            let mut words = words.to_vec();
            words[1] = key;
            let _: redis::Value = run(&mut connection, &words).await;
        }
        assert_overwritten(&mut connection, &String::from_utf8_lossy(words[0])).await;
    }
}

#[tokio::test]
async fn values_of_another_length_count_as_full_and_are_overwritten() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(PARAMS, take(1.0, 0.0))).await;
    for length in (0..=64).filter(|length| ![32, 56].contains(length)) {
        plant_bytes(&mut connection, KEY, &vec![0; length]).await;
        assert_overwritten(&mut connection, &format!("{length} bytes")).await;
    }
}

#[tokio::test]
async fn values_with_numbers_that_are_not_finite_count_as_full_and_are_overwritten() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(PARAMS, take(1.0, 0.0))).await;
    for length in [4, 7] {
        for field in 0..length {
            for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                // A level of 1, two seconds ago.
                let now = call(&mut connection, &one(PARAMS, Step::Op(0, Op::Look)))
                    .await
                    .time;
                let at = now - 2.0 * SECOND;
                let mut numbers = [1.0, at, 10.0, 1e-6, now + 1e9, 1.0, 1.0];
                numbers[field] = bad;
                plant(&mut connection, &numbers[..length]).await;
                let what = format!("{bad} in {field} of {length}");
                assert_overwritten(&mut connection, &what).await;
            }
        }
    }
    // By these rates the bucket would never be full, or would be at once.
    for rate in [0.0, -1.0] {
        let now = call(&mut connection, &one(PARAMS, Step::Op(0, Op::Look)))
            .await
            .time;
        plant(&mut connection, &[1.0, now, 10.0, rate]).await;
        assert_overwritten(&mut connection, &format!("rate {rate}")).await;
    }
}

#[tokio::test]
async fn class_is_that_of_the_widest_quota() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let quotas = [(100.0, 1.0), (10.0, 1.0), (10.0, 50.0), (10.0, 0.1)];
    let [large, small, fast, slow] = quotas.map(|(cap, rate)| BucketParams::new(cap, rate));
    // In either order, the value must outlive the debt of the widest quota.
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
            let period = period(&mut connection).await;
            assert!(period >= seconds, "{period}: {first:?}, {second:?}");
        }
        // The debt by the larger quota is still stored when the smaller one would be full.
        let looked = call(&mut connection, &one(second, Step::Op(0, Op::Look))).await;
        assert!(looked.levels[0].0 < 0.0);
    }
}

#[tokio::test]
async fn rolling_deploy_keeps_the_debt_of_the_larger_quota() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let (large, small) = (BucketParams::new(100.0, 1.0), BucketParams::new(10.0, 1.0));
    call(&mut connection, &one(large, take(10.0, 0.0))).await;
    call(&mut connection, &one(small, take(10.0, 0.0))).await;
    // In the class of the smaller quota it would be forgotten after 16 to 32 seconds, and the larger
    // quota would find a full bucket: 100 more.
    assert_eq!(period(&mut connection).await, 128);
    let taken = call(&mut connection, &one(large, take(100.0, 0.0)))
        .await
        .takes[0];
    assert_eq!(taken.taken.granted, 0.0);
}

#[tokio::test]
async fn rejection_writes_only_a_corrected_clock() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(PARAMS, take(10.0, 0.0))).await;
    let before = value(&mut connection).await;
    server.reset_stats().await;
    let three = Call::of(
        vec![(KEY.to_owned(), PARAMS), ("other".to_owned(), PARAMS)],
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
    assert_eq!(server.calls("hset").await, 0);
    assert_eq!(value(&mut connection).await, before);
    assert_eq!(find(&mut connection, "other").await, None);

    // Written while the server's clock was a minute ahead: not corrected, it would reject for that
    // long.
    let ahead = answered.time + 60.0 * SECOND;
    plant(&mut connection, &[0.0, ahead, 10.0, 1e-6]).await;
    server.reset_stats().await;
    let answered = call(&mut connection, &one(PARAMS, take(5.0, 0.0))).await;
    assert_eq!(answered.takes[0].taken.retry_after, 5.0 * SECOND);
    assert_eq!(server.calls("hset").await, 1);
    assert_eq!(value(&mut connection).await[..2], [0.0, answered.time]);
}

#[tokio::test]
async fn class_remembers_a_bucket_until_it_is_full() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    for (tokens, seconds) in [
        (3.0, 16),
        // Debt of up to a capacity: full after up to 20 s.
        (16.0, 32),
        // It moves back only if half the period is much longer than needed.
        (-5.0, 32),
    ] {
        let op = match tokens > 0.0 {
            true => Op::Charge { tokens },
            false => Op::GiveBack { tokens: -tokens },
        };
        call(&mut connection, &one(PARAMS, Step::Op(0, op))).await;
        assert_eq!(period(&mut connection).await, seconds, "{tokens}");
    }
    call(
        &mut connection,
        &one(PARAMS, Step::Op(0, Op::Pause { us: 100.0 * SECOND })),
    )
    .await;
    assert_eq!(period(&mut connection).await, 128);
    call(&mut connection, &one(PARAMS, Step::Op(0, Op::Reset))).await;
    assert_eq!(period(&mut connection).await, 16);
    for hash in hashes(&mut connection).await {
        let ttl: i64 = run(&mut connection, &[b"PTTL", &hash.key]).await;
        let period = 1_000 * hash.period as i64;
        let is_kept = (4 * period - 2_000..=4 * period).contains(&ttl);
        assert!(ttl == -2 || is_kept, "{ttl} for {period}");
    }
    // The longest expiry is 2^53 ms. Redis rejects more than 9.2e18.
    let never = BucketParams::new(1e15, 1e-12);
    let all = Call::new("never", never, vec![take(1e15, 0.0)]);
    for granted in [1.0, 0.0] {
        let answered = call(&mut connection, &all).await;
        assert_eq!(answered.takes[0].taken.granted, granted);
    }
}

#[tokio::test]
async fn hashes_are_tables_and_calls_that_only_read_create_none() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(PARAMS, Step::Op(0, Op::Look))).await;
    let keys: Vec<String> = run(&mut connection, &[b"KEYS", b"*"]).await;
    assert!(keys.is_empty(), "{keys:?}");
    call(&mut connection, &one(PARAMS, take(1.0, 0.0))).await;
    let keys: Vec<Vec<u8>> = run(&mut connection, &[b"KEYS", b"*s:?"]).await;
    assert_eq!(keys.len(), 1);
    let encoding: String = run(&mut connection, &[b"OBJECT", b"ENCODING", &keys[0]]).await;
    assert_eq!(encoding, "hashtable");
}

#[tokio::test]
async fn hash_is_deleted_when_its_buckets_are_full() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(PARAMS, take(1.0, 0.0))).await;
    let keys: Vec<Vec<u8>> = run(&mut connection, &[b"KEYS", b"*s:?"]).await;
    let number: Vec<u8> = run(&mut connection, &[b"HGET", &keys[0], b"\xFF"]).await;
    let number = String::from_utf8(number).expect("text");
    let number: i64 = number.trim().parse().expect("a number");
    // As if it had been written two periods before.
    let before = format!("{}", number - 2);
    let _: u64 = run(
        &mut connection,
        &[b"HSET", &keys[0], b"\xFF", before.as_bytes(), b"old", b"x"],
    )
    .await;
    let looked = call(&mut connection, &one(PARAMS, Step::Op(0, Op::Look))).await;
    assert_eq!(looked.levels[0].0, 10.0);
    call(&mut connection, &one(PARAMS, take(1.0, 0.0))).await;
    assert_eq!(find(&mut connection, "old").await, None);
}

#[tokio::test]
async fn reservations_are_stored_while_they_are_outstanding() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    call(&mut connection, &one(PARAMS, take(10.0, 0.0))).await;
    assert_eq!(value(&mut connection).await.len(), 4);
    let answered = call(&mut connection, &one(PARAMS, take(2.0, 1e12))).await;
    let wait = answered.takes[0].taken.last;
    assert!(wait > SECOND && wait <= 2.0 * SECOND);
    let stored = value(&mut connection).await;
    assert_eq!(stored.len(), 7);
    assert_eq!(stored[1..4], [answered.time, 10.0, 1e-6]);
    assert_eq!(stored[4..], [answered.time + wait, 2.0, 0.0]);
    // Returned while a reservation is outstanding: kept for a new request, not added to the level.
    let answered = call(
        &mut connection,
        &one(PARAMS, Step::Op(0, Op::GiveBack { tokens: 3.0 })),
    )
    .await;
    assert!(answered.levels[0].0 < 0.0 && answered.levels[0].1 == 3.0);
    assert_eq!(value(&mut connection).await[6], 3.0);
    call(&mut connection, &one(PARAMS, Step::Op(0, Op::Reset))).await;
    assert_eq!(value(&mut connection).await.len(), 4);
}

#[tokio::test]
async fn call_of_many_keys_and_requests_is_answered_in_full() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let keys: Vec<_> = (0..300).map(|key| (format!("k{key}"), PARAMS)).collect();
    let commands = (0..300).map(|index| Step::Take {
        n: 3,
        max_wait: 1e12,
        costs: vec![(index, (index % 10 + 1) as f64)],
    });
    let mut large_call = Call::of(keys, commands.collect());
    let all = (0..300).map(|index| (index, 1.0)).collect();
    large_call.steps.push(Step::Take {
        n: 1,
        max_wait: 1e12,
        costs: all,
    });
    let answered = call(&mut connection, &large_call).await;
    for (index, answer) in answered.takes[..300].iter().enumerate() {
        let cost = (index % 10 + 1) as f64;
        assert_eq!(answer.taken.granted, 3.0);
        assert_eq!(answer.taken.now, (10.0 / cost).floor().min(3.0));
    }
    // The first of the buckets in deepest debt decides, and only it is taken from.
    assert_eq!(
        (answered.takes[300].which, answered.takes[300].taken.now),
        (9, 0.0)
    );
    for (index, (level, returned)) in answered.levels.iter().enumerate() {
        let cost = (index % 10 + 1) as f64;
        let more = if index == 9 { 1.0 } else { 0.0 };
        assert_eq!(
            (*level, *returned),
            (10.0 - 3.0 * cost - more, 0.0),
            "{index}"
        );
    }
}

#[tokio::test]
async fn write_back_is_charged_once_and_a_cap_lowers() {
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
    let write_back_once = |marker: &str, tokens: f64| {
        Call::of(
            vec![(marker.to_owned(), once), (KEY.to_owned(), slow)],
            vec![
                Step::Op(0, Op::EmptyOrStop),
                Step::Op(1, write_back(tokens)),
            ],
        )
    };
    for (marker, tokens, level) in [
        ("marker:1", 3.0, 7.0),
        // Sent again because the reply was lost; the amount does not matter.
        ("marker:1", 3.0, 7.0),
        ("marker:1", 5.0, 7.0),
        ("marker:2", 1.0, 6.0),
    ] {
        let answered = call(&mut connection, &write_back_once(marker, tokens)).await;
        assert!(
            (answered.levels[1].0 - level).abs() < 1e-3,
            "{marker} {tokens}"
        );
    }
    for (cap, level) in [(8.0, 6.0), (2.0, 2.0), (-4.0, -4.0), (5.0, -4.0)] {
        let lower = one(slow, Step::Op(0, Op::CapLevel { tokens: cap }));
        let answered = call(&mut connection, &lower).await;
        assert!((answered.levels[0].0 - level).abs() < 1e-3, "{cap}");
    }
    // A write-back may exceed the capacity many times; a charge stops at a debt of one capacity.
    for (command, level) in [
        (Step::Op(0, write_back(100.0)), -104.0),
        (Step::Op(0, Op::Charge { tokens: 100.0 }), -104.0),
    ] {
        let answered = call(&mut connection, &one(slow, command)).await;
        assert!((answered.levels[0].0 - level).abs() < 1e-3);
    }
}

/// Reservations of a fast quota are due in the same microsecond. The script must be able to read
/// what it writes of them.
#[tokio::test]
async fn gaps_that_are_due_together_are_remembered() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let fast = BucketParams::new(1e9, 1e7);
    let mut reserved = Vec::new();
    for cost in [1e9, 1e9, 3.0, 3.0, 3.0, 1e9] {
        let answered = call(&mut connection, &one(fast, take(cost, 1e12))).await;
        let due = answered.time + answered.takes[0].taken.last;
        reserved.push(Reservation::due(due, cost, fast));
    }
    // The first was granted at once, and the last is behind the others.
    for reservation in &reserved[1..5] {
        call(
            &mut connection,
            &one(fast, Step::Op(0, Op::Undo(*reservation))),
        )
        .await;
    }
    let looked = call(&mut connection, &one(fast, Step::Op(0, Op::Look))).await;
    let (level, _) = looked.levels[0];
    assert!((-1.1e9..0.0).contains(&level), "{level}");
    assert!(
        value(&mut connection).await.len() > 9,
        "no gap is remembered"
    );
}
