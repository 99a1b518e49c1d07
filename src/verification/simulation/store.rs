//! The data of the simulated Redis, and the effect of the two scripts on it.

use std::collections::BTreeMap;

use crate::{
    decision::{Failure, FailureKind},
    redis::{
        op::Op,
        script::{ACQUIRE, HEARTBEAT, Script},
    },
    verification::reference_model::{Call, ReferenceModel, Step},
};

/// All keys of a Redis.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    buckets: ReferenceModel,
    epoch: Option<Epoch>,
    /// The time of the last heartbeat of each, in milliseconds; negative until it is established.
    pub(crate) limiters: BTreeMap<Vec<u8>, f64>,
    /// Which limiter has an instance name.
    instances: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Until when it is known that limiters pause buckets, in milliseconds.
    pub(crate) pauses_until: f64,
    /// All tokens that were leased.
    pub(crate) leased: f64,
}

#[derive(Clone, Debug)]
struct Epoch {
    key: Vec<u8>,
    id: [u8; 8],
    heartbeats: f64,
}

/// A write-back that was executed: by whom, under which number, and how much for all buckets.
#[derive(Clone, Debug)]
pub(crate) struct WrittenBack {
    pub(crate) limiter: String,
    pub(crate) number: String,
    pub(crate) tokens: f64,
}

/// The effect of a script.
pub(crate) struct Done {
    pub(crate) reply: Vec<u8>,
    pub(crate) wrote: bool,
    pub(crate) written_back: Option<WrittenBack>,
    /// It was a write-back that had been executed before.
    pub(crate) repeats_write_back: bool,
}

impl Store {
    /// Runs a script at `now`, the server's time in microseconds.
    pub(crate) fn run(
        &mut self,
        script: &'static Script,
        keys: &[Vec<u8>],
        arguments: &[Vec<u8>],
        now: f64,
    ) -> Done {
        if std::ptr::eq(script, &raw const ACQUIRE) {
            self.acquire(keys, arguments, now)
        } else if std::ptr::eq(script, &raw const HEARTBEAT) {
            self.heartbeat(keys, arguments, now)
        } else {
            panic!("an unknown script");
        }
    }

    fn acquire(&mut self, keys: &[Vec<u8>], arguments: &[Vec<u8>], now: f64) -> Done {
        let [numbers, known, recovered, fields @ ..] = arguments else {
            panic!("a call has three arguments, and then fields");
        };
        let recovered = match &recovered[..] {
            [] => 1.0,
            part => std::str::from_utf8(part)
                .expect("text")
                .parse()
                .expect("a part, as a number"),
        };
        let same = |epoch: &Epoch| epoch.key == keys[0] && epoch.id[..] == known[..];
        if !known.is_empty() && !self.epoch.as_ref().is_some_and(same) {
            return Done {
                reply: Vec::new(),
                wrote: false,
                written_back: None,
                repeats_write_back: false,
            };
        }
        self.buckets.storage.expire(now);
        let fields: Vec<_> = fields.iter().map(|field| &field[..]).collect();
        let call = Call::read(numbers, &fields, recovered);
        let outcome = self.buckets.call(&call, now);
        // They come after all requests.
        let leases = call.steps.iter().rev();
        let leases = leases.zip(outcome.answers.iter().rev());
        let leases = leases.take_while(|(step, _)| matches!(step, Step::Op(_, Op::Lease { .. })));
        self.leased += leases.map(|(_, answer)| answer.taken.granted).sum::<f64>();
        let first = outcome.written.first().is_some_and(|(key, ..)| *key == 0);
        let write_back = write_back(&call);
        Done {
            reply: outcome.reply(now),
            wrote: !outcome.written.is_empty(),
            repeats_write_back: write_back.is_some() && !first,
            written_back: write_back.filter(|_| first),
        }
    }

