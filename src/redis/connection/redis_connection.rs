//! The connection, as its callers see it: nobody waits for a reconnect.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::redis::{
    batch::connection::{Connection, Deadline},
    connection::failure::timed_out,
    connection::state::{ConnectionState, Stage, disconnected},
    connection::transport::Transport,
    lease::Leases,
    ledger::Ledger,
    level_cache::LevelCache,
};
use crate::{
    decision::Failure,
    peers::{Peers, RatePart},
    scope::Keyspace,
    telemetry::Observer,
};

/// After Redis is back, memory must admit as well for at least so long: longer than the longest
/// pause between probes and the time-outs around it, so that all have charged what they spent.
const GRACE: Duration = Duration::from_secs(2);

const STALLED: Duration = Duration::from_secs(5);

pub(crate) struct ConnectionConfig {
    pub(crate) connect: Arc<dyn Transport>,
    pub(crate) keyspace: Keyspace,
    /// One call takes no longer.
    pub(crate) timeout: Duration,
    /// One step of connecting takes no longer.
    pub(crate) connect_timeout: Duration,
    pub(crate) levels: Arc<LevelCache>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) observer: Arc<Observer>,
    /// By which this limiter takes the place of an earlier one.
    pub(crate) instance: Option<String>,
    /// Different in each limiter.
    pub(crate) seed: u64,
}

impl ConnectionConfig {
    /// A keeper that has begun no step for so long is not driven: longer than a pause, the steps of
    /// a connect, and a call.
    pub(crate) fn stalled(&self) -> Duration {
        STALLED + 4 * self.connect_timeout + 2 * self.timeout
    }

    pub(crate) fn recovery_window(&self) -> Duration {
        // A pause, or an attempt that was under way and came to nothing; a connect and a log-in;
        // and a probe, a beat and a payment at their slowest.
        let attempt = self
            .connect_timeout
            .clamp(Duration::from_millis(1_000), GRACE);
        GRACE.max(attempt + Duration::from_millis(400) + 3 * self.timeout)
    }
}

/// One connection to Redis and the task that keeps it.
///
/// ```text
/// Idle => Starting       the first call
/// Starting => Up         a call that writes succeeded
/// Starting => Down       it did not
/// Up => Down             the breaker tripped: the connection is dropped
/// Down => Up             the background task's call that writes succeeded
/// Starting, Up, Down => Idle    the background task was shut down with its runtime, or that is
///                               not driven
/// ```
pub(crate) struct RedisConnection {
    shared: Arc<ConnectionState>,
}

/// How Redis is, for somebody who is about to ask it.
#[derive(Debug)]
pub(crate) enum Mode {
    /// It decides.
    Passing,
    /// It decides, but memory must admit as well.
    Recovering,
    /// It is left alone.
    Unavailable(Failure),
}

impl RedisConnection {
    /// No I/O: the first call connects.
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        Self {
            shared: Arc::new(ConnectionState::new(config)),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        let shared = &self.shared;
        if shared.steady.load(Ordering::Acquire) {
            return Mode::Passing;
        }
        let state = shared.lock();
        match &state.stage {
            // Not known yet: the first call finds out.
            Stage::Idle | Stage::Starting(_) => Mode::Passing,
            // Nobody finds out that it is back: the next call does.
            Stage::Down(_) if state.is_stalled(shared.config.stalled()) => {
                let keeper = state.keeper;
                drop(state);
                shared.abandon(Some(keeper));
                Mode::Passing
            }
            Stage::Down(failure) => Mode::Unavailable(failure.clone()),
            Stage::Up(_) => {
                if state.is_in(shared.config.recovery_window()) {
                    return Mode::Recovering;
                }
                // Under the lock, so that no trip comes between.
                shared.steady.store(true, Ordering::Release);
                Mode::Passing
            }
        }
    }

    /// Since when Redis is away, if it is.
    pub(crate) fn unavailable_since(&self) -> Option<Instant> {
        let state = self.shared.lock();
        match state.stage {
            Stage::Down(_) => state.tripped,
            _ => None,
        }
    }

    /// The last outage: when it began, and when it was over.
    pub(crate) fn last_outage(&self) -> (Option<Instant>, Option<Instant>) {
        let state = self.shared.lock();
        (state.tripped, state.recovered)
    }

    /// Says goodbye to the other limiters, if it can.
    pub(crate) async fn deregister(&self) {
        self.shared.left.store(true, Ordering::Relaxed);
        let live = match &self.shared.lock().stage {
            Stage::Up(live) => live.clone(),
            _ => return,
        };
        // Without an answer, the others reserve a share for this limiter for a while.
        let _ = self
            .shared
            .deregister(&*live.session, self.shared.config.timeout)
            .await;
    }
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Connection for RedisConnection {
    fn call_timeout(&self) -> Duration {
        self.shared.config.timeout
    }

    fn part(&self) -> RatePart {
        // In the grace the bucket holds what those will charge who are not back yet.
        match self.shared.is_recovering() {
            true => RatePart::FULL,
            false => self.shared.config.peers.part(Instant::now()),
        }
    }

    fn is_steady(&self) -> bool {
        self.shared.steady.load(Ordering::Acquire) && self.shared.config.peers.recovered() >= 1.0
    }

    fn fail(&self, failure: &Failure) {
        self.shared.fail(failure);
    }

    fn abandon(&self) {
        self.shared.abandon(None);
    }

    fn close(&self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        self.shared.closed.notify_waiters();
    }

    async fn call(
        &self,
        keys: Vec<Vec<u8>>,
        argument: Vec<u8>,
        deadline: &mut Deadline,
    ) -> Result<Vec<u8>, Failure> {
        let until = Instant::now() + self.shared.config.timeout;
        let live = self.shared.live(until).await.map_err(Failure::unsent)?;
        deadline.set(until);
        let mut gone = live.gone.subscribe();
        let back = self.shared.recovered_part();
        let run = self
            .shared
            .run(&*live.session, live.epoch, back, keys, &argument);
        let result = tokio::select! {
            biased;
            result = run => result,
            () = deadline.passed() => Err(timed_out()),
            // Another call over this connection has found out: nobody needs to wait for that.
            _ = gone.wait_for(|gone| *gone) => match &self.shared.lock().stage {
                Stage::Down(failure) => Err(failure.clone()),
                _ => Err(disconnected()),
            },
        };
        self.shared.record(live.generation, result.as_ref().err());
        result
    }
}
