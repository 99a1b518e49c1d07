//! The map of buckets.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use tokio::time::Instant;

use super::{
    overflow::{Overflow, is_overflow},
    packed::PackedBucket,
};
use crate::{
    bucket::{Bucket, BucketParams},
    clock::Clock,
    packed_map::Entry,
    scope::{BucketId, Lookup},
    sharded::{Shard, Sharded},
    telemetry::Meter,
};

/// Buckets beyond `max_scopes` for scopes that are adjusted, which an overflow bucket must not be.
const RESERVED: usize = 1_024;

/// Buckets by identity.
///
/// A full bucket equals an absent one, so sweeps remove full buckets. Once there are `max_scopes`
/// buckets that are not full, a scope without a bucket uses one of the overflow buckets of its
/// name: memory stays bounded, known scopes keep their buckets, and no request is rejected for
/// being new. What concerns one bucket, such as a pause or a reset, is never applied to an overflow
/// bucket.
pub(crate) struct MemoryStore {
    pub(super) buckets: Sharded<PackedBucket>,
    /// The most buckets besides overflow buckets.
    max_scopes: usize,
    /// The number of buckets besides overflow buckets.
    own: AtomicUsize,
    pub(super) overflow: Overflow,
    pub(super) clock: Clock,
    /// Whether any bucket may have debt.
    pub(super) has_debt: AtomicBool,
    meter: Meter,
    /// The change of the number of buckets that is not reported to the meter yet. It is reported
    /// when no lock is held, because a metrics recorder may run any code.
    unreported: AtomicI64,
}

impl MemoryStore {
    pub(crate) fn new(max_scopes: usize) -> Self {
        Self {
            buckets: Sharded::new(),
            max_scopes,
            own: AtomicUsize::new(0),
            overflow: Overflow::default(),
            clock: Clock::new(),
            has_debt: AtomicBool::new(false),
            meter: Meter::new(),
            unreported: AtomicI64::new(0),
        }
    }

    /// The number of buckets, overflow buckets included.
    pub(crate) fn scopes(&self) -> usize {
        self.buckets.len()
    }

    /// How many requests an overflow bucket decided.
    pub(crate) fn overflowed(&self) -> u64 {
        self.overflow.requests.load(Ordering::Relaxed)
    }

    /// Takes `cost`, which must not exceed the capacity, without a wait. Returns the level after
    /// that, or when to retry, in microseconds.
    #[inline]
    pub(crate) fn take(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
    ) -> Result<f64, f64> {
        let hash = self.buckets.hash(id);
        let now = || self.clock.now_us();
        if let Some(retry_after) = self.buckets.rejects(hash, id, params, cost, now) {
            return Err(retry_after);
        }
        let mut shard = self.buckets.lock(hash);
        // Not before the lock is taken: the wait for it may be long.
        let now = self.clock.now_us();
        if let Some(packed) = shard.get_mut(hash, id) {
            let Some(taken) = packed.take_at_once(now, params, cost) else {
                return packed.update(now, params, |bucket| take(bucket, params, cost));
            };
            if taken.is_err() {
                let state = packed.exhausted(params);
                self.buckets.record_rejection(&mut shard, hash, id, state);
            }
            return taken;
        }
        drop(shard);
        self.with(id, params, |bucket| take(bucket, params, cost))
    }

