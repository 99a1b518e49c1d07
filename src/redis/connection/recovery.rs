//! The steps between a new connection and the first request over it.
//!
//! 1. Connect, and probe: a call that writes.
//! 2. Send a heartbeat, whose reply names the epoch of Redis's data.
//! 3. If that is not the epoch that was in use before, the data is lost: lower each bucket to its
//!    last reported level.
//! 4. Only then store the epoch, so that an attempt that fails half way does not skip step 3.
//! 5. Undo the reservations that were cancelled meanwhile, deliver pauses, and write back what memory
//!    granted.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::{
    clock::to_us,
    decision::Failure,
    redis::{
        connection::{
            calls::Target,
            corrections::{Call, cap_levels, corrections},
            failure::disconnected,
            state::ConnectionState,
            transport::Session,
        },
        op::Op,
    },
};

impl ConnectionState {
    /// Connects, and applies all corrections to Redis before it decides any request.
    pub(super) async fn connect(&self, supervisor: u64) -> Result<Box<dyn Session>, Failure> {
        let config = &self.config;
        let session = config.transport.connect().await?;
        self.probe(&*session).await?;

        let within = config.longest_step();
        let heartbeat = self.heartbeat(&*session, within, supervisor).await?;
        let epoch = heartbeat.map(|(epoch, _)| epoch);
        let target = Target {
            session: &*session,
            epoch: epoch.map(|epoch| epoch.id),
            recovered: heartbeat.map_or(1.0, |(_, reply)| config.peers.recovered_before(reply)),
        };

        let before = self.epoch().map(|epoch| epoch.id);
        if before.is_none() || before != target.epoch {
            let levels = config.levels.all();
            for call in cap_levels(&config.keyspace, &levels) {
                self.deliver(&target, call).await?;
            }
            // Which peers are missing is lost with the data.
            if before.is_some() {
                config.peers.expect_as_before(Instant::now());
            }
        }

        if !self.is_supervised_by(supervisor) {
            return Err(disconnected());
        }
        self.set_epoch(epoch);
        if self.deregistered.load(Ordering::Relaxed) {
            self.deregister(&*session, within).await?;
        }
        if let Some((_, reply)) = heartbeat {
            config.peers.record(reply, Instant::now());
        }
        self.write_back(&target).await?;
        Ok(session)
    }

    /// Undoes cancelled reservations, pauses buckets, and charges what memory granted, each amount
    /// once. If a call is lost, the refill returns the tokens of its reservations, and its pauses
    /// are delivered again.
    pub(super) async fn write_back(&self, target: &Target<'_>) -> Result<(), Failure> {
        let config = &self.config;
        let (cancelled, pauses) = (config.ledger.cancelled(), config.ledger.pauses());
        let now = Instant::now();
        let pause = |until: Instant| Op::Pause {
            us: to_us(until.saturating_duration_since(now)),
        };
        // The last of a queue first, so that the one before it becomes the last.
        let undo = cancelled.into_iter().rev();
        let pending: Vec<_> = undo
            .map(|(scope, reservation)| (scope, Op::Undo(reservation)))
            .chain(
                pauses
                    .iter()
                    .map(|(scope, until)| (scope.clone(), pause(*until))),
            )
            .collect();
        for call in corrections(&config.keyspace, &pending) {
            self.deliver(target, call).await?;
        }
        config.ledger.confirm_pauses(&pauses);
        if config.ledger.has_debt() {
            let debts = config.ledger.drain();
            self.write_backs().add(&debts, Instant::now());
        }
        // A supervisor that was replaced may still do this: each write-back has a number, and Redis
        // charges a number once.
        loop {
            let first = self.write_backs().first().map(|write_back| {
                let call = write_back.call(&config.keyspace, &self.limiter, Instant::now());
                (write_back.number(), call)
            });
            let Some((number, call)) = first else {
                return Ok(());
            };
            self.deliver(target, call).await?;
            self.write_backs().confirm(number);
        }
    }

    async fn deliver(&self, target: &Target<'_>, call: Call) -> Result<(), Failure> {
        let sent = Instant::now();
        let reply = self.run_in_time(target, &call.arguments).await?;
        call.update_levels(&reply, sent, &self.config.levels);
        Ok(())
    }
}
