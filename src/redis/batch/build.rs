//! Makes one call of what is queued: which commands fit, which are merged, which are left.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    bucket::{BucketIndex, Last, MOST_BUCKETS, Unfit},
    call::{Batch, Step},
    command::Command,
    connection::Connection,
    context::Context,
    leases::TakenAhead,
    merged_take::MergedTake,
    queue_time::QueueTime,
    request::{PendingRequest, Requester},
};
use crate::{
    decision::{Failure, FailureKind},
    redis::op::QueuedOp,
    scope::Scope,
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
                        request.fail(Failure::new(
                            FailureKind::Overloaded,
                            "Redis answers, but not as fast as requests are queued for it",
                        ));
                        continue;
                    }
                    Command::Take { request, queued_at }
                }
                // No call for what will not be requested.
                Command::Lease(_) if !takes_ahead => continue,
                command => command,
            };
            match builder.fit(&command) {
                Ok(place) => builder.add(command, place),
                Err(Unfit::Full) => {
                    commands.push_front(command);
                    break;
                }
                Err(Unfit::OtherQuota) => {
                    postponed.push(command);
                    if postponed.len() >= MOST_POSTPONED {
                        break;
                    }
                }
                // Answered by being dropped.
                Err(Unfit::Contradictory) => drop(command),
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

/// Which buckets of the call a command is about: one, or several, each with its cost.
struct Place {
    bucket: usize,
    several: Vec<(usize, f64)>,
}

impl<R: Requester> Builder<'_, R> {
    /// Finds the buckets of a command, if it may be part of this call.
    ///
    /// Requests by two quotas may overtake each other within a call, as those of two processes do.
    /// An operation is not overtaken: its caller relies on it in later requests.
    fn fit(&mut self, command: &Command<R>) -> Result<Place, Unfit> {
        let [scope] = command.scopes() else {
            return self.fit_several(command.scopes());
        };
        let is_op = matches!(command, Command::Op(_));
        if is_op && self.is_full(1) {
            return Err(Unfit::Full);
        }
        let buckets = &mut self.batch.buckets;
        let found = self.index.find_or_add(buckets, scope, self.secret);
        if is_op && let Err(Unfit::OtherQuota) = found {
            buckets[self.index.last()].is_closed = true;
        }
        let bucket = found?;
        if let Command::Take { request, queued_at } = command
            && self.is_full(1)
            && !matches!(self.batch.buckets[bucket].last, Last::Nothing)
        {
            let wait_us = request.wait_left(self.now - *queued_at);
            let last = self.batch.last_take(bucket);
            if !last.is_some_and(|last| last.admits(scope.tokens(), wait_us)) {
                return Err(Unfit::Full);
            }
        }
        let several = Vec::new();
        Ok(Place { bucket, several })
    }

    fn fit_several(&mut self, scopes: &[Scope]) -> Result<Place, Unfit> {
        if self.is_full(scopes.len()) {
            return Err(Unfit::Full);
        }
        let buckets = &mut self.batch.buckets;
        let before = buckets.len();
        let mut several = Vec::with_capacity(scopes.len());
        for scope in scopes {
            match self.index.find_or_add(buckets, scope, self.secret) {
                Ok(bucket) => several.push((bucket, scope.tokens())),
                Err(unfit) => {
                    self.index.truncate(buckets, before);
                    return Err(if before > 0 {
                        unfit
                    } else {
                        Unfit::Contradictory
                    });
                }
            }
        }
        let bucket = self.index.last();
        Ok(Place { bucket, several })
    }

    fn add(&mut self, command: Command<R>, place: Place) {
        self.batch.length += 1;
        match command {
            Command::Take { request, queued_at } => {
                let wait_us = request.wait_left(self.now - queued_at);
                match place.several.is_empty() {
                    true => self.take(place.bucket, request, wait_us),
                    false => self.take_several(place.several, request, wait_us),
                }
            }
            Command::Op(queued) => self.op(place.bucket, queued),
            // How much is taken is decided when all requests are known.
            Command::Lease(_) => self.half_used.push(place.bucket),
        }
    }

    fn take(&mut self, index: usize, request: PendingRequest<R>, wait_us: f64) {
        let cost = request.scopes()[0].tokens();
        if let Some(last) = self.batch.last_take(index)
            && last.admits(cost, wait_us)
        {
            last.push(request, wait_us);
            return;
        }
        let take = MergedTake::one(index, request, wait_us);
        let bucket = &mut self.batch.buckets[index];
        if let Last::Nothing = bucket.last {
            bucket.last = Last::First;
            bucket.first = Some(take);
        } else {
            bucket.last = Last::Step(self.batch.steps.len());
            self.step(Step::Take(take), 1);
        }
    }

    fn take_several(&mut self, costs: Vec<(usize, f64)>, request: PendingRequest<R>, wait_us: f64) {
        for (index, _) in &costs {
            self.batch.buckets[*index].last = Last::Several;
        }
        let weight = costs.len();
        let take = MergedTake::several(costs, request, wait_us);
        self.step(Step::Take(take), weight);
    }

    fn op(&mut self, index: usize, queued: Box<QueuedOp>) {
        let Batch { buckets, steps, .. } = &mut self.batch;
        let bucket = &mut buckets[index];
        let is_last = |step: &usize| matches!(bucket.last, Last::Step(last) if last == *step);
        let overtakes = queued.op.overtakes_requests();
        let earlier = bucket.last_op.filter(|step| overtakes || is_last(step));
        if let Some(Step::Op(_, earlier)) = earlier.map(|step| &mut steps[step])
            && earlier.merge(&queued)
        {
            return;
        }
        bucket.last = Last::Step(steps.len());
        bucket.last_op = Some(steps.len());
        self.step(Step::Op(index, queued), 1);
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
