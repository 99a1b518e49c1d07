//! One bucket as memory keeps it: small, because there may be millions.

use crate::bucket::{AtOnce, Bucket, Reservation, Terms, take_at_once};

#[derive(Debug)]
pub(super) struct Held {
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
    widest: Terms,
    whole: Option<Terms>,
}

impl Widest {
    fn new(terms: Terms) -> Self {
        let (cap, per_us) = (terms.cap as f32, terms.per_us as f32);
        // Away from what was said, where it has no such number: forgotten later, never earlier.
        Self {
            cap: if f64::from(cap) < terms.cap {
                cap.next_up()
            } else {
                cap
            },
            per_us: if f64::from(per_us) > terms.per_us {
                per_us.next_down()
            } else {
                per_us
            },
        }
    }

    #[inline]
    fn widen(&mut self, terms: Terms) {
        if terms.cap > f64::from(self.cap) || terms.per_us < f64::from(self.per_us) {
            let other = Self::new(terms);
            self.cap = self.cap.max(other.cap);
            self.per_us = self.per_us.min(other.per_us);
        }
    }

    fn terms(self) -> Terms {
        Terms {
            cap: f64::from(self.cap),
            per_us: f64::from(self.per_us),
        }
    }
}

impl Held {
    pub(super) fn full(now: f64, terms: Terms) -> Self {
        Self {
            level: terms.cap,
            at: now,
            widest: Widest::new(terms),
            rare: None,
        }
    }

    #[inline]
    pub(super) fn bucket(&self) -> Bucket {
        let mut bucket = Bucket {
            level: self.level,
            at: self.at,
            tail: 0.0,
            big: 0.0,
            pool: 0.0,
            held: 0.0,
            by: 0.0,
            cancelled: Vec::new(),
        };
        if let Some(rare) = &self.rare {
            (bucket.tail, bucket.big, bucket.pool) = (rare.tail, rare.big, rare.pool);
            (bucket.held, bucket.by) = (rare.held, rare.by);
            bucket.cancelled.clone_from(&rare.cancelled);
        }
        bucket
    }

    /// Takes once, where nobody waits and nothing is owed: the level after that, or when to come
    /// back. Else nothing has happened.
    #[inline]
    pub(super) fn take_at_once(
        &mut self,
        now: f64,
        terms: Terms,
        cost: f64,
    ) -> Option<Result<f64, f64>> {
        if self.rare.is_some() {
            return None;
        }
        match take_at_once(&mut self.level, &mut self.at, now, cost, terms) {
            AtOnce::Taken => {
                self.widest.widen(terms);
                Some(Ok(self.level))
            }
            AtOnce::Short(wait) => {
                self.widest.widen(terms);
                Some(Err(wait))
            }
            AtOnce::Mends => None,
        }
    }

    #[inline]
    pub(super) fn owed(&self) -> f64 {
        self.rare.as_ref().map_or(0.0, |rare| rare.owed)
    }

    #[inline]
    pub(super) fn store(&mut self, bucket: &Bucket, owed: f64, terms: Terms) {
        self.level = bucket.level;
        self.at = bucket.at;
        self.widest.widen(terms);
        if bucket.tail <= bucket.at && bucket.held <= bucket.at && owed == 0.0 {
            self.rare = None;
            return;
        }
        self.store_rare(bucket, owed, terms);
    }

    #[cold]
    fn store_rare(&mut self, bucket: &Bucket, owed: f64, terms: Terms) {
        let (tail, big, pool) = if bucket.tail > bucket.at {
            (bucket.tail, bucket.big, bucket.pool)
        } else {
            (0.0, 0.0, 0.0)
        };
        let (held, by) = if bucket.held > bucket.at {
            (bucket.held, bucket.by)
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
            cancelled: bucket.cancelled.clone(),
            owed,
            widest: known.map_or(terms, |rare| Terms {
                cap: rare.widest.cap.max(terms.cap),
                per_us: rare.widest.per_us.min(terms.per_us),
            }),
            whole: known.and_then(|rare| rare.whole),
        };
        match &mut self.rare {
            Some(known) => **known = rare,
            None => self.rare = Some(Box::new(rare)),
        }
    }

    pub(super) fn stands_in_for(&mut self, whole: Terms) {
        if let Some(rare) = &mut self.rare {
            rare.whole = Some(whole);
        }
    }

    /// Runs `f` on the bucket, brought to now, and keeps what it leaves.
    #[inline]
    pub(super) fn visit<T>(
        &mut self,
        now: f64,
        terms: Terms,
        f: impl FnOnce(&mut Bucket) -> T,
    ) -> T {
        let mut bucket = self.bucket();
        bucket.visit(now, terms);
        let result = f(&mut bucket);
        let owed = still_owed(self.owed(), &bucket, terms);
        self.store(&bucket, owed, terms);
        result
    }

    /// What is owed, which from here on is no longer; the bucket; and what it stands in for.
    pub(super) fn settle(&mut self, now: f64) -> Option<(f64, Bucket, Option<Terms>)> {
        let rare = self.rare.as_ref().filter(|rare| rare.owed != 0.0)?;
        let (widest, whole) = (rare.widest, rare.whole);
        let mut bucket = self.bucket();
        bucket.visit(now, widest);
        let tokens = still_owed(self.owed(), &bucket, widest);
        self.store(&bucket, 0.0, widest);
        Some((tokens, bucket, whole))
    }

    pub(super) fn is_full(&self, now: f64) -> bool {
        // What is to be given back is kept until the other store is told.
        self.owed() >= 0.0 && self.at + self.bucket().full_in(self.widest.terms()) <= now
    }
}

/// What is still owed of a bucket that has refilled meanwhile: no more than it lacks. The other
/// store's bucket has refilled as well, and both stand as if nothing had been taken.
#[inline]
pub(super) fn still_owed(owed: f64, bucket: &Bucket, terms: Terms) -> f64 {
    if owed <= 0.0 {
        // To be given back: how full this share is says nothing of the other store's bucket.
        owed
    } else if bucket.level >= terms.cap {
        0.0
    } else {
        owed.min(terms.cap - bucket.level)
    }
}
