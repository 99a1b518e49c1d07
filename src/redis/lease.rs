//! Tokens that this process has taken ahead of its callers, for buckets that are hot.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hashbrown::HashTable;
use tokio::time::Instant;

use crate::{
    bucket::BucketParams,
    clock::{Clock, to_us},
    packed_map::Hashing,
    scope::{BucketId, Lookup, Scope},
};

const SHARDS: usize = 32;

/// Of a capacity, the most that one process holds ahead.
const LARGEST_PART: f64 = 1.0 / 8.0;

/// As much is held as is demanded within this time and two calls.
pub(crate) const AHEAD: Duration = Duration::from_millis(2);

/// Demand is measured over at least this time.
const MEASURED: Duration = Duration::from_millis(1);

/// A bucket is hot while so many callers come within the time that a lease is for; below that, a
/// call for each costs less than tokens that lie about.
const HOT: f64 = 2.0;

/// What was not used for so long is given back.
pub(crate) const IDLE_CHECK: Duration = Duration::from_secs(1);

/// Leases by bucket; none at all where the largest lease is zero.
pub(crate) struct Leases {
    /// Tokens.
    largest: f64,
    ended: AtomicBool,
    shards: Box<[Mutex<HashTable<Lease>>]>,
    hasher: Hashing,
    clock: Clock,
    count: AtomicUsize,
    most: usize,
    /// How long the last call took that brought any, in microseconds.
    call_us: AtomicU64,
    ahead: Duration,
}

struct Lease {
    scope: Scope,
    id: Box<[u8]>,
    params: BucketParams,
    /// In hand.
    tokens: f64,
    /// How much is to be held.
    target: f64,
    /// What callers demanded since `since`, and how many they were.
    demanded: f64,
    callers: f64,
    since: f64,
    /// What they took of it since it was last looked at for giving back.
    taken: f64,
    /// What was left in the bucket, as the last call told.
    level: f64,
    /// What calls that were sent before this bring is not to be used.
    forgotten: f64,
    /// Until then there is no use in asking: the bucket had none to spare.
    scarce_until: f64,
    /// More was asked for, and has not come yet.
    asking: bool,
}

/// What a caller gets of a lease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Leased {
    /// What is left here and in the bucket, as far as is known.
    pub(crate) level: f64,
    /// Whether somebody should ask for more.
    pub(crate) more: bool,
}

/// More was asked for one bucket: dropped without an answer, nothing came.
pub(crate) struct LeaseRequest {
    leases: Arc<Leases>,
    id: BucketId,
    pub(crate) tokens: f64,
    answered: bool,
}

impl LeaseRequest {
    /// So many of them came, by a call sent at `sent`, and so many are left in the bucket.
    pub(crate) fn answer(mut self, tokens: f64, level: f64, sent: Instant) {
        self.answered = true;
        let us = to_us(sent.elapsed());
        self.leases.call_us.store(us as u64, Ordering::Relaxed);
        let sent = self.leases.clock.us_at(sent);
        self.leases.deposit(&self.id, |lease, now| {
            if sent >= lease.forgotten {
                lease.tokens += tokens;
            }
            lease.level = level;
            if tokens < self.tokens {
                lease.scarce_until = now + to_us(self.leases.ahead);
                // Nor for each caller who takes of the rest: the next call measures anew.
                lease.target = 0.0;
            }
        });
    }
}

impl Drop for LeaseRequest {
    fn drop(&mut self) {
        if !self.answered {
            self.leases.deposit(&self.id, |_, _| {});
        }
    }
}

impl Leases {
    /// At most `largest` tokens of a bucket, for at most so many buckets, and as many as are
    /// demanded within `ahead`.
    pub(crate) fn new(largest: f64, most: usize, ahead: Duration) -> Self {
        Self {
            ahead,
            largest,
            ended: AtomicBool::new(false),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Hashing::default(),
            clock: Clock::new(),
            count: AtomicUsize::new(0),
            most,
            call_us: AtomicU64::new(0),
        }
    }

    /// Whether there may ever be any.
    #[inline]
    pub(crate) fn are_on(&self) -> bool {
        self.largest > 0.0 && !self.ended.load(Ordering::Relaxed)
    }

    /// From here on there are none but those in hand.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether there are none now, at a glance.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// The most that is held of a bucket.
    pub(crate) fn max_for(&self, params: BucketParams) -> f64 {
        self.largest.min(params.capacity * LARGEST_PART).floor()
    }

