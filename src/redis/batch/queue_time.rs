//! How long a request may be queued for Redis. No I/O and no clock.

use std::time::Duration;

use tokio::time::Instant;

/// How many times as long as one call a burst may take.
const BURST: u32 = 10;

/// Distinguishes a burst, which a healthy Redis works off, from more requests than it can decide.
///
/// While calls are answered, a request may be queued for ten times `redis_timeout`. If the queue
/// has been longer than one `redis_timeout` for all that time, a longer wait only delays all
/// requests. From then on a request may be queued for one `redis_timeout`, until the queue is half
/// as long as that. This has no effect in an outage: a failed call fails all commands that are
/// queued behind it.
///
/// The distinction is that of Nichols, Jacobson: "Controlling Queue Delay", 2012. There is no gradual
/// increase here, because a request that fails here is decided by the fallback and is not
/// sent again.
#[derive(Debug, Default)]
pub(crate) struct QueueTime {
    /// Since when the queue has been too long.
    too_long_since: Option<Instant>,
}

impl QueueTime {
    /// Returns for how long a request may have been queued, if the first one has been queued for
    /// `queued` and a call may take `timeout`.
    pub(crate) fn longest(
        &mut self,
        queued: Duration,
        timeout: Duration,
        now: Instant,
    ) -> Duration {
        if queued <= timeout / 2 {
            self.too_long_since = None;
        } else if queued > timeout {
            self.too_long_since.get_or_insert(now);
        }
        let burst = timeout.saturating_mul(BURST);
        match self.too_long_since {
            Some(since) if now.duration_since(since) >= burst => timeout,
            _ => burst,
        }
    }
}

#[cfg(test)]
mod tests;
