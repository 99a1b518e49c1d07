//! Replies of the two Lua scripts, to a whole limiter in paused time.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tower_throttle::{
    Acquire, FailureKind, Health, Limiter, Quota, Scope,
    fuzz::{Call, limiter},
};

const SMALL: Scope = Quota::per_second(2.0).burst(5.0).scope("small");
const LARGE: Scope = Quota::per_second(1_000.0).burst(1e6).scope("large");

/// The first so many bytes of the input are the actions of callers, the others the replies of
/// Redis.
const ACTIONS: usize = 24;

/// A decision takes no longer than this and the longest wait: calls in paused time take no time.
const SLACK: Duration = Duration::from_secs(1);

/// - No task panics, and every acquisition ends within its longest wait.
/// - A level is at most the capacity, and a time to retry is above zero.
pub fn redis_replies(data: &[u8]) {
    let (actions, replies) = data.split_at(data.len().min(ACTIONS));
    let replies = Mutex::new(Replies {
        bytes: replies.iter().copied().take(4_096).collect(),
        beats: 0.0,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let start = Instant::now();
        let mut actions = actions.iter().copied();
        let builder = Limiter::builder().key_secret("fuzz");
        let builder = match actions.next() {
            Some(byte) if byte & 1 == 1 => builder.lease(0.01),
            _ => builder,
        };
        let limiter = limiter(builder, move |call| {
            let now_us = 1.7e15 + start.elapsed().as_micros() as f64;
            let mut replies = replies.lock().unwrap_or_else(PoisonError::into_inner);
            replies.reply(call, now_us)
        });
        while let Some(action) = actions.next() {
            act(&limiter, action, actions.next().unwrap_or(0)).await;
            let panicked = limiter.fallbacks_by(FailureKind::Panicked);
            assert_eq!(panicked, 0, "a task panicked");
            if let Health::Degraded { reason, .. } = limiter.health() {
                assert_ne!(reason, FailureKind::Panicked, "a task panicked");
            }
            assert!((0.0..=1.0).contains(&limiter.reserved()));
        }
        limiter.deregister().await;
    });
}

async fn act(limiter: &Limiter, action: u8, number: u8) {
    let cost = f64::from(number % 8);
    let longest = Duration::from_millis(u64::from(number) * 100);
    match action % 10 {
        0 => acquire(limiter.try_acquire(SMALL.cost(cost)), Duration::ZERO).await,
        1 => acquire(limiter.acquire(SMALL.cost(cost), longest), longest).await,
        2 => acquire(limiter.acquire(LARGE.cost(cost * 1e5), longest), longest).await,
        3 => {
            let scopes = [SMALL.cost(cost), LARGE.cost(1e3)];
            acquire(limiter.acquire(scopes, longest), longest).await;
        }
        4 => {
            // Cancelled after its call, or while it waits.
            let scopes = [SMALL.cost(cost), LARGE.key(number)];
            let _ = timeout(longest / 2, limiter.acquire(scopes, longest)).await;
        }
        5 => {
            let level = level(limiter, &SMALL).await;
            assert!(level <= SMALL.quota().capacity(), "a level of {level}");
        }
        6 => _ = limiter.bucket(&SMALL).reset().await,
        7 => limiter.bucket(&SMALL).pause(longest),
        8 => {
            limiter.bucket(&LARGE).adjust(cost);
            let level = level(limiter, &LARGE).await;
            assert!(level <= LARGE.quota().capacity(), "a level of {level}");
        }
        _ => sleep(longest).await,
    }
}

async fn level(limiter: &Limiter, scope: &Scope) -> f64 {
    let level = limiter.bucket(scope).level().await;
    level.unwrap_or_else(|unavailable| unavailable.local_level())
}

async fn acquire(acquire: Acquire, longest: Duration) {
    let start = Instant::now();
    let result = timeout(longest + SLACK, acquire).await;
    let result = result.unwrap_or_else(|_| panic!("not decided {SLACK:?} after {longest:?}"));
    let took = start.elapsed();
    match result {
        Ok(permit) => {
            if let Some((scope, level)) = permit.tightest() {
                assert!(level <= scope.quota().capacity(), "a level of {level}");
            }
            match took.as_millis() % 3 {
                0 => permit.refund(),
                1 => permit.settle(3.0),
                _ => drop(permit),
            }
        }
        Err(rejected) => {
            let after = rejected.retry_after();
            assert!(after.is_none_or(|after| !after.is_zero()), "{rejected}");
        }
    }
}

