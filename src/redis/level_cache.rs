//! What replies told of each bucket: a denied key costs no command, and an outage starts from
//! what was left.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bucket::BucketParams,
    clock::{Clock, LONGEST_WAIT, ceil, from_us},
    packed_map::{Hashing, PackedMap},
    scope::{BucketId, Lookup},
};

const SHARDS: usize = 32;

/// An upper bound is not trusted for longer, because refunds by other processes raise the level
/// without telling this one. A second, in microseconds.
const TRUSTED_US: f64 = 1_000_000.0;

/// As `LONGEST_WAIT`, in microseconds.
const LONGEST_US: f64 = LONGEST_WAIT.as_micros() as f64;

const SMALLEST_SWEEP: usize = 64;

/// In so many turns of `tidy` all shards are swept.
const SWEEP_STEPS: usize = 8;

/// The last known level of each bucket that is not full, as far as there is room.
///
/// A reply's level, refilled since its call was *sent*, is an upper bound of the level now, as
/// long as nobody gives tokens back. If even that refuses a demand, Redis would.
pub(crate) struct LevelCache {
    shards: Box<[Shard]>,
    hasher: Hashing,
    clock: Clock,
    most: usize,
    count: AtomicUsize,
    /// Those of them that refused somebody: while there are none, nobody needs to look.
    rejecting: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    table: PackedMap<Record>,
    sweep_at: usize,
    swept: f64,
}

impl Shard {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Record {
    level: f64,
    params: BucketParams,
    /// When the call was sent that told the level, in microseconds.
    sent: f64,
    /// What calls that were sent before this told is no bound: tokens were given back.
    forgotten: f64,
    /// What most do not have.
    rare: Option<Box<Rare>>,
    rejects: bool,
}

#[derive(Clone, Copy)]
struct Rare {
    /// What was given back while others sleep, as the call told.
    pool: f64,
    /// Until when nobody is granted anything.
    held: f64,
}

/// What a reply tells of a bucket: its level and pool, and for how long, in microseconds, nobody
/// is granted anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BucketState {
    pub(crate) level: f64,
    pub(crate) returned: f64,
    pub(crate) pause_us: f64,
}

impl From<(f64, f64)> for BucketState {
    fn from((level, pool): (f64, f64)) -> Self {
        Self {
            level,
            returned: pool,
            pause_us: 0.0,
        }
    }
}

impl BucketState {
    /// Within what a bucket of this quota can be: a level that is no number is that of a full one.
    pub(crate) fn bounded(self, params: BucketParams) -> Self {
        let lowest = -2.0 * params.capacity - LONGEST_US * params.per_us;
        let level = match self.level.is_finite() {
            true => self.level.min(params.capacity).max(lowest),
            false => params.capacity,
        };
        // `max` takes the other, where one is no number.
        Self {
            level,
            returned: self.returned.max(0.0).min(params.capacity),
            pause_us: self.pause_us.clamp(0.0, LONGEST_US),
        }
    }
}

/// What this process has heard of a bucket's hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PauseView {
    /// It was so at this time, and may have changed since.
    pub(crate) at: Instant,
    /// Until when nobody is granted anything.
    pub(crate) paused_until: Option<Instant>,
}

impl Record {
    fn pool(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.pool)
    }

    fn held(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.held)
    }

    fn set(&mut self, told: BucketState, sent: f64) {
        self.level = told.level;
        self.sent = sent;
        let (pool, held) = (told.returned, sent + told.pause_us);
        self.rare = (pool > 0.0 || told.pause_us > 0.0).then(|| Box::new(Rare { pool, held }));
    }

    /// The level now, unless somebody gave tokens back, in its own params.
    fn level_at(&self, now: f64) -> f64 {
        // The pool joins the level once nobody is promised a turn any more, which may be now.
        let refilled = (now - self.sent).max(0.0) * self.params.per_us;
        let level = self
            .params
            .capacity
            .min(self.level + self.pool() + refilled);
        let held = self.held();
        if held > now {
            return level.min((now - held) * self.params.per_us);
        }
        level
    }

    fn is_full(&self, now: f64) -> bool {
        self.level_at(now) >= self.params.capacity
    }
}