    fn lock(&self, id: &Lookup<'_>) -> (u64, MutexGuard<'_, HashTable<Lease>>) {
        let hash = id.hash(&self.hasher);
        let shard = &self.shards[(hash >> 40) as usize % SHARDS];
        // Nothing under this lock can stop half way.
        (hash, shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes `cost` of what is in hand.
    #[inline]
    pub(crate) fn take(&self, id: &Lookup<'_>, params: BucketParams, cost: f64) -> Option<Leased> {
        if self.is_empty() {
            return None;
        }
        let (hash, mut shard) = self.lock(id);
        let lease = shard.find_mut(hash, |lease| id.is(&lease.id))?;
        if lease.params != params || lease.tokens < cost {
            return None;
        }
        lease.tokens -= cost;
        lease.demanded += cost;
        lease.callers += 1.0;
        lease.taken += cost;
        let more = !lease.asking && lease.tokens < lease.target / 2.0;
        lease.asking |= more;
        Some(Leased {
            level: lease.level.max(0.0) + lease.tokens,
            more,
        })
    }

    /// Whether more is to be asked for beside what so many `callers` demand now, and how much.
    pub(crate) fn ask(
        self: &Arc<Self>,
        scope: &Scope,
        id: &BucketId,
        params: BucketParams,
        (demanded, callers): (f64, f64),
    ) -> Option<LeaseRequest> {
        let most = self.max_for(params);
        if most < HOT {
            return None;
        }
        let now = self.clock.now_us();
        let lookup = id.lookup();
        let (hash, mut shard) = self.lock(&lookup);
        let Some(lease) = shard.find_mut(hash, |lease| lookup.is(&lease.id)) else {
            // One call tells nothing of how hot it is; the next will.
            if self.count.load(Ordering::Relaxed) < self.most {
                self.count.fetch_add(1, Ordering::Relaxed);
                let lease = Lease {
                    scope: scope.clone(),
                    id: id.as_bytes().into(),
                    params,
                    tokens: 0.0,
                    target: 0.0,
                    demanded,
                    callers,
                    since: now,
                    taken: 0.0,
                    level: 0.0,
                    forgotten: 0.0,
                    scarce_until: 0.0,
                    asking: false,
                };
                let hash_of = |lease: &Lease| Lookup::of(&lease.id).hash(&self.hasher);
                shard.insert_unique(hash, lease, hash_of);
            }
            return None;
        };
        if lease.params != params {
            // What is in hand is spent or given back by the old quota first.
            return None;
        }
        lease.demanded += demanded;
        lease.callers += callers;
        let measured = now - lease.since;
        if measured >= to_us(MEASURED) {
            let call_us = self.call_us.load(Ordering::Relaxed) as f64;
            let ahead = (to_us(self.ahead) + 2.0 * call_us) / measured;
            lease.target = match lease.callers * ahead >= HOT {
                true => (lease.demanded * ahead).ceil().min(most),
                false => 0.0,
            };
            (lease.demanded, lease.callers, lease.since) = (0.0, 0.0, now);
        }
        let tokens = (lease.target - lease.tokens).floor();
        if lease.asking || tokens < 1.0 || now < lease.scarce_until {
            return None;
        }
        lease.asking = true;
        Some(self.asked(*id, tokens))
    }

    /// For somebody who was told that more should be asked for.
    pub(crate) fn asked(self: &Arc<Self>, id: BucketId, tokens: f64) -> LeaseRequest {
        LeaseRequest {
            leases: self.clone(),
            id,
            tokens,
            answered: false,
        }
    }

    /// It was answered, or never will be.
    fn deposit(&self, id: &BucketId, what: impl FnOnce(&mut Lease, f64)) {
        let lookup = id.lookup();
        let (hash, mut shard) = self.lock(&lookup);
        if let Some(lease) = shard.find_mut(hash, |lease| lookup.is(&lease.id)) {
            lease.asking = false;
            what(lease, self.clock.now_us());
        }
    }

    /// What is in hand, or on its way, must not be used: it is spent, as if it had been.
    pub(crate) fn forget(&self, id: &BucketId) {
        if self.is_empty() {
            return;
        }
        let lookup = id.lookup();
        let (hash, mut shard) = self.lock(&lookup);
        if let Some(lease) = shard.find_mut(hash, |lease| lookup.is(&lease.id)) {
            (lease.tokens, lease.target) = (0.0, 0.0);
            lease.forgotten = self.clock.now_us();
        }
    }

    /// What was not used since the last call of this: it is to be given back.
    pub(crate) fn reclaim_idle(&self) -> Vec<(Scope, f64)> {
        self.give_up(|lease| (lease.tokens - lease.taken).max(0.0))
    }

    /// All that is in hand: it is to be given back.
    pub(crate) fn drain(&self) -> Vec<(Scope, f64)> {
        self.give_up(|lease| lease.tokens)
    }

    fn give_up(&self, part: impl Fn(&Lease) -> f64) -> Vec<(Scope, f64)> {
        let mut given_up = Vec::new();
        if self.is_empty() {
            return given_up;
        }
        let now = self.clock.now_us();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let before = shard.len();
            shard.retain(|lease| {
                let part = part(lease);
                if part > 0.0 {
                    lease.tokens -= part;
                    given_up.push((lease.scope.clone(), part));
                }
                // What is on its way must find where to go. Else it is kept as long as somebody
                // demands any of this bucket, whether or not there is any here.
                let keep = lease.asking || lease.tokens > 0.0 || lease.demanded > 0.0;
                (lease.taken, lease.demanded, lease.callers) = (0.0, 0.0, 0.0);
                lease.since = now;
                keep
            });
            let left = shard.len();
            if shard.capacity() > 4 * left + 64 {
                shard.shrink_to(2 * left, |lease| Lookup::of(&lease.id).hash(&self.hasher));
            }
            let gone = before - left;
            self.count.fetch_sub(gone, Ordering::Relaxed);
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;

    const MS: Duration = Duration::from_millis(1);

    fn scope() -> (Scope, BucketId, BucketParams) {
        let scope = Quota::per_second(1e6).burst(10_000.0).scope("hot");
        let id = scope.id(&[0; 32]);
        (scope, id, BucketParams::new(10_000.0, 1e6))
    }

    /// Leases that know the bucket and have asked for as much as they hold.
    async fn asked(largest: f64, demand: (f64, f64)) -> (Arc<Leases>, Option<LeaseRequest>) {
        let (scope, id, params) = scope();
        let leases = Arc::new(Leases::new(largest, 10, AHEAD));
        let first = leases.ask(&scope, &id, params, (0.0, 0.0));
        assert!(first.is_none(), "not known yet");
        tokio::time::advance(MS).await;
        let asked = leases.ask(&scope, &id, params, demand);
        (leases, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn sized_by_demand_up_to_a_part_of_the_capacity() {
        for (largest, tokens, callers, expected) in [
            // Two milliseconds' worth.
            (1_000.0, 100.0, 100.0, Some(200.0)),
            (150.0, 100.0, 100.0, Some(150.0)),
            (1e9, 10_000.0, 100.0, Some(1_250.0)),
            // A caller in two milliseconds is not hot, whatever it costs.
            (1_000.0, 0.5, 0.5, None),
            (1_000.0, 500.0, 0.5, None),
            (0.0, 100.0, 100.0, None),
        ] {
            let (_, asked) = asked(largest, (tokens, callers)).await;
            let wants = asked.map(|asked| asked.tokens);
            assert_eq!(wants, expected, "{largest} {tokens} {callers}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_redis_needs_more() {
        let (scope, id, params) = scope();
        let (leases, asked) = asked(1e9, (100.0, 100.0)).await;
        let sent = Instant::now();
        tokio::time::advance(5 * MS).await;
        asked.expect("hot").answer(200.0, 500.0, sent);
        // As many as before, for two milliseconds and two calls.
        let asked = leases.ask(&scope, &id, params, (500.0, 500.0));
        assert_eq!(asked.expect("hot").tokens, 1_200.0 - 200.0);
    }

    #[tokio::test(start_paused = true)]
    async fn grants_what_came_and_asks_once_when_half_is_gone() {
        let (_, id, params) = scope();
        let (leases, asked) = asked(10.0, (100.0, 100.0)).await;
        let take = |params, cost| leases.take(&id.lookup(), params, cost);
        assert_eq!(take(params, 1.0), None);
        asked.expect("hot").answer(10.0, 500.0, Instant::now());
        let other = BucketParams::new(10_000.0, 1.0);
        assert_eq!(take(other, 1.0), None, "another quota");
        assert_eq!(take(params, 11.0), None, "more than there is");
        let taken: Vec<_> = (0..12).map(|_| take(params, 1.0)).collect();
        let asks: Vec<_> = taken.iter().flatten().map(|leased| leased.more).collect();
        assert_eq!(
            asks,
            [
                false, false, false, false, false, true, false, false, false, false
            ]
        );
        assert_eq!(taken[0].map(|leased| leased.level), Some(509.0));
        assert_eq!(taken[10..], [None; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_answered_may_ask_again_and_who_got_less_later() {
        let (scope, id, params) = scope();
        let (leases, first) = asked(10.0, (100.0, 100.0)).await;
        let ask = || leases.ask(&scope, &id, params, (0.0, 0.0));
        assert!(ask().is_none(), "it is being asked for");
        drop(first);
        let second = ask().expect("nobody asks any more");
        second.answer(4.0, 500.0, Instant::now());
        assert!(ask().is_none(), "the bucket has none to spare");
        tokio::time::advance(AHEAD).await;
        leases
            .ask(&scope, &id, params, (100.0, 100.0))
            .expect("hot")
            .answer(6.0, 0.0, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_is_given_up() {
        let (scope, id, params) = scope();
        let (leases, asked) = asked(10.0, (100.0, 100.0)).await;
        assert!(leases.reclaim_idle().is_empty());
        assert!(!leases.is_empty(), "more is on its way");
        asked.expect("hot").answer(10.0, 500.0, Instant::now());
        for _ in 0..3 {
            leases.take(&id.lookup(), params, 1.0).expect("in hand");
        }
        // As much as was used lately is kept.
        assert_eq!(leases.reclaim_idle(), [(scope.clone(), 4.0)]);
        assert_eq!(leases.reclaim_idle(), [(scope, 3.0)]);
        assert_eq!(leases.take(&id.lookup(), params, 1.0), None);
        leases.reclaim_idle();
        assert!(leases.is_empty());
        assert!(leases.drain().is_empty());
    }

    /// It was taken before the bucket was held back, or lowered.
    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_is_forgotten_too() {
        let (scope, id, params) = scope();
        let (leases, asked) = asked(10.0, (100.0, 100.0)).await;
        let sent = Instant::now();
        tokio::time::advance(MS).await;
        leases.forget(&id);
        asked.expect("hot").answer(10.0, 500.0, sent);
        assert_eq!(leases.take(&id.lookup(), params, 1.0), None);
        // What is asked for after that is good.
        tokio::time::advance(MS).await;
        let asked = leases.ask(&scope, &id, params, (100.0, 100.0));
        asked.expect("hot").answer(10.0, 500.0, Instant::now());
        assert!(leases.take(&id.lookup(), params, 1.0).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_buckets_than_allowed() {
        let leases = Arc::new(Leases::new(10.0, 3, AHEAD));
        for key in 0..10 {
            let scope = scope().0.key(key);
            let (id, params) = (scope.id(&[0; 32]), scope.quota());
            let params = BucketParams::new(params.capacity(), params.rate());
            assert!(leases.ask(&scope, &id, params, (5.0, 5.0)).is_none());
        }
        assert_eq!(leases.count.load(Ordering::Relaxed), 3);
    }

    /// A burst of keys that never come again.
    #[tokio::test(start_paused = true)]
    async fn what_cooled_leaves_no_memory_behind() {
        let leases = Arc::new(Leases::new(10.0, 1_000_000, AHEAD));
        for key in 0..100_000 {
            let scope = scope().0.key(key);
            let (id, params) = (scope.id(&[0; 32]), scope.quota());
            let params = BucketParams::new(params.capacity(), params.rate());
            leases.ask(&scope, &id, params, (1.0, 1.0));
        }
        let room = || -> usize {
            let shards = leases.shards.iter();
            shards
                .map(|shard| shard.lock().expect("no panic").capacity())
                .sum()
        };
        let before = room();
        let each = std::mem::size_of::<Lease>();
        println!("{before} of {each} bytes each");
        leases.reclaim_idle();
        leases.reclaim_idle();
        assert!(leases.is_empty());
        assert!(room() < before / 100, "{}", room());
    }
}