    /// Refills the bucket and runs `f` on it.
    pub(crate) fn with<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        self.visit(id, params, |packed, now, _| packed.update(now, params, f))
    }

    /// Like [`with`](Self::with), but never on an overflow bucket. Returns `None` if it would be
    /// one, and does nothing then.
    pub(crate) fn with_own<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> Option<T> {
        self.visit_own(id, params, |packed, now| packed.update(now, params, f))
    }

    /// Makes the bucket full, and ends its pause.
    pub(crate) fn reset(&self, id: &BucketId, params: BucketParams) {
        self.visit_own(&id.lookup(), params, |packed, now| {
            *packed = PackedBucket::full(now, params);
        });
    }

    /// The end of the bucket's pause, if it is paused.
    pub(crate) fn paused_until(&self, id: &Lookup<'_>) -> Option<Instant> {
        let until = self.buckets.find(id, |packed| packed.paused_until())?;
        (until > self.clock.now_us()).then(|| self.clock.at_us(until))
    }

    /// Removes full buckets from a part of the map, which nothing else does once no request comes
    /// any more. [`SWEEP_STEPS`](crate::sharded::SWEEP_STEPS) calls with consecutive numbers cover
    /// the map.
    pub(crate) fn sweep_step(&self, step: usize) {
        let now = self.clock.now_us();
        self.buckets.sweep_step(step, now, self.keep(now));
        self.report_scopes();
    }

    /// Runs `visit` on the bucket, given the time and whether it is an overflow bucket.
    pub(super) fn visit<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64, bool) -> T,
    ) -> T {
        let result = self.visit_or_insert(id, params, visit);
        self.report_scopes();
        result
    }

    #[inline(never)]
    fn visit_or_insert<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64, bool) -> T,
    ) -> T {
        let hash = self.buckets.hash(id);
        let mut shard = self.buckets.lock(hash);
        let now = self.clock.now_us();
        if let Some(packed) = shard.get_mut(hash, id) {
            return visit(packed, now, false);
        }
        if self.has_room(&mut shard, now) {
            let packed = self.insert(&mut shard, hash, id.id().as_bytes(), now, params);
            return visit(packed, now, false);
        }
        drop(shard);
        let id = id.id();
        let overflow = self.overflow.id_for(&self.buckets, &id, hash, 0);
        self.count_overflow(&id);
        let id = Lookup::of(&overflow);
        let hash = self.buckets.hash(&id);
        let mut shard = self.buckets.lock(hash);
        let now = self.clock.now_us();
        let packed = match shard.get_mut(hash, &id) {
            Some(packed) => packed,
            None => self.insert(&mut shard, hash, &overflow, now, params),
        };
        visit(packed, now, true)
    }

    /// Runs `visit` on the bucket unless it is an overflow bucket.
    pub(super) fn visit_own<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64) -> T,
    ) -> Option<T> {
        let hash = self.buckets.hash(id);
        let mut shard = self.buckets.lock(hash);
        let now = self.clock.now_us();
        let packed = match shard.get_mut(hash, id) {
            Some(packed) => packed,
            None => {
                let max = self.max_scopes.saturating_add(RESERVED);
                if !self.has_room(&mut shard, now) && self.own.load(Ordering::Relaxed) >= max {
                    return None;
                }
                self.insert(&mut shard, hash, id.id().as_bytes(), now, params)
            }
        };
        let result = visit(packed, now);
        drop(shard);
        self.report_scopes();
        Some(result)
    }

    pub(super) fn has_room(&self, shard: &mut Shard<PackedBucket>, now: f64) -> bool {
        let is_at_max = || self.own.load(Ordering::Relaxed) >= self.max_scopes;
        self.buckets.has_room(shard, now, is_at_max, self.keep(now))
    }

    pub(super) fn insert<'a>(
        &self,
        shard: &'a mut Shard<PackedBucket>,
        hash: u64,
        id: &[u8],
        now: f64,
        params: BucketParams,
    ) -> &'a mut PackedBucket {
        self.count_of(id).fetch_add(1, Ordering::Relaxed);
        self.unreported.fetch_add(1, Ordering::Relaxed);
        self.buckets
            .insert(shard, hash, id, PackedBucket::full(now, params))
    }

    fn count_of(&self, id: &[u8]) -> &AtomicUsize {
        match is_overflow(id) {
            true => &self.overflow.count,
            false => &self.own,
        }
    }

    /// What a sweep keeps.
    fn keep(&self, now: f64) -> impl FnMut(&mut Entry<PackedBucket>) -> bool {
        move |entry| {
            let is_full = entry.value.is_full(now);
            if is_full {
                self.count_of(entry.id()).fetch_sub(1, Ordering::Relaxed);
                self.unreported.fetch_sub(1, Ordering::Relaxed);
            }
            !is_full
        }
    }

    pub(super) fn count_overflow(&self, id: &BucketId) {
        self.overflow.requests.fetch_add(1, Ordering::Relaxed);
        self.meter.overflowed(id.name());
    }

    /// Reports the number of buckets to the meter. No lock may be held.
    pub(super) fn report_scopes(&self) {
        if self.unreported.load(Ordering::Relaxed) != 0 {
            let change = self.unreported.swap(0, Ordering::Relaxed);
            self.meter.scopes(change as f64);
        }
    }
}

#[cfg(feature = "metrics")]
impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.meter.scopes(-(self.scopes() as f64));
    }
}

fn take(bucket: &mut Bucket, params: BucketParams, cost: f64) -> Result<f64, f64> {
    let taken = bucket.take(cost, 1, 0.0, params);
    if taken.now > 0.0 {
        Ok(bucket.level)
    } else {
        Err(taken.retry_after)
    }
}
