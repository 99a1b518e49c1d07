//! What replies told of each bucket: a denied key costs no command, and an outage starts from
//! what was left.

use std::{
    hash::BuildHasher,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use tokio::time::Instant;

use crate::{
    bucket::Terms,
    clock::{Clock, from_us, to_us},
    scope::BucketId,
};

const SHARDS: usize = 32;

/// An upper bound is not trusted for longer, because refunds by other processes raise the level
/// without telling this one.
const TRUSTED: Duration = Duration::from_secs(1);

const SMALLEST_SWEEP: usize = 64;

/// In so many turns of `tidy` all shards are swept.
const TURNS: usize = 8;

/// The last known level of each bucket that is not full, as far as there is room.
///
/// A reply's level, refilled since its call was *sent*, is an upper bound of the level now, as
/// long as nobody gives tokens back. If even that refuses a demand, Redis would.
pub(crate) struct Known {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    clock: Clock,
    most: usize,
    count: AtomicUsize,
    /// Those of them that refused somebody: while there are none, nobody needs to look.
    refusing: AtomicUsize,
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
    pool: f64,
    terms: Terms,
    /// When the call was sent that told the level, in microseconds.
    sent: f64,
    /// What calls that were sent before this told is no bound: tokens were given back.
    forgotten: f64,
    refused: bool,
}

impl Entry {
    /// The level now, unless somebody gave tokens back, in its own terms.
    fn level_at(&self, now: f64) -> f64 {
        // The pool joins the level once nobody is promised a turn any more, which may be now.
        let refilled = (now - self.sent).max(0.0) * self.terms.per_us;
        self.terms.cap.min(self.level + self.pool + refilled)
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
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            clock: Clock::new(),
            most,
            count: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
        }
    }

    /// When to come back, if the bucket refuses `cost` for certain.
    pub(crate) fn refuses(
        &self,
        id: &BucketId,
        terms: Terms,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        if self.refusing.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (hash, shard) = self.lock(id.as_bytes());
        let entry = shard
            .table
            .find(hash, |entry| *entry.id == *id.as_bytes())?;
        let now = self.clock.now_us();
        if !entry.refused
            || entry.terms != terms
            || entry.sent < entry.forgotten
            || now - entry.sent > to_us(TRUSTED)
            || entry.pool >= cost
        {
            return None;
        }
        let level = entry.level_at(now);
        let wait = ((cost - level) / terms.per_us).ceil();
        (level < cost && wait > max_wait_us).then(|| from_us((wait - max_wait_us).max(1.0)))
    }

    /// A call sent at `sent` was answered; whether it refused somebody.
    pub(crate) fn learn(
        &self,
        id: &[u8],
        terms: Terms,
        (level, pool): (f64, f64),
        sent: Instant,
        refused: bool,
    ) {
        let sent = self.clock.us_at(sent);
        let (hash, mut shard) = self.lock(id);
        if let Some(entry) = shard.table.find_mut(hash, |entry| *entry.id == *id) {
            if sent >= entry.sent {
                (entry.level, entry.pool) = (level, pool);
                (entry.terms, entry.sent) = (terms, sent);
                // Scarce until there are tokens again.
                self.mark(entry, refused || (entry.refused && level <= 0.0));
            }
            return;
        }
        if level + pool < terms.cap {
            self.insert(hash, &mut shard, id, terms, (level, pool), sent, refused);
        }
    }

    /// This process gives tokens back: what calls sent before now tell is no bound.
    pub(crate) fn raise(&self, id: &BucketId, terms: Terms, tokens: f64) {
        self.forget(id, terms, |level| level + tokens);
    }

    /// This process makes the bucket full.
    pub(crate) fn fill(&self, id: &BucketId, terms: Terms) {
        self.forget(id, terms, |_| terms.cap);
    }

    fn forget(&self, id: &BucketId, terms: Terms, level: impl FnOnce(f64) -> f64) {
        let now = self.clock.now_us();
        let (hash, mut shard) = self.lock(id.as_bytes());
        if let Some(entry) = shard
            .table
            .find_mut(hash, |entry| *entry.id == *id.as_bytes())
        {
            entry.level = terms.cap.min(level(entry.level));
            entry.forgotten = now;
            self.mark(entry, false);
            return;
        }
        // Replies that are on their way must find that they are out of date.
        let full = (terms.cap, 0.0);
        let id = id.as_bytes();
        if let Some(entry) = self.insert(hash, &mut shard, id, terms, full, now, false) {
            entry.forgotten = now;
        }
    }

    fn mark(&self, entry: &mut Entry, refused: bool) {
        if entry.refused != refused {
            entry.refused = refused;
            if refused {
                self.refusing.fetch_add(1, Ordering::Relaxed);
            } else {
                self.refusing.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of an entry")]
    fn insert<'a>(
        &self,
        hash: u64,
        shard: &'a mut Shard,
        id: &[u8],
        terms: Terms,
        (level, pool): (f64, f64),
        sent: f64,
        refused: bool,
    ) -> Option<&'a mut Entry> {
        let now = self.clock.now_us();
        let at_limit = || self.count.load(Ordering::Relaxed) >= self.most;
        if shard.table.len() >= shard.sweep_at.max(SMALLEST_SWEEP)
            || (at_limit() && now - shard.swept > to_us(TRUSTED))
        {
            self.sweep(shard, now);
        }
        if self.count.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut entry = Entry {
            id: id.into(),
            level,
            pool,
            terms,
            sent,
            forgotten: f64::NEG_INFINITY,
            refused: false,
        };
        self.mark(&mut entry, refused);
        let hasher = &self.hasher;
        let entry = shard
            .table
            .insert_unique(hash, entry, |entry| hasher.hash_one(&*entry.id));
        Some(entry.into_mut())
    }

    /// Forgets what is full in some of the shards; in eight turns, in all of them.
    pub(super) fn tidy(&self, turn: usize) {
        let now = self.clock.now_us();
        for shard in self.shards.iter().skip(turn % TURNS).step_by(TURNS) {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.sweep(&mut shard, now);
        }
    }

    fn sweep(&self, shard: &mut Shard, now: f64) {
        let before = shard.table.len();
        shard.table.retain(|entry| {
            // A young one may have to outlive replies that are out of date.
            let keep = !entry.is_full(now) || now - entry.sent <= to_us(TRUSTED);
            if !keep {
                self.mark(entry, false);
            }
            keep
        });
        self.count
            .fetch_sub(before - shard.table.len(), Ordering::Relaxed);
        shard.sweep_at = 2 * shard.table.len();
        shard.swept = now;
        if before > 4 * shard.table.len() {
            let hasher = &self.hasher;
            shard
                .table
                .shrink_to(shard.sweep_at, |entry| hasher.hash_one(&*entry.id));
        }
    }

    /// The level that was told last, refilled since then, if that is less than full; and when
    /// it was told.
    pub(crate) fn level(&self, id: &BucketId) -> Option<(f64, Instant)> {
        let (hash, shard) = self.lock(id.as_bytes());
        let entry = shard
            .table
            .find(hash, |entry| *entry.id == *id.as_bytes())?;
        let now = self.clock.now_us();
        let level = entry.level_at(now);
        (level < entry.terms.cap).then(|| (level, self.clock.at_us(entry.sent)))
    }

    /// All buckets that are not full, as far as is known.
    pub(super) fn all(&self) -> Vec<Remembered> {
        let now = self.clock.now_us();
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let spent = shard.table.iter().filter(|entry| !entry.is_full(now));
            all.extend(spent.map(|entry| Remembered {
                id: entry.id.clone(),
                terms: entry.terms,
                level: entry.level_at(now),
            }));
        }
        all
    }

    fn lock(&self, id: &[u8]) -> (u64, MutexGuard<'_, Shard>) {
        let hash = self.hasher.hash_one(id);
        let shard = &self.shards[(hash >> 40) as usize % SHARDS];
        (hash, shard.lock().unwrap_or_else(PoisonError::into_inner))
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
        let refuses = |terms, max_wait| known.refuses(&id, terms, 1.0, max_wait);
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
        let refuses = || known.refuses(&id, terms, 1.0, 0.0);
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
        assert_eq!(known.refuses(&id(0), terms, 9.0, 0.0), None, "nobody was");
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