    fn heartbeat(&mut self, keys: &[Vec<u8>], arguments: &[Vec<u8>], now: f64) -> Done {
        let [
            me,
            is_last,
            known,
            heartbeats,
            random,
            alive_within,
            reserve_for,
            age,
            good_until,
            pauses,
            hashes,
        ] = arguments
        else {
            panic!("a heartbeat has eleven arguments");
        };
        let ms = |bytes: &[u8]| -> Option<f64> { std::str::from_utf8(bytes).ok()?.parse().ok() };
        let alive_within = ms(alive_within).expect("milliseconds");
        let reserve_for = ms(reserve_for).expect("milliseconds");
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let now = (now / 1_000.0).floor();
        if is_last == b"1" {
            self.limiters.remove(me);
            return Done {
                reply: Vec::new(),
                wrote: true,
                written_back: None,
                repeats_write_back: false,
            };
        }
        if ms(good_until).is_some_and(|until| now > until) {
            return Done {
                reply: now.to_le_bytes().to_vec(),
                wrote: false,
                written_back: None,
                repeats_write_back: false,
            };
        }
        let mut id: [u8; 8] = random[..].try_into().expect("eight bytes");
        let mut count = 0.0;
        if let Some(kept) = &self.epoch
            && (kept.id[..] != known[..] || kept.heartbeats >= number(heartbeats))
        {
            (id, count) = (kept.id, kept.heartbeats);
        }
        count += 1.0;
        self.epoch = Some(Epoch {
            key: keys[1].clone(),
            id,
            heartbeats: count,
        });
        const LONGEST: f64 = 3_600_000.0;
        if pauses == b"1" {
            self.pauses_until = now + LONGEST;
        }
        let pauses = f64::from(now < self.pauses_until);
        let hashes: usize = std::str::from_utf8(hashes)
            .expect("text")
            .parse()
            .expect("a count");
        if let [_, _, _, name] = &keys[..keys.len() - hashes] {
            let owner = self.instances.get(name);
            if owner.is_none_or(|owner| owner == me) || age == b"first" {
                if let Some(owner) = owner.filter(|owner| *owner != me) {
                    self.limiters.remove(owner);
                }
                self.instances.insert(name.clone(), me.clone());
            }
        }
        const SILENCE: f64 = 3_000.0;
        self.limiters.retain(|_, last| {
            let is_new = *last < 0.0;
            let silent = now - last.abs();
            let kept = if is_new { 0.0 } else { LONGEST };
            silent >= -2_000.0 && silent < SILENCE + kept
        });
        let last = if age == b"established" { now } else { -now };
        self.limiters.insert(me.clone(), last);
        let is_alive = |last: &&f64| now - last.abs() <= alive_within;
        let alive = self.limiters.values().filter(is_alive).count() as f64;
        let is_missing =
            |last: &&f64| **last > 0.0 && !is_alive(last) && now - **last <= SILENCE + reserve_for;
        let missing = self.limiters.values().filter(is_missing).count() as f64;
        let mut reply = id.to_vec();
        for number in [count, alive, missing, pauses, now] {
            reply.extend(number.to_le_bytes());
        }
        Done {
            reply,
            wrote: true,
            written_back: None,
            repeats_write_back: false,
        }
    }

    /// Evicts one key: a hash of buckets, the directory, or the limiters.
    pub(crate) fn evict(&mut self, which: u64) {
        let storage = &mut self.buckets.storage;
        match which as usize % (storage.hashes() + 2) {
            0 => {
                self.epoch = None;
                storage.evict_directory();
            }
            1 => self.limiters.clear(),
            hash => storage.evict(hash - 2),
        }
    }
}

/// The write-back that this call is, if it is one.
fn write_back(call: &Call) -> Option<WrittenBack> {
    let (key, _) = call.keys.first()?;
    let (_, write_back) = key.split_once("#paid:")?;
    let (limiter, number) = write_back.split_once(':')?;
    let tokens = call.steps.iter().map(|step| match step {
        Step::Op(_, Op::WriteBack { tokens, .. }) => *tokens,
        Step::Op(_, Op::GiveBack { tokens }) => -tokens,
        _ => 0.0,
    });
    Some(WrittenBack {
        limiter: limiter.to_owned(),
        number: number.to_owned(),
        tokens: tokens.sum(),
    })
}

pub(crate) fn disconnected() -> Failure {
    Failure::new(
        FailureKind::Disconnected,
        "the simulated Redis closed the connection",
    )
}

pub(crate) fn timed_out() -> Failure {
    Failure::new(FailureKind::Timeout, "the simulated Redis did not answer")
}

pub(crate) fn read_only() -> Failure {
    Failure::new(
        FailureKind::Unavailable,
        "READONLY You can't write against a read only replica.",
    )
}
