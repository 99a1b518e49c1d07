//! The parameters of a bucket.

/// Capacity and rate of a bucket, in the units of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BucketParams {
    /// The most tokens that the bucket holds.
    pub(crate) capacity: f64,
    /// Tokens per microsecond.
    pub(crate) per_us: f64,
}

impl BucketParams {
    /// `capacity` in tokens, `rate` in tokens per second.
    pub(crate) fn new(capacity: f64, rate: f64) -> Self {
        Self {
            capacity,
            per_us: rate / 1e6,
        }
    }

    /// Reduces the rate to this fraction of it, from 0 to 1.
    ///
    /// The capacity stays: a bucket that is used once with a smaller capacity loses the tokens
    /// above it for good.
    pub(crate) fn slower(self, fraction: f64) -> Self {
        Self {
            per_us: self.per_us * fraction,
            ..self
        }
    }

    /// The local share of one of `processes`: an equal part of rate and capacity. The capacity is
    /// at least one token if that of the full quota is.
    pub(crate) fn share(self, processes: f64) -> Self {
        Self {
            capacity: (self.capacity / processes).max(self.capacity.min(1.0)),
            per_us: self.per_us / processes,
        }
    }

    /// Like [`share`](Self::share), without a minimum: all shares together never exceed the full
    /// quota, even if each of them is less than a token.
    pub(crate) fn strict_share(self, processes: f64) -> Self {
        Self {
            capacity: self.capacity / processes,
            per_us: self.per_us / processes,
        }
    }

    /// Whether a bucket with these parameters can ever grant `cost` in one piece.
    ///
    /// There is no lower bound. Each operation rounds the level by at most 2^-54 of the capacity,
    /// so costs that vanish in a full bucket exceed it by one capacity after 2^54 of them at the
    /// earliest: 570 years at a million a second. The level from which a cost vanishes shrinks with
    /// the cost, and so does the error, once the burst is used.
    pub(crate) fn can_grant(self, cost: f64) -> bool {
        cost >= 0.0 && cost <= self.capacity
    }
}
