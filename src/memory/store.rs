//! Sharded buckets that are forgotten once they are full.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use crate::{
    bucket::{Bucket, TakenAll, Terms, take_all},
    clock::Clock,
    scope::BucketId,
};

/// A power of two, well above the number of cores.
const SHARDS: usize = 64;

/// A shard is not swept before it holds this many buckets.
const SMALLEST_SWEEP: usize = 64;

/// A shard at the limit of the store is not swept more often than this.
const SWEEP_PAUSE_US: f64 = 1_000_000.0;

/// In so many turns of `tidy` all shards are swept.
const TURNS: usize = 8;

/// Names that get an overflow bucket of their own.
const OVERFLOW_NAMES: usize = 1_024;

/// A byte that no name holds.
const OVERFLOW_MARK: u8 = 0xFD;

/// One bucket's part in an acquisition.
#[derive(Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) id: BucketId,
    pub(crate) cost: f64,
    pub(crate) terms: Terms,
    /// Where the bucket is a share of one that another store holds.
    pub(crate) stand_in: Option<StandIn>,
}

/// A bucket that stands in for one that another store holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StandIn {
    /// The quota of that one.
    pub(crate) whole: Terms,
    /// The level must not be above this, whatever was left here from earlier.
    pub(crate) most: f64,
    /// Whether what is taken here is owed to that one. Where it grants as well, nothing is.
    pub(crate) owes: bool,
}

/// What is owed to the other store for one bucket.
#[derive(Clone, Debug)]
pub(crate) struct Debt {
    pub(crate) id: Box<[u8]>,
    pub(crate) whole: Terms,
    /// Tokens; below zero: to be given back.
    pub(crate) tokens: f64,
    /// Until the last turn that was promised of them, in microseconds.
    pub(crate) wait_us: f64,
    /// The largest cost of those who were promised one.
    pub(crate) big: f64,
}

/// Buckets by identity.
///
/// A full bucket equals an absent one, so full ones are dropped whenever a shard has doubled;
/// nothing runs in the background. Once `max_scopes` buckets are held that are not full, a
/// scope that is not among them shares an overflow bucket with all such of its name: memory
/// stays bounded, known scopes keep their buckets, and nobody is refused for being new.
pub(crate) struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    clock: Clock,
    max_scopes: usize,
    scopes: AtomicUsize,
    overflow_names: AtomicUsize,
    overflowed: AtomicU64,
    /// Whether any bucket may owe something.
    owing: AtomicBool,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Entry>,
    sweep_at: usize,
    swept: f64,
}

struct Entry {
    id: Box<[u8]>,
    level: f64,
    at: f64,
    /// The largest capacity and the slowest rate by which this bucket was used: it is full when
    /// it is full for them.
    widest: Terms,
    rare: Option<Box<Rare>>,
}

/// What most buckets do not have.
#[derive(Default)]
struct Rare {
    tail: f64,
    big: f64,
    pool: f64,
    owed: f64,
    whole: Option<Terms>,
}

impl Entry {
    fn bucket(&self) -> Bucket {
        let (tail, big, pool) = self
            .rare
            .as_ref()
            .map_or((0.0, 0.0, 0.0), |rare| (rare.tail, rare.big, rare.pool));
        Bucket {
            level: self.level,
            at: self.at,
            tail,
            big,
            pool,
        }
    }

    fn owed(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.owed)
    }

    fn store(&mut self, bucket: &Bucket, owed: f64) {
        self.level = bucket.level;
        self.at = bucket.at;
        if bucket.tail <= bucket.at && owed == 0.0 {
            self.rare = None;
            return;
        }
        let rare = self.rare.get_or_insert_default();
        rare.owed = owed;
        (rare.tail, rare.big, rare.pool) = if bucket.tail > bucket.at {
            (bucket.tail, bucket.big, bucket.pool)
        } else {
            (0.0, 0.0, 0.0)
        };
    }

    fn is_full(&self, now: f64) -> bool {
        // What is to be given back is kept until the other store is told.
        self.owed() >= 0.0 && self.at + self.bucket().full_in(self.widest) <= now
    }
}

/// What is still owed of a bucket that has refilled meanwhile: no more than it lacks. The other
/// store's bucket has refilled as well, and both stand as if nothing had been taken.
fn still_owed(owed: f64, bucket: &Bucket, terms: Terms) -> f64 {
    if owed <= 0.0 {
        // To be given back: how full this share is says nothing of the other store's bucket.
        owed
    } else if bucket.level >= terms.cap {
        0.0
    } else {
        owed.min(terms.cap - bucket.level)
    }
}

