//! A concurrent map of bucket state that is swept.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    bucket::BucketParams,
    last_rejection::{Exhausted, LastRejection},
    packed_map::{Entry, Hashing, PackedMap},
    scope::Lookup,
};

/// A power of two, well above the number of cores.
const SHARDS: usize = 64;

/// A shard is not swept before it has this many entries.
const SMALLEST_SWEEP: usize = 64;

/// While there is no room, a shard is swept at most this often, in microseconds.
const SWEEP_INTERVAL_US: f64 = 1_000_000.0;

/// This many consecutive calls of [`Sharded::sweep_step`] sweep all shards.
pub(crate) const SWEEP_STEPS: usize = 8;

/// A map from bucket identities to values, in shards with a lock each.
///
/// Entries are removed by sweeps only: when a shard has doubled since its last sweep, when there is
/// no room for a new entry, and step by step through [`sweep_step`](Self::sweep_step). The caller
/// decides which entries to keep.
pub(crate) struct Sharded<T> {
    shards: Box<[Mutex<Shard<T>>; SHARDS]>,
    /// One for each shard, under the lock of the shard.
    rejections: Box<[LastRejection; SHARDS]>,
    hashing: Hashing,
    len: AtomicUsize,
}

/// One shard of a [`Sharded`] map.
pub(crate) struct Shard<T> {
    map: PackedMap<T>,
    /// How many entries cause the next sweep.
    sweep_at: usize,
    /// When the last sweep was.
    swept_us: f64,
    /// The hash of the bucket that rejected last.
    rejected_by: Option<u64>,
}

impl<T> Shard<T> {
    /// `hash` is that of `id` in the map that this shard is a part of.
    #[inline]
    pub(crate) fn get_mut(&mut self, hash: u64, id: &Lookup<'_>) -> Option<&mut T> {
        self.map.get_mut(hash, id)
    }
}

impl<T> Sharded<T> {
    pub(crate) fn new() -> Self {
        let shard = || Shard {
            map: PackedMap::default(),
            sweep_at: 0,
            swept_us: 0.0,
            rejected_by: None,
        };
        Self {
            shards: Box::new(std::array::from_fn(|_| Mutex::new(shard()))),
            rejections: Box::new(std::array::from_fn(|_| LastRejection::new())),
            hashing: Hashing::default(),
            len: AtomicUsize::new(0),
        }
    }

    /// The number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn hash(&self, id: &Lookup<'_>) -> u64 {
        id.hash(&self.hashing)
    }

    /// The index of the shard for this hash.
    #[inline]
    pub(crate) fn shard_of(&self, hash: u64) -> usize {
        // The table in the shard uses the lowest and the highest bits.
        (hash >> 40) as usize % SHARDS
    }

    /// Locks the shard for this hash, to use the value of this hash only.
    #[inline]
    pub(crate) fn lock(&self, hash: u64) -> MutexGuard<'_, Shard<T>> {
        let index = self.shard_of(hash);
        let shard = self.lock_any(index);
        self.rejections[index].clear_if(hash);
        shard
    }

    /// Locks the shard with this index. Locks of several shards are taken in ascending order.
    pub(crate) fn lock_shard(&self, index: usize) -> MutexGuard<'_, Shard<T>> {
        let shard = self.lock_any(index);
        self.rejections[index].clear();
        shard
    }

    /// Whatever changes a value has locked its shard: the record of a rejection by it must be
    /// cleared after that. Only a sweep leaves it, which removes buckets that are full and reject
    /// nothing.
    #[inline]
    fn lock_any(&self, index: usize) -> MutexGuard<'_, Shard<T>> {
        // Values stay consistent: nothing that runs under a lock leaves one half written.
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the value of this identity, if there is one, under the lock of its shard.
    #[inline]
    pub(crate) fn find<R>(&self, id: &Lookup<'_>, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        let hash = self.hash(id);
        self.lock(hash).get_mut(hash, id).map(f)
    }

    /// When to retry, in microseconds, if this bucket rejected the last request, was not locked
    /// since, and still lacks `cost`. Takes no lock.
    #[inline]
    pub(crate) fn rejects(
        &self,
        hash: u64,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
        now_us: impl FnOnce() -> f64,
    ) -> Option<f64> {
        self.rejections[self.shard_of(hash)].rejects(hash, id, params, cost, now_us)
    }

    /// The bucket has rejected a request and is in this state, until its shard is locked again. It
    /// is recorded if it rejects twice in a row.
    pub(crate) fn record_rejection(
        &self,
        shard: &mut Shard<T>,
        hash: u64,
        id: &Lookup<'_>,
        state: Exhausted,
    ) {
        if shard.rejected_by == Some(hash) {
            self.rejections[self.shard_of(hash)].set(hash, id, state);
        }
        shard.rejected_by = Some(hash);
    }

    /// Whether there is room for another entry, according to `is_at_max`. Sweeps the shard first if
    /// that is due.
    pub(crate) fn has_room(
        &self,
        shard: &mut Shard<T>,
        now_us: f64,
        is_at_max: impl Fn() -> bool,
        keep: impl FnMut(&mut Entry<T>) -> bool,
    ) -> bool {
        let has_doubled = shard.map.len() >= shard.sweep_at.max(SMALLEST_SWEEP);
        if has_doubled || (is_at_max() && now_us - shard.swept_us >= SWEEP_INTERVAL_US) {
            self.sweep(shard, now_us, keep);
        }
        !is_at_max()
    }

    /// Adds an entry for an identity that has none, whether or not there is room.
    pub(crate) fn insert<'a>(
        &self,
        shard: &'a mut Shard<T>,
        hash: u64,
        id: &[u8],
        value: T,
    ) -> &'a mut T {
        self.len.fetch_add(1, Ordering::Relaxed);
        shard.map.insert(hash, id, value, |id| self.hash_of(id))
    }

    /// Sweeps a part of the shards. [`SWEEP_STEPS`] calls with consecutive numbers sweep all.
    pub(crate) fn sweep_step(
        &self,
        step: usize,
        now_us: f64,
        mut keep: impl FnMut(&mut Entry<T>) -> bool,
    ) {
        for index in (step % SWEEP_STEPS..SHARDS).step_by(SWEEP_STEPS) {
            self.sweep(&mut self.lock_shard(index), now_us, &mut keep);
        }
    }

    /// Removes the entries for which `keep` returns false, locking one shard at a time.
    pub(crate) fn retain(&self, now_us: f64, mut keep: impl FnMut(&mut Entry<T>) -> bool) {
        for index in 0..SHARDS {
            self.sweep(&mut self.lock_shard(index), now_us, &mut keep);
        }
    }

    /// Runs `f` on each entry, locking one shard at a time.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&mut Entry<T>)) {
        for index in 0..SHARDS {
            self.lock_shard(index).map.iter_mut().for_each(&mut f);
        }
    }

    fn sweep(&self, shard: &mut Shard<T>, now_us: f64, keep: impl FnMut(&mut Entry<T>) -> bool) {
        let before = shard.map.len();
        shard.map.retain(keep, |id| self.hash_of(id));
        self.len
            .fetch_sub(before - shard.map.len(), Ordering::Relaxed);
        shard.sweep_at = 2 * shard.map.len();
        shard.swept_us = now_us;
    }

    fn hash_of(&self, id: &[u8]) -> u64 {
        self.hash(&Lookup::of(id))
    }

    /// The entries for which memory is allocated.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        let shards = (0..SHARDS).map(|index| self.lock_shard(index).map.capacity());
        shards.sum()
    }
}

#[cfg(test)]
mod tests;
