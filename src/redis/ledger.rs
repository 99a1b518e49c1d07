//! What Redis is still to be charged, and corrections that were not delivered to it.

use tokio::time::Instant;

use crate::{
    bucket::{Debt, Reservation},
    scope::Scope,
};

/// Records what local shares granted and what could not be delivered to Redis, until it recovers.
pub(crate) trait Ledger: Send + Sync + 'static {
    /// Records tokens that Redis was not charged, or, below zero, that were not returned to it.
    fn correct(&self, scope: &Scope, tokens: f64);
    /// Records a pause.
    fn pause(&self, scope: &Scope, until: Instant);
    /// Pauses that are not over and were not delivered.
    fn pauses(&self) -> Vec<(Scope, Instant)>;
    /// Forgets these pauses, which Redis has now.
    fn confirm_pauses(&self, delivered: &[(Scope, Instant)]);
    /// Records that a reservation was cancelled.
    fn undo(&self, scope: Scope, reservation: Reservation);
    /// Removes and returns all cancelled reservations.
    fn cancelled(&self) -> Vec<(Scope, Reservation)>;
    /// Removes a part of the buckets that have refilled; successive steps visit all.
    fn sweep_step(&self, step: usize);
    /// Whether Redis is to be charged anything.
    fn has_debt(&self) -> bool;
    /// Removes and returns what Redis is to be charged.
    fn drain(&self) -> Vec<Debt>;
}
