//! Tokens reserved for a later time.

use super::BucketParams;

/// Tokens that refill from `from` until `until`, when they are due, in the bucket's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reservation {
    pub(crate) from: f64,
    pub(crate) until: f64,
    pub(crate) tokens: f64,
}

impl Reservation {
    /// `tokens` that are due at `until`.
    pub(crate) fn due(until: f64, tokens: f64, params: BucketParams) -> Self {
        Self {
            from: until - tokens.min(params.capacity) / params.per_us,
            until,
            tokens,
        }
    }
}
