//! What replies told of buckets that refuse: a denied key costs no command.

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

use crate::{bucket::Terms, clock::from_us, scope::BucketId};

const SHARDS: usize = 32;

/// A bound is not trusted for longer, because refunds by other processes raise the level
/// without telling this one.
const TRUSTED: Duration = Duration::from_secs(1);

const SMALLEST_SWEEP: usize = 64;

/// Upper bounds of levels.
///
/// A reply's level, refilled since its call was *sent*, is an upper bound of the level now, as
/// long as nobody gives tokens back. If even that refuses a demand, Redis would.
pub(crate) struct Bounds {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    known: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    table: HashTable<Bound>,
    sweep_at: usize,
}

struct Bound {
    id: Box<[u8]>,
    /// NaN where it was forgotten.
    level: f64,
    pool: f64,
    terms: Terms,
    /// When the call was sent that told the level, or when this was forgotten.
    since: Instant,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            known: AtomicUsize::new(0),
        }
    }
}

impl Bounds {
    /// When to come back, if the bucket refuses `cost` for certain.
    pub(crate) fn refuses(
        &self,
        id: &BucketId,
        terms: Terms,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        if self.known.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (hash, shard) = self.lock(id);
        let bound = shard
            .table
            .find(hash, |bound| *bound.id == *id.as_bytes())?;
        let age = bound.since.elapsed();
        if bound.terms != terms || age > TRUSTED {
            return None;
        }
        if bound.pool >= cost {
            return None;
        }
        // The pool joins the level once nobody is promised a turn any more, which may be now.
        let level = terms
            .cap
            .min(bound.level + bound.pool + age.as_nanos() as f64 / 1e3 * terms.per_us);
        let wait = ((cost - level) / terms.per_us).ceil();
        // A forgotten level is NaN, and so is its wait: no comparison holds.
        (level < cost && wait > max_wait_us).then(|| from_us((wait - max_wait_us).max(1.0)))
    }

    /// A call sent at `sent` refused, at this level.
    pub(crate) fn learn(
        &self,
        id: &BucketId,
        terms: Terms,
        (level, pool): (f64, f64),
        sent: Instant,
    ) {
        self.put(id, terms, (level, pool), sent);
    }

    /// Tokens come back, or the quota changes: what calls sent before now tell does not hold.
    pub(crate) fn forget(&self, id: &BucketId, terms: Terms) {
        self.put(id, terms, (f64::NAN, 0.0), Instant::now());
    }

    fn put(&self, id: &BucketId, terms: Terms, (level, pool): (f64, f64), since: Instant) {
        let (hash, mut shard) = self.lock(id);
        if let Some(bound) = shard
            .table
            .find_mut(hash, |bound| *bound.id == *id.as_bytes())
        {
            if since >= bound.since {
                (bound.level, bound.pool) = (level, pool);
                (bound.terms, bound.since) = (terms, since);
            }
            return;
        }
        if shard.table.len() >= shard.sweep_at.max(SMALLEST_SWEEP) {
            let before = shard.table.len();
            shard.table.retain(|bound| bound.since.elapsed() <= TRUSTED);
            self.known
                .fetch_sub(before - shard.table.len(), Ordering::Relaxed);
            shard.sweep_at = 2 * shard.table.len();
        }
        self.known.fetch_add(1, Ordering::Relaxed);
        let bound = Bound {
            id: id.as_bytes().into(),
            level,
            pool,
            terms,
            since,
        };
        shard
            .table
            .insert_unique(hash, bound, |bound| self.hasher.hash_one(&*bound.id));
    }

    fn lock(&self, id: &BucketId) -> (u64, MutexGuard<'_, Shard>) {
        let hash = self.hasher.hash_one(id.as_bytes());
        let shard = &self.shards[(hash >> 40) as usize % SHARDS];
        (hash, shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    #[tokio::test(start_paused = true)]
    async fn refuses_exactly_until_it_could_succeed() {
        let bounds = Bounds::default();
        let id = Quota::per_second(1.0).scope("s").id(&[0; 32]);
        let terms = Terms::new(10.0, 10.0);
        assert_eq!(bounds.refuses(&id, terms, 1.0, 0.0), None);
        bounds.learn(&id, terms, (-1.0, 0.0), Instant::now());
        assert_eq!(
            bounds.refuses(&id, terms, 1.0, 0.0),
            Some(Duration::from_millis(200))
        );
        assert_eq!(bounds.refuses(&id, terms, 1.0, 200_000.0), None);
        tokio::time::advance(Duration::from_millis(150)).await;
        assert_eq!(
            bounds.refuses(&id, terms, 1.0, 0.0),
            Some(Duration::from_millis(50))
        );
        assert_eq!(bounds.refuses(&id, Terms::new(20.0, 10.0), 1.0, 0.0), None);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(bounds.refuses(&id, terms, 1.0, 0.0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_reply_does_not_bring_a_forgotten_bound_back() {
        let bounds = Bounds::default();
        let id = Quota::per_second(1.0).scope("s").id(&[0; 32]);
        let terms = Terms::new(10.0, 1e-3);
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        bounds.forget(&id, terms);
        bounds.learn(&id, terms, (0.0, 0.0), sent);
        assert_eq!(bounds.refuses(&id, terms, 1.0, 0.0), None);
        bounds.learn(&id, terms, (0.0, 0.0), Instant::now());
        assert!(bounds.refuses(&id, terms, 1.0, 0.0).is_some());
        // Nor is any bound trusted for longer than a second.
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert_eq!(bounds.refuses(&id, terms, 1.0, 0.0), None);
    }
}
