//! The length and number of rounds.

use std::time::Duration;

/// The length and number of the rounds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub quick: bool,
    pub rounds: usize,
    pub slice: Duration,
    pub warm_up: Duration,
}

impl Plan {
    pub const FULL: Self = Self {
        quick: false,
        rounds: 5,
        slice: Duration::from_millis(220),
        warm_up: Duration::from_millis(100),
    };

    pub const QUICK: Self = Self {
        quick: true,
        rounds: 1,
        slice: Duration::from_millis(60),
        warm_up: Duration::from_millis(20),
    };

    /// So many scopes, or less if that would take too long.
    pub fn scopes(self, scopes: usize) -> usize {
        scopes.min(if self.quick { 20_000 } else { usize::MAX })
    }

    /// Fewer rounds, for the many points of a curve.
    pub const fn short(self) -> Self {
        Self {
            rounds: if self.quick { 1 } else { 3 },
            ..self
        }
    }
}
