//! Failures that the connection itself reports.

use tokio::time::Instant;

use crate::decision::{Failure, FailureKind};

pub(crate) fn timed_out() -> Failure {
    let source = match is_paused() {
        false => "Redis did not answer in time",
        true => {
            "Redis cannot answer in time, because tokio's time is paused: its timers do not wait \
             for the network. Resume it, or use Limiter::in_memory()"
        }
    };
    Failure::new(FailureKind::Timeout, source)
}

/// Whether tokio's clock stands still while instructions run.
pub(crate) fn is_paused() -> bool {
    let now = Instant::now();
    (0..100).all(|_| Instant::now() == now)
}
