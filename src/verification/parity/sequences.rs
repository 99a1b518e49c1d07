//! Random calls to the reference model and the script.

use std::collections::BTreeMap;

use redis::{Cmd, Pipeline, aio::MultiplexedConnection};

use super::support::RedisServer;
use crate::{
    bucket::{BucketParams, Reservation},
    redis::{
        batch::tests::hostile,
        op::Op,
        script::{ACQUIRE, Reply},
    },
    scope::Keyspace,
    verification::{
        bucket_model::{Rng, seed, sequences},
        reference_model::{Call, Outcome, ReferenceModel, Step, Stored, Written},
    },
};

/// Sequences in one pipeline.
const AT_ONCE: u64 = 50;

/// The script with a clock of the test: it reads the time from its last argument, lets no hash
/// expire, and appends to its reply what it wrote and in which class.
fn with_clock_of_the_test() -> String {
    let lines = [
        (
            "local t = call('TIME')\nlocal now = t[1] * 1000000 + t[2]\n",
            "local now = unpack_d('<d', table.remove(ARGV))\nlocal written = {}\n",
        ),
        (
            "  if call('PTTL', KEYS[1]) < kept then call('PEXPIRE', KEYS[1], string.format('%d', kept)) end\n",
            "",
        ),
        (
            "      call('PEXPIRE', class.current, string.format('%d', kept))\n",
            "",
        ),
        (
            "        out[#out + 1] = pack('<dddd', level, now, max_cap, min_rate)\n",
            "        out[#out + 1] = pack('<dddd', level, now, max_cap, min_rate)\n\
             written[#written + 1] = pack('<ddd', i - 1, class.period / 1e6, 32)\n",
        ),
        (
            "    local class = class_of(period)\n    local out = class.out\n",
            "    local class = class_of(period)\n    local out = class.out\n\
             written[#written + 1] = pack('<ddd', i - 1, period / 1e6, #value)\n",
        ),
        (
            "if not details then return reply end\n",
            "if not details then return reply .. table.concat(written) end\n",
        ),
        (
            "return table.concat(parts)",
            "return table.concat(parts) .. table.concat(written)",
        ),
    ];
    let mut source = ACQUIRE.source.to_owned();
    for (from, to) in lines {
        assert_eq!(
            source.matches(from).count(),
            1,
            "not found exactly once: {from}"
        );
        source = source.replace(from, to);
    }
    source
}

async fn load(connection: &mut MultiplexedConnection, source: &str) -> String {
    let mut load = redis::cmd("SCRIPT");
    let sha = load.arg("LOAD").arg(source).query_async(connection).await;
    sha.expect("the script compiles")
}

fn command(sha: &str, keyspace: &Keyspace, call: &Call) -> Cmd {
    let arguments = call.arguments(keyspace);
    let mut command = redis::cmd("EVALSHA");
    command
        .arg(sha)
        .arg(arguments.keys.len())
        .arg(&arguments.keys);
    command.arg(arguments.numbers());
    command.arg("").arg(call.recovered.to_string());
    for field in arguments.fields() {
        command.arg(field);
    }
    command
}

/// Reads a reply, and what is appended to it: the server's time, and everything else.
fn read(bytes: &[u8], call: &Call) -> (Option<f64>, Outcome) {
    let (answers, keys) = (call.answers(), call.keys.len());
    let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let levels = bytes.chunks(8).skip(1).take(keys);
    let details = levels
        .filter(|level| number(level) == f64::INFINITY)
        .count();
    let length = 8 * (1 + keys + 6 * details + 5 * answers);
    assert!(bytes.len() >= length, "{} bytes for {call:?}", bytes.len());
    let (reply, written) = bytes.split_at(length);
    let Some(reply) = Reply::new(reply, keys, answers) else {
        panic!("a reply of another length: {call:?}");
    };
    // A bucket that is written twice has its last value.
    let written = written.chunks(24).map(|chunk| {
        let [index, period, length] = [0, 8, 16].map(|at| number(&chunk[at..at + 8]));
        (index as usize, (period as u64, length as usize))
    });
    let written: BTreeMap<_, _> = written.collect();
    let written = written
        .into_iter()
        .map(|(index, (period, length))| -> Written { (index, period, length) });
    let firsts = call.firsts.iter().enumerate();
    let outcome = Outcome {
        firsts: firsts
            .map(|(key, first)| reply.first(key, first.n).taken)
            .collect(),
        answers: (0..answers).map(|nth| reply.answer(nth)).collect(),
        levels: (0..keys).map(|key| reply.level(key)).collect(),
        pauses: (0..keys).map(|key| reply.pause_us(key)).collect(),
        written: written.collect(),
        is_ahead: reply.time().is_none(),
    };
    (reply.time(), outcome)
}

