//! How long and how often.

use std::time::Duration;

/// All that bounds a run in time.
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
        slice: Duration::from_millis(350),
        warm_up: Duration::from_millis(150),
    };

    pub const QUICK: Self = Self {
        quick: true,
        rounds: 2,
        slice: Duration::from_millis(70),
        warm_up: Duration::from_millis(20),
    };

    /// For the points of a curve, of which there are many.
    pub const fn short(self) -> Self {
        Self {
            rounds: if self.quick { 1 } else { 3 },
            ..self
        }
    }
}
