//! Makes one call of what is queued: which commands fit, which are merged, which are left.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::{
    decision::{Failure, FailureKind},
    redis::{
        batch::{
            bucket::{BucketIndex, Last, MOST_BUCKETS, Unfit},
            call::{Batch, Step},
            command::Command,
            connection::Connection,
            context::Context,
            leases::TakenAhead,
            merged_take::MergedTake,
            queue_time::QueueTime,
            request::{PendingRequest, Requester},
        },
        op::QueuedOp,
    },
};

/// Commands in one call. Equal requests are merged, so that most of these cost Redis nothing.
const MOST_COMMANDS: usize = 16_384;

/// Steps in one call, each counted once for each of its buckets.
///
/// The script takes 1 to 2.5 µs for a step and 2 µs for a bucket. So no costs and waits that
/// callers choose make one call block Redis for much longer than a millisecond.
const MOST_STEPS: usize = 256;

/// Commands that one call may leave for the next because it has their bucket by another quota:
/// each call looks at all of them again.
const MOST_POSTPONED: usize = 1_024;

struct Builder<'a, R: Requester> {
    batch: Batch<R>,
    /// How many buckets all steps have together.
    weight: usize,
    /// Buckets of which a lease is half used.
    half_used: Vec<usize>,
    index: &'a mut BucketIndex,
    secret: &'a [u8; 32],
    now: Instant,
}

impl<R: Requester> Batch<R> {
    /// Removes from the front of `commands` what becomes one call.
    pub(super) fn build<C: Connection>(
        commands: &mut VecDeque<Command<R>>,
        index: &mut BucketIndex,
        queue_time: &mut QueueTime,
        context: &Context<C>,
    ) -> Self {
        index.clear();
        let (now, timeout) = (Instant::now(), context.connection.call_timeout());
        let mut builder = Builder {
            batch: Self {
                part: context.connection.part(),
                buckets: Vec::with_capacity(commands.len().min(MOST_BUCKETS)),
                steps: Vec::new(),
                ahead: TakenAhead::default(),
                length: 0,
            },
            weight: 0,
            half_used: Vec::new(),
            index,
            secret: context.keyspace.secret(),
            now,
        };
        let mut longest = None;
        let mut postponed = Vec::new();
        let takes_ahead = context.leases.are_on() && context.connection.is_steady();
        while builder.batch.length < MOST_COMMANDS
            && let Some(command) = commands.pop_front()
        {
            let command = match command {
                Command::Take { request, queued_at } => {
                    let queued = now.duration_since(queued_at);
                    // The first one has been queued for the longest time.
                    let longest =
                        *longest.get_or_insert_with(|| queue_time.longest(queued, timeout, now));
                    if !request.is_wanted() || queued > longest {
                        // Cancelled before it was sent, so nothing was taken. Or more is requested
                        // than Redis decides in time.
                        request.answer(Err(Failure::new(
                            FailureKind::Overloaded,
                            "Redis answers, but not as fast as requests are queued for it",
                        )));
                        continue;
                    }
                    Command::Take { request, queued_at }
                }
                // No call for what will not be requested.
                Command::Lease(_) if !takes_ahead => continue,
                command => command,
            };
            match builder.add(command) {
                Ok(()) => builder.batch.length += 1,
                Err((Unfit::Full, command)) => {
                    commands.push_front(command);
                    break;
                }
                Err((Unfit::OtherQuota, command)) => {
                    postponed.push(command);
                    if postponed.len() >= MOST_POSTPONED {
                        break;
                    }
                }
                // Answered by being dropped.
                Err((Unfit::Contradictory, command)) => drop(command),
            }
        }
        // In front of everything else: the next call has their quota.
        for command in postponed.into_iter().rev() {
            commands.push_front(command);
        }
        let Builder {
            mut batch,
            half_used,
            ..
        } = builder;
        if takes_ahead {
            let (buckets, takes) = (&batch.buckets, batch.takes());
            batch.ahead = TakenAhead::request(&context.leases, buckets, takes, &half_used);
        }
        batch
    }
}

