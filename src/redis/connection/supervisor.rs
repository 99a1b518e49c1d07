//! The background task of a connection.
//!
//! ```text
//! run:    loop { attempt; pause }
//! attempt:         connect, with the steps of recovery
//!   => failed      Unavailable
//!   => succeeded   Connected, then maintain:
//! maintain:        loop { write back; heartbeat }   until the connection is dropped
//! ```
//!
//! It ends when the limiter is dropped, or another supervisor has replaced it.

use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::FutureExt;
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Instant, sleep},
};

use crate::{
    redis::connection::{
        calls::Target,
        deregister::Deregistration,
        failure::data_lost,
        state::{ConnectionState, LiveSession},
    },
    task,
};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The same in the recovery window: each peer that recovers changes the part of each rate that the
/// others may use, and they learn it from a heartbeat.
const RECOVERY_HEARTBEAT: Duration = Duration::from_millis(100);

/// Holds the state only while it works, so that dropping the limiter ends it.
pub(super) struct Supervisor {
    state: Weak<ConnectionState>,
    /// Supervisors with a lower number than the current one change nothing.
    number: u64,
    wake: Arc<Notify>,
    registered_by: Arc<AtomicU64>,
    /// Used once the state has been dropped.
    deregistration: Deregistration,
}

impl Supervisor {
    pub(super) fn spawn(state: &Arc<ConnectionState>, number: u64) {
        let supervisor = Self {
            state: Arc::downgrade(state),
            number,
            wake: state.wake.clone(),
            registered_by: state.registered_by.clone(),
            deregistration: Deregistration {
                transport: state.config.transport.clone(),
                keyspace: state.config.keyspace.clone(),
                limiter: state.limiter.clone(),
                timeout: state.config.timeout,
            },
        };
        tokio::spawn(async move {
            supervisor.run().await;
            supervisor.unregister();
        });
    }

    async fn run(&self) {
        // Kept from one wait to the next, so that no wake-up between them is lost.
        let mut wake = pin!(self.wake.notified());
        loop {
            // A panic of the driver, or a bug, is treated as any other failure.
            let attempt = AssertUnwindSafe(self.attempt(wake.as_mut())).catch_unwind();
            let paused_since = match attempt.await {
                Ok(Some(since)) => since,
                Ok(None) => return,
                Err(panic) => {
                    let failure = task::failure("connects to Redis", &*panic);
                    if let Some(state) = self.state.upgrade() {
                        state.supervisor_panicked(self.number, &failure);
                    }
                    Instant::now()
                }
            };
            let Some(state) = self.state.upgrade() else {
                return;
            };
            // Jittered: processes that lost Redis together must not all connect at once.
            let jitter = state.random().f64();
            let pause = state.pause().mul_f64(0.5 + 0.5 * jitter);
            drop(state);
            sleep(pause.saturating_sub(paused_since.elapsed()).max(pause / 8)).await;
        }
    }

    /// Connects, and maintains the connection until it is dropped. Returns since when the pause
    /// before the next attempt counts: a failed attempt is part of it. None if the supervisor ends.
    async fn attempt<'a>(&'a self, wake: Pin<&mut Notified<'a>>) -> Option<Instant> {
        let state = self.state.upgrade()?;
        let start = Instant::now();
        if !state.begin_probe(self.number) {
            return None;
        }
        let session = match state.connect(self.number).await {
            Ok(session) => session,
            Err(failure) => {
                state.probe_failed(self.number, &failure);
                return Some(start);
            }
        };
        let live = state.probe_succeeded(self.number, session);
        drop(state);
        if let Some(live) = live {
            if !self.maintain(&live, wake).await {
                return None;
            }
            if self.unregister()
                && let Some(state) = self.state.upgrade()
            {
                state.config.observer.reserved(0, 1.0);
            }
        }
        Some(Instant::now())
    }

    /// Writes back and sends heartbeats until the connection is dropped. False if the limiter is.
    async fn maintain<'a>(&'a self, live: &LiveSession, mut wake: Pin<&mut Notified<'a>>) -> bool {
        let mut dropped = live.dropped.subscribe();
        let mut step = 0;
        loop {
            if let Some(state) = self.state.upgrade() {
                self.write_back(&state, live).await;
                state.report_reserved();
                // Memory that an outage took is free again once its debt is written back.
                state.config.ledger.sweep_step(step);
                state.config.levels.sweep_step(step);
                step += 1;
            }
            tokio::select! {
                biased;
                _ = dropped.wait_for(|dropped| *dropped) => return true,
                () = wake.as_mut() => wake.set(self.wake.notified()),
                () = sleep(self.heartbeat_interval()) => {}
            }
            let state = self.state.upgrade();
            match state.filter(|state| !state.closed.load(Ordering::Relaxed)) {
                Some(state) if state.deregistered.load(Ordering::Relaxed) => {}
                Some(state) => self.heartbeat(&state, live).await,
                None => {
                    self.deregistration.send(&*live.session).await;
                    return false;
                }
            }
        }
    }

    /// What memory granted between the last write-back and the first request to Redis, and for
    /// requests that Redis was too slow for.
    async fn write_back(&self, state: &ConnectionState, live: &LiveSession) {
        let target = Target {
            session: &*live.session,
            epoch: state.epoch().map(|epoch| epoch.id),
            recovered: state.recovered_part(),
        };
        if let Err(failure) = state.write_back(&target).await {
            state.record(live.generation, Some(&failure));
        }
    }

    fn heartbeat_interval(&self) -> Duration {
        match self.state.upgrade() {
            // All limiters together send at most a thousand heartbeats a second.
            Some(state) if state.is_recovering() => {
                let limiters = state.config.peers.processes();
                RECOVERY_HEARTBEAT
                    .max(Duration::from_millis(limiters as u64))
                    .min(HEARTBEAT)
            }
            _ => HEARTBEAT,
        }
    }

    async fn heartbeat(&self, state: &ConnectionState, live: &LiveSession) {
        let reply = state
            .heartbeat(&*live.session, state.config.timeout, self.number)
            .await;
        if !state.is_supervised_by(self.number) {
            return;
        }
        let failure = match reply {
            Ok(None) => return,
            Ok(Some((epoch, reply))) => {
                let before = state.epoch();
                if before.is_none_or(|before| before.id == epoch.id) {
                    state.set_epoch(before.and(Some(epoch)));
                    state.config.peers.record(reply, Instant::now());
                    return;
                }
                data_lost()
            }
            Err(failure) => failure,
        };
        state.record(live.generation, Some(&failure));
    }

    /// Records that no heartbeat of this supervisor counts any more. Returns whether one did.
    fn unregister(&self) -> bool {
        let relaxed = Ordering::Relaxed;
        self.registered_by
            .compare_exchange(self.number, 0, relaxed, relaxed)
            .is_ok()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // A supervisor that has ended is not registered: this one's runtime shuts down.
        let was_registered = self.unregister();
        if let Some(state) = self.state.upgrade() {
            state.abandon(Some(self.number));
            if was_registered {
                state.config.observer.reserved(0, 1.0);
            }
        }
        if was_registered && self.deregistration.transport.works_on_any_runtime() {
            self.deregistration.clone().send_from_new_thread();
        }
    }
}
