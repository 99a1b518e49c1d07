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
        op::Op,
        script::{ACQUIRE, Arguments, Reply},
    },
};

/// The bucket to which the first call writes.
const PROBE: &str = "the first call over a connection";

/// The connection that a call uses, and what the call assumes of Redis.
pub(super) struct Target<'a> {
    pub(super) session: &'a dyn Session,
    /// The call fails if Redis has another epoch. None: it is not checked.
    pub(super) epoch: Option<[u8; 8]>,
    /// The fraction of peers that have recovered from the last outage.
    pub(super) recovered: f64,
}

impl ConnectionState {
    /// Runs the script. The caller limits the time.
    pub(super) async fn run(
        &self,
        target: &Target<'_>,
        arguments: &Arguments,
    ) -> Result<Vec<u8>, Failure> {
        let epoch = target.epoch.as_ref().map_or(&[][..], |epoch| epoch);
        let recovered = match target.recovered < 1.0 {
            true => target.recovered.to_string(),
            false => String::new(),
        };
        self.classes_in_use.add(arguments.periods());
        let mut given = Vec::with_capacity(3 + arguments.buckets());
        given.extend([arguments.numbers(), epoch, recovered.as_bytes()]);
        given.extend(arguments.fields());
        let run = target.session.run(&ACQUIRE, &arguments.keys, &given);
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
        arguments: &Arguments,
    ) -> Result<Vec<u8>, Failure> {
        self.begin_step();
        within(self.config.timeout, self.run(target, arguments)).await
    }

    /// The first call over a connection. It writes, because a Redis that answers but rejects
    /// writes is of no use.
    pub(super) async fn probe(&self, session: &dyn Session) -> Result<(), Failure> {
        let target = Target {
            session,
            epoch: None,
            recovered: 1.0,
        };
        let keyspace = &self.config.keyspace;
        let mut arguments = Arguments::new(keyspace);
        arguments.own_bucket(keyspace, PROBE, BucketParams::new(1.0, 1.0));
        arguments.op(0, Op::Reset);

        // If the server does not know the script yet, this takes two round trips.
        let mut sent = Instant::now();
        let first = self.run(&target, &arguments);
        let mut reply = within(self.config.longest_step(), first).await?;
        if sent.elapsed() > self.config.timeout {
            sent = Instant::now();
            reply = self.run_in_time(&target, &arguments).await?;
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