impl<R: Requester> Builder<'_, R> {
    /// Adds a command, or returns it.
    ///
    /// Requests by two quotas may overtake each other within a call, as those of two processes do.
    /// An operation is not overtaken: whoever made it relies on it in later requests.
    fn add(&mut self, command: Command<R>) -> Result<(), (Unfit, Command<R>)> {
        match command {
            Command::Take { request, queued_at } => {
                let max_wait_us = MergedTake::wait_left(&request, self.now - queued_at);
                let added = match request.scopes() {
                    [_] => self.take(request, max_wait_us),
                    _ => self.take_several(request, max_wait_us),
                };
                added.map_err(|(unfit, request)| (unfit, Command::Take { request, queued_at }))
            }
            Command::Op(queued) => {
                let added = self.op(queued);
                added.map_err(|(unfit, queued)| (unfit, Command::Op(queued)))
            }
            // How much is taken is decided when all requests are known.
            Command::Lease(half_used) => {
                let (buckets, scope) = (&mut self.batch.buckets, &half_used.0);
                match self.index.find_or_add(buckets, scope, self.secret) {
                    Ok(bucket) => self.half_used.push(bucket),
                    Err(unfit) => return Err((unfit, Command::Lease(half_used))),
                }
                Ok(())
            }
        }
    }

    /// Adds a request for one bucket.
    fn take(
        &mut self,
        request: PendingRequest<R>,
        max_wait_us: f64,
    ) -> Result<(), (Unfit, PendingRequest<R>)> {
        let is_full = self.is_full(1);
        let batch = &mut self.batch;
        let scope = &request.scopes()[0];
        let index = match self
            .index
            .find_or_add(&mut batch.buckets, scope, self.secret)
        {
            Ok(index) => index,
            Err(unfit) => return Err((unfit, request)),
        };
        let bucket = &mut batch.buckets[index];
        let last = match bucket.last {
            Last::Nothing | Last::Several => None,
            Last::First => bucket.first.as_mut(),
            Last::Step(step) => match &mut batch.steps[step] {
                Step::Take(take) => Some(take),
                Step::Op(..) => None,
            },
        };
        let request = match last {
            Some(take) => match take.merge(request, max_wait_us) {
                Ok(()) => return Ok(()),
                Err(request) => request,
            },
            None => request,
        };
        if let Last::Nothing = bucket.last {
            bucket.last = Last::First;
            bucket.first = Some(MergedTake::one(index, request, max_wait_us));
            return Ok(());
        }
        if is_full {
            return Err((Unfit::Full, request));
        }
        bucket.last = Last::Step(batch.steps.len());
        self.step(Step::Take(MergedTake::one(index, request, max_wait_us)), 1);
        Ok(())
    }

    /// Adds a request for several buckets.
    fn take_several(
        &mut self,
        request: PendingRequest<R>,
        max_wait_us: f64,
    ) -> Result<(), (Unfit, PendingRequest<R>)> {
        let weight = request.scopes().len();
        if self.is_full(weight) {
            return Err((Unfit::Full, request));
        }
        let buckets = &mut self.batch.buckets;
        let before = buckets.len();
        let mut indexes = Vec::with_capacity(weight);
        for scope in request.scopes() {
            match self.index.find_or_add(buckets, scope, self.secret) {
                Ok(index) => indexes.push(index),
                Err(unfit) => {
                    self.index.truncate(buckets, before);
                    let unfit = if before > 0 {
                        unfit
                    } else {
                        Unfit::Contradictory
                    };
                    return Err((unfit, request));
                }
            }
        }
        for index in &indexes {
            buckets[*index].last = Last::Several;
        }
        let take = MergedTake::several(indexes, request, max_wait_us);
        self.step(Step::Take(take), weight);
        Ok(())
    }

    /// Adds an operation.
    fn op(&mut self, queued: Box<QueuedOp>) -> Result<(), (Unfit, Box<QueuedOp>)> {
        if self.is_full(1) {
            return Err((Unfit::Full, queued));
        }
        let batch = &mut self.batch;
        let (buckets, scope) = (&mut batch.buckets, &queued.scope);
        let index = match self.index.find_or_add(buckets, scope, self.secret) {
            Ok(index) => index,
            Err(unfit) => {
                if let Unfit::OtherQuota = unfit {
                    buckets[self.index.last()].is_closed = true;
                }
                return Err((unfit, queued));
            }
        };
        let bucket = &mut buckets[index];
        let is_last = |step: &usize| matches!(bucket.last, Last::Step(last) if last == *step);
        let earlier = bucket
            .last_op
            .filter(|step| queued.op.overtakes_requests() || is_last(step));
        if let Some(Step::Op(_, earlier)) = earlier.map(|step| &mut batch.steps[step])
            && earlier.merge(&queued)
        {
            return Ok(());
        }
        let step = batch.steps.len();
        (bucket.last, bucket.last_op) = (Last::Step(step), Some(step));
        self.step(Step::Op(index, queued), 1);
        Ok(())
    }

    fn step(&mut self, step: Step<R>, weight: usize) {
        self.weight += weight;
        self.batch.steps.push(step);
    }

    /// Whether steps of this weight are too many. There is always room in an empty call.
    fn is_full(&self, weight: usize) -> bool {
        self.weight > 0 && self.weight + weight > MOST_STEPS
    }
}
