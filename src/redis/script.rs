//! The script's argument and reply, as bytes. No I/O.

use std::sync::OnceLock;

use crate::bucket::{BucketParams, Reservation, Taken};
use crate::redis::level_cache::BucketState;

/// What Redis runs, known to it by its hash.
pub(crate) struct Script {
    pub(crate) source: &'static str,
    /// Set by the transport when the script first runs.
    pub(crate) hash: OnceLock<String>,
}

/// Demands; `bucket.rs` is its twin.
pub(crate) static ACQUIRE: Script = Script {
    source: include_str!("acquire.lua"),
    hash: OnceLock::new(),
};

/// Who is alive.
pub(crate) static HEARTBEAT: Script = Script {
    source: include_str!("heartbeat.lua"),
    hash: OnceLock::new(),
};

/// The first demand on a bucket in a call: `n` callers, each of whom takes `cost` and waits no
/// longer than `max_wait` microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct First {
    pub(crate) cost: f64,
    pub(crate) n: u32,
    pub(crate) max_wait_us: f64,
}

impl First {
    pub(crate) const NONE: Self = Self {
        cost: 0.0,
        n: 0,
        max_wait_us: 0.0,
    };
}

/// The argument of one call, in the order in which the script reads it.
#[derive(Debug, Default)]
pub(crate) struct Argument {
    keys: Vec<u8>,
    commands: Vec<u8>,
}

impl Argument {
    fn push(bytes: &mut Vec<u8>, numbers: &[f64]) {
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Has room for so many keys.
    pub(crate) fn with_keys(keys: usize) -> Self {
        Self {
            keys: Vec::with_capacity(40 * keys),
            commands: Vec::new(),
        }
    }

    /// The next key: its quota, and the first demand on it. Keys count from 1, as in Lua.
    pub(crate) fn key(&mut self, params: BucketParams, first: First) {
        let First {
            cost,
            n,
            max_wait_us,
        } = first;
        let numbers = [
            params.capacity,
            params.per_us,
            cost,
            f64::from(n),
            max_wait_us,
        ];
        Self::push(&mut self.keys, &numbers);
    }

    /// `n` equal demands; each takes every one of `buckets` (index, cost) or nothing.
    pub(crate) fn take(
        &mut self,
        n: u32,
        max_wait_us: f64,
        buckets: impl ExactSizeIterator<Item = (usize, f64)>,
    ) {
        let m = buckets.len() as f64;
        Self::push(&mut self.commands, &[0.0, f64::from(n), max_wait_us, m]);
        for (index, cost) in buckets {
            Self::push(&mut self.commands, &[index as f64, cost]);
        }
    }

    pub(crate) fn give_back(&mut self, index: usize, tokens: f64) {
        Self::push(&mut self.commands, &[1.0, index as f64, tokens]);
    }

    pub(crate) fn charge(&mut self, index: usize, tokens: f64) {
        Self::push(&mut self.commands, &[2.0, index as f64, tokens]);
    }

    /// Charges what was granted beside Redis, however deep the debt: the last turn that is paid
    /// for comes after `wait` microseconds, and the largest is of cost `big`.
    pub(crate) fn write_back(&mut self, index: usize, tokens: f64, wait: f64, big: f64) {
        Self::push(&mut self.commands, &[7.0, index as f64, tokens, wait, big]);
    }

    pub(crate) fn reset(&mut self, index: usize) {
        Self::push(&mut self.commands, &[3.0, index as f64]);
    }

    pub(crate) fn look(&mut self, index: usize) {
        Self::push(&mut self.commands, &[4.0, index as f64]);
    }

    pub(crate) fn cap_level(&mut self, index: usize, tokens: f64) {
        Self::push(&mut self.commands, &[5.0, index as f64, tokens]);
    }

    /// Nobody is granted anything for `us` microseconds.
    pub(crate) fn pause(&mut self, index: usize, us: f64) {
        Self::push(&mut self.commands, &[9.0, index as f64, us]);
    }

    /// Undoes a reservation whose caller has gone away.
    pub(crate) fn undo(&mut self, index: usize, gone: Reservation) {
        let Reservation {
            from,
            until,
            tokens,
        } = gone;
        Self::push(
            &mut self.commands,
            &[10.0, index as f64, tokens, until, from],
        );
    }

    /// What follows is done only where this bucket is full, and empties it.
    pub(crate) fn once(&mut self, index: usize) {
        Self::push(&mut self.commands, &[6.0, index as f64]);
    }

    /// Takes up to so many tokens ahead of anybody's demand, of what is over half the capacity.
    pub(crate) fn lease(&mut self, index: usize, tokens: f64) {
        Self::push(&mut self.commands, &[8.0, index as f64, tokens]);
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.keys.append(&mut self.commands);
        self.keys
    }
}

/// What one command that takes got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) taken: Taken,
    /// Which of the demand's buckets decided, counted from zero.
    pub(crate) which: usize,
}

/// The reply of one call.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    bytes: &'a [u8],
    keys: usize,
}

impl<'a> Reply<'a> {
    /// None where the length is not that of a call with so many keys and commands that take.
    /// Any number may be anything: whoever uses one bounds it by what was asked for.
    pub(crate) fn new(bytes: &'a [u8], keys: usize, takes: usize) -> Option<Self> {
        let numbers = 1 + 6 * keys + 5 * takes;
        (bytes.len() == 8 * numbers).then_some(Self { bytes, keys })
    }

    fn number(&self, index: usize) -> f64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.bytes[8 * index..8 * index + 8]);
        f64::from_le_bytes(number)
    }

    fn taken(&self, at: usize) -> Taken {
        Taken {
            now: self.number(at),
            granted: self.number(at + 1),
            last: self.number(at + 2),
            retry_after: self.number(at + 3),
        }
    }

    /// The server's time, in microseconds since 1970, from which on waits count; none where that
    /// of a bucket is ahead of it.
    pub(crate) fn time(&self) -> Option<f64> {
        let time = self.number(0);
        (time > 0.0).then_some(time)
    }

    /// What the first demand on a key got. Keys count from zero here.
    pub(crate) fn first(&self, key: usize) -> Taken {
        self.taken(1 + 6 * key)
    }

    /// Level and pool of a key after the call.
    pub(crate) fn level(&self, key: usize) -> (f64, f64) {
        let at = 1 + 6 * key + 4;
        (self.number(at), self.number(at + 1).max(0.0))
    }

    /// For how long nobody is granted anything of a key, in microseconds.
    pub(crate) fn pause_us(&self, key: usize) -> f64 {
        (-self.number(1 + 6 * key + 5)).max(0.0)
    }

    /// All that the reply tells of a key.
    pub(crate) fn state(&self, key: usize, params: BucketParams) -> BucketState {
        let (level, pool) = self.level(key);
        let held = self.pause_us(key);
        BucketState {
            level,
            returned: pool,
            pause_us: held,
        }
        .bounded(params)
    }

    /// What a command that takes got, counted from zero.
    pub(crate) fn answer(&self, take: usize) -> Answer {
        let at = 1 + 6 * self.keys + 5 * take;
        Answer {
            taken: self.taken(at),
            which: (self.number(at + 4) as usize).saturating_sub(1),
        }
    }
}