/// A key, and the quotas that processes have for it.
struct KnownKey {
    key: String,
    quotas: Vec<BucketParams>,
}

fn random_keys(rng: &mut Rng, sequence: u64, fast: bool) -> Vec<KnownKey> {
    let (count, of_one_name) = (1 + rng.below(4), rng.percent(50));
    (0..count)
        .map(|key| {
            let caps = [1.0, 2.5, 5.0, 10.0, 100.0, 1e6];
            let rates = [0.01, 1.0, 1.0, 7.3, 100.0, 1e4];
            let times = if fast { 1e4 } else { 1.0 };
            let quotas = 1 + rng.below(3) * rng.below(2);
            let quota = |_| BucketParams::new(rng.pick(&caps), rng.pick(&rates) * times);
            KnownKey {
                key: match of_one_name {
                    true => format!("{sequence}/{key:032x}"),
                    false => format!("{sequence}:{key}"),
                },
                quotas: (0..quotas).map(quota).collect(),
            }
        })
        .collect()
}

fn random_call(rng: &mut Rng, known: &[KnownKey], model: &ReferenceModel) -> Call {
    let mut keys = Vec::new();
    for known in known {
        if rng.percent(60) {
            keys.push((known.key.clone(), rng.pick(&known.quotas)));
        }
    }
    if keys.is_empty() {
        keys.push((known[0].key.clone(), known[0].quotas[0]));
    }
    let most = rng.pick(&[1, 2, 4]);
    let mut steps: Vec<_> = (0..1 + rng.below(most))
        .map(|_| random_step(rng, &keys, model))
        .collect();
    if rng.percent(10) {
        // As a write-back: the steps behind it have no answers, because it may stop the call.
        steps.retain(|step| matches!(step, Step::Op(_, op) if !op.has_answer()));
        let first = rng.below(keys.len() as u32) as usize;
        steps.insert(0, Step::Op(first, Op::EmptyOrStop));
    }
    let recovered = rng.pick(&[1.0, 1.0, 0.75, 1.0 / 3.0, 0.0]);
    let call = Call {
        recovered,
        ..Call::of(keys, steps)
    };
    // Most calls have only first requests then.
    match rng.percent(80) {
        true => call.hoisted(),
        false => call,
    }
}

fn random_step(rng: &mut Rng, keys: &[(String, BucketParams)], model: &ReferenceModel) -> Step {
    let index = rng.below(keys.len() as u32) as usize;
    let params = keys[index].1;
    let cost = random_cost(rng, params);
    let unit = 1.0 / params.per_us;
    let max_wait = rng
        .pick(&[0.0, unit, 2.5 * unit, 10.0 * unit, 1e12])
        .round();
    let op = match rng.below(28) {
        0..8 => {
            return Step::Take {
                n: 1 + rng.below(6) * rng.below(2),
                max_wait,
                costs: vec![(index, cost)],
            };
        }
        8..12 => {
            let mut costs = Vec::new();
            for (index, (_, params)) in keys.iter().enumerate() {
                if rng.percent(70) {
                    costs.push((index, random_cost(rng, *params)));
                }
            }
            if costs.is_empty() {
                costs.push((index, cost));
            }
            // The order of a request's buckets decides which of equally slow ones is the slowest.
            if rng.percent(50) {
                costs.reverse();
            }
            let n = 1;
            return Step::Take { n, max_wait, costs };
        }
        12..15 => Op::GiveBack { tokens: cost },
        15 => Op::WriteBack {
            wait_us: (rng.pick(&[0.0, 0.0, 1.0, 10.0]) * cost / params.per_us).ceil(),
            tokens: cost * rng.pick(&[0.1, 1.0, 3.0, 30.0]),
            largest_cost: cost,
        },
        16 => Op::Charge {
            tokens: cost * rng.pick(&[0.1, 1.0, 3.0, 1e9]),
        },
        17 => Op::Reset,
        18 => Op::CapLevel {
            tokens: cost - rng.pick(&[0.0, params.capacity / 2.0, params.capacity]),
        },
        19 => Op::Look,
        20 => Op::Pause {
            us: (rng.pick(&[0.0, 0.5, 3.0, 20.0]) * unit).ceil(),
        },
        21 | 22 => Op::Lease {
            tokens: (cost * rng.pick(&[0.5, 1.0, 3.0, 30.0])).ceil(),
        },
        _ => {
            // The last reservation, or one before it, as far as there are any.
            let stored = model.storage.last(&keys[index].0);
            let last_due = stored.map_or(1.7e15, |stored| {
                stored.bucket.last_due.max(stored.bucket.at)
            });
            let places = [0.0, 0.0, 1.0, 2.0, 4.0, rng.part()];
            let due = last_due - (rng.pick(&places) * cost * unit).round();
            Op::Undo(Reservation::due(due, cost, params))
        }
    };
    Step::Op(index, op)
}

