//! What the scripted Redis holds, and what the two scripts do to it.

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
    /// When each was last heard, in milliseconds; newcomers below zero.
    pub(crate) members: BTreeMap<Vec<u8>, f64>,
    /// Which limiter has an instance name.
    instances: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Tokens that were taken ahead.
    pub(crate) leased: f64,
}

#[derive(Clone, Debug)]
struct Epoch {
    key: Vec<u8>,
    id: [u8; 8],
    beats: f64,
}

/// A payment that was executed: who paid, under which number, and how much for all buckets.
#[derive(Clone, Debug)]
pub(crate) struct Paid {
    pub(crate) limiter: String,
    pub(crate) number: String,
    pub(crate) tokens: f64,
}

/// What a script did.
pub(crate) struct Done {
    pub(crate) reply: Vec<u8>,
    pub(crate) wrote: bool,
    pub(crate) paid: Option<Paid>,
    /// It was a payment that had been made before.
    pub(crate) paid_before: bool,
}

impl Store {
    /// Runs a script at `now`, in microseconds, by the server's clock.
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
            self.beat(keys, arguments, now)
        } else {
            panic!("a script that the model does not know");
        }
    }

    fn acquire(&mut self, keys: &[Vec<u8>], arguments: &[Vec<u8>], now: f64) -> Done {
        let mut keys = keys;
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).expect("text");
        let back = arguments
            .get(2)
            .map_or(1.0, |part| text(part).parse().expect("a part, as a number"));
        if let Some(known) = arguments.get(1).filter(|known| !known.is_empty()) {
            let (epoch, buckets) = keys.split_last().expect("the epoch's key");
            keys = buckets;
            let same = |epoch: &&Epoch| epoch.id[..] == known[..];
            let kept = self.epoch.as_ref().filter(|kept| kept.key == *epoch);
            if kept.filter(same).is_none() {
                return Done {
                    reply: Vec::new(),
                    wrote: false,
                    paid: None,
                    paid_before: false,
                };
            }
        }
        let keys: Vec<_> = keys.iter().map(text).collect();
        for key in &keys {
            if self
                .buckets
                .keys
                .get(key)
                .is_some_and(|stored| stored.is_expired(now))
            {
                self.buckets.keys.remove(key);
            }
        }
        let call = Call::read(&keys, &arguments[0], back);
        let outcome = self.buckets.call(&call, now);
        // They come after all demands.
        let leases = call.steps.iter().rev();
        let leases = leases.zip(outcome.answers.iter().rev());
        let leases = leases.take_while(|(step, _)| matches!(step, Step::Op(_, Op::Lease { .. })));
        self.leased += leases.map(|(_, answer)| answer.taken.granted).sum::<f64>();
        let first = outcome.written.first().is_some_and(|(key, ..)| *key == 0);
        let payment = paid(&call);
        Done {
            reply: outcome.reply(now),
            wrote: !outcome.written.is_empty(),
            paid_before: payment.is_some() && !first,
            paid: payment.filter(|_| first),
        }
    }

    fn beat(&mut self, keys: &[Vec<u8>], arguments: &[Vec<u8>], now: f64) -> Done {
        let [
            me,
            leaves,
            known,
            beats,
            random,
            alive_within,
            reserve_for,
            age,
            good_until,
        ] = arguments
        else {
            panic!("a heartbeat has nine arguments");
        };
        let ms = |bytes: &[u8]| -> Option<f64> { std::str::from_utf8(bytes).ok()?.parse().ok() };
        let alive_within = ms(alive_within).expect("milliseconds");
        let reserve_for = ms(reserve_for).expect("milliseconds");
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let now = (now / 1_000.0).floor();
        if leaves == b"1" {
            self.members.remove(me);
            return Done {
                reply: Vec::new(),
                wrote: true,
                paid: None,
                paid_before: false,
            };
        }
        if ms(good_until).is_some_and(|until| now > until) {
            return Done {
                reply: now.to_le_bytes().to_vec(),
                wrote: false,
                paid: None,
                paid_before: false,
            };
        }
        let mut id: [u8; 8] = random[..].try_into().expect("eight bytes");
        let mut count = 0.0;
        if let Some(kept) = &self.epoch
            && (kept.id[..] != known[..] || kept.beats >= number(beats))
        {
            (id, count) = (kept.id, kept.beats);
        }
        count += 1.0;
        self.epoch = Some(Epoch {
            key: keys[1].clone(),
            id,
            beats: count,
        });
        if let Some(name) = keys.get(2) {
            let owner = self.instances.get(name);
            if owner.is_none_or(|owner| owner == me) || age == b"first" {
                if let Some(owner) = owner.filter(|owner| *owner != me) {
                    self.members.remove(owner);
                }
                self.instances.insert(name.clone(), me.clone());
            }
        }
        const SILENCE: f64 = 3_000.0;
        self.members.retain(|_, heard| {
            let newcomer = *heard < 0.0;
            let silent = now - heard.abs();
            let kept = if newcomer { 0.0 } else { 3_600_000.0 };
            silent >= -2_000.0 && silent < SILENCE + kept
        });
        let heard = if age == b"established" { now } else { -now };
        self.members.insert(me.clone(), heard);
        let is_alive = |heard: &&f64| now - heard.abs() <= alive_within;
        let alive = self.members.values().filter(is_alive).count() as f64;
        let has_lapsed = |heard: &&f64| {
            **heard > 0.0 && !is_alive(heard) && now - **heard <= SILENCE + reserve_for
        };
        let lapsed = self.members.values().filter(has_lapsed).count() as f64;
        let mut reply = id.to_vec();
        for number in [count, alive, lapsed, now] {
            reply.extend(number.to_le_bytes());
        }
        Done {
            reply,
            wrote: true,
            paid: None,
            paid_before: false,
        }
    }

    /// Forgets one key: a bucket, the epoch, or who is alive.
    pub(crate) fn evict(&mut self, which: u64) {
        let mut buckets: Vec<_> = self.buckets.keys.keys().cloned().collect();
        buckets.sort();
        match which as usize % (buckets.len() + 2) {
            0 => self.epoch = None,
            1 => self.members.clear(),
            bucket => drop(self.buckets.keys.remove(&buckets[bucket - 2])),
        }
    }
}

/// The payment that this call is, unless it was made before.
fn paid(call: &Call) -> Option<Paid> {
    let (key, _) = call.keys.first()?;
    let (_, payment) = key.split_once("#paid:")?;
    let (limiter, number) = payment.split_once(':')?;
    let tokens = call.steps.iter().map(|step| match step {
        Step::Op(_, Op::WriteBack { tokens, .. }) => *tokens,
        Step::Op(_, Op::GiveBack { tokens }) => -tokens,
        _ => 0.0,
    });
    Some(Paid {
        limiter: limiter.to_owned(),
        number: number.to_owned(),
        tokens: tokens.sum(),
    })
}

pub(crate) fn disconnected() -> Failure {
    Failure::new(FailureKind::Disconnected, "the scripted Redis hung up")
}

pub(crate) fn timed_out() -> Failure {
    Failure::new(FailureKind::Timeout, "the scripted Redis did not answer")
}

pub(crate) fn read_only() -> Failure {
    Failure::new(
        FailureKind::Unavailable,
        "READONLY You can't write against a read only replica.",
    )
}
