//! Leases: tokens that this process takes from a hot bucket ahead of the requests for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bucket::BucketParams,
    clock::{Clock, to_us},
    scope::{BucketId, Lookup, Scope},
    sharded::Sharded,
};

/// One process leases at most this part of a capacity.
const LARGEST_PART: f64 = 1.0 / 8.0;

/// A lease covers the requests within this time and the time of two calls. The default.
pub(crate) const AHEAD: Duration = Duration::from_millis(2);

/// Demand is measured over at least this time.
const MEASURED: Duration = Duration::from_millis(1);

/// A bucket is hot if this many requests come within the time that a lease covers. Below that, a
/// call for each request costs less than tokens that are not used.
const HOT: f64 = 2.0;

/// Tokens that were not used for this long are given back.
pub(crate) const IDLE_CHECK: Duration = Duration::from_secs(1);

/// The leases of a process, by bucket.
pub(crate) struct Leases {
    /// The most tokens of one lease; zero disables leases.
    largest: f64,
    ended: AtomicBool,
    leases: Sharded<Lease>,
    max: usize,
    clock: Clock,
    /// How long the last call that leased took, in microseconds.
    call_us: AtomicU64,
    ahead: Duration,
}

/// The lease on one bucket, and the demand that sizes it. Times are in microseconds.
struct Lease {
    scope: Scope,
    params: BucketParams,
    /// The tokens left.
    tokens: f64,
    /// The tokens to hold.
    target: f64,
    /// The tokens requested since `since`, and by how many requests.
    demanded: f64,
    requests: f64,
    since: f64,
    /// The tokens taken since unused ones were last given back.
    taken: f64,
    /// The level of the bucket, as the last call reported it.
    level: f64,
    /// Tokens leased by calls sent before this time must not be used.
    forgotten: f64,
    /// No request for more before this time: the bucket had no tokens to spare.
    scarce_until: f64,
    /// A request for more is not answered yet.
    is_requested: bool,
}

/// What a request took from a lease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Leased {
    /// The tokens left in the lease and in the bucket, as far as is known.
    pub(crate) level: f64,
    /// Whether the caller must request more tokens, by [`Leases::asked`].
    pub(crate) more: bool,
}

/// A request for more tokens of one bucket. Dropped without an answer, it has leased none.
pub(crate) struct LeaseRequest {
    leases: Arc<Leases>,
    id: BucketId,
    pub(crate) tokens: f64,
    is_answered: bool,
}

impl LeaseRequest {
    /// The call sent at `sent` leased `tokens`, and left a level of `level`.
    pub(crate) fn answer(mut self, tokens: f64, level: f64, sent: Instant) {
        self.is_answered = true;
        let us = to_us(sent.elapsed());
        self.leases.call_us.store(us as u64, Ordering::Relaxed);
        let sent = self.leases.clock.us_at(sent);
        self.leases.complete(&self.id, |lease, now| {
            if sent >= lease.forgotten {
                lease.tokens += tokens;
            }
            lease.level = level;
            if tokens < self.tokens {
                lease.scarce_until = now + to_us(self.leases.ahead);
                // Requests that take from the rest do not request more: the next call measures
                // anew.
                lease.target = 0.0;
            }
        });
    }
}

impl Drop for LeaseRequest {
    fn drop(&mut self) {
        if !self.is_answered {
            self.leases.complete(&self.id, |_, _| {});
        }
    }
}

impl Leases {
    /// At most `largest` tokens of each of at most `max` buckets, for the demand of `ahead`.
    pub(crate) fn new(largest: f64, max: usize, ahead: Duration) -> Self {
        Self {
            largest,
            ended: AtomicBool::new(false),
            leases: Sharded::new(),
            max,
            clock: Clock::new(),
            call_us: AtomicU64::new(0),
            ahead,
        }
    }

    /// Whether tokens may be leased.
    #[inline]
    pub(crate) fn are_on(&self) -> bool {
        self.largest > 0.0 && !self.ended.load(Ordering::Relaxed)
    }