fn random_cost(rng: &mut Rng, params: BucketParams) -> f64 {
    let part = rng.part().max(1e-3);
    let cost = rng.pick(&[
        1.0,
        1.0,
        2.0,
        params.capacity,
        params.capacity / 3.0,
        params.capacity * part,
    ]);
    match rng.below(50) {
        // Zero is rare, but must do nothing.
        0 => 0.0,
        // So is more than the capacity, of a local share of a larger limit.
        1 | 2 => params.capacity * (1.0 + part),
        _ => cost.min(params.capacity),
    }
}

/// A value of a random length, plausible in most of its numbers.
fn foreign_value(rng: &mut Rng, quotas: &[BucketParams], now: f64) -> Vec<u8> {
    let params = rng.pick(quotas);
    let until = now + rng.pick(&[0.5, 3.0, 20.0]) / params.per_us;
    let (level, at) = (params.capacity * rng.part(), now - 1e6 * rng.part());
    let rate = params.per_us;
    let capacity = params.capacity;
    let numbers = [level, at, capacity, rate, until, 1.0, 1.0, until, rate];
    let bad = rng.pick(&[0, 5, 10, 100]);
    let length = rng.pick(&[4, 7, 9, 12, 15]);
    let gap = |nth: f64| {
        [
            until - nth / params.per_us,
            until - (nth - 1.0) / params.per_us,
            1.0,
        ]
    };
    let numbers = [&numbers[..], &gap(4.0), &gap(2.0)].concat();
    let numbers = numbers[..length].iter().map(|number| {
        let is_bad = rng.percent(bad);
        if is_bad { hostile(rng) } else { *number }
    });
    let numbers: Vec<_> = numbers.collect();
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
    bytes.collect()
}

fn random_time_step(rng: &mut Rng, known: &[KnownKey]) -> f64 {
    let params = known[0].quotas[0];
    let unit = 1.0 / params.per_us;
    let part = rng.part();
    let forward = [
        0.0,
        1.0,
        unit * part,
        unit,
        params.capacity * unit * part,
        2e6,
        14e6,
        6e7,
    ];
    // More than one period of a hash, too.
    let back = [
        -1.0,
        -3e5,
        -999_999.0,
        -1e6,
        -1_000_001.0,
        -1.5e6,
        -18e6,
        -30e6,
        -6e7,
    ];
    let back = rng.percent(12).then(|| rng.pick(&back));
    back.unwrap_or_else(|| rng.pick(&forward)).round()
}

