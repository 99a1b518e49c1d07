//! The settings of one connection, and the durations that follow from them.

use std::{sync::Arc, time::Duration};

use crate::{
    peers::Peers,
    redis::{
        connection::transport::Transport, lease::Leases, ledger::Ledger, level_cache::LevelCache,
    },
    scope::Keyspace,
    telemetry::Observer,
};

/// The shortest recovery window: longer than the longest pause between two probes and the
/// time-outs around it, so that all peers have written back what they spent.
const RECOVERY_WINDOW: Duration = Duration::from_secs(2);

/// Added to the duration of the slowest step, this is how long a supervisor may do nothing.
const STALLED: Duration = Duration::from_secs(5);

pub(crate) struct ConnectionConfig {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) keyspace: Keyspace,
    /// The longest duration of one call.
    pub(crate) timeout: Duration,
    /// The longest duration of one step of connecting.
    pub(crate) connect_timeout: Duration,
    pub(crate) levels: Arc<LevelCache>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) observer: Arc<Observer>,
    /// The name under which this limiter replaces an earlier one.
    pub(crate) instance: Option<String>,
    /// Different in each limiter.
    pub(crate) seed: u64,
}

impl ConnectionConfig {
    /// The longest duration of one call while connecting.
    pub(super) fn longest_step(&self) -> Duration {
        self.connect_timeout.max(self.timeout)
    }

    /// A supervisor that has begun no step for so long is not driven by its runtime: longer than a
    /// pause, the steps of a connect, and a call.
    pub(super) fn stalled(&self) -> Duration {
        STALLED + 4 * self.connect_timeout + 2 * self.timeout
    }

    /// How long memory must admit as well after Redis has recovered.
    pub(super) fn recovery_window(&self) -> Duration {
        // A pause, or an attempt in flight that fails; a connect and a log-in; and a probe, a
        // heartbeat and a write-back at their slowest.
        let attempt = self
            .connect_timeout
            .clamp(Duration::from_millis(1_000), RECOVERY_WINDOW);
        RECOVERY_WINDOW.max(attempt + Duration::from_millis(400) + 3 * self.timeout)
    }
}
