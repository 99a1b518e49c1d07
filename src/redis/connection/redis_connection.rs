//! The handle of a connection, as its callers use it. No caller waits for a reconnect.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::{
    decision::Failure,
    peers::RatePart,
    redis::{
        batch::connection::{Connection, Deadline},
        connection::{
            calls::Target,
            config::ConnectionConfig,
            failure::{disconnected, is_time_paused, timed_out},
            state::{ConnectionState, LiveSession, Stage},
            supervisor::Supervisor,
        },
        script::Arguments,
    },
};

/// How long each call may wait for the first connection, up to its own time-out. Connecting takes
/// about ten round trips: if the first calls come too early for it, that is no outage yet.
const FIRST_CONNECT: Duration = Duration::from_secs(1);

/// One connection to Redis and the task that supervises it.
pub(crate) struct RedisConnection {
    state: Arc<ConnectionState>,
}

/// What a caller that is about to send a request must do.
#[derive(Debug)]
pub(crate) enum Mode {
    /// Redis decides.
    Passing,
    /// Redis decides, but memory must admit as well.
    Recovering,
    /// Redis gets no requests.
    Unavailable(Failure),
}

impl RedisConnection {
    /// No I/O: the first call connects.
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        Self {
            state: Arc::new(ConnectionState::new(config)),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        let shared = &self.state;
        if shared.passing.load(Ordering::Acquire) {
            return Mode::Passing;
        }
        let state = shared.lock();
        match &state.stage {
            // Not known yet: the first call connects.
            Stage::Idle | Stage::Connecting(_) => Mode::Passing,
            // The supervisor does not probe: the next call starts another one.
            Stage::Unavailable(_) if state.is_stalled(shared.config.stalled()) => {
                let supervisor = state.supervisor;
                drop(state);
                shared.abandon(Some(supervisor));
                Mode::Passing
            }
            Stage::Unavailable(failure) => Mode::Unavailable(failure.clone()),
            Stage::Connected(_) if state.is_recovering(shared.config.recovery_window()) => {
                Mode::Recovering
            }
            Stage::Connected(_) => {
                // Under the lock, so that no trip comes between.
                shared.passing.store(true, Ordering::Release);
                Mode::Passing
            }
        }
    }

    /// Since when Redis is unavailable, if it is.
    pub(crate) fn unavailable_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        match state.stage {
            Stage::Unavailable(_) => state.tripped,
            _ => None,
        }
    }

    /// The last outage: when it began, and when it ended.
    pub(crate) fn last_outage(&self) -> (Option<Instant>, Option<Instant>) {
        let state = self.state.lock();
        (state.tripped, state.recovered)
    }

    /// Whether any limiter on this Redis may pause buckets, as of the last heartbeat.
    pub(crate) fn pauses_in_use(&self) -> bool {
        self.state.pauses_in_use.load(Ordering::Relaxed)
    }

    /// This limiter may pause buckets: its heartbeats report that from now on, the first one at
    /// once.
    pub(crate) fn announce_pauses(&self) {
        self.state.pauses_in_use.store(true, Ordering::Relaxed);
        if !self.state.announces_pauses.swap(true, Ordering::Relaxed) {
            self.state.wake.notify_waiters();
        }
    }

    /// Before a planned stop: if Redis is reached, the peers reserve nothing for this limiter. It
    /// sends no heartbeats from now on.
    pub(crate) async fn deregister(&self) {
        // Whether peers pause buckets is not known any more.
        self.state.pauses_in_use.store(true, Ordering::Relaxed);
        self.state.deregistered.store(true, Ordering::Relaxed);
        let live = match &self.state.lock().stage {
            Stage::Connected(live) => live.clone(),
            _ => return,
        };
        // If it fails, the peers reserve a share for this limiter until `reserve_for` has passed.
        let within = self.state.config.timeout;
        let _ = self.state.deregister(&*live.session, within).await;
    }

    /// The connection. Waits only if there has been none yet, and starts the supervisor if there
    /// is none.
    async fn live(&self, deadline: Instant) -> Result<Arc<LiveSession>, Failure> {
        let shared = &self.state;
        if let Stage::Connected(live) = &shared.lock().stage {
            return Ok(live.clone());
        }
        let mut changed = shared.changed.subscribe();
        let mut started = false;
        loop {
            let supervisor = {
                let mut state = shared.lock();
                match &state.stage {
                    Stage::Connected(live) => return Ok(live.clone()),
                    Stage::Unavailable(failure) => return Err(failure.clone()),
                    Stage::Connecting(_) => None,
                    // The supervisor that this call started has ended.
                    Stage::Idle if started => return Err(disconnected()),
                    Stage::Idle => {
                        started = true;
                        Some(state.start())
                    }
                }
            };
            if let Some(number) = supervisor {
                // Outside the lock: a runtime that shuts down drops the task here.
                Supervisor::spawn(shared, number);
            }
            if !matches!(timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
                let failure = timed_out();
                let after = match is_time_paused() {
                    true => Duration::ZERO,
                    false => FIRST_CONNECT,
                };
                shared.give_up_connecting(after, &failure);
                return Err(failure);
            }
        }
    }
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Connection for RedisConnection {
    fn call_timeout(&self) -> Duration {
        self.state.config.timeout
    }

    fn part(&self) -> RatePart {
        // In the recovery window nothing is reserved: the bucket holds what peers will write back.
        match self.state.is_recovering() {
            true => RatePart::FULL,
            false => self.state.config.peers.part(Instant::now()),
        }
    }

    fn is_steady(&self) -> bool {
        self.state.passing.load(Ordering::Acquire) && self.state.config.peers.recovered() >= 1.0
    }

    fn pause_reported(&self) {
        self.state.pauses_in_use.store(true, Ordering::Relaxed);
    }

    fn fail(&self, failure: &Failure) {
        self.state.task_failed(failure);
    }

    fn abandon(&self) {
        self.state.abandon(None);
    }

    fn close(&self) {
        self.state.closed.store(true, Ordering::Relaxed);
        self.state.wake.notify_waiters();
    }

    async fn call(
        &self,
        arguments: Arguments,
        deadline: &mut Deadline,
    ) -> Result<Vec<u8>, Failure> {
        let until = Instant::now() + self.state.config.timeout;
        let live = self.live(until).await.map_err(Failure::unsent)?;
        deadline.set(until);
        let mut dropped = live.dropped.subscribe();
        let target = Target {
            session: &*live.session,
            epoch: live.epoch,
            recovered: self.state.recovered_part(),
        };
        let result = tokio::select! {
            biased;
            result = self.state.run(&target, &arguments) => result,
            () = deadline.passed() => Err(timed_out()),
            // Another call over this connection has failed: this one need not wait for its own.
            _ = dropped.wait_for(|dropped| *dropped) => match &self.state.lock().stage {
                Stage::Unavailable(failure) => Err(failure.clone()),
                _ => Err(disconnected()),
            },
        };
        self.state.record(live.generation, result.as_ref().err());
        result
    }
}