#[tokio::test]
async fn script_equals_the_model_by_the_clock_of_the_test() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let sha = load(&mut connection, &with_clock_of_the_test()).await;
    let (first, count) = (seed(), sequences(2_000, 50_000));
    println!("THROTTLE_SEED={first}");
    let (mut forgotten, mut waits, mut returned, mut slowest, mut only_firsts) = (0, 0, 0, 0, 0);
    let (mut paused, mut gaps, mut foreign) = (0, 0, 0);
    let (mut moved, mut renumbered) = (0, 0);
    let mut sequence = 0;
    while sequence < count {
        let (mut pipeline, mut expected) = (Pipeline::new(), Vec::new());
        for _ in 0..AT_ONCE.min(count - sequence) {
            let seed = first.wrapping_add(sequence);
            let mut rng = Rng::new(seed);
            let known = random_keys(&mut rng, sequence, false);
            let keyspace = Keyspace::new(&sequence.to_string(), [0; 32]);
            let (mut model, mut now) = (ReferenceModel::default(), 1.7e15);
            for _ in 0..4 + rng.below(12) {
                now += random_time_step(&mut rng, &known);
                for (period, hash) in model.storage.expire(now) {
                    pipeline.del(&keyspace.class(period)[hash]).ignore();
                }
                if rng.percent(5) {
                    let known = &known[rng.below(known.len() as u32) as usize];
                    let value = foreign_value(&mut rng, &known.quotas, now);
                    let (read, key) = (Stored::read(&value), &known.key);
                    foreign += usize::from(read.is_some());
                    if let Some((period, hash)) = model.storage.plant(key, read, now) {
                        let [first, second] = keyspace.class(period);
                        let field = Call::new(key, known.quotas[0], Vec::new());
                        let field = field.arguments(&keyspace);
                        let field = field.fields().next().expect("one bucket");
                        let (this, other) = match hash {
                            0 => (first, second),
                            _ => (second, first),
                        };
                        pipeline.hset(this, field, &value).ignore();
                        pipeline.hdel(other, field).ignore();
                    }
                }
                let call = random_call(&mut rng, &known, &model);
                let mut command = command(&sha, &keyspace, &call);
                pipeline.add_command(command.arg(&now.to_le_bytes()).clone());
                let arguments = call.arguments(&keyspace);
                let fields: Vec<_> = arguments.fields().collect();
                let read = Call::read(arguments.numbers(), &fields, call.recovered);
                assert_eq!(read, call);
                let outcome = model.call(&call, now);
                let taken = outcome.answers.iter().map(|answer| &answer.taken);
                let taken = taken.chain(&outcome.firsts);
                waits += taken.filter(|taken| taken.last > 0.0).count();
                only_firsts += usize::from(call.steps.is_empty());
                slowest += outcome.answers.iter().filter(|a| a.which > 0).count();
                let stored = known
                    .iter()
                    .filter_map(|known| model.storage.last(&known.key));
                gaps += stored.map(|stored| stored.bucket.gaps.len()).sum::<usize>();
                paused += outcome.pauses.iter().filter(|pause| **pause > 0.0).count();
                returned += outcome
                    .levels
                    .iter()
                    .filter(|(_, returned)| *returned > 0.0)
                    .count();
                expected.push((seed, now, call, outcome));
            }
            sequence += 1;
            forgotten += model.storage.forgotten;
            moved += model.storage.moved;
            renumbered += model.storage.renumbered;
        }
        pipeline.cmd("FLUSHDB").ignore();
        let replies: Vec<Vec<u8>> = pipeline
            .query_async(&mut connection)
            .await
            .expect("the script runs");
        assert_eq!(replies.len(), expected.len());
        for (bytes, (seed, now, call, outcome)) in replies.iter().zip(expected) {
            let (time, lua) = read(bytes, &call);
            let repeat = format!("THROTTLE_SEED={seed} THROTTLE_SEQUENCES=1 repeats it");
            assert!(time.is_none_or(|time| time == now));
            assert_eq!(lua, outcome, "left: Redis, at {now}: {call:?}; {repeat}");
        }
    }
    println!(
        "{count}: {forgotten} forgotten, {waits} waits, {returned} with returned tokens, {paused} paused, \
         {gaps} gaps, {foreign} foreign values, {slowest} slowest, {only_firsts} of first requests alone, \
         {moved} moved, {renumbered} renumbered"
    );
    let all = paused > 0
        && gaps > 0
        && foreign > 0
        && forgotten > 0
        && moved > 0
        && renumbered > 0
        && waits > 0
        && returned > 0
        && slowest > 0
        && only_firsts > 0;
    assert!(all || count < 1_000, "something never happened");
}

#[tokio::test]
async fn script_equals_the_model_by_the_clock_of_the_server() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let sha = load(&mut connection, ACQUIRE.source).await;
    let keyspace = Keyspace::new("p", [0; 32]);
    let (first, count) = (seed(), sequences(1_000, 10_000));
    println!("THROTTLE_SEED={first}");
    let mut sequence = 0;
    while sequence < count {
        let (mut pipeline, mut calls) = (Pipeline::new(), Vec::new());
        for _ in 0..AT_ONCE.min(count - sequence) {
            let seed = first.wrapping_add(sequence);
            let mut rng = Rng::new(seed);
            let mut known = random_keys(&mut rng, sequence, true);
            for known in &mut known {
                // The test does not know when Redis forgets a key, but with one quota that makes
                // no difference.
                known.quotas.truncate(1);
            }
            // Nor does it if the whole sequence refills at one pace.
            let recovered = rng.pick(&[1.0, 1.0, 0.75, 1.0 / 3.0, 0.0]);
            for _ in 0..4 + rng.below(12) {
                let call = Call {
                    recovered,
                    ..random_call(&mut rng, &known, &ReferenceModel::default())
                };
                pipeline.add_command(command(&sha, &keyspace, &call));
                calls.push((seed, call));
            }
            sequence += 1;
        }
        let replies: Vec<Vec<u8>> = pipeline
            .query_async(&mut connection)
            .await
            .expect("the script runs");
        let mut model = ReferenceModel::default();
        for (bytes, (seed, call)) in replies.iter().zip(calls) {
            let (now, lua) = read(bytes, &call);
            let now = now.expect("this server's clock is not set back");
            let written = Vec::new();
            let outcome = Outcome {
                written,
                ..model.call(&call, now)
            };
            let repeat = format!("THROTTLE_SEED={seed} THROTTLE_SEQUENCES=1 repeats it");
            assert_eq!(lua, outcome, "left: Redis, at {now}: {call:?}; {repeat}");
        }
    }
}
