//! A call from when it is built until it is answered.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    call::Batch,
    connection::{Connection, Deadline},
    context::Context,
    request::Requester,
};
use crate::{
    decision::{Failure, FailureKind},
    redis::script::Reply,
};

/// A call that answers all its requests, also if it fails or is dropped.
///
/// If it is dropped, as when a runtime is shut down, requests are made again, and charges and
/// pauses are recorded in the ledger: if Redis executed the call, they count twice, but they are
/// never lost.
pub(super) struct InFlight<R: Requester, C: Connection> {
    batch: Option<Batch<R>>,
    context: Arc<Context<C>>,
    is_sent: bool,
}

impl<R: Requester, C: Connection> InFlight<R, C> {
    pub(super) fn new(batch: Batch<R>, context: Arc<Context<C>>) -> Self {
        Self {
            batch: Some(batch),
            context,
            is_sent: false,
        }
    }

    /// Sends the call and answers all requests. Returns the failure, if there was one.
    pub(super) async fn send(mut self, deadline: &mut Deadline) -> Option<Failure> {
        let batch = self.batch.as_ref()?;
        let context = self.context.clone();
        let (buckets, answers) = (batch.buckets.len(), batch.answers());
        let (length, arguments) = (batch.length, batch.arguments(&context.keyspace));
        let sent = Instant::now();
        self.is_sent = true;
        let result = context.connection.call(arguments, deadline).await;
        context.meter.call(length, sent.elapsed());
        let reply = result.as_ref().map_err(Clone::clone).and_then(|bytes| {
            Reply::new(bytes, buckets, answers).ok_or_else(|| {
                let failure = Failure::new(
                    FailureKind::Misconfigured,
                    "the script's reply is of another length",
                );
                // The connection is out of step, or its server is not Redis.
                context.connection.fail(&failure);
                failure
            })
        });
        let batch = self.batch.take()?;
        match reply {
            Ok(reply) => {
                batch.answer(&reply, &context, sent);
                None
            }
            Err(failure) => {
                batch.undelivered(failure.sent, Some(&failure), &*context.ledger);
                Some(failure)
            }
        }
    }
}

impl<R: Requester, C: Connection> Drop for InFlight<R, C> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.undelivered(self.is_sent, None, &*self.context.ledger);
        }
    }
}
