//! Debt of a local share to the bucket in Redis.

use super::BucketParams;

/// What a local share granted in place of one bucket in Redis, to be charged to that bucket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Debt {
    /// The identity of the bucket.
    pub(crate) id: Box<[u8]>,
    /// The full quota, not the local share.
    pub(crate) params: BucketParams,
    /// Tokens to charge; below zero, tokens to give back.
    pub(crate) tokens: f64,
    /// The wait until the last reservation among them is due, in microseconds.
    pub(crate) wait_us: f64,
    /// The largest cost among these reservations, in tokens.
    pub(crate) largest_cost: f64,
}
