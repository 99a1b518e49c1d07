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
    bucket::Terms,
    clock::{Clock, LONGEST_WAIT, ceil, from_us},
    scope::{BucketId, Lookup},
    table::{Hashing, Table},
};

const SHARDS: usize = 32;

/// An upper bound is not trusted for longer, because refunds by other processes raise the level
/// without telling this one. A second, in microseconds.
const TRUSTED_US: f64 = 1_000_000.0;

/// As `LONGEST_WAIT`, in microseconds.
const LONGEST_US: f64 = LONGEST_WAIT.as_micros() as f64;

const SMALLEST_SWEEP: usize = 64;

/// In so many turns of `tidy` all shards are swept.
const TURNS: usize = 8;

/// The last known level of each bucket that is not full, as far as there is room.
///
/// A reply's level, refilled since its call was *sent*, is an upper bound of the level now, as
/// long as nobody gives tokens back. If even that refuses a demand, Redis would.
pub(crate) struct Known {
    shards: Box<[Shard]>,
    hasher: Hashing,
    clock: Clock,
    most: usize,
    count: AtomicUsize,
    /// Those of them that refused somebody: while there are none, nobody needs to look.
    refusing: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    table: Table<Record>,
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
    terms: Terms,
    /// When the call was sent that told the level, in microseconds.
    sent: f64,
    /// What calls that were sent before this told is no bound: tokens were given back.
    forgotten: f64,
    /// What most do not have.
    rare: Option<Box<Rare>>,
    refused: bool,
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
pub(crate) struct Told {
    pub(super) level: f64,
    pub(super) pool: f64,
    pub(super) held: f64,
}

impl From<(f64, f64)> for Told {
    fn from((level, pool): (f64, f64)) -> Self {
        Self {
            level,
            pool,
            held: 0.0,
        }
    }
}

impl Told {
    /// Within what a bucket of this quota can be: a level that is no number is that of a full one.
    pub(super) fn bounded(self, terms: Terms) -> Self {
        let lowest = -2.0 * terms.cap - LONGEST_US * terms.per_us;
        let level = match self.level.is_finite() {
            true => self.level.min(terms.cap).max(lowest),
            false => terms.cap,
        };
        // `max` takes the other, where one is no number.
        Self {
            level,
            pool: self.pool.max(0.0).min(terms.cap),
            held: self.held.clamp(0.0, LONGEST_US),
        }
    }
}

/// What this process has heard of a bucket's hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// It was so at this time, and may have changed since.
    pub(crate) at: Instant,
    /// Until when nobody is granted anything.
    pub(crate) held: Option<Instant>,
}

impl Record {
    fn pool(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.pool)
    }

    fn held(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.held)
    }

    fn set(&mut self, told: Told, sent: f64) {
        self.level = told.level;
        self.sent = sent;
        let (pool, held) = (told.pool, sent + told.held);
        self.rare = (pool > 0.0 || told.held > 0.0).then(|| Box::new(Rare { pool, held }));
    }

    /// The level now, unless somebody gave tokens back, in its own terms.
    fn level_at(&self, now: f64) -> f64 {
        // The pool joins the level once nobody is promised a turn any more, which may be now.
        let refilled = (now - self.sent).max(0.0) * self.terms.per_us;
        let level = self.terms.cap.min(self.level + self.pool() + refilled);
        let held = self.held();
        if held > now {
            return level.min((now - held) * self.terms.per_us);
        }
        level
    }

    fn is_full(&self, now: f64) -> bool {
        self.level_at(now) >= self.terms.cap
    }
}

/// A bucket that is not full, as far as is known.
pub(super) struct Remembered {
    pub(super) id: Box<[u8]>,
    pub(super) terms: Terms,
    /// At most so many tokens are in it.
    pub(super) level: f64,
}

