//! Requests that take from several buckets.

use super::{
    MemoryStore,
    overflow::{PER_NAME, is_overflow},
    share::ShareBounds,
};
use crate::{
    bucket::{Bucket, BucketParams, TakenAll, take_all},
    scope::{BucketId, Lookup},
};

/// One bucket's part in a request.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) id: BucketId,
    /// In tokens.
    pub(crate) cost: f64,
    pub(crate) params: BucketParams,
    /// Set if the bucket is a local share.
    pub(crate) share: Option<ShareBounds>,
}

impl MemoryStore {
    /// Takes from each bucket or from none. `max_wait` is in microseconds.
    pub(crate) fn take_all(&self, requests: &[Request], max_wait: f64) -> TakenAll {
        let taken = self.take_under_locks(requests, max_wait);
        self.report_scopes();
        taken
    }

    /// Locks all shards concerned, in ascending order.
    fn take_under_locks(&self, requests: &[Request], max_wait: f64) -> TakenAll {
        let mut ids: Vec<Box<[u8]>> = Vec::with_capacity(requests.len());
        for request in requests {
            ids.push(self.target(&request.id, &ids));
        }
        let hashes: Vec<u64> = ids
            .iter()
            .map(|id| self.buckets.hash(&Lookup::of(id)))
            .collect();
        let shard_of = |hash: &u64| self.buckets.shard_of(*hash);
        let mut wanted: Vec<usize> = hashes.iter().map(shard_of).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let lock = |index: &usize| self.buckets.lock_shard(*index);
        let mut shards: Vec<_> = wanted.iter().map(lock).collect();
        let index_of = |hash: &u64| {
            wanted
                .binary_search(&shard_of(hash))
                .unwrap_or_else(|index| index)
        };
        let now = self.clock.now_us();
        let mut buckets = Vec::with_capacity(requests.len());
        for ((request, id), hash) in requests.iter().zip(&ids).zip(&hashes) {
            let shard = &mut shards[index_of(hash)];
            let mut bucket = match shard.get_mut(*hash, &Lookup::of(id)) {
                Some(packed) => packed.bucket(),
                None => Bucket::full(now, request.params),
            };
            bucket.advance(now, request.params);
            if let Some(bounds) = request.share {
                bounds.cap(&mut bucket, is_overflow(id));
            }
            buckets.push(bucket);
        }
        let parts = buckets.iter_mut().zip(requests);
        let parts = parts.map(|(bucket, request)| (bucket, request.cost, request.params));
        let taken = take_all(parts, max_wait);
        if matches!(taken, TakenAll::Rejected { .. }) {
            return taken;
        }
        let was_taken = |index| match taken {
            TakenAll::Slowest { which, .. } => which == index,
            _ => true,
        };
        let parts = requests.iter().zip(&ids).zip(&hashes).zip(&buckets);
        for (index, (((request, id), hash), bucket)) in parts.enumerate() {
            let params = request.params;
            let shard = &mut *shards[index_of(hash)];
            let packed = match shard.get_mut(*hash, &Lookup::of(id)) {
                Some(packed) => packed,
                None => self.insert(shard, *hash, id, now, params),
            };
            let mut before = packed.bucket();
            before.advance(now, params);
            let mut debt = packed.remaining_debt(&before, params);
            match request.share {
                Some(bounds) => {
                    if was_taken(index) && bounds.incurs_debt {
                        debt += request.cost;
                    }
                    self.store_share(packed, bucket, debt, params, bounds.full_quota);
                }
                None => packed.store(bucket, debt, params),
            }
        }
        taken
    }

    /// The identity of the bucket that decides: `id`, or an overflow bucket that no other part of
    /// the same request has `taken`. That may change at once, so the bound of buckets may be
    /// exceeded by the number of threads.
    fn target(&self, id: &BucketId, taken: &[Box<[u8]>]) -> Box<[u8]> {
        let lookup = id.lookup();
        let hash = self.buckets.hash(&lookup);
        let mut shard = self.buckets.lock(hash);
        if shard.get_mut(hash, &lookup).is_some() || self.has_room(&mut shard, self.clock.now_us())
        {
            return id.as_bytes().into();
        }
        drop(shard);
        self.count_overflow(id);
        // There are more of them than scopes in a request.
        let mut overflow =
            (0..PER_NAME).map(|nth| self.overflow.id_for(&self.buckets, id, hash, nth));
        let free = overflow.find(|overflow| !taken.contains(overflow));
        free.unwrap_or_else(|| id.as_bytes().into())
    }
}
