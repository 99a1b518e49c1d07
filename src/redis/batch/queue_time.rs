//! How long a request may be queued for Redis. No I/O and no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A burst may take so many times as long as one call may.
const BURST: u32 = 10;

/// Tells a burst, which a healthy Redis works off, from more requests than it can decide.
///
/// In an outage this decides nothing: a call that fails ends the wait of all that is queued
/// behind it. While calls are answered, a request may be queued for ten times `redis_timeout`. If
/// the queue has been longer than one `redis_timeout` for all that time, then waiting does not
/// help, and would only delay everybody: from there on a request may be queued for one
/// `redis_timeout`, until the queue is half as long as that.
///
/// Nichols, Jacobson: "Controlling Queue Delay", 2012, has the distinction; there is no gradual
/// increase here, because whoever is turned away is decided from memory and does not come back.
#[derive(Debug, Default)]
pub(crate) struct QueueTime {
    /// Since when the queue has been too long.
    too_long_since: Option<Instant>,
}

impl QueueTime {
    /// For how long a request may have been queued, where the first has been for `queued`, and a
    /// call may take `timeout`.
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
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);

    #[test]
    fn a_burst_may_take_ten_times_as_long_as_a_call() {
        let (mut patience, start) = (QueueTime::default(), Instant::now());
        for ms in 0..=1_000 {
            let queued = Duration::from_millis(ms);
            let longest = patience.longest(queued, TIMEOUT, start + queued);
            assert_eq!(longest, 10 * TIMEOUT, "after {queued:?}");
        }
        // Once it is worked off, the next may take as long.
        let later = start + 12 * TIMEOUT;
        assert_eq!(
            patience.longest(Duration::ZERO, TIMEOUT, later),
            10 * TIMEOUT
        );
        let later = later + 9 * TIMEOUT;
        assert_eq!(patience.longest(9 * TIMEOUT, TIMEOUT, later), 10 * TIMEOUT);
    }

    #[test]
    fn a_standing_queue_is_cut_until_it_is_short() {
        let (mut patience, start) = (QueueTime::default(), Instant::now());
        let mut at = |ms, queued| {
            let now = start + Duration::from_millis(ms);
            patience.longest(Duration::from_millis(queued), TIMEOUT, now)
        };
        assert_eq!(at(0, 101), 10 * TIMEOUT);
        assert_eq!(at(999, 900), 10 * TIMEOUT);
        assert_eq!(at(1_000, 900), TIMEOUT);
        // What is left is just short enough, and grows again.
        assert_eq!(at(1_100, 99), TIMEOUT);
        assert_eq!(at(1_200, 101), TIMEOUT);
        assert_eq!(at(1_300, 50), 10 * TIMEOUT);
        assert_eq!(at(1_400, 101), 10 * TIMEOUT);
    }
}