    /// Stops leasing. Leased tokens may still be used.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether there are no leases, without a lock.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.leases.len() == 0
    }

    /// The most tokens to lease of a bucket.
    pub(crate) fn max_for(&self, params: BucketParams) -> f64 {
        self.largest.min(params.capacity * LARGEST_PART).floor()
    }

    /// Takes `cost` from a lease.
    #[inline]
    pub(crate) fn take(&self, id: &Lookup<'_>, params: BucketParams, cost: f64) -> Option<Leased> {
        if self.is_empty() {
            return None;
        }
        let hash = self.leases.hash(id);
        let mut shard = self.leases.lock(hash);
        let lease = shard.get_mut(hash, id)?;
        if lease.params != params || lease.tokens < cost {
            return None;
        }
        lease.tokens -= cost;
        lease.demanded += cost;
        lease.requests += 1.0;
        lease.taken += cost;
        let more = !lease.is_requested && lease.tokens < lease.target / 2.0;
        lease.is_requested |= more;
        Some(Leased {
            level: lease.level.max(0.0) + lease.tokens,
            more,
        })
    }

    /// Records the demand of a call, in tokens and requests. Returns the request for more tokens
    /// that the same call is to make, if any.
    pub(crate) fn ask(
        self: &Arc<Self>,
        scope: &Scope,
        id: &BucketId,
        params: BucketParams,
        (demanded, requests): (f64, f64),
    ) -> Option<LeaseRequest> {
        let max = self.max_for(params);
        if max < HOT {
            return None;
        }
        let now = self.clock.now_us();
        let lookup = id.lookup();
        let hash = self.leases.hash(&lookup);
        let mut shard = self.leases.lock(hash);
        let Some(lease) = shard.get_mut(hash, &lookup) else {
            // The demand is measured from this call to the next.
            if self.leases.len() < self.max {
                let lease = Lease {
                    scope: scope.clone(),
                    params,
                    tokens: 0.0,
                    target: 0.0,
                    demanded,
                    requests,
                    since: now,
                    taken: 0.0,
                    level: 0.0,
                    forgotten: 0.0,
                    scarce_until: 0.0,
                    is_requested: false,
                };
                self.leases.insert(&mut shard, hash, id.as_bytes(), lease);
            }
            return None;
        };
        if lease.params != params {
            // Tokens leased by the old quota are used or given back first.
            return None;
        }
        lease.demanded += demanded;
        lease.requests += requests;
        let measured = now - lease.since;
        if measured >= to_us(MEASURED) {
            let call_us = self.call_us.load(Ordering::Relaxed) as f64;
            let ahead = (to_us(self.ahead) + 2.0 * call_us) / measured;
            lease.target = match lease.requests * ahead >= HOT {
                true => (lease.demanded * ahead).ceil().min(max),
                false => 0.0,
            };
            (lease.demanded, lease.requests, lease.since) = (0.0, 0.0, now);
        }
        let tokens = (lease.target - lease.tokens).floor();
        if lease.is_requested || tokens < 1.0 || now < lease.scarce_until {
            return None;
        }
        lease.is_requested = true;
        Some(self.asked(*id, tokens))
    }

    /// The request of a caller that [`Leased::more`] applies to.
    pub(crate) fn asked(self: &Arc<Self>, id: BucketId, tokens: f64) -> LeaseRequest {
        LeaseRequest {
            leases: self.clone(),
            id,
            tokens,
            is_answered: false,
        }
    }

    /// The request for more was answered, or never will be.
    fn complete(&self, id: &BucketId, update: impl FnOnce(&mut Lease, f64)) {
        self.leases.find(&id.lookup(), |lease| {
            lease.is_requested = false;
            update(lease, self.clock.now_us());
        });
    }

    /// Drops the leased tokens of a bucket without giving them back, and those of requests in
    /// flight.
    pub(crate) fn forget(&self, id: &BucketId) {
        if self.is_empty() {
            return;
        }
        self.leases.find(&id.lookup(), |lease| {
            (lease.tokens, lease.target) = (0.0, 0.0);
            lease.forgotten = self.clock.instant_us();
        });
    }

    /// Takes the tokens that were not used since the last call of this, to be given back.
    pub(crate) fn reclaim_idle(&self) -> Vec<(Scope, f64)> {
        self.reclaim(|lease| (lease.tokens - lease.taken).max(0.0))
    }

    /// Takes all tokens, to be given back.
    pub(crate) fn drain(&self) -> Vec<(Scope, f64)> {
        self.reclaim(|lease| lease.tokens)
    }

    fn reclaim(&self, part: impl Fn(&Lease) -> f64) -> Vec<(Scope, f64)> {
        let mut reclaimed = Vec::new();
        if self.is_empty() {
            return reclaimed;
        }
        let now = self.clock.now_us();
        self.leases.retain(now, |entry| {
            let lease = &mut entry.value;
            let part = part(lease);
            if part > 0.0 {
                lease.tokens -= part;
                reclaimed.push((lease.scope.clone(), part));
            }
            // The answer to a request needs the lease. Otherwise a lease is kept as long as there
            // are requests for its bucket, whether or not it has tokens.
            let keep = lease.is_requested || lease.tokens > 0.0 || lease.demanded > 0.0;
            (lease.taken, lease.demanded, lease.requests) = (0.0, 0.0, 0.0);
            lease.since = now;
            keep
        });
        reclaimed
    }
}

#[cfg(test)]
mod tests;
