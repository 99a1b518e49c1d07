//! One bucket as memory keeps it: small, because there may be millions.

use crate::bucket::{AtOnce, Bucket, BucketParams, Reservation, take_at_once};

#[derive(Debug)]
pub(super) struct PackedBucket {
    level: f64,
    at: f64,
    /// It is full when it is full for these.
    widest: Widest,
    rare: Option<Box<Rare>>,
}

/// At least the largest capacity, and at most the slowest rate, by which a bucket was used.
#[derive(Clone, Copy, Debug)]
struct Widest {
    cap: f32,
    per_us: f32,
}

/// What most buckets do not have.
#[derive(Debug)]
struct Rare {
    tail: f64,
    big: f64,
    pool: f64,
    held: f64,
    by: f64,
    cancelled: Vec<Reservation>,
    owed: f64,
    /// The largest capacity and the slowest rate since something is owed or promised.
    widest: BucketParams,
    whole: Option<BucketParams>,
}

impl Widest {
    fn new(params: BucketParams) -> Self {
        let (cap, per_us) = (params.capacity as f32, params.per_us as f32);
        // Away from what was said, where it has no such number: forgotten later, never earlier.
        Self {
            cap: if f64::from(cap) < params.capacity {
                cap.next_up()
            } else {
                cap
            },
            per_us: if f64::from(per_us) > params.per_us {
                per_us.next_down()
            } else {
                per_us
            },
        }
    }

    #[inline]
    fn widen(&mut self, params: BucketParams) {
        if params.capacity > f64::from(self.cap) || params.per_us < f64::from(self.per_us) {
            let other = Self::new(params);
            self.cap = self.cap.max(other.cap);
            self.per_us = self.per_us.min(other.per_us);
        }
    }

    fn params(self) -> BucketParams {
        BucketParams {
            capacity: f64::from(self.cap),
            per_us: f64::from(self.per_us),
        }
    }
}

impl PackedBucket {
    pub(super) fn full(now: f64, params: BucketParams) -> Self {
        Self {
            level: params.capacity,
            at: now,
            widest: Widest::new(params),
            rare: None,
        }
    }

    #[inline]
    pub(super) fn bucket(&self) -> Bucket {
        let mut bucket = Bucket {
            level: self.level,
            at: self.at,
            last_due: 0.0,
            largest_cost: 0.0,
            returned: 0.0,
            paused_until: 0.0,
            pause_rate: 0.0,
            gaps: Vec::new(),
        };
        if let Some(rare) = &self.rare {
            (bucket.last_due, bucket.largest_cost, bucket.returned) =
                (rare.tail, rare.big, rare.pool);
            (bucket.paused_until, bucket.pause_rate) = (rare.held, rare.by);
            bucket.gaps.clone_from(&rare.cancelled);
        }
        bucket
    }

    /// Takes once, where nobody waits and nothing is owed: the level after that, or when to come
    /// back. Else nothing has happened.
    #[inline]
    pub(super) fn take_at_once(
        &mut self,
        now: f64,
        params: BucketParams,
        cost: f64,
    ) -> Option<Result<f64, f64>> {
        if self.rare.is_some() {
            return None;
        }
        match take_at_once(&mut self.level, &mut self.at, now, cost, params) {
            AtOnce::Taken => {
                self.widest.widen(params);
                Some(Ok(self.level))
            }
            AtOnce::Rejected(wait) => {
                self.widest.widen(params);
                Some(Err(wait))
            }
            AtOnce::ClockWasSetBack => None,
        }
    }

    #[inline]
    pub(super) fn debt(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.owed)
    }

    #[inline]
    pub(super) fn store(&mut self, bucket: &Bucket, owed: f64, params: BucketParams) {
        self.level = bucket.level;
        self.at = bucket.at;
        self.widest.widen(params);
        if bucket.last_due <= bucket.at && bucket.paused_until <= bucket.at && owed == 0.0 {
            self.rare = None;
            return;
        }
        self.store_rare(bucket, owed, params);
    }

    #[cold]
    fn store_rare(&mut self, bucket: &Bucket, owed: f64, params: BucketParams) {
        let (tail, big, pool) = if bucket.last_due > bucket.at {
            (bucket.last_due, bucket.largest_cost, bucket.returned)
        } else {
            (0.0, 0.0, 0.0)
        };
        let (held, by) = if bucket.paused_until > bucket.at {
            (bucket.paused_until, bucket.pause_rate)
        } else {
            (0.0, 0.0)
        };
        let known = self.rare.as_ref();
        let rare = Rare {
            tail,
            big,
            pool,
            held,
            by,
            cancelled: bucket.gaps.clone(),
            owed,
            widest: known.map_or(params, |rare| BucketParams {
                capacity: rare.widest.capacity.max(params.capacity),
                per_us: rare.widest.per_us.min(params.per_us),
            }),
            whole: known.and_then(|rare| rare.whole),
        };
        match &mut self.rare {
            Some(known) => **known = rare,
            None => self.rare = Some(Box::new(rare)),
        }
    }

    pub(super) fn stands_in_for(&mut self, whole: BucketParams) {
        if let Some(rare) = &mut self.rare {
            rare.whole = Some(whole);
        }
    }

    /// Runs `f` on the bucket, brought to now, and keeps what it leaves.
    #[inline]
    pub(super) fn advance<T>(
        &mut self,
        now: f64,
        params: BucketParams,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        let mut bucket = self.bucket();
        bucket.advance(now, params);
        let result = f(&mut bucket);
        let owed = remaining_debt(self.debt(), &bucket, params);
        self.store(&bucket, owed, params);
        result
    }

    /// What is owed, which from here on is no longer; the bucket; and what it stands in for.
    pub(super) fn drain_debt(&mut self, now: f64) -> Option<(f64, Bucket, Option<BucketParams>)> {
        let rare = self.rare.as_ref().filter(|rare| rare.owed != 0.0)?;
        let (widest, whole) = (rare.widest, rare.whole);
        let mut bucket = self.bucket();
        bucket.advance(now, widest);
        let tokens = remaining_debt(self.debt(), &bucket, widest);
        self.store(&bucket, 0.0, widest);
        Some((tokens, bucket, whole))
    }

    pub(super) fn is_full(&self, now: f64) -> bool {
        // What is to be given back is kept until the other store is told.
        self.debt() >= 0.0 && self.at + self.bucket().full_in(self.widest.params()) <= now
    }
}

/// What is still owed of a bucket that has refilled meanwhile: no more than it lacks. The other
/// store's bucket has refilled as well, and both stand as if nothing had been taken.
#[inline]
pub(super) fn remaining_debt(owed: f64, bucket: &Bucket, params: BucketParams) -> f64 {
    if owed <= 0.0 {
        // To be given back: how full this share is says nothing of the other store's bucket.
        owed
    } else if bucket.level >= params.capacity {
        0.0
    } else {
        owed.min(params.capacity - bucket.level)
    }
}
