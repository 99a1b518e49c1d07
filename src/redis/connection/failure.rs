//! Failures that the connection itself reports.

use tokio::time::Instant;

use crate::decision::{Failure, FailureKind};

pub(crate) fn timed_out() -> Failure {
    let source = match is_time_paused() {
        false => "Redis did not answer in time",
        true => {
            "Redis cannot answer in time, because tokio's time is paused: its timers do not wait \
             for the network. Resume it, or use Limiter::in_memory()"
        }
    };
    Failure::new(FailureKind::Timeout, source)
}

pub(super) fn data_lost() -> Failure {
    let source = "Redis has lost its data: it was restarted empty, flushed, or restored";
    Failure::new(FailureKind::DataLost, source).unsent()
}

pub(super) fn disconnected() -> Failure {
    Failure::new(FailureKind::Disconnected, "the connection was dropped")
}

/// Whether tokio's clock stands still while instructions run.
pub(super) fn is_time_paused() -> bool {
    let now = Instant::now();
    (0..100).all(|_| Instant::now() == now)
}
