//! Compares `heartbeat.lua` in a real Redis with the simulated one.

use redis::aio::MultiplexedConnection;

use super::store::Store;
use crate::{
    redis::script::HEARTBEAT,
    verification::{
        bucket_model::{Rng, seed, sequences},
        parity::support::RedisServer,
    },
};

const LIMITERS: &str = "p:{#}limiters";
const DIRECTORY: &str = "p:{#}directory";
const PAUSES: &str = "p:{#}pauses";
const HASHES: [&str; 2] = ["p:{#}16s:0", "p:{#}16s:1"];

/// One heartbeat.
struct Sent {
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

fn heartbeat(rng: &mut Rng, known: &[u8], now: f64) -> Sent {
    let mut keys = vec![LIMITERS.into(), DIRECTORY.into(), PAUSES.into()];
    let limiter = rng.below(6);
    if rng.percent(50) {
        keys.push(format!("p:{{#}}instance:{}", limiter / 2).into_bytes());
    }
    let ms = |ms: u32| ms.to_string().into_bytes();
    let (id, heartbeats) = match known.len() {
        16 => (known[..8].to_vec(), known[8..].to_vec()),
        _ => (Vec::new(), 0f64.to_le_bytes().to_vec()),
    };
    let heartbeats = match rng.below(8) {
        0 => 1e9f64.to_le_bytes().to_vec(),
        _ => heartbeats,
    };
    let good_until = match rng.below(4) {
        0 => String::new(),
        1 => format!("{:.0}", now - 60_000.0),
        _ => format!("{:.0}", now + 60_000.0),
    };
    let age = rng.pick(&["first", "new", "established", "established"]);
    let hashes = rng.below(3);
    keys.extend(
        HASHES[..hashes as usize]
            .iter()
            .map(|hash| hash.as_bytes().to_vec()),
    );
    Sent {
        keys,
        arguments: vec![
            format!("limiter{limiter}").into_bytes(),
            if rng.percent(10) { b"1" } else { b"0" }.to_vec(),
            id,
            heartbeats,
            rng.next().to_le_bytes().to_vec(),
            ms(rng.pick(&[0, 300, 3_000])),
            ms(rng.pick(&[0, 5_000, 60_000, 3_600_000])),
            age.into(),
            good_until.into_bytes(),
            if rng.percent(5) { b"1" } else { b"0" }.to_vec(),
            ms(hashes),
        ],
    }
}

async fn now_ms(connection: &mut MultiplexedConnection) -> f64 {
    let time = redis::cmd("TIME").query_async(connection).await;
    let (seconds, us): (f64, f64) = time.expect("a time");
    seconds * 1e3 + (us / 1e3).floor()
}

#[tokio::test]
async fn simulated_heartbeat_is_that_of_redis() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let seed = seed();
    println!("THROTTLE_SEED={seed}");
    let rng = &mut Rng::new(seed);
    let mut store = Store::default();
    let mut known = Vec::new();
    let (mut late, mut missing, mut pauses) = (0, 0.0, [0, 0]);
    for step in 0..sequences(2_000, 50_000) {
        let now = now_ms(&mut connection).await;
        // Time passes for one limiter, or is set back.
        if rng.percent(40) {
            let who = format!("limiter{}", rng.below(6)).into_bytes();
            let ago = rng.pick(&[
                -5_000.0,
                100.0,
                2_000.0,
                4_000.0,
                30_000.0,
                3_500_000.0,
                4e6,
            ]);
            if let Some(at) = store.limiters.get_mut(&who) {
                *at = at.signum() * (now - ago);
                let command = redis::cmd("ZADD")
                    .arg(LIMITERS)
                    .arg(*at)
                    .arg(&who)
                    .to_owned();
                let () = command.query_async(&mut connection).await.expect("added");
            }
        }
        // The hour has passed without a pause.
        if rng.percent(3) {
            store.pauses_until = 0.0;
            let command = redis::cmd("DEL").arg(PAUSES).to_owned();
            let () = command.query_async(&mut connection).await.expect("deleted");
        }
        let Sent { keys, arguments } = heartbeat(rng, &known, now);
        let mut command = redis::cmd("EVAL");
        command.arg(HEARTBEAT.source).arg(keys.len());
        command.arg(&keys).arg(&arguments);
        let reply: Vec<u8> = command
            .query_async(&mut connection)
            .await
            .expect("the script runs");
        // The server's time. No count depends on the milliseconds since `now`.
        let at = match reply.len() {
            0 => now,
            length => f64::from_le_bytes(reply[length - 8..].try_into().expect("eight bytes")),
        };
        let expected = store.run(&HEARTBEAT, &keys, &arguments, at * 1e3).reply;
        assert_eq!(reply, expected, "step {step}");
        match reply.len() {
            8 => late += 1,
            48 => {
                known = reply[..16].to_vec();
                let number = reply[24..32].try_into().expect("eight bytes");
                missing += f64::from_le_bytes(number);
                pauses[usize::from(reply[32..40] != [0; 8])] += 1;
            }
            _ => {}
        }
    }
    println!("{late} were late, {missing} missing; with pauses and without: {pauses:?}");
    assert!(late > 0 && missing > 0.0 && pauses.iter().all(|count| *count > 0));
}

#[tokio::test]
async fn heartbeat_deletes_hashes_that_are_out_of_use() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let mut command = redis::cmd("EVAL");
    // Of the longest period: it expires before one period is over.
    let longest = "p:{#}17592186044416s:0";
    command.arg(HEARTBEAT.source).arg(6);
    command.arg(&[LIMITERS, DIRECTORY, PAUSES]);
    command.arg(&HASHES).arg(longest);
    command
        .arg("me")
        .arg("0")
        .arg("")
        .arg(&[0u8; 8][..])
        .arg("identity");
    command
        .arg("3000")
        .arg("0")
        .arg("first")
        .arg("")
        .arg("0")
        .arg("3");
    // A period is 16 s, and a hash expires after four of them: those that are read have at least one
    // period left.
    let mut left = Vec::new();
    for seconds in [15, 17] {
        let mut pipeline = redis::pipe();
        for hash in HASHES {
            pipeline.hset(hash, "api", "x").ignore();
        }
        pipeline.expire(HASHES[0], seconds).ignore();
        pipeline.hset(longest, "api", "x").ignore();
        pipeline.pexpire(longest, 1 << 53).ignore();
        pipeline.add_command(command.clone()).ignore();
        pipeline.exists(HASHES[0]).exists(HASHES[1]).exists(longest);
        let exist: [bool; 3] = pipeline
            .query_async(&mut connection)
            .await
            .expect("the script runs");
        left.push(exist);
    }
    assert_eq!(left, [[false, true, true], [true, true, true]]);
}
