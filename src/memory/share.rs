//! Local shares of buckets in Redis, and their debt.

use std::sync::atomic::Ordering;

use super::{MemoryStore, overflow::is_overflow, packed::PackedBucket};
use crate::{
    bucket::{Bucket, BucketParams, Debt},
    packed_map::Entry,
    scope::BucketId,
};

/// How a local share relates to the bucket in Redis that it stands in for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShareBounds {
    /// The parameters of the bucket in Redis.
    pub(crate) full_quota: BucketParams,
    /// An upper bound of the share's level, in tokens.
    pub(crate) max_level: f64,
    /// An upper bound of the share's level, in tokens, unless it is an overflow bucket: it follows
    /// from the last reported level of one bucket, which does not apply to others.
    pub(crate) max_own_level: f64,
    /// Whether Redis is charged later for what the share grants. It is not where Redis grants the
    /// same request.
    pub(crate) incurs_debt: bool,
}

impl ShareBounds {
    /// Without an upper bound of the level.
    pub(crate) fn unbounded(full_quota: BucketParams, incurs_debt: bool) -> Self {
        Self {
            full_quota,
            max_level: f64::INFINITY,
            max_own_level: f64::INFINITY,
            incurs_debt,
        }
    }

    pub(super) fn cap(&self, bucket: &mut Bucket, is_overflow: bool) {
        bucket.cap_level(match is_overflow {
            true => self.max_level,
            false => self.max_level.min(self.max_own_level),
        });
    }
}

impl MemoryStore {
    /// Like [`with`](Self::with), on a local share. `f` also changes the debt, in tokens.
    pub(crate) fn with_share<T>(
        &self,
        id: &BucketId,
        params: BucketParams,
        bounds: ShareBounds,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> T {
        self.visit(&id.lookup(), params, |packed, now, is_overflow| {
            self.update_share(packed, now, is_overflow, params, bounds, f)
        })
    }

    /// Like [`with_share`](Self::with_share), but never on an overflow bucket. Returns `None` if it
    /// would be one, and does nothing then.
    pub(crate) fn with_own_share<T>(
        &self,
        id: &BucketId,
        params: BucketParams,
        bounds: ShareBounds,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> Option<T> {
        self.visit_own(&id.lookup(), params, |packed, now| {
            self.update_share(packed, now, false, params, bounds, f)
        })
    }

    fn update_share<T>(
        &self,
        packed: &mut PackedBucket,
        now: f64,
        is_overflow: bool,
        params: BucketParams,
        bounds: ShareBounds,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> T {
        let mut bucket = packed.bucket();
        bucket.advance(now, params);
        let mut debt = packed.remaining_debt(&bucket, params);
        bounds.cap(&mut bucket, is_overflow);
        let result = f(&mut bucket, &mut debt);
        self.store_share(packed, &bucket, debt, params, bounds.full_quota);
        result
    }

    pub(super) fn store_share(
        &self,
        packed: &mut PackedBucket,
        bucket: &Bucket,
        debt: f64,
        params: BucketParams,
        full_quota: BucketParams,
    ) {
        packed.store(bucket, debt, params);
        packed.set_full_quota(full_quota);
        if debt != 0.0 {
            self.has_debt.store(true, Ordering::Release);
        }
    }

    /// Whether any bucket may have debt.
    pub(crate) fn has_debt(&self) -> bool {
        self.has_debt.load(Ordering::Acquire)
    }

    /// Takes the debts of all buckets.
    pub(crate) fn drain_debts(&self) -> Vec<Debt> {
        self.has_debt.store(false, Ordering::Release);
        let now = self.clock.now_us();
        let mut debts = Vec::new();
        self.buckets
            .for_each(|entry| debts.extend(drain_debt(entry, now)));
        debts
    }
}

fn drain_debt(entry: &mut Entry<PackedBucket>, now: f64) -> Option<Debt> {
    let (tokens, bucket, full_quota) = entry.value.drain_debt(now)?;
    // The debt of an overflow bucket cannot be assigned to the keys that share it.
    let params = full_quota.filter(|_| tokens != 0.0 && !is_overflow(entry.id()))?;
    Some(Debt {
        id: entry.id().into(),
        params,
        tokens,
        wait_us: (bucket.last_due - bucket.at).max(0.0),
        largest_cost: bucket.largest_cost,
    })
}
