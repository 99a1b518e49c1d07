//! The script's argument and reply, as bytes. No I/O.

use std::sync::LazyLock;

use crate::bucket::{Taken, Terms};

/// What Redis runs, known to it by its hash.
pub(crate) struct Script {
    pub(crate) source: &'static str,
    pub(crate) hash: LazyLock<String>,
}

/// Demands; `bucket.rs` is its twin.
pub(crate) static ACQUIRE: Script = Script {
    source: include_str!("acquire.lua"),
    hash: LazyLock::new(|| hash(include_str!("acquire.lua"))),
};

/// Who is alive.
pub(crate) static HEARTBEAT: Script = Script {
    source: include_str!("heartbeat.lua"),
    hash: LazyLock::new(|| hash(include_str!("heartbeat.lua"))),
};

fn hash(source: &str) -> String {
    redis::Script::new(source).get_hash().to_owned()
}

/// The argument of one call, in the order in which the script reads it.
#[derive(Debug, Default)]
pub(crate) struct Argument {
    terms: Vec<u8>,
    commands: Vec<u8>,
}

impl Argument {
    fn push(bytes: &mut Vec<u8>, numbers: &[f64]) {
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// The quota of the next key. Keys count from 1, as in Lua.
    pub(crate) fn key(&mut self, terms: Terms) {
        Self::push(&mut self.terms, &[terms.cap, terms.per_us]);
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
    pub(crate) fn pay(&mut self, index: usize, tokens: f64, wait: f64, big: f64) {
        Self::push(&mut self.commands, &[7.0, index as f64, tokens, wait, big]);
    }

    pub(crate) fn reset(&mut self, index: usize) {
        Self::push(&mut self.commands, &[3.0, index as f64]);
    }

    pub(crate) fn look(&mut self, index: usize) {
        Self::push(&mut self.commands, &[4.0, index as f64]);
    }

    pub(crate) fn lower(&mut self, index: usize, tokens: f64) {
        Self::push(&mut self.commands, &[5.0, index as f64, tokens]);
    }

    /// What follows is done only where this bucket is full, and empties it.
    pub(crate) fn once(&mut self, index: usize) {
        Self::push(&mut self.commands, &[6.0, index as f64]);
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.terms.append(&mut self.commands);
        self.terms
    }
}

/// What one take command got.
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
    takes: usize,
}

impl<'a> Reply<'a> {
    /// None where the length is not that of a call with so many takes and keys, or a number is
    /// not finite.
    pub(crate) fn new(bytes: &'a [u8], takes: usize, keys: usize) -> Option<Self> {
        let numbers = 1 + 5 * takes + 2 * keys;
        let reply = Self { bytes, takes };
        (bytes.len() == 8 * numbers && (0..numbers).all(|n| reply.number(n).is_finite()))
            .then_some(reply)
    }

    fn number(&self, index: usize) -> f64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.bytes[8 * index..8 * index + 8]);
        f64::from_le_bytes(number)
    }

    /// The server's time, in microseconds since 1970.
    #[cfg(test)]
    pub(crate) fn time(&self) -> f64 {
        self.number(0)
    }

    pub(crate) fn answer(&self, take: usize) -> Answer {
        let at = 1 + 5 * take;
        Answer {
            taken: Taken {
                now: self.number(at),
                granted: self.number(at + 1),
                last: self.number(at + 2),
                retry_after: self.number(at + 3),
            },
            which: (self.number(at + 4) as usize).saturating_sub(1),
        }
    }

    /// Level and pool of a key, counted from zero, after the call.
    pub(crate) fn level(&self, key: usize) -> (f64, f64) {
        let at = 1 + 5 * self.takes + 2 * key;
        (self.number(at), self.number(at + 1))
    }
}
