//! [`LastRejection`]: the state of the bucket that rejected the last request, to be read without a
//! lock.
//!
//! Many threads may be rejected by one bucket. None of these requests changes it, so none of them
//! has to wait for the others.

mod seqlock;

use std::sync::atomic;

use self::seqlock::SeqLock;
use crate::{
    bucket::{AtOnce, BucketParams, take_at_once},
    scope::Lookup,
};

/// Room for an identity, in words of 8 bytes. A longer one is not recorded.
const ID_WORDS: usize = 8;

/// Hash, lengths of the identity, level, time, capacity, rate, end of trust; then the identity.
const STATE_WORDS: usize = 7;

/// The state of a bucket that has neither reservations nor a pause. Times are in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exhausted {
    /// In tokens, at the time `at`.
    pub(crate) level: f64,
    pub(crate) at: f64,
    pub(crate) params: BucketParams,
    /// From then on the state is no longer known.
    pub(crate) until: f64,
}

/// A record of at most one bucket. It is changed under the lock of the buckets that it may be of,
/// and read without it.
///
/// The record is exact: whatever changes the bucket clears it first, under the same lock. A reader
/// finds the record or misses it, as if it had taken the lock at that moment.
pub(crate) struct LastRejection {
    record: SeqLock<{ STATE_WORDS + ID_WORDS }>,
}

impl LastRejection {
    pub(crate) fn new() -> Self {
        Self {
            record: SeqLock::new(),
        }
    }

    /// When to retry, in microseconds, if the record is of this bucket and the bucket still lacks
    /// `cost`. `now` is called only if it is of this bucket.
    #[inline]
    pub(crate) fn rejects(
        &self,
        hash: u64,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
        now: impl FnOnce() -> f64,
    ) -> Option<f64> {
        let (mut level, mut at, until) = self.record.read(|word| {
            let is_recorded = word(0) == hash
                && word(4) == params.capacity.to_bits()
                && word(5) == params.per_us.to_bits()
                && word(1) == id.lengths()
                && (STATE_WORDS..)
                    .zip(id.words())
                    .all(|(n, own)| word(n) == own);
            let number = |n| f64::from_bits(word(n));
            is_recorded.then(|| (number(2), number(3), number(6)))
        })?;
        let now = now();
        if now >= until {
            return None;
        }
        match take_at_once(&mut level, &mut at, now, cost, params) {
            AtOnce::Rejected(retry_after) => Some(retry_after),
            AtOnce::Taken | AtOnce::ClockWasSetBack => None,
        }
    }

    /// Replaces the record. The lock must be held.
    pub(crate) fn set(&self, hash: u64, id: &Lookup<'_>, state: Exhausted) {
        if id.words().count() > ID_WORDS {
            return;
        }
        let numbers = [
            state.level,
            state.at,
            state.params.capacity,
            state.params.per_us,
            state.until,
        ];
        let words = [hash, id.lengths()].into_iter();
        self.record
            .write(words.chain(numbers.map(f64::to_bits)).chain(id.words()));
    }

    /// Clears the record if it may be of the bucket with this hash. The lock must be held.
    #[inline]
    pub(crate) fn clear_if(&self, hash: u64) {
        let is_of = self.record.read(|word| (word(0) == hash).then_some(()));
        if is_of.is_some() {
            self.record.clear();
        }
    }

    /// Clears the record. The lock must be held.
    pub(crate) fn clear(&self) {
        self.record.clear();
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod under_loom;
