//! The state of a bucket, as a reply reports it.

use crate::{bucket::BucketParams, clock::LONGEST_WAIT};

/// [`LONGEST_WAIT`] in microseconds.
const LONGEST_US: f64 = LONGEST_WAIT.as_micros() as f64;

/// The state of a bucket, as a reply reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BucketState {
    /// In tokens.
    pub(crate) level: f64,
    /// Tokens returned while reservations were outstanding.
    pub(crate) returned: f64,
    /// The rest of the pause, in microseconds.
    pub(crate) pause_us: f64,
}

impl From<(f64, f64)> for BucketState {
    /// Level and returned tokens of a bucket that is not paused.
    fn from((level, returned): (f64, f64)) -> Self {
        Self {
            level,
            returned,
            pause_us: 0.0,
        }
    }
}

impl BucketState {
    /// Limited to what a bucket with these parameters can be. A level that is not finite counts as
    /// full.
    pub(crate) fn bounded(self, params: BucketParams) -> Self {
        let lowest = -2.0 * params.capacity - LONGEST_US * params.per_us;
        let level = match self.level.is_finite() {
            true => self.level.min(params.capacity).max(lowest),
            false => params.capacity,
        };
        // `max` and `min` replace NaN by the other operand.
        Self {
            level,
            returned: self.returned.max(0.0).min(params.capacity),
            pause_us: self.pause_us.clamp(0.0, LONGEST_US),
        }
    }
}
