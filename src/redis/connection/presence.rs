//! Heartbeats over a connection: how the peers count this limiter, and it counts them.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use crate::{
    clock::to_us,
    decision::{Failure, FailureKind},
    peers::{HeartbeatReply, SILENCE},
    redis::{
        connection::{
            failure::timed_out,
            state::{ConnectionState, Stage},
            transport::Session,
        },
        heartbeat::{Age, Answer, Epoch, Heartbeat},
    },
};

/// Nothing is reserved for a limiter whose heartbeats end after less than this: a process that runs
/// repeatedly for a short time must not lower the limits of the others.
const ESTABLISHED: Duration = Duration::from_secs(5);

/// After an outage of at least this, only peers whose heartbeats came since it began count as
/// alive. In a shorter one, too little is spent to matter, and peers that it did not affect have
/// not had the time for a heartbeat.
const LONG_OUTAGE: Duration = Duration::from_millis(300);

impl ConnectionState {
    /// Sends a heartbeat for this supervisor. None if Redis does not allow heartbeats to this
    /// client.
    pub(super) async fn heartbeat(
        &self,
        session: &dyn Session,
        within: Duration,
        supervisor: u64,
    ) -> Result<Option<(Epoch, HeartbeatReply)>, Failure> {
        // A second time if a reply in time reports that the heartbeat was late: the server's clock
        // was set.
        for _ in 0..2 {
            let heartbeat = Heartbeat {
                instance: self.config.instance.as_deref(),
                age: self.age(),
                epoch: self.epoch(),
                is_last: false,
                alive_within: self.alive_within(),
                reserve_for: self.config.peers.reserve_for,
                random: self.random().u64(..),
                good_until: self.server_ms_after(within),
                pauses: self.announces_pauses.load(Ordering::Relaxed),
                hashes: self.classes_in_use.hashes(&self.config.keyspace),
                ..Heartbeat::last(&self.config.keyspace, &self.limiter)
            };
            match self.send(session, heartbeat, within).await? {
                Answer::Counted {
                    epoch,
                    peers,
                    pauses,
                } => {
                    self.lock()
                        .registered_since
                        .get_or_insert_with(Instant::now);
                    self.registered_by.store(supervisor, Ordering::Relaxed);
                    if pauses {
                        self.pauses_in_use.store(true, Ordering::Relaxed);
                    }
                    return Ok(Some((epoch, peers)));
                }
                Answer::None => return Ok(None),
                Answer::Late => {}
            }
        }
        Err(timed_out())
    }

    /// From now on the peers do not count this limiter.
    pub(super) async fn deregister(
        &self,
        session: &dyn Session,
        within: Duration,
    ) -> Result<(), Failure> {
        let last = Heartbeat::last(&self.config.keyspace, &self.limiter);
        self.send(session, last, within).await?;
        self.registered_by.store(0, Ordering::Relaxed);
        Ok(())
    }

    async fn send(
        &self,
        session: &dyn Session,
        heartbeat: Heartbeat<'_>,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let sent = Instant::now();
        match heartbeat.send(session, within).await {
            Ok((answer, ms)) => {
                self.heartbeat_denied.store(false, Ordering::Relaxed);
                if let Some(ms) = ms {
                    self.lock().server_ms = Some((ms, sent));
                }
                Ok(answer)
            }
            // Redis limits without heartbeats, too; only outages are bridged less well.
            Err(failure) if failure.single || failure.kind == FailureKind::Misconfigured => {
                // Whether peers pause buckets is not known any more.
                self.pauses_in_use.store(true, Ordering::Relaxed);
                if !self.heartbeat_denied.swap(true, Ordering::Relaxed) {
                    self.config.observer.advise(&failure);
                }
                Ok(Answer::None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The server's time, in milliseconds, when so much time has passed, or a little later. Only
    /// the server's clock is used, so that the clocks of the processes may differ.
    fn server_ms_after(&self, within: Duration) -> Option<f64> {
        let (ms, sent) = self.lock().server_ms?;
        Some(ms + to_us(sent.elapsed() + within) / 1e3)
    }

    fn age(&self) -> Age {
        match self.lock().registered_since {
            None => Age::First,
            Some(since) if since.elapsed() < ESTABLISHED => Age::New,
            Some(_) => Age::Established,
        }
    }

    /// Peers whose last heartbeat is no older than this count as alive: in and after an outage,
    /// those that sent one since it began.
    fn alive_within(&self) -> Duration {
        let state = self.lock();
        let unavailable = matches!(state.stage, Stage::Unavailable(_));
        match state.tripped {
            Some(tripped) if unavailable || state.is_recovering(self.config.recovery_window()) => {
                let end = state.recovered.filter(|_| !unavailable);
                let outage = end.unwrap_or_else(Instant::now) - tripped;
                match outage >= LONG_OUTAGE {
                    true => tripped.elapsed().min(SILENCE),
                    false => SILENCE,
                }
            }
            _ => SILENCE,
        }
    }

    /// Reports the part of each limit that is reserved for missing peers.
    pub(super) fn report_reserved(&self) {
        let peers = &self.config.peers;
        let (missing, part) = match self.is_recovering() {
            true => (0, 1.0),
            false => (peers.missing(), peers.part(Instant::now()).of_rate),
        };
        self.config.observer.reserved(missing, part);
    }
}
