//! Sharded buckets that are forgotten once they are full.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
};

use tokio::time::Instant;

use super::packed::{PackedBucket, remaining_debt};
use crate::{
    bucket::{Bucket, BucketParams, Debt, TakenAll, take_all},
    clock::Clock,
    packed_map::{Entry, Hashing, PackedMap},
    scope::{BucketId, Lookup},
    telemetry::Meter,
};

/// A power of two, well above the number of cores.
const SHARDS: usize = 64;

/// A shard is not swept before it holds this many buckets.
const SMALLEST_SWEEP: usize = 64;

/// A shard at the limit of the store is not swept more often than this.
const SWEEP_PAUSE_US: f64 = 1_000_000.0;

/// In so many turns of `tidy` all shards are swept.
const SWEEP_STEPS: usize = 8;

/// Overflow buckets of each name. Whoever wants to empty them has to come as many times as often as
/// for one, and cannot choose among them.
const OVERFLOW_SPREAD: u64 = 1_024;

/// With so many overflow buckets in all, further names have no overflow buckets of their own: they
/// share `OVERFLOW_SPREAD` more.
const MOST_OVERFLOW: usize = 63 * 1_024;

/// Buckets beyond `max_scopes` for those that somebody adjusts, which must not be shared.
const RESERVED: usize = 1_024;

/// A byte that no name holds.
const OVERFLOW_MARK: u8 = 0xFD;

/// One bucket's part in an acquisition.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) id: BucketId,
    pub(crate) cost: f64,
    pub(crate) params: BucketParams,
    /// Where the bucket is a share of one that another store holds.
    pub(crate) share: Option<ShareBounds>,
}

/// A bucket that stands in for one that another store holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShareBounds {
    /// The quota of that one.
    pub(crate) full_quota: BucketParams,
    /// The level must not be above this, whatever was left here from earlier.
    pub(crate) most: f64,
    /// The last known level of this very bucket, which says nothing of one that is shared.
    pub(crate) known: f64,
    /// Whether what is taken here is owed to that one. Where it grants as well, nothing is.
    pub(crate) owes: bool,
}

impl ShareBounds {
    fn most(&self, shared: bool) -> f64 {
        match shared {
            true => self.most,
            false => self.most.min(self.known),
        }
    }
}

/// Buckets by identity.
///
/// A full bucket equals an absent one, so full ones are dropped whenever a shard has doubled;
/// nothing runs in the background. Once `max_scopes` buckets are held that are not full, a
/// scope that is not among them shares one of the overflow buckets of its name, which a seeded hash
/// chooses: memory stays bounded, known scopes keep their buckets, and nobody is refused for being
/// new. What is meant for one bucket, such as a pause or a reset, is never applied to a shared one.
pub(crate) struct MemoryStore {
    shards: Box<[Shard]>,
    hasher: Hashing,
    clock: Clock,
    max_scopes: usize,
    scopes: AtomicUsize,
    overflow: AtomicUsize,
    overflowed: AtomicU64,
    /// Whether any bucket may owe something.
    owing: AtomicBool,
    meter: Meter,
    /// Changes of `scopes` and `overflow_names` that the meter is still to be told of, once no
    /// lock is held: a recorder may run anything.
    unmetered: AtomicI64,
}

#[derive(Default)]
struct Shard {
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    table: PackedMap<PackedBucket>,
    sweep_at: usize,
    swept: f64,
}

impl Shard {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, Buckets> {
        // Nothing that runs under this lock leaves a bucket half written.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryStore {
    pub(crate) fn new(max_scopes: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: Hashing::default(),
            clock: Clock::new(),
            max_scopes,
            scopes: AtomicUsize::new(0),
            overflow: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
            owing: AtomicBool::new(false),
            meter: Meter::new(),
            unmetered: AtomicI64::new(0),
        }
    }

    /// Buckets held.
    pub(crate) fn scopes(&self) -> usize {
        self.scopes.load(Ordering::Relaxed) + self.overflow.load(Ordering::Relaxed)
    }

