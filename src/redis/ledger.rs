//! What Redis is still to be charged, and corrections that were not delivered to it.

use tokio::time::Instant;

use crate::{
    bucket::{BucketParams, Reservation},
    scope::Scope,
};

/// Records what local shares granted and what could not be delivered to Redis, until it recovers.
pub(crate) trait Ledger: Send + Sync + 'static {
    /// Records tokens that Redis was not charged, or, below zero, that were not returned to it.
    fn correct(&self, scope: &Scope, tokens: f64);
    /// Records a pause.
    fn pause(&self, scope: &Scope, until: Instant);
    /// Records that a reservation was cancelled.
    fn undo(&self, scope: Scope, reservation: Reservation);
    /// Removes and returns all cancelled reservations.
    fn cancelled(&self) -> Vec<(Scope, Reservation)>;
    /// Forgets a part of the buckets that have refilled; enough successive steps visit all.
    fn sweep_step(&self, step: usize);
    /// Whether Redis is to be charged anything.
    fn has_debt(&self) -> bool;
    /// Removes and returns what Redis is to be charged.
    fn drain(&self) -> Vec<Debt>;
}

/// What one bucket is to be charged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Debt {
    pub(crate) id: Box<[u8]>,
    /// The full quota, not a local share.
    pub(crate) params: BucketParams,
    /// Below zero, tokens to be returned.
    pub(crate) tokens: f64,
    /// Until the last reservation that these tokens include is due, in microseconds.
    pub(crate) wait_us: f64,
    /// The largest cost of these reservations.
    pub(crate) largest_cost: f64,
}
