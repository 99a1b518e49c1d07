//! The last reported levels of the buckets in Redis.
//!
//! With them a process rejects a request without a call. At the beginning of an outage, its local
//! shares start from these levels.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bucket::BucketParams,
    clock::{Clock, ceil, from_us},
    last_rejection::Exhausted,
    packed_map::Entry,
    redis::bucket_state::BucketState,
    scope::{BucketId, Lookup},
    sharded::Sharded,
};

/// A level is trusted as an upper bound for this long, in microseconds: refunds by other processes
/// raise the level, and this process is not notified.
const TRUSTED_US: f64 = 1_000_000.0;

/// The last reported level of each bucket that is not full, as far as there is room.
///
/// The level in a reply, refilled since the call was *sent*, is an upper bound of the level now, as
/// long as no tokens are given back. A request that this bound rejects is rejected by Redis, too.
pub(crate) struct LevelCache {
    records: Sharded<Record>,
    max: usize,
    clock: Clock,
    /// How many buckets rejected the last request. While there are none, no request needs a look.
    rejecting: AtomicUsize,
}

struct Record {
    level: f64,
    params: BucketParams,
    /// When the call that reported the level was sent, in microseconds.
    sent: f64,
    /// The levels of calls sent before this time are no upper bound: tokens were given back.
    raised: f64,
    rare: Option<Box<Rare>>,
    rejects: bool,
}

/// The state that most buckets do not have.
#[derive(Clone, Copy)]
struct Rare {
    /// Tokens returned while reservations were outstanding.
    returned: f64,
    /// The end of the pause.
    paused_until: f64,
}

/// The pause of a bucket as last reported to this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PauseView {
    /// When the call of that report was sent. The pause may have changed since.
    pub(crate) at: Instant,
    /// The end of the pause, if the bucket is paused.
    pub(crate) paused_until: Option<Instant>,
}

/// A bucket that was not full when it was last reported to this process.
pub(crate) struct LastLevel {
    pub(crate) id: Box<[u8]>,
    pub(crate) params: BucketParams,
    /// An upper bound, in tokens.
    pub(crate) level: f64,
}

impl Record {
    fn full(params: BucketParams, sent: f64) -> Self {
        Self {
            level: params.capacity,
            params,
            sent,
            raised: f64::NEG_INFINITY,
            rare: None,
            rejects: false,
        }
    }

    fn returned(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.returned)
    }

    fn paused_until(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.paused_until)
    }

    fn set(&mut self, state: BucketState, sent: f64) {
        self.level = state.level;
        self.sent = sent;
        let rare = Rare {
            returned: state.returned,
            paused_until: sent + state.pause_us,
        };
        let is_rare = state.returned > 0.0 || state.pause_us > 0.0;
        self.rare = is_rare.then(|| Box::new(rare));
    }

    /// An upper bound of the level now, unless tokens were given back.
    fn level_at(&self, now: f64) -> f64 {
        // Returned tokens join the level when the last reservation is due, which it may be by now.
        let refilled = (now - self.sent).max(0.0) * self.params.per_us;
        let level = self
            .params
            .capacity
            .min(self.level + self.returned() + refilled);
        let paused_until = self.paused_until();
        if paused_until > now {
            return level.min((now - paused_until) * self.params.per_us);
        }
        level
    }

    fn is_full(&self, now: f64) -> bool {
        self.level_at(now) >= self.params.capacity
    }
}