/// A bucket that is not full, as far as is known.
pub(crate) struct LastLevel {
    pub(crate) id: Box<[u8]>,
    pub(crate) params: BucketParams,
    /// At most so many tokens are in it.
    pub(crate) level: f64,
}

impl LevelCache {
    /// Remembers at most so many buckets.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: Hashing::default(),
            clock: Clock::new(),
            most,
            count: AtomicUsize::new(0),
            rejecting: AtomicUsize::new(0),
        }
    }

    /// When to come back, if the bucket refuses `cost` for certain.
    #[inline]
    pub(crate) fn rejects(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        if self.rejecting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.find_rejection(id, params, cost, max_wait_us)
    }

    fn find_rejection(
        &self,
        id: &Lookup<'_>,
        params: BucketParams,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        let hash = id.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut records = shard.lock();
        let records = &mut *records;
        let record = &*records.table.value(records.table.find(hash, id)?);
        if !record.rejects || record.params != params || record.sent < record.forgotten {
            return None;
        }
        let now = self.clock.now_us();
        if now - record.sent > TRUSTED_US || record.pool() >= cost {
            return None;
        }
        let level = record.level_at(now);
        let wait = ceil((cost - level) / params.per_us);
        if level >= cost || wait <= max_wait_us {
            return None;
        }
        Some(from_us((wait - max_wait_us).max(1.0)))
    }

    /// A call sent at `sent` was answered; whether it refused somebody.
    pub(crate) fn update(
        &self,
        id: &[u8],
        params: BucketParams,
        told: impl Into<BucketState>,
        sent: Instant,
        refused: bool,
    ) {
        let told = told.into().bounded(params);
        let sent = self.clock.us_at(sent);
        let lookup = Lookup::of(id);
        let hash = lookup.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut records = shard.lock();
        if let Some(place) = records.table.find(hash, &lookup) {
            let record = records.table.value(place);
            if sent >= record.sent {
                record.set(told, sent);
                record.params = params;
                // Scarce until there are tokens again.
                self.mark(record, refused || (record.rejects && told.level <= 0.0));
            }
            return;
        }
        if told.level + told.returned < params.capacity {
            self.insert(hash, &mut records, id, params, told, sent, refused);
        }
    }

    /// This process gives tokens back: what calls sent before now tell is no bound.
    pub(crate) fn raise(&self, id: &BucketId, params: BucketParams, tokens: f64) {
        self.forget(id, params, |level| level + tokens);
    }

    /// This process makes the bucket full.
    pub(crate) fn fill(&self, id: &BucketId, params: BucketParams) {
        self.forget(id, params, |_| params.capacity);
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        if let Some(place) = records.table.find(hash, &lookup) {
            records.table.value(place).rare = None;
        }
    }

    /// This process holds the bucket back: calls sent before now do not know it.
    pub(crate) fn pause(&self, id: &BucketId, params: BucketParams, us: f64) {
        let now = self.clock.now_us();
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        let mut told = BucketState {
            level: -us * params.per_us,
            returned: 0.0,
            pause_us: us,
        };
        if let Some(place) = records.table.find(hash, &lookup) {
            let record = records.table.value(place);
            told.level = told.level.min(record.level_at(now));
            told.pause_us = told.pause_us.max(record.held() - now);
            record.set(told, now);
            return;
        }
        let id = id.as_bytes();
        self.insert(hash, &mut records, id, params, told, now, false);
    }

    /// What is known of a bucket's hold; none where nothing is.
    pub(crate) fn pause_view(&self, id: &Lookup<'_>) -> Option<PauseView> {
        let hash = id.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        let place = records.table.find(hash, id)?;
        let record = &*records.table.value(place);
        let held = record.held();
        Some(PauseView {
            at: self.clock.at_us(record.sent),
            paused_until: (held > self.clock.now_us()).then(|| self.clock.at_us(held)),
        })
    }

    fn forget(&self, id: &BucketId, params: BucketParams, level: impl FnOnce(f64) -> f64) {
        let now = self.clock.now_us();
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut records = shard.lock();
        if let Some(place) = records.table.find(hash, &lookup) {
            let record = records.table.value(place);
            record.level = params.capacity.min(level(record.level));
            record.forgotten = now;
            self.mark(record, false);
            return;
        }
        // Replies that are on their way must find that they are out of date.
        let full = BucketState::from((params.capacity, 0.0));
        let id = id.as_bytes();
        if let Some(record) = self.insert(hash, &mut records, id, params, full, now, false) {
            record.forgotten = now;
        }
    }

    fn mark(&self, record: &mut Record, refused: bool) {
        if record.rejects != refused {
            record.rejects = refused;
            if refused {
                self.rejecting.fetch_add(1, Ordering::Relaxed);
            } else {
                self.rejecting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a record")]
    fn insert<'a>(
        &self,
        hash: u64,
        records: &'a mut Records,
        id: &[u8],
        params: BucketParams,
        told: BucketState,
        sent: f64,
        refused: bool,
    ) -> Option<&'a mut Record> {
        let now = self.clock.now_us();
        let at_limit = || self.count.load(Ordering::Relaxed) >= self.most;
        if records.table.len() >= records.sweep_at.max(SMALLEST_SWEEP)
            || (at_limit() && now - records.swept > TRUSTED_US)
        {
            self.sweep(records, now);
        }
        if self.count.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut record = Record {
            level: told.level,
            params,
            sent,
            forgotten: f64::NEG_INFINITY,
            rare: None,
            rejects: false,
        };
        record.set(told, sent);
        self.mark(&mut record, refused);
        let hash_of = |id: &[u8]| Lookup::of(id).hash(&self.hasher);
        let place = records.table.insert(hash, id, record, hash_of);
        Some(records.table.value(place))
    }

    /// Forgets what is full in some of the shards; in eight turns, in all of them.
    pub(crate) fn sweep_step(&self, turn: usize) {
        let now = self.clock.now_us();
        for shard in self
            .shards
            .iter()
            .skip(turn % SWEEP_STEPS)
            .step_by(SWEEP_STEPS)
        {
            self.sweep(&mut shard.lock(), now);
        }
    }

    fn sweep(&self, records: &mut Records, now: f64) {
        let before = records.table.len();
        let mut refusing = 0;
        records.table.retain(
            |entry| {
                let record = &entry.value;
                // A young one may have to outlive replies that are out of date.
                let keep = !record.is_full(now) || now - record.sent <= TRUSTED_US;
                refusing += usize::from(!keep && record.rejects);
                keep
            },
            |id| Lookup::of(id).hash(&self.hasher),
        );
        self.rejecting.fetch_sub(refusing, Ordering::Relaxed);
        self.count
            .fetch_sub(before - records.table.len(), Ordering::Relaxed);
        records.sweep_at = 2 * records.table.len();
        records.swept = now;
    }

    /// The level that was told last, refilled since then, if that is less than full; and when
    /// it was told.
    pub(crate) fn level(&self, id: &BucketId) -> Option<(f64, Instant)> {
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        let place = records.table.find(hash, &lookup)?;
        let record = &*records.table.value(place);
        let now = self.clock.now_us();
        let level = record.level_at(now);
        (level < record.params.capacity).then(|| (level, self.clock.at_us(record.sent)))
    }

    /// All buckets that are not full, as far as is known.
    pub(crate) fn all(&self) -> Vec<LastLevel> {
        let now = self.clock.now_us();
        let mut all = Vec::new();
        for shard in &self.shards {
            let records = shard.lock();
            let entries = records.table.iter();
            let spent = entries.filter(|entry| !entry.value.is_full(now));
            all.extend(spent.map(|entry| LastLevel {
                id: entry.id().into(),
                params: entry.value.params,
                level: entry.value.level_at(now),
            }));
        }
        all
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[(hash >> 40) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(key: u32) -> BucketId {
        Quota::per_second(1.0).scope("s").key(key).id(&[0; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_exactly_until_it_could_succeed() {
        let known = LevelCache::new(10);
        let id = id(0);
        let params = BucketParams::new(10.0, 10.0);
        let refuses = |params, max_wait| known.rejects(&id.lookup(), params, 1.0, max_wait);
        assert_eq!(refuses(params, 0.0), None);
        known.update(id.as_bytes(), params, (-1.0, 0.0), Instant::now(), true);
        assert_eq!(refuses(params, 0.0), Some(Duration::from_millis(200)));
        assert_eq!(refuses(params, 200_000.0), None);
        tokio::time::advance(Duration::from_millis(150)).await;
        assert_eq!(refuses(params, 0.0), Some(Duration::from_millis(50)));
        assert_eq!(refuses(BucketParams::new(20.0, 10.0), 0.0), None);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(refuses(params, 0.0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_reply_does_not_bring_a_forgotten_bound_back() {
        let known = LevelCache::new(10);
        let id = id(0);
        let params = BucketParams::new(10.0, 1e-3);
        let refuses = || known.rejects(&id.lookup(), params, 1.0, 0.0);
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        known.raise(&id, params, 1.0);
        known.update(id.as_bytes(), params, (0.0, 0.0), sent, true);
        assert_eq!(refuses(), None);
        known.update(id.as_bytes(), params, (0.0, 0.0), Instant::now(), true);
        assert!(refuses().is_some());
        // The same where the bucket is known already.
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        known.raise(&id, params, 1.0);
        known.update(id.as_bytes(), params, (0.0, 0.0), sent, true);
        assert_eq!(refuses(), None);
        known.update(id.as_bytes(), params, (0.0, 0.0), Instant::now(), true);
        assert!(refuses().is_some());
        // Nor is any bound trusted for longer than a second.
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert_eq!(refuses(), None);
        // But the level is remembered.
        let (level, _) = known.level(&id).expect("not full");
        assert!((0.001..0.002).contains(&level), "{level}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_any_more_is_forgotten() {
        let known = LevelCache::new(1_000);
        let params = BucketParams::new(10.0, 10.0);
        for key in 0..1_000 {
            known.update(id(key).as_bytes(), params, (0.0, 0.0), Instant::now(), true);
        }
        tokio::time::advance(2 * SECOND).await;
        for turn in 3..3 + SWEEP_STEPS {
            known.sweep_step(turn);
        }
        assert_eq!(known.count.load(Ordering::Relaxed), 0);
        assert_eq!(known.rejecting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn levels_refill_and_full_ones_are_forgotten() {
        let known = LevelCache::new(1_000);
        let params = BucketParams::new(10.0, 1.0);
        for key in 0..100 {
            known.update(
                id(key).as_bytes(),
                params,
                (4.0, 1.0),
                Instant::now(),
                false,
            );
        }
        assert_eq!(
            known.rejects(&id(0).lookup(), params, 9.0, 0.0),
            None,
            "nobody was"
        );
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(known.level(&id(7)).map(|(level, _)| level), Some(7.0));
        assert_eq!(known.all().len(), 100);
        known.raise(&id(7), params, 1.0);
        assert_eq!(known.level(&id(7)).map(|(level, _)| level), Some(8.0));
        known.fill(&id(8), params);
        assert_eq!(known.level(&id(8)), None);
        tokio::time::advance(4 * SECOND).await;
        assert_eq!(known.level(&id(9)), None, "full is the same as unknown");
        assert!(known.all().is_empty());
        // Room for as many as are allowed, again and again.
        for round in 1..20 {
            for key in 0..1_000 {
                known.update(
                    id(round * 1_000 + key).as_bytes(),
                    params,
                    (9.9, 0.0),
                    Instant::now(),
                    true,
                );
            }
            assert!(known.count.load(Ordering::Relaxed) <= 1_000);
            tokio::time::advance(2 * SECOND).await;
        }
        let last = id(19_999);
        known.update(last.as_bytes(), params, (0.0, 0.0), Instant::now(), true);
        assert!(known.level(&last).is_some());
        let refusing = known.rejecting.load(Ordering::Relaxed);
        assert!(
            refusing <= known.count.load(Ordering::Relaxed),
            "{refusing}"
        );
    }
}
