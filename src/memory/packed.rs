//! One bucket as the map stores it.

use crate::{
    bucket::{AtOnce, Bucket, BucketParams, Reservation, take_at_once},
    last_rejection::Exhausted,
};

/// A bucket in little memory, because there may be millions. Only a bucket with reservations, a
/// pause or debt has an allocation of its own.
#[derive(Debug)]
pub(super) struct PackedBucket {
    level: f64,
    at: f64,
    /// The bucket is full when it is full by these parameters.
    widest: Widest,
    rare: Option<Box<Rare>>,
}

/// At least the largest capacity and at most the slowest rate with which the bucket was used.
#[derive(Clone, Copy, Debug)]
struct Widest {
    capacity: f32,
    per_us: f32,
}

/// The state that most buckets do not have. Fields are those of [`Bucket`] unless documented.
#[derive(Debug)]
struct Rare {
    last_due: f64,
    largest_cost: f64,
    returned: f64,
    paused_until: f64,
    pause_rate: f64,
    gaps: Vec<Reservation>,
    /// What Redis is to be charged, in tokens; below zero, to be given back.
    debt: f64,
    /// The largest capacity and the slowest rate with which the bucket was used since it has this
    /// state.
    widest: BucketParams,
    /// The parameters of the bucket in Redis, if this is a local share.
    full_quota: Option<BucketParams>,
}

impl Widest {
    fn new(params: BucketParams) -> Self {
        let (capacity, per_us) = (params.capacity as f32, params.per_us as f32);
        // Rounded away from full, so that a bucket is removed later rather than earlier.
        Self {
            capacity: if f64::from(capacity) < params.capacity {
                capacity.next_up()
            } else {
                capacity
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
        if params.capacity > f64::from(self.capacity) || params.per_us < f64::from(self.per_us) {
            let other = Self::new(params);
            self.capacity = self.capacity.max(other.capacity);
            self.per_us = self.per_us.min(other.per_us);
        }
    }

    fn params(self) -> BucketParams {
        BucketParams {
            capacity: f64::from(self.capacity),
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
            bucket.last_due = rare.last_due;
            bucket.largest_cost = rare.largest_cost;
            bucket.returned = rare.returned;
            bucket.paused_until = rare.paused_until;
            bucket.pause_rate = rare.pause_rate;
            bucket.gaps.clone_from(&rare.gaps);
        }
        bucket
    }

    /// Takes `cost` without a wait, if the bucket has only a level. Returns the level after that,
    /// or when to retry, in microseconds. Returns `None` if [`update`](Self::update) must be used:
    /// nothing was changed then.
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
            AtOnce::Rejected(retry_after) => {
                self.widest.widen(params);
                Some(Err(retry_after))
            }
            AtOnce::ClockWasSetBack => None,
        }
    }

    /// The state after [`take_at_once`](Self::take_at_once) has rejected a request.
    pub(super) fn exhausted(&self, params: BucketParams) -> Exhausted {
        Exhausted {
            level: self.level,
            at: self.at,
            params,
            until: f64::INFINITY,
        }
    }

    /// Refills the bucket, runs `f` on it, and stores it.
    #[inline]
    pub(super) fn update<T>(
        &mut self,
        now: f64,
        params: BucketParams,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        let mut bucket = self.bucket();
        bucket.advance(now, params);
        let result = f(&mut bucket);
        let debt = self.remaining_debt(&bucket, params);
        self.store(&bucket, debt, params);
        result
    }

    #[inline]
    pub(super) fn store(&mut self, bucket: &Bucket, debt: f64, params: BucketParams) {
        self.level = bucket.level;
        self.at = bucket.at;
        self.widest.widen(params);
        if bucket.last_due <= bucket.at && bucket.paused_until <= bucket.at && debt == 0.0 {
            self.rare = None;
            return;
        }
        self.store_rare(bucket, debt, params);
    }

    #[cold]
    fn store_rare(&mut self, bucket: &Bucket, debt: f64, params: BucketParams) {
        let has_reservations = bucket.last_due > bucket.at;
        let is_paused = bucket.paused_until > bucket.at;
        let if_set = |is_set, value| if is_set { value } else { 0.0 };
        let before = self.rare.as_ref();
        let rare = Rare {
            last_due: if_set(has_reservations, bucket.last_due),
            largest_cost: if_set(has_reservations, bucket.largest_cost),
            returned: if_set(has_reservations, bucket.returned),
            paused_until: if_set(is_paused, bucket.paused_until),
            pause_rate: if_set(is_paused, bucket.pause_rate),
            gaps: bucket.gaps.clone(),
            debt,
            widest: before.map_or(params, |rare| BucketParams {
                capacity: rare.widest.capacity.max(params.capacity),
                per_us: rare.widest.per_us.min(params.per_us),
            }),
            full_quota: before.and_then(|rare| rare.full_quota),
        };
        match &mut self.rare {
            Some(before) => **before = rare,
            None => self.rare = Some(Box::new(rare)),
        }
    }

    /// Makes this bucket the local share of one with these parameters. Nothing but its debt needs
    /// them.
    pub(super) fn set_full_quota(&mut self, full_quota: BucketParams) {
        if let Some(rare) = &mut self.rare {
            rare.full_quota = Some(full_quota);
        }
    }

    pub(super) fn paused_until(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.paused_until)
    }

    #[inline]
    fn debt(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.debt)
    }

    /// The debt, given this bucket refilled to now: at most what the bucket lacks. The bucket in
    /// Redis has refilled as well, and once both are full it is as if nothing had been taken.
    #[inline]
    pub(super) fn remaining_debt(&self, bucket: &Bucket, params: BucketParams) -> f64 {
        let debt = self.debt();
        if debt <= 0.0 {
            // Tokens to give back are independent of the level of this share.
            debt
        } else if bucket.level >= params.capacity {
            0.0
        } else {
            debt.min(params.capacity - bucket.level)
        }
    }

    /// Takes the debt, if there is any. Returns it with the bucket and the parameters of the bucket
    /// in Redis.
    pub(super) fn drain_debt(&mut self, now: f64) -> Option<(f64, Bucket, Option<BucketParams>)> {
        let rare = self.rare.as_ref().filter(|rare| rare.debt != 0.0)?;
        let (widest, full_quota) = (rare.widest, rare.full_quota);
        let mut bucket = self.bucket();
        bucket.advance(now, widest);
        let tokens = self.remaining_debt(&bucket, widest);
        self.store(&bucket, 0.0, widest);
        Some((tokens, bucket, full_quota))
    }

    /// Whether the bucket equals an absent one.
    pub(super) fn is_full(&self, now: f64) -> bool {
        // Tokens to give back to Redis are kept until they are written back.
        self.debt() >= 0.0 && self.at + self.bucket().full_in(self.widest.params()) <= now
    }
}
