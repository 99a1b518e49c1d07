//! How long and how often.

use std::time::Duration;

/// All that bounds a run in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
    pub(crate) warm_up: Duration,
}

impl Plan {
    pub(crate) const FULL: Self = Self {
        quick: false,
        rounds: 5,
        slice: Duration::from_millis(350),
        warm_up: Duration::from_millis(150),
    };

    pub(crate) const QUICK: Self = Self {
        quick: true,
        rounds: 3,
        slice: Duration::from_millis(70),
        warm_up: Duration::from_millis(20),
    };

    /// For the points of a curve, of which there are many.
    pub(crate) const fn short(self) -> Self {
        Self {
            rounds: if self.quick { 1 } else { 3 },
            ..self
        }
    }
}