impl MemoryStore {
    pub(crate) fn new(max_scopes: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            clock: Clock::new(),
            max_scopes,
            scopes: AtomicUsize::new(0),
            overflow_names: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
            owing: AtomicBool::new(false),
        }
    }

    /// Buckets held.
    pub(crate) fn scopes(&self) -> usize {
        self.scopes.load(Ordering::Relaxed) + self.overflow_names.load(Ordering::Relaxed)
    }

    /// Visits that went to an overflow bucket.
    pub(crate) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Runs `f` on the bucket, brought to now, and keeps what it leaves.
    pub(crate) fn with<T>(
        &self,
        id: &BucketId,
        terms: Terms,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        let hash = self.hasher.hash_one(id.as_bytes());
        let now = self.clock.now_us();
        let mut shard = self.lock(Self::shard_of(hash));
        if let Some(entry) = shard.table.find_mut(hash, |e| *e.id == *id.as_bytes()) {
            return visit(entry, now, terms, f);
        }
        if self.has_room(&mut shard, now) {
            self.scopes.fetch_add(1, Ordering::Relaxed);
            return visit(
                self.insert(&mut shard, hash, id.as_bytes(), now, terms),
                now,
                terms,
                f,
            );
        }
        drop(shard);
        self.with_overflow(id, now, |entry| visit(entry, now, terms, f), terms)
    }

    /// As `with`, on a bucket that stands in for another; `f` also changes what is owed.
    pub(crate) fn with_stand_in<T>(
        &self,
        id: &BucketId,
        terms: Terms,
        stand_in: StandIn,
        f: impl FnOnce(&mut Bucket, &mut f64) -> T,
    ) -> T {
        let hash = self.hasher.hash_one(id.as_bytes());
        let now = self.clock.now_us();
        let visit = |entry: &mut Entry| {
            let mut bucket = entry.bucket();
            bucket.visit(now, terms);
            let mut owed = still_owed(entry.owed(), &bucket, terms);
            bucket.lower(stand_in.most);
            let result = f(&mut bucket, &mut owed);
            entry.widest = widest(entry.widest, terms);
            self.store(entry, &bucket, owed, stand_in.whole);
            result
        };
        let mut shard = self.lock(Self::shard_of(hash));
        if let Some(entry) = shard.table.find_mut(hash, |e| *e.id == *id.as_bytes()) {
            return visit(entry);
        }
        if self.has_room(&mut shard, now) {
            self.scopes.fetch_add(1, Ordering::Relaxed);
            return visit(self.insert(&mut shard, hash, id.as_bytes(), now, terms));
        }
        drop(shard);
        self.with_overflow(id, now, visit, terms)
    }

    fn store(&self, entry: &mut Entry, bucket: &Bucket, owed: f64, whole: Terms) {
        entry.store(bucket, owed);
        if let Some(rare) = &mut entry.rare {
            rare.whole = Some(whole);
        }
        if owed != 0.0 {
            self.owing.store(true, Ordering::Release);
        }
    }

    /// Whether any bucket may owe something.
    pub(crate) fn owes(&self) -> bool {
        self.owing.load(Ordering::Acquire)
    }

    /// What is owed, which from here on is no longer.
    pub(crate) fn settle(&self) -> Vec<Debt> {
        self.owing.store(false, Ordering::Release);
        let now = self.clock.now_us();
        let mut debts = Vec::new();
        for shard in 0..SHARDS {
            for entry in self.lock(shard).table.iter_mut() {
                let owed = entry.owed();
                if owed == 0.0 {
                    continue;
                }
                let mut bucket = entry.bucket();
                bucket.visit(now, entry.widest);
                let tokens = still_owed(owed, &bucket, entry.widest);
                let whole = entry.rare.as_ref().and_then(|rare| rare.whole);
                // Of what strangers took together, nobody knows whose it was.
                if let Some(whole) = whole
                    && tokens != 0.0
                    && entry.id.first() != Some(&OVERFLOW_MARK)
                {
                    debts.push(Debt {
                        id: entry.id.clone(),
                        whole,
                        tokens,
                        wait_us: (bucket.tail - bucket.at).max(0.0),
                        big: bucket.big,
                    });
                }
                entry.store(&bucket, 0.0);
            }
        }
        debts
    }

    /// Takes from every bucket or none.
    pub(crate) fn take_all(&self, demands: &[Demand], max_wait: f64) -> TakenAll {
        // Each bucket is read and written under its own lock, all locks held in one order.
        let mut ids: Vec<Box<[u8]>> = Vec::with_capacity(demands.len());
        let now = self.clock.now_us();
        for demand in demands {
            let mut id = self.place_of(&demand.id, now);
            if ids.contains(&id) {
                // Two of them in one overflow bucket: the second keeps its own.
                id = demand.id.as_bytes().into();
            }
            ids.push(id);
        }
        let hashes: Vec<u64> = ids.iter().map(|id| self.hasher.hash_one(&**id)).collect();
        let mut wanted: Vec<usize> = hashes.iter().map(|hash| Self::shard_of(*hash)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut guards: Vec<_> = wanted.iter().map(|shard| self.lock(*shard)).collect();
        let mut buckets = Vec::with_capacity(demands.len());
        for ((demand, id), hash) in demands.iter().zip(&ids).zip(&hashes) {
            let index = wanted
                .binary_search(&Self::shard_of(*hash))
                .unwrap_or_else(|index| index);
            let mut bucket = guards[index]
                .table
                .find(*hash, |entry| entry.id == *id)
                .map_or_else(|| Bucket::full(now, demand.terms), Entry::bucket);
            bucket.visit(now, demand.terms);
            if let Some(stand_in) = demand.stand_in {
                bucket.lower(stand_in.most);
            }
            buckets.push(bucket);
        }
        let taken = take_all(
            buckets
                .iter_mut()
                .zip(demands)
                .map(|(bucket, demand)| (bucket, demand.cost, demand.terms)),
            max_wait,
        );
        if matches!(taken, TakenAll::Refused { .. }) {
            return taken;
        }
        let took = |index| match taken {
            TakenAll::Slowest { which, .. } => which == index,
            _ => true,
        };
        let places = demands.iter().zip(&ids).zip(&hashes).zip(&buckets);
        for (at, (((demand, id), hash), bucket)) in places.enumerate() {
            let index = wanted
                .binary_search(&Self::shard_of(*hash))
                .unwrap_or_else(|index| index);
            let shard = &mut *guards[index];
            let known = shard.table.find_mut(*hash, |entry| entry.id == *id);
            let entry = match known {
                Some(entry) => entry,
                None => {
                    let count = match id.first() {
                        Some(&OVERFLOW_MARK) => &self.overflow_names,
                        _ => &self.scopes,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    self.insert(shard, *hash, id, now, demand.terms)
                }
            };
            let mut before = entry.bucket();
            before.visit(now, demand.terms);
            let mut owed = still_owed(entry.owed(), &before, demand.terms);
            entry.widest = widest(entry.widest, demand.terms);
            match demand.stand_in {
                Some(stand_in) => {
                    if took(at) && stand_in.owes {
                        owed += demand.cost;
                    }
                    self.store(entry, bucket, owed, stand_in.whole);
                }
                None => entry.store(bucket, owed),
            }
        }
        taken
    }

    /// By which identity a bucket is held: its own, or that of an overflow bucket. The answer may
    /// be out of date at once, by as many buckets as there are threads.
    fn place_of(&self, id: &BucketId, now: f64) -> Box<[u8]> {
        let hash = self.hasher.hash_one(id.as_bytes());
        let mut shard = self.lock(Self::shard_of(hash));
        let known = shard.table.find(hash, |entry| *entry.id == *id.as_bytes());
        if known.is_some() || self.has_room(&mut shard, now) {
            return id.as_bytes().into();
        }
        drop(shard);
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        self.overflow_name(id).into()
    }

    fn overflow_name(&self, id: &BucketId) -> Vec<u8> {
        let mut name = vec![OVERFLOW_MARK];
        if self.overflow_names.load(Ordering::Relaxed) < OVERFLOW_NAMES {
            name.extend_from_slice(id.name());
        }
        name
    }

    /// Full again.
    pub(crate) fn reset(&self, id: &BucketId) {
        let hash = self.hasher.hash_one(id.as_bytes());
        let mut shard = self.lock(Self::shard_of(hash));
        if let Ok(entry) = shard
            .table
            .find_entry(hash, |entry| *entry.id == *id.as_bytes())
        {
            entry.remove();
            self.scopes.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn shard_of(hash: u64) -> usize {
        // The table uses the lowest and the highest bits.
        (hash >> 40) as usize % SHARDS
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        // Nothing that runs under this lock leaves a bucket half written.
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, shard: &mut Shard, now: f64) -> bool {
        let at_limit = self.scopes.load(Ordering::Relaxed) >= self.max_scopes;
        let due = shard.table.len() >= shard.sweep_at.max(SMALLEST_SWEEP);
        if due || (at_limit && now - shard.swept >= SWEEP_PAUSE_US) {
            self.sweep(shard, now);
        }
        self.scopes.load(Ordering::Relaxed) < self.max_scopes
    }

    /// Drops what is full in some of the shards; in eight turns, in all of them. Where nobody
    /// comes any more, nothing else would.
    pub(crate) fn tidy(&self, turn: usize) {
        let now = self.clock.now_us();
        for shard in (turn % TURNS..SHARDS).step_by(TURNS) {
            self.sweep(&mut self.lock(shard), now);
        }
    }

    fn sweep(&self, shard: &mut Shard, now: f64) {
        let before = shard.table.len();
        let mut overflow_gone = 0;
        shard.table.retain(|entry| {
            let keep = !entry.is_full(now);
            overflow_gone += usize::from(!keep && entry.id.first() == Some(&OVERFLOW_MARK));
            keep
        });
        let gone = before - shard.table.len();
        self.scopes
            .fetch_sub(gone - overflow_gone, Ordering::Relaxed);
        self.overflow_names
            .fetch_sub(overflow_gone, Ordering::Relaxed);
        shard.sweep_at = 2 * shard.table.len();
        shard.swept = now;
        if gone > shard.table.len() {
            let hasher = &self.hasher;
            shard
                .table
                .shrink_to(shard.sweep_at, |entry| hasher.hash_one(&*entry.id));
        }
    }

    fn insert<'a>(
        &self,
        shard: &'a mut Shard,
        hash: u64,
        id: &[u8],
        now: f64,
        terms: Terms,
    ) -> &'a mut Entry {
        let hasher = &self.hasher;
        shard
            .table
            .insert_unique(
                hash,
                Entry {
                    id: id.into(),
                    level: terms.cap,
                    at: now,
                    widest: terms,
                    rare: None,
                },
                |entry| hasher.hash_one(&*entry.id),
            )
            .into_mut()
    }

    fn with_overflow<T>(
        &self,
        id: &BucketId,
        now: f64,
        visit: impl FnOnce(&mut Entry) -> T,
        terms: Terms,
    ) -> T {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        let name = self.overflow_name(id);
        let hash = self.hasher.hash_one(&name[..]);
        let mut shard = self.lock(Self::shard_of(hash));
        if let Some(entry) = shard.table.find_mut(hash, |entry| *entry.id == *name) {
            return visit(entry);
        }
        self.overflow_names.fetch_add(1, Ordering::Relaxed);
        visit(self.insert(&mut shard, hash, &name, now, terms))
    }
}

fn visit<T>(entry: &mut Entry, now: f64, terms: Terms, f: impl FnOnce(&mut Bucket) -> T) -> T {
    let mut bucket = entry.bucket();
    bucket.visit(now, terms);
    let result = f(&mut bucket);
    entry.widest = widest(entry.widest, terms);
    let owed = still_owed(entry.owed(), &bucket, terms);
    entry.store(&bucket, owed);
    result
}

fn widest(a: Terms, b: Terms) -> Terms {
    Terms {
        cap: a.cap.max(b.cap),
        per_us: a.per_us.min(b.per_us),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::Quota;

    fn id(key: usize) -> BucketId {
        Quota::per_second(1.0).scope("s").key(key).id(&[0; 32])
    }

    fn take(store: &MemoryStore, key: usize, terms: Terms) -> bool {
        store.with(&id(key), terms, |bucket| {
            bucket.take(1.0, 1, 0.0, terms).now > 0.0
        })
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten_and_spent_ones_are_not() {
        let store = MemoryStore::new(1_000_000);
        let (fast, slow) = (Terms::new(1.0, 10.0), Terms::new(1.0, 0.001));
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
        let (fast, slow) = (Terms::new(1.0, 10.0), Terms::new(1.0, 0.001));
        for key in 0..10_000 {
            assert!(take(&store, key, if key < 10 { slow } else { fast }));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(store.scopes() > 1_000);
        for turn in 5..5 + TURNS {
            store.tidy(turn);
        }
        assert_eq!(store.scopes(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_limit_strangers_share_and_the_known_keep_theirs() {
        let store = MemoryStore::new(1_000);
        let terms = Terms::new(5.0, 0.001);
        for key in 0..1_000 {
            assert!(take(&store, key, terms));
        }
        let admitted = (1_000..50_000)
            .filter(|key| take(&store, *key, terms))
            .count();
        assert_eq!(admitted, 5, "strangers have one bucket together");
        assert!(store.scopes() <= 1_001, "{}", store.scopes());
        assert_eq!(store.overflowed(), 49_000);
        for _ in 0..4 {
            assert!(take(&store, 7, terms), "a known scope keeps its own bucket");
        }
        assert!(!take(&store, 7, terms));
        // Once the known ones are full again, strangers get buckets of their own.
        tokio::time::advance(Duration::from_secs(10_000)).await;
        assert!(take(&store, 60_000, terms));
        assert!(take(&store, 60_001, terms));
        assert_eq!(store.overflowed(), 49_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_smaller_quota_does_not_forget_the_debt_of_a_larger_one() {
        let store = MemoryStore::new(1_000_000);
        let (large, small) = (Terms::new(100.0, 1.0), Terms::new(10.0, 1.0));
        let drain = |n| {
            store.with(&id(0), large, |bucket| {
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