impl Known {
    /// Remembers at most so many buckets.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: Hashing::default(),
            clock: Clock::new(),
            most,
            count: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
        }
    }

    /// When to come back, if the bucket refuses `cost` for certain.
    #[inline]
    pub(crate) fn refuses(
        &self,
        id: &Lookup<'_>,
        terms: Terms,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        if self.refusing.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.finds(id, terms, cost, max_wait_us)
    }

    fn finds(
        &self,
        id: &Lookup<'_>,
        terms: Terms,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        let hash = id.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut records = shard.lock();
        let records = &mut *records;
        let record = &*records.table.value(records.table.find(hash, id)?);
        if !record.refused || record.terms != terms || record.sent < record.forgotten {
            return None;
        }
        let now = self.clock.now_us();
        if now - record.sent > TRUSTED_US || record.pool() >= cost {
            return None;
        }
        let level = record.level_at(now);
        let wait = ceil((cost - level) / terms.per_us);
        if level >= cost || wait <= max_wait_us {
            return None;
        }
        Some(from_us((wait - max_wait_us).max(1.0)))
    }

    /// A call sent at `sent` was answered; whether it refused somebody.
    pub(crate) fn learn(
        &self,
        id: &[u8],
        terms: Terms,
        told: impl Into<Told>,
        sent: Instant,
        refused: bool,
    ) {
        let told = told.into().bounded(terms);
        let sent = self.clock.us_at(sent);
        let lookup = Lookup::of(id);
        let hash = lookup.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut records = shard.lock();
        if let Some(place) = records.table.find(hash, &lookup) {
            let record = records.table.value(place);
            if sent >= record.sent {
                record.set(told, sent);
                record.terms = terms;
                // Scarce until there are tokens again.
                self.mark(record, refused || (record.refused && told.level <= 0.0));
            }
            return;
        }
        if told.level + told.pool < terms.cap {
            self.insert(hash, &mut records, id, terms, told, sent, refused);
        }
    }

    /// This process gives tokens back: what calls sent before now tell is no bound.
    pub(crate) fn raise(&self, id: &BucketId, terms: Terms, tokens: f64) {
        self.forget(id, terms, |level| level + tokens);
    }

    /// This process makes the bucket full.
    pub(crate) fn fill(&self, id: &BucketId, terms: Terms) {
        self.forget(id, terms, |_| terms.cap);
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        if let Some(place) = records.table.find(hash, &lookup) {
            records.table.value(place).rare = None;
        }
    }

    /// This process holds the bucket back: calls sent before now do not know it.
    pub(crate) fn hold_back(&self, id: &BucketId, terms: Terms, us: f64) {
        let now = self.clock.now_us();
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        let mut told = Told {
            level: -us * terms.per_us,
            pool: 0.0,
            held: us,
        };
        if let Some(place) = records.table.find(hash, &lookup) {
            let record = records.table.value(place);
            told.level = told.level.min(record.level_at(now));
            told.held = told.held.max(record.held() - now);
            record.set(told, now);
            return;
        }
        let id = id.as_bytes();
        self.insert(hash, &mut records, id, terms, told, now, false);
    }

    /// What is known of a bucket's hold; none where nothing is.
    pub(crate) fn heard(&self, id: &Lookup<'_>) -> Option<Heard> {
        let hash = id.hash(&self.hasher);
        let mut records = self.shard(hash).lock();
        let place = records.table.find(hash, id)?;
        let record = &*records.table.value(place);
        let held = record.held();
        Some(Heard {
            at: self.clock.at_us(record.sent),
            held: (held > self.clock.now_us()).then(|| self.clock.at_us(held)),
        })
    }

    fn forget(&self, id: &BucketId, terms: Terms, level: impl FnOnce(f64) -> f64) {
        let now = self.clock.now_us();
        let lookup = id.lookup();
        let hash = lookup.hash(&self.hasher);
        let shard = self.shard(hash);
        let mut records = shard.lock();
        if let Some(place) = records.table.find(hash, &lookup) {
            let record = records.table.value(place);
            record.level = terms.cap.min(level(record.level));
            record.forgotten = now;
            self.mark(record, false);
            return;
        }
        // Replies that are on their way must find that they are out of date.
        let full = Told::from((terms.cap, 0.0));
        let id = id.as_bytes();
        if let Some(record) = self.insert(hash, &mut records, id, terms, full, now, false) {
            record.forgotten = now;
        }
    }

    fn mark(&self, record: &mut Record, refused: bool) {
        if record.refused != refused {
            record.refused = refused;
            if refused {
                self.refusing.fetch_add(1, Ordering::Relaxed);
            } else {
                self.refusing.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a record")]
    fn insert<'a>(
        &self,
        hash: u64,
        records: &'a mut Records,
        id: &[u8],
        terms: Terms,
        told: Told,
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
            terms,
            sent,
            forgotten: f64::NEG_INFINITY,
            rare: None,
            refused: false,
        };
        record.set(told, sent);
        self.mark(&mut record, refused);
        let hash_of = |id: &[u8]| Lookup::of(id).hash(&self.hasher);
        let place = records.table.insert(hash, id, record, hash_of);
        Some(records.table.value(place))
    }

    /// Forgets what is full in some of the shards; in eight turns, in all of them.
    pub(super) fn tidy(&self, turn: usize) {
        let now = self.clock.now_us();
        for shard in self.shards.iter().skip(turn % TURNS).step_by(TURNS) {
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
                refusing += usize::from(!keep && record.refused);
                keep
            },
            |id| Lookup::of(id).hash(&self.hasher),
        );
        self.refusing.fetch_sub(refusing, Ordering::Relaxed);
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
        (level < record.terms.cap).then(|| (level, self.clock.at_us(record.sent)))
    }

    /// All buckets that are not full, as far as is known.
    pub(super) fn all(&self) -> Vec<Remembered> {
        let now = self.clock.now_us();
        let mut all = Vec::new();
        for shard in &self.shards {
            let records = shard.lock();
            let entries = records.table.iter();
            let spent = entries.filter(|entry| !entry.value.is_full(now));
            all.extend(spent.map(|entry| Remembered {
                id: entry.id().into(),
                terms: entry.value.terms,
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
        let known = Known::new(10);
        let id = id(0);
        let terms = Terms::new(10.0, 10.0);
        let refuses = |terms, max_wait| known.refuses(&id.lookup(), terms, 1.0, max_wait);
        assert_eq!(refuses(terms, 0.0), None);
        known.learn(id.as_bytes(), terms, (-1.0, 0.0), Instant::now(), true);
        assert_eq!(refuses(terms, 0.0), Some(Duration::from_millis(200)));
        assert_eq!(refuses(terms, 200_000.0), None);
        tokio::time::advance(Duration::from_millis(150)).await;
        assert_eq!(refuses(terms, 0.0), Some(Duration::from_millis(50)));
        assert_eq!(refuses(Terms::new(20.0, 10.0), 0.0), None);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(refuses(terms, 0.0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_reply_does_not_bring_a_forgotten_bound_back() {
        let known = Known::new(10);
        let id = id(0);
        let terms = Terms::new(10.0, 1e-3);
        let refuses = || known.refuses(&id.lookup(), terms, 1.0, 0.0);
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        known.raise(&id, terms, 1.0);
        known.learn(id.as_bytes(), terms, (0.0, 0.0), sent, true);
        assert_eq!(refuses(), None);
        known.learn(id.as_bytes(), terms, (0.0, 0.0), Instant::now(), true);
        assert!(refuses().is_some());
        // The same where the bucket is known already.
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        known.raise(&id, terms, 1.0);
        known.learn(id.as_bytes(), terms, (0.0, 0.0), sent, true);
        assert_eq!(refuses(), None);
        known.learn(id.as_bytes(), terms, (0.0, 0.0), Instant::now(), true);
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
        let known = Known::new(1_000);
        let terms = Terms::new(10.0, 10.0);
        for key in 0..1_000 {
            known.learn(id(key).as_bytes(), terms, (0.0, 0.0), Instant::now(), true);
        }
        tokio::time::advance(2 * SECOND).await;
        for turn in 3..3 + TURNS {
            known.tidy(turn);
        }
        assert_eq!(known.count.load(Ordering::Relaxed), 0);
        assert_eq!(known.refusing.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn levels_refill_and_full_ones_are_forgotten() {
        let known = Known::new(1_000);
        let terms = Terms::new(10.0, 1.0);
        for key in 0..100 {
            known.learn(id(key).as_bytes(), terms, (4.0, 1.0), Instant::now(), false);
        }
        assert_eq!(
            known.refuses(&id(0).lookup(), terms, 9.0, 0.0),
            None,
            "nobody was"
        );
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(known.level(&id(7)).map(|(level, _)| level), Some(7.0));
        assert_eq!(known.all().len(), 100);
        known.raise(&id(7), terms, 1.0);
        assert_eq!(known.level(&id(7)).map(|(level, _)| level), Some(8.0));
        known.fill(&id(8), terms);
        assert_eq!(known.level(&id(8)), None);
        tokio::time::advance(4 * SECOND).await;
        assert_eq!(known.level(&id(9)), None, "full is the same as unknown");
        assert!(known.all().is_empty());
        // Room for as many as are allowed, again and again.
        for round in 1..20 {
            for key in 0..1_000 {
                known.learn(
                    id(round * 1_000 + key).as_bytes(),
                    terms,
                    (9.9, 0.0),
                    Instant::now(),
                    true,
                );
            }
            assert!(known.count.load(Ordering::Relaxed) <= 1_000);
            tokio::time::advance(2 * SECOND).await;
        }
        let last = id(19_999);
        known.learn(last.as_bytes(), terms, (0.0, 0.0), Instant::now(), true);
        assert!(known.level(&last).is_some());
        let refusing = known.refusing.load(Ordering::Relaxed);
        assert!(
            refusing <= known.count.load(Ordering::Relaxed),
            "{refusing}"
        );
    }
}