/// Once the bytes are used up, a healthy Redis replies that grants all.
struct Replies {
    bytes: VecDeque<u8>,
    beats: f64,
}

impl Replies {
    fn reply(&mut self, call: Call<'_>, now_us: f64) -> Option<Vec<u8>> {
        let kind = self.bytes.pop_front().unwrap_or(0);
        let length = match kind {
            0xff => return None,
            // Of another length.
            0xfe => usize::from(self.bytes.pop_front().unwrap_or(0)),
            _ => usize::MAX,
        };
        let healthy = match call.is_heartbeat {
            true => {
                self.beats += 1.0;
                vec![self.beats, 1.0, 0.0, 0.0, now_us / 1e3]
            }
            false => acquired(call, now_us, kind % 2 == 0),
        };
        let mut reply = match call.is_heartbeat {
            true => b"identity".to_vec(),
            false => Vec::new(),
        };
        for number in healthy {
            let number = match number == f64::INFINITY {
                true => number,
                false => self.number(number),
            };
            reply.extend(number.to_le_bytes());
        }
        reply.truncate(length);
        Some(reply)
    }

    fn number(&mut self, healthy: f64) -> f64 {
        let special = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            -0.0,
            0.5,
            4_294_967_296.0,
            // A day, 100 years and 30 ms in microseconds.
            8.64e10,
            3.2e15,
            3e4,
            1e6,
            -1e6,
            1e300,
        ];
        match self.bytes.pop_front().unwrap_or(0) {
            0 => healthy,
            byte @ 1..=15 => special[usize::from(byte - 1)],
            byte @ 16..=0x7f => f64::from(byte - 16),
            byte @ 0x80..=0xbf => 0x80 as f64 - f64::from(byte),
            // In microseconds, 10 ms to 16 s.
            byte @ 0xc0..=0xef => 1e4 * 1.17_f64.powi(i32::from(byte - 0xc0)),
            _ => {
                let mut bytes = [0; 8];
                bytes.fill_with(|| self.bytes.pop_front().unwrap_or(0));
                f64::from_bits(u64::from_be_bytes(bytes))
            }
        }
    }
}

/// The reply to a call of the script that acquires, from a Redis that grants all. It has the details
/// of all buckets or of none.
fn acquired(call: Call<'_>, now_us: f64, has_details: bool) -> Vec<f64> {
    let argument = call.arguments.first().copied().unwrap_or_default();
    let numbers: Vec<f64> = argument
        .chunks_exact(8)
        .map(|bytes| f64::from_le_bytes(bytes.try_into().expect("8 bytes")))
        .collect();
    let mut commands = &numbers[..];
    let mut details = Vec::new();
    let mut reply = vec![now_us];
    // Behind three arguments, one for each bucket.
    let buckets = call.arguments.len().saturating_sub(3);
    while reply.len() <= buckets {
        // Numbers of a run of buckets: those of the Lua script.
        let (run, rest) = commands.split_at(9);
        let (adjacent, capacity, n) = (run[0] as usize, run[4], run[7]);
        for _ in 0..adjacent {
            let level = capacity / 2.0;
            details.extend([n, n, 0.0, 0.0, level, 0.0]);
            reply.push(if has_details { f64::INFINITY } else { level });
        }
        commands = rest;
    }
    if has_details {
        reply.append(&mut details);
    }
    while let [op, rest @ ..] = commands {
        // Numbers behind that of the operation: those of the Lua script.
        let length = match *op as u8 {
            0 => {
                reply.extend([rest[0], rest[0], 0.0, 0.0, 1.0]);
                3 + 2 * rest[2] as usize
            }
            8 => {
                reply.extend([rest[1], rest[1], 0.0, 0.0, 1.0]);
                2
            }
            3 | 4 | 6 => 1,
            7 | 10 => 4,
            _ => 2,
        };
        commands = &rest[length..];
    }
    reply
}