impl LevelCache {
    /// Caches at most `max` buckets.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            records: Sharded::new(),
            max,
            clock: Clock::new(),
            rejecting: AtomicUsize::new(0),
        }
    }

    /// When to retry, if the bucket is certain to reject `cost`.
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
        let hash = self.records.hash(id);
        let now = || self.clock.now_us();
        // A cost of zero is granted by any bucket.
        if max_wait_us == 0.0
            && cost > 0.0
            && let Some(retry_after) = self.records.rejects(hash, id, params, cost, now)
        {
            return Some(from_us(retry_after));
        }
        let mut shard = self.records.lock(hash);
        let record = shard.get_mut(hash, id)?;
        let retry_after = self.rejection(record, params, cost, max_wait_us)?;
        if record.rare.is_none() {
            let state = Exhausted {
                level: record.level,
                at: record.sent,
                params,
                until: record.sent + TRUSTED_US,
            };
            self.records.record_rejection(&mut shard, hash, id, state);
        }
        Some(retry_after)
    }

    fn rejection(
        &self,
        record: &Record,
        params: BucketParams,
        cost: f64,
        max_wait_us: f64,
    ) -> Option<Duration> {
        if !record.rejects || record.params != params || record.sent < record.raised {
            return None;
        }
        let now = self.clock.now_us();
        if now - record.sent > TRUSTED_US || record.returned() >= cost {
            return None;
        }
        let level = record.level_at(now);
        let wait = ceil((cost - level) / params.per_us);
        if level >= cost || wait <= max_wait_us {
            return None;
        }
        Some(from_us((wait - max_wait_us).max(1.0)))
    }

    /// Records the state in the reply to a call sent at `sent`, and whether a request was rejected.
    pub(crate) fn update(
        &self,
        id: &[u8],
        params: BucketParams,
        state: impl Into<BucketState>,
        sent: Instant,
        rejected: bool,
    ) {
        let state = state.into().bounded(params);
        let sent = self.clock.us_at(sent);
        // A full bucket equals an absent one.
        let insert = state.level + state.returned < params.capacity;
        let new = insert.then(|| Record::full(params, sent));
        self.find_or_insert(&Lookup::of(id), new, |record| {
            if sent >= record.sent {
                record.set(state, sent);
                record.params = params;
                // A bucket that rejected remains scarce until there are tokens again.
                self.mark(record, rejected || (record.rejects && state.level <= 0.0));
            }
        });
    }

    /// This process gives tokens back: levels of calls sent before now are no upper bound.
    pub(crate) fn raise(&self, id: &BucketId, params: BucketParams, tokens: f64) {
        self.raise_record(id, params, |record| record.level += tokens);
    }

    /// This process resets the bucket.
    pub(crate) fn fill(&self, id: &BucketId, params: BucketParams) {
        self.raise_record(id, params, |record| {
            record.level = params.capacity;
            record.rare = None;
        });
    }

    fn raise_record(&self, id: &BucketId, params: BucketParams, raise: impl FnOnce(&mut Record)) {
        let now = self.clock.instant_us();
        // Inserted even if it is full, so that replies that are out of date find it.
        let new = Some(Record::full(params, now));
        self.find_or_insert(&id.lookup(), new, |record| {
            raise(record);
            record.level = params.capacity.min(record.level);
            record.raised = now;
            self.mark(record, false);
        });
    }

    /// This process pauses the bucket: calls sent before now do not report the pause.
    pub(crate) fn pause(&self, id: &BucketId, params: BucketParams, us: f64) {
        let now = self.clock.instant_us();
        let new = Some(Record::full(params, now));
        self.find_or_insert(&id.lookup(), new, |record| {
            let state = BucketState {
                level: record.level_at(now).min(-us * params.per_us),
                returned: 0.0,
                pause_us: us.max(record.paused_until() - now),
            };
            record.set(state, now);
        });
    }

    /// What is known about the pause of a bucket, if anything.
    pub(crate) fn pause_view(&self, id: &Lookup<'_>) -> Option<PauseView> {
        let seen = |record: &mut Record| (record.sent, record.paused_until());
        let (sent, until) = self.records.find(id, seen)?;
        Some(PauseView {
            at: self.clock.at_us(sent),
            paused_until: (until > self.clock.now_us()).then(|| self.clock.at_us(until)),
        })
    }

    /// The last reported level, refilled since, if it is below the capacity; and when it was
    /// reported.
    pub(crate) fn level(&self, id: &BucketId) -> Option<(f64, Instant)> {
        let seen = |record: &mut Record| {
            let level = record.level_at(self.clock.now_us());
            (level < record.params.capacity).then_some((level, record.sent))
        };
        let (level, sent) = self.records.find(&id.lookup(), seen)??;
        Some((level, self.clock.at_us(sent)))
    }

    /// All buckets that are not full, as far as is known.
    pub(crate) fn all(&self) -> Vec<LastLevel> {
        let now = self.clock.now_us();
        let mut all = Vec::new();
        self.records.for_each(|entry| {
            if !entry.value.is_full(now) {
                all.push(LastLevel {
                    id: entry.id().into(),
                    params: entry.value.params,
                    level: entry.value.level_at(now),
                });
            }
        });
        all
    }

    /// Removes full buckets from a part of the cache.
    /// [`SWEEP_STEPS`](crate::sharded::SWEEP_STEPS) calls with consecutive numbers cover it.
    pub(crate) fn sweep_step(&self, step: usize) {
        let now = self.clock.now_us();
        self.records.sweep_step(step, now, self.keep(now));
    }

    /// Runs `f` on the record of a bucket, or on `new` if there is none and there is room for it.
    fn find_or_insert(&self, id: &Lookup<'_>, new: Option<Record>, f: impl FnOnce(&mut Record)) {
        let hash = self.records.hash(id);
        let mut shard = self.records.lock(hash);
        if let Some(record) = shard.get_mut(hash, id) {
            return f(record);
        }
        let Some(new) = new else { return };
        let now = self.clock.now_us();
        let is_at_max = || self.records.len() >= self.max;
        if self
            .records
            .has_room(&mut shard, now, is_at_max, self.keep(now))
        {
            let id = id.id();
            f(self.records.insert(&mut shard, hash, id.as_bytes(), new));
        }
    }

    fn mark(&self, record: &mut Record, rejects: bool) {
        if record.rejects != rejects {
            record.rejects = rejects;
            if rejects {
                self.rejecting.fetch_add(1, Ordering::Relaxed);
            } else {
                self.rejecting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// What a sweep keeps.
    fn keep(&self, now: f64) -> impl FnMut(&mut Entry<Record>) -> bool {
        move |entry| {
            let record = &mut entry.value;
            // A recent one must outlive replies that are out of date.
            let keep = !record.is_full(now) || now - record.sent <= TRUSTED_US;
            if !keep {
                self.mark(record, false);
            }
            keep
        }
    }
}

#[cfg(test)]
mod tests;
