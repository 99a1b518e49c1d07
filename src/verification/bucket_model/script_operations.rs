//! Operations of the model that only the script performs. The reference model uses them.

use crate::bucket::{Bucket, BucketParams};

impl Bucket {
    /// Charges tokens that a local share granted during an outage, including those that it
    /// reserved: reservations of at most `largest_cost` each, due within `wait` microseconds.
    /// Unlike the debt of a charge, this debt is not bounded.
    pub(crate) fn write_back(&mut self, tokens: f64, wait: f64, largest_cost: f64) {
        let from_returned = self.returned.min(tokens);
        self.returned -= from_returned;
        self.level = self.level.min(self.level - (tokens - from_returned));
        if wait > 0.0 {
            self.last_due = self.last_due.max(self.at + wait);
            self.largest_cost = self.largest_cost.max(largest_cost);
        }
    }

    /// Leases up to `tokens` from what is over half the capacity, if no reservations are
    /// outstanding. Returns how many.
    pub(crate) fn lease(&mut self, tokens: f64, params: BucketParams) -> f64 {
        if self.last_due > self.at {
            return 0.0;
        }
        let ahead = tokens
            .min((self.level - params.capacity / 2.0).floor())
            .max(0.0);
        self.level -= ahead;
        ahead
    }

    /// The rest of the pause, in microseconds.
    pub(crate) fn pause_left(&self) -> f64 {
        (self.paused_until - self.at).max(0.0)
    }
}
