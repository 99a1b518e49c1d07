//! Calls of the script `acquire.lua` over a connection, and their time limits.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    bucket::BucketParams,
    decision::Failure,
    redis::{
        connection::{
            failure::{data_lost, timed_out},
            state::ConnectionState,
            transport::Session,
        },
        heartbeat::Epoch,
        op::Op,
        script::{ACQUIRE, Argument, First, Reply},
    },
};

/// A name that no scope can have, because `#` is escaped.
const PROBE: &str = "#probe";

/// The connection that a call uses, and what the call assumes of Redis.
pub(super) struct Target<'a> {
    pub(super) session: &'a dyn Session,
    /// The call fails if Redis has another epoch. None: it is not checked.
    pub(super) epoch: Option<[u8; 8]>,
    /// The fraction of peers that have recovered from the last outage.
    pub(super) recovered: f64,
}

impl ConnectionState {
    /// Runs the script on these buckets. The caller limits the time.
    pub(super) async fn run(
        &self,
        target: &Target<'_>,
        mut keys: Vec<Vec<u8>>,
        argument: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        if target.epoch.is_some() {
            keys.push(Epoch::key(&self.config.keyspace));
        }
        let epoch = target.epoch.as_ref().map_or(&[][..], |epoch| epoch);
        let recovered = match target.recovered < 1.0 {
            true => target.recovered.to_string(),
            false => String::new(),
        };
        let arguments = [argument, epoch, recovered.as_bytes()];
        let given = match (epoch, recovered.as_str()) {
            ([], "") => 1,
            (_, "") => 2,
            _ => 3,
        };
        let run = target.session.run(&ACQUIRE, &keys, &arguments[..given]);
        let reply = run.await?;
        if reply.is_empty() {
            return Err(data_lost());
        }
        Ok(reply)
    }

    /// As `run`, within `redis_timeout`.
    pub(super) async fn run_in_time(
        &self,
        target: &Target<'_>,
        keys: Vec<Vec<u8>>,
        argument: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        self.begin_step();
        within(self.config.timeout, self.run(target, keys, argument)).await
    }

    /// The first call over a connection. It writes, because a Redis that answers but rejects
    /// writes is of no use.
    pub(super) async fn probe(&self, session: &dyn Session) -> Result<(), Failure> {
        let target = Target {
            session,
            epoch: None,
            recovered: 1.0,
        };
        let keys = vec![self.config.keyspace.own(PROBE)];
        let mut argument = Argument::default();
        argument.bucket(BucketParams::new(1.0, 1.0), First::NONE);
        argument.op(0, Op::Reset);
        let argument = argument.into_bytes();

        // If the server does not know the script yet, this takes two round trips.
        let mut sent = Instant::now();
        let first = self.run(&target, keys.clone(), &argument);
        let mut reply = within(self.config.longest_step(), first).await?;
        if sent.elapsed() > self.config.timeout {
            sent = Instant::now();
            reply = self.run_in_time(&target, keys, &argument).await?;
        }
        if let Some(us) = Reply::new(&reply, 1, 0).and_then(|reply| reply.time()) {
            self.lock().server_ms = Some((us / 1e3, sent));
        }
        Ok(())
    }

    /// The fraction of peers that have recovered, in the recovery window; else 1.
    pub(super) fn recovered_part(&self) -> f64 {
        match self.is_recovering() {
            true => self.config.peers.recovered(),
            false => 1.0,
        }
    }
}

async fn within(
    limit: Duration,
    call: impl Future<Output = Result<Vec<u8>, Failure>>,
) -> Result<Vec<u8>, Failure> {
    timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(timed_out()))
}
