//! Leases in the calls of a batcher: what a call takes ahead of requests, and what idle leases
//! return.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    bucket::CallBucket,
    connection::{Connection, Deadline},
    context::Context,
    merged_take::MergedTake,
    request::Requester,
};
use crate::{
    redis::{
        bucket_state::BucketState,
        lease::{IDLE_CHECK, LeaseRequest, Leases},
        ledger::Ledger,
        op::{Op, QueuedOp},
        script::{Answer, Arguments},
    },
    scope::Scope,
};

/// Idle leases that one call returns: requests are not to wait behind all of them.
const MOST_RETURNED: usize = 64;

/// What one call takes ahead, after all requests.
#[derive(Default)]
pub(super) struct TakenAhead(Vec<(usize, LeaseRequest)>);

impl TakenAhead {
    /// Decides what to take ahead of buckets for which there are requests, or whose lease is half
    /// used.
    pub(super) fn request<'a, R: Requester + 'a>(
        leases: &Arc<Leases>,
        buckets: &[CallBucket<R>],
        takes: impl Iterator<Item = &'a MergedTake<R>>,
        half_used: &[usize],
    ) -> Self {
        // Tokens and callers.
        let mut demands = vec![(0.0, 0.0); buckets.len()];
        for take in takes {
            // A request that costs more than a lease may hold is not part of the demand.
            if let &[(bucket, cost)] = take.costs()
                && cost <= leases.max_for(buckets[bucket].params)
            {
                let callers = take.len() as f64;
                demands[bucket].0 += cost * callers;
                demands[bucket].1 += callers;
            }
        }
        let mut requests = Vec::new();
        for (index, (bucket, demand)) in buckets.iter().zip(demands).enumerate() {
            if (demand.1 > 0.0 || half_used.contains(&index))
                && let Some(request) = leases.ask(&bucket.scope, &bucket.id, bucket.params, demand)
            {
                requests.push((index, request));
            }
        }
        Self(requests)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn encode(&self, arguments: &mut Arguments) {
        for (bucket, request) in &self.0 {
            let tokens = request.tokens;
            arguments.op(*bucket, Op::Lease { tokens });
        }
    }

    /// Deposits what came with a call that was sent at `sent`.
    pub(super) fn answer(
        self,
        answers: impl Iterator<Item = Answer>,
        states: &[BucketState],
        sent: Instant,
    ) {
        for ((bucket, request), answer) in self.0.into_iter().zip(answers) {
            let tokens = answer.taken.granted.max(0.0).min(request.tokens);
            request.answer(tokens, states[bucket].level, sent);
        }
    }
}

/// Returns leased tokens that were not used.
pub(super) fn give_back<C: Connection>(
    context: &Context<C>,
    scope: Scope,
    tokens: f64,
) -> Box<QueuedOp> {
    let id = scope.id(context.keyspace.secret());
    // During an outage they are recorded in the ledger, and must not be counted twice.
    let returned = match context.connection.is_steady() {
        true => tokens,
        false => 0.0,
    };
    context.levels.raise(&id, scope.params(), returned);
    Box::new(QueuedOp::new(scope, Op::GiveBack { tokens }, None))
}

/// Leases that are to be returned because they were not used.
#[derive(Default)]
pub(super) struct IdleLeases {
    /// When leases are checked next, once there have been any.
    check: Option<Deadline>,
    returned: Vec<(Scope, f64)>,
}

impl IdleLeases {
    pub(super) fn is_empty(&self) -> bool {
        self.returned.is_empty()
    }

    /// How many the next call returns.
    pub(super) fn in_next_call(&self) -> usize {
        self.returned.len().min(MOST_RETURNED)
    }

    /// Removes what the next call returns.
    pub(super) fn next_call(&mut self) -> impl Iterator<Item = (Scope, f64)> {
        self.returned.drain(..self.in_next_call())
    }

    /// Waits for the next check and collects what was not used since the last one; for ever if
    /// there are no leases.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing is collected.
    pub(super) async fn collect(&mut self, leases: &Leases) {
        if leases.is_empty() {
            return std::future::pending().await;
        }
        let check = self.check.get_or_insert_with(|| {
            let mut check = Deadline::new();
            check.set(Instant::now() + IDLE_CHECK);
            check
        });
        check.passed().await;
        check.set(Instant::now() + IDLE_CHECK);
        self.returned.extend(leases.reclaim_idle());
    }

    /// Collects all leases.
    pub(super) fn collect_all(&mut self, leases: &Leases) {
        self.returned.extend(leases.drain());
    }

    /// Records in the ledger what was not sent.
    pub(super) fn undelivered(&mut self, ledger: &dyn Ledger) {
        for (scope, tokens) in self.returned.drain(..) {
            ledger.correct(&scope, -tokens);
        }
    }
}