    /// Visits that went to an overflow bucket.
    pub(crate) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Takes `cost`, which the params can grant, at once: the level after that, or in how many
    /// microseconds to come back.
    #[inline]
    pub(crate) fn take(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
    ) -> Result<f64, f64> {
        let hash = id.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut guard = shard.lock();
        let buckets = &mut *guard;
        let now = self.clock.now_us();
        if let Some(place) = buckets.table.find(hash, id) {
            let held = buckets.table.value(place);
            let taken = match held.take_at_once(now, params, cost) {
                Some(taken) => taken,
                None => held.advance(now, params, |bucket| take(bucket, params, cost)),
            };
            return taken;
        }
        drop(guard);
        let take = |bucket: &mut Bucket| take(bucket, params, cost);
        self.with_new(id, hash, params, |held, now, _| {
            held.advance(now, params, take)
        })
    }

    /// Runs `f` on the bucket, brought to now, and keeps what it leaves.
    pub(crate) fn with<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        self.visit(id, params, |held, now, _| held.advance(now, params, f))
    }

    /// As `with`, on a bucket that is not shared. None where it would be, and nothing was done.
    pub(crate) fn with_own<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> Option<T> {
        self.visit_own(id, params, |held, now| held.advance(now, params, f))
    }

    /// As `with`, on a bucket that stands in for another; `f` also changes what is owed.
    pub(crate) fn with_share<T>(
        &self,
        id: &BucketId,
        params: BucketParams,
        stand_in: ShareBounds,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> T {
        self.visit(&id.lookup(), params, |held, now, shared| {
            self.visit_share(held, now, shared, params, stand_in, f)
        })
    }

    /// As `with_stand_in`, on a bucket that is not shared. None where it would be, and nothing was
    /// done.
    pub(crate) fn with_own_share<T>(
        &self,
        id: &BucketId,
        params: BucketParams,
        stand_in: ShareBounds,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> Option<T> {
        self.visit_own(&id.lookup(), params, |held, now| {
            self.visit_share(held, now, false, params, stand_in, f)
        })
    }

    fn visit_share<T>(
        &self,
        held: &mut PackedBucket,
        now: f64,
        shared: bool,
        params: BucketParams,
        stand_in: ShareBounds,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> T {
        let mut bucket = held.bucket();
        bucket.advance(now, params);
        let mut owed = remaining_debt(held.debt(), &bucket, params);
        bucket.cap_level(stand_in.most(shared));
        let result = f(&mut bucket, &mut owed);
        self.store(held, &bucket, owed, params, stand_in.full_quota);
        result
    }

    fn visit_own<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64) -> T,
    ) -> Option<T> {
        let hash = id.hash(&self.hasher);
        let mut buckets = self.shard(hash).lock();
        let now = self.clock.now_us();
        let place = match buckets.table.find(hash, id) {
            Some(place) => place,
            None => {
                let most = self.max_scopes.saturating_add(RESERVED);
                if !self.has_room(&mut buckets, now) && self.scopes.load(Ordering::Relaxed) >= most
                {
                    // What the sweep for room found is told with the next change.
                    return None;
                }
                self.scopes.fetch_add(1, Ordering::Relaxed);
                self.insert(&mut buckets, hash, id.id().as_bytes(), now, params)
            }
        };
        let result = visit(buckets.table.value(place), now);
        drop(buckets);
        self.record_scopes();
        Some(result)
    }

    /// `visit` also learns whether the bucket is shared.
    fn visit<T>(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64, bool) -> T,
    ) -> T {
        let hash = id.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut buckets = shard.lock();
        if let Some(place) = buckets.table.find(hash, id) {
            let now = self.clock.now_us();
            return visit(buckets.table.value(place), now, false);
        }
        drop(buckets);
        self.with_new(id, hash, params, visit)
    }

    /// As `visit`, where the bucket was not there a moment ago.
    #[cold]
    fn with_new<T>(
        &self,
        id: &Lookup<'_>,
        hash: u64,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64, bool) -> T,
    ) -> T {
        let result = self.visit_new(id, hash, params, visit);
        self.record_scopes();
        result
    }

    /// To be called without a lock.
    fn record_scopes(&self) {
        if self.unmetered.load(Ordering::Relaxed) != 0 {
            let more = self.unmetered.swap(0, Ordering::Relaxed);
            self.meter.scopes(more as f64);
        }
    }

    fn visit_new<T>(
        &self,
        id: &Lookup<'_>,
        hash: u64,
        params: BucketParams,
        visit: impl FnOnce(&mut PackedBucket, f64, bool) -> T,
    ) -> T {
        let mut buckets = self.shard(hash).lock();
        let now = self.clock.now_us();
        if let Some(place) = buckets.table.find(hash, id) {
            return visit(buckets.table.value(place), now, false);
        }
        if self.has_room(&mut buckets, now) {
            self.scopes.fetch_add(1, Ordering::Relaxed);
            let place = self.insert(&mut buckets, hash, id.id().as_bytes(), now, params);
            return visit(buckets.table.value(place), now, false);
        }
        drop(buckets);
        let overflow = self.overflow_of(&id.id(), hash, 0);
        self.count_overflow(&id.id());
        let id = &Lookup::of(&overflow);
        let hash = id.hash(&self.hasher);
        let mut buckets = self.shard(hash).lock();
        let now = self.clock.now_us();
        let place = buckets.table.find(hash, id).unwrap_or_else(|| {
            self.overflow.fetch_add(1, Ordering::Relaxed);
            self.insert(&mut buckets, hash, &overflow, now, params)
        });
        visit(buckets.table.value(place), now, true)
    }

    fn count_overflow(&self, id: &BucketId) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        self.meter.overflowed(id.name());
    }

    fn store(
        &self,
        held: &mut PackedBucket,
        bucket: &Bucket,
        owed: f64,
        params: BucketParams,
        whole: BucketParams,
    ) {
        held.store(bucket, owed, params);
        held.stands_in_for(whole);
        if owed != 0.0 {
            self.owing.store(true, Ordering::Release);
        }
    }

    /// Whether any bucket may owe something.
    pub(crate) fn has_debt(&self) -> bool {
        self.owing.load(Ordering::Acquire)
    }

    /// What is owed, which from here on is no longer.
    pub(crate) fn drain_debts(&self) -> Vec<Debt> {
        self.owing.store(false, Ordering::Release);
        let now = self.clock.now_us();
        let mut debts = Vec::new();
        for shard in &self.shards {
            for entry in shard.lock().table.iter_mut() {
                let Some((tokens, bucket, whole)) = entry.value.drain_debt(now) else {
                    continue;
                };
                // Of what strangers took together, nobody knows whose it was.
                if let Some(whole) = whole
                    && tokens != 0.0
                    && !is_overflow(entry.id())
                {
                    debts.push(Debt {
                        id: entry.id().into(),
                        params: whole,
                        tokens,
                        wait_us: (bucket.last_due - bucket.at).max(0.0),
                        largest_cost: bucket.largest_cost,
                    });
                }
            }
        }
        debts
    }

    /// Takes from every bucket or none.
    pub(crate) fn take_all(&self, demands: &[Request], max_wait: f64) -> TakenAll {
        let taken = self.take_from_all(demands, max_wait);
        self.record_scopes();
        taken
    }

    fn take_from_all(&self, demands: &[Request], max_wait: f64) -> TakenAll {
        // Each bucket is read and written under its own lock, all locks held in one order.
        let mut ids: Vec<Box<[u8]>> = Vec::with_capacity(demands.len());
        for demand in demands {
            ids.push(self.place_of(&demand.id, &ids));
        }
        let hashes: Vec<u64> = ids.iter().map(|id| self.hash_of(id)).collect();
        let mut wanted: Vec<usize> = hashes.iter().map(|hash| Self::shard_of(*hash)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut guards: Vec<_> = wanted.iter().map(|at| self.shards[*at].lock()).collect();
        let now = self.clock.now_us();
        let guard_of = |hash: u64| {
            wanted
                .binary_search(&Self::shard_of(hash))
                .unwrap_or_else(|index| index)
        };
        let mut buckets = Vec::with_capacity(demands.len());
        for ((demand, id), hash) in demands.iter().zip(&ids).zip(&hashes) {
            let table = &mut guards[guard_of(*hash)].table;
            let mut bucket = match table.find(*hash, &Lookup::of(id)) {
                Some(place) => table.value(place).bucket(),
                None => Bucket::full(now, demand.params),
            };
            bucket.advance(now, demand.params);
            if let Some(stand_in) = demand.share {
                bucket.cap_level(stand_in.most(is_overflow(id)));
            }
            buckets.push(bucket);
        }
        let taken = take_all(
            buckets
                .iter_mut()
                .zip(demands)
                .map(|(bucket, demand)| (bucket, demand.cost, demand.params)),
            max_wait,
        );
        if matches!(taken, TakenAll::Rejected { .. }) {
            return taken;
        }
        let took = |index| match taken {
            TakenAll::Slowest { which, .. } => which == index,
            _ => true,
        };
        let places = demands.iter().zip(&ids).zip(&hashes).zip(&buckets);
        for (at, (((demand, id), hash), bucket)) in places.enumerate() {
            let shard = &mut *guards[guard_of(*hash)];
            let place = match shard.table.find(*hash, &Lookup::of(id)) {
                Some(place) => place,
                None => {
                    let count = match is_overflow(id) {
                        true => &self.overflow,
                        false => &self.scopes,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    self.insert(shard, *hash, id, now, demand.params)
                }
            };
            let held = shard.table.value(place);
            let mut before = held.bucket();
            before.advance(now, demand.params);
            let mut owed = remaining_debt(held.debt(), &before, demand.params);
            match demand.share {
                Some(stand_in) => {
                    if took(at) && stand_in.owes {
                        owed += demand.cost;
                    }
                    self.store(held, bucket, owed, demand.params, stand_in.full_quota);
                }
                None => held.store(bucket, owed, demand.params),
            }
        }
        taken
    }

    /// By which identity a bucket is held: its own, or that of an overflow bucket that is not
    /// `taken` by another of the same acquisition. The answer may be out of date at once, by as
    /// many buckets as there are threads.
    fn place_of(&self, id: &BucketId, taken: &[Box<[u8]>]) -> Box<[u8]> {
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let mut shard = self.shard(hash).lock();
        let known = shard.table.find(hash, &lookup);
        if known.is_some() || self.has_room(&mut shard, self.clock.now_us()) {
            return id.as_bytes().into();
        }
        drop(shard);
        self.count_overflow(id);
        // There are more of them than scopes in an acquisition.
        let overflow = (0..OVERFLOW_SPREAD).map(|nth| self.overflow_of(id, hash, nth));
        let mut free = overflow.filter(|overflow| !taken.contains(overflow));
        free.next().unwrap_or_else(|| id.as_bytes().into())
    }

    /// The overflow bucket of a bucket with this hash, or the `nth` after it.
    fn overflow_of(&self, id: &BucketId, hash: u64, nth: u64) -> Box<[u8]> {
        // Bits that choose neither the shard nor the place in its table.
        let which = ((hash >> 20).wrapping_add(nth) % OVERFLOW_SPREAD) as u16;
        let mut overflow = vec![OVERFLOW_MARK];
        overflow.extend(which.to_be_bytes());
        let unnamed = overflow.len();
        overflow.extend_from_slice(id.name());
        if self.overflow.load(Ordering::Relaxed) >= MOST_OVERFLOW {
            let lookup = Lookup::of(&overflow);
            let hash = lookup.hash(&self.hasher);
            if self.shard(hash).lock().table.find(hash, &lookup).is_none() {
                overflow.truncate(unnamed);
            }
        }
        overflow.into()
    }

    /// Until when a bucket is held back, if it is.
    pub(crate) fn paused_until(&self, id: &Lookup<'_>) -> Option<Instant> {
        let hash = id.hash(&self.hasher);
        let mut shard = self.shard(hash).lock();
        let place = shard.table.find(hash, id)?;
        let held = shard.table.value(place).bucket().paused_until;
        (held > self.clock.now_us()).then(|| self.clock.at_us(held))
    }

    /// Full again. The bucket keeps its place, or gets one.
    pub(crate) fn reset(&self, id: &BucketId, params: BucketParams) {
        self.visit_own(&id.lookup(), params, |held, now| {
            *held = PackedBucket::full(now, params);
        });
    }

    fn hash_of(&self, id: &[u8]) -> u64 {
        Lookup::of(id).hash(&self.hasher)
    }

    fn shard_of(hash: u64) -> usize {
        // The table uses the lowest and the highest bits.
        (hash >> 40) as usize % SHARDS
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[Self::shard_of(hash)]
    }

    fn has_room(&self, shard: &mut Buckets, now: f64) -> bool {
        let at_limit = self.scopes.load(Ordering::Relaxed) >= self.max_scopes;
        let due = shard.table.len() >= shard.sweep_at.max(SMALLEST_SWEEP);
        if due || (at_limit && now - shard.swept >= SWEEP_PAUSE_US) {
            self.sweep(shard, now);
        }
        self.scopes.load(Ordering::Relaxed) < self.max_scopes
    }

    /// Drops what is full in some of the shards; in eight turns, in all of them. Where nobody
    /// comes any more, nothing else would.
    pub(crate) fn sweep_step(&self, turn: usize) {
        let now = self.clock.now_us();
        for shard in (turn % SWEEP_STEPS..SHARDS).step_by(SWEEP_STEPS) {
            self.sweep(&mut self.shards[shard].lock(), now);
        }
        self.record_scopes();
    }

    fn sweep(&self, shard: &mut Buckets, now: f64) {
        let before = shard.table.len();
        let mut overflow_gone = 0;
        let keep = |entry: &Entry<PackedBucket>| {
            let keep = !entry.value.is_full(now);
            overflow_gone += usize::from(!keep && is_overflow(entry.id()));
            keep
        };
        shard.table.retain(keep, |id| self.hash_of(id));
        let gone = before - shard.table.len();
        self.unmetered.fetch_sub(gone as i64, Ordering::Relaxed);
        self.scopes
            .fetch_sub(gone - overflow_gone, Ordering::Relaxed);
        self.overflow.fetch_sub(overflow_gone, Ordering::Relaxed);
        shard.sweep_at = 2 * shard.table.len();
        shard.swept = now;
    }

    fn insert(
        &self,
        shard: &mut Buckets,
        hash: u64,
        id: &[u8],
        now: f64,
        params: BucketParams,
    ) -> usize {
        let held = PackedBucket::full(now, params);
        self.unmetered.fetch_add(1, Ordering::Relaxed);
        shard.table.insert(hash, id, held, |id| self.hash_of(id))
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

fn is_overflow(id: &[u8]) -> bool {
    id.first() == Some(&OVERFLOW_MARK)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::Quota;

    fn id(key: usize) -> BucketId {
        Quota::per_second(1.0).scope("s").key(key).id(&[0; 32])
    }

    fn take(store: &MemoryStore, key: usize, params: BucketParams) -> bool {
        store.with(&id(key).lookup(), params, |bucket| {
            bucket.take(1.0, 1, 0.0, params).now > 0.0
        })
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten_and_spent_ones_are_not() {
        let store = MemoryStore::new(1_000_000);
        let (fast, slow) = (BucketParams::new(1.0, 10.0), BucketParams::new(1.0, 0.001));
        for key in 0..100 {
            assert!(take(&store, key, slow));
        }
        for round in 0..20 {
            for key in 0..10_000 {
                assert!(take(&store, 1_000 + round * 10_000 + key, fast));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(
            store.scopes() < 30_000,
            "{} of 200,100 remain",
            store.scopes()
        );
        for key in 0..100 {
            assert!(
                !take(&store, key, slow),
                "a spent bucket was refilled by a sweep"
            );
        }
        assert_eq!(store.overflowed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn in_so_many_turns_all_that_is_full_is_forgotten() {
        let store = MemoryStore::new(1_000_000);
        let (fast, slow) = (BucketParams::new(1.0, 10.0), BucketParams::new(1.0, 0.001));
        for key in 0..10_000 {
            assert!(take(&store, key, if key < 10 { slow } else { fast }));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(store.scopes() > 1_000);
        for turn in 5..5 + SWEEP_STEPS {
            store.sweep_step(turn);
        }
        assert_eq!(store.scopes(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_limit_strangers_share_and_the_known_keep_theirs() {
        let store = MemoryStore::new(1_000);
        let params = BucketParams::new(5.0, 0.001);
        for key in 0..1_000 {
            assert!(take(&store, key, params));
        }
        let admitted = (1_000..50_000)
            .filter(|key| take(&store, *key, params))
            .count();
        // Each of the shared buckets has about 48 callers.
        assert_eq!(admitted, 5 * 1_024);
        assert_eq!(store.scopes(), 1_000 + 1_024);
        assert_eq!(store.overflowed(), 49_000);
        for _ in 0..4 {
            assert!(
                take(&store, 7, params),
                "a known scope keeps its own bucket"
            );
        }
        assert!(!take(&store, 7, params));
        // Once the known ones are full again, strangers get buckets of their own.
        tokio::time::advance(Duration::from_secs(10_000)).await;
        assert!(take(&store, 60_000, params));
        assert!(take(&store, 60_001, params));
        assert_eq!(store.overflowed(), 49_000);
    }

    /// Names are meant to be few; where they are not, memory is bounded all the same.
    #[tokio::test(start_paused = true)]
    async fn overflow_buckets_of_many_names_are_bounded() {
        let store = MemoryStore::new(10);
        let params = BucketParams::new(5.0, 0.001);
        for n in 0..200_000 {
            let name = format!("name-{}", n % 1_000);
            let scope = crate::scope::Scope::new(name, Quota::per_second(1.0));
            let id = scope.key(n).id(&[0; 32]);
            store.with(&id.lookup(), params, |bucket| {
                bucket.take(1.0, 1, 0.0, params)
            });
        }
        let shared = store.scopes() - 10;
        assert!((60_000..=64 * 1_024).contains(&shared), "{shared}");
        let pair = [1, 2].map(|key| Request {
            id: id(key),
            cost: 1.0,
            params,
            share: None,
        });
        store.take_all(&pair, 0.0);
        assert!(store.scopes() - 10 <= 64 * 1_024);
        tokio::time::advance(Duration::from_secs(10_000)).await;
        (0..SWEEP_STEPS).for_each(|turn| store.sweep_step(turn));
        assert_eq!(store.scopes(), 0);
    }

    /// In an outage, the last known level of one key says nothing of those who share a bucket with
    /// it; the bound of a whole scope does.
    #[tokio::test(start_paused = true)]
    async fn a_known_level_does_not_lower_a_shared_bucket() {
        let params = BucketParams::new(5.0, 0.001);
        let stand_in = |known, most| ShareBounds {
            full_quota: params,
            most,
            known,
            owes: true,
        };
        let take = |store: &MemoryStore, key, stand_in| {
            store.with_share(&id(key), params, stand_in, |bucket, _| {
                bucket.take(1.0, 1, 0.0, params).now > 0.0
            })
        };
        let full = |known| {
            let store = MemoryStore::new(10);
            for key in 0..10 {
                let taken = take(&store, key, stand_in(known, f64::INFINITY));
                assert_eq!(taken, known > 0.0, "its own bucket follows it");
            }
            store
        };
        let store = full(0.0);
        for key in 10..10_000 {
            let spent = stand_in(0.0, f64::INFINITY);
            store.with_share(&id(key), params, spent, |bucket, _| bucket.level);
        }
        let newcomer = stand_in(f64::INFINITY, f64::INFINITY);
        let admitted = (10_000..11_000).filter(|key| take(&store, *key, newcomer));
        assert!(admitted.count() >= 980);
        let store = full(5.0);
        let empty = stand_in(5.0, 0.0);
        assert!((10..10_000).all(|key| !take(&store, key, empty)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_smaller_quota_does_not_forget_the_debt_of_a_larger_one() {
        let store = MemoryStore::new(1_000_000);
        let (large, small) = (BucketParams::new(100.0, 1.0), BucketParams::new(10.0, 1.0));
        let drain = |n| {
            store.with(&id(0).lookup(), large, |bucket| {
                bucket.take(1.0, n, 0.0, large).granted
            })
        };
        assert_eq!(drain(100), 100.0);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(take(&store, 0, small));
        tokio::time::advance(Duration::from_secs(5)).await;
        for key in 1..10_000 {
            take(&store, key, small);
        }
        assert!(drain(100) <= 16.0);
    }
}
