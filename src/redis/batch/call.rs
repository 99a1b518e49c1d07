//! One call: its buckets and steps, their encoding, and the answers from its reply.

use tokio::time::Instant;

use super::{
    bucket::{CallBucket, Last, MOST_BUCKETS},
    connection::Connection,
    context::Context,
    leases::TakenAhead,
    merged_take::{MergedTake, Results},
    request::Requester,
};
use crate::{
    decision::Failure,
    peers::RatePart,
    redis::{
        bucket_state::BucketState,
        ledger::Ledger,
        op::QueuedOp,
        script::{Arguments, First, Reply},
    },
    scope::Keyspace,
};

/// Commands that go to Redis as one call.
pub(super) struct Batch<R: Requester> {
    /// By which part of their rates buckets refill while peers are missing.
    pub(super) part: RatePart,
    pub(super) buckets: Vec<CallBucket<R>>,
    /// Everything but the first requests, in order.
    pub(super) steps: Vec<Step<R>>,
    /// Comes after all steps.
    pub(super) ahead: TakenAhead,
    /// How many commands the call is made of.
    pub(super) length: usize,
}

pub(super) enum Step<R: Requester> {
    Take(MergedTake<R>),
    /// On this bucket.
    Op(usize, Box<QueuedOp>),
}

impl<R: Requester> Batch<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Whether it has room for no other bucket.
    pub(super) fn is_full(&self) -> bool {
        self.buckets.len() == MOST_BUCKETS
    }

    /// The last request for a bucket, which an equal one may join.
    pub(super) fn last_take(&mut self, bucket: usize) -> Option<&mut MergedTake<R>> {
        let bucket = &mut self.buckets[bucket];
        match bucket.last {
            Last::Nothing | Last::Several => None,
            Last::First => bucket.first.as_mut(),
            Last::Step(step) => match &mut self.steps[step] {
                Step::Take(take) => Some(take),
                Step::Op(..) => None,
            },
        }
    }

    /// All requests for tokens: the first ones, then the others.
    pub(super) fn takes(&self) -> impl Iterator<Item = &MergedTake<R>> {
        let firsts = self.buckets.iter();
        firsts
            .filter_map(|bucket| bucket.first.as_ref())
            .chain(self.later_takes())
    }

    fn later_takes(&self) -> impl Iterator<Item = &MergedTake<R>> {
        self.steps.iter().filter_map(|step| match step {
            Step::Take(take) => Some(take),
            Step::Op(..) => None,
        })
    }

    /// How many answers the reply has, those of the first requests aside.
    pub(super) fn answers(&self) -> usize {
        self.later_takes().count() + self.ahead.len()
    }

    pub(super) fn arguments(&self, keyspace: &Keyspace) -> Arguments {
        let mut arguments = Arguments::with_buckets(keyspace, self.buckets.len());
        for bucket in &self.buckets {
            let first = bucket.first.as_ref();
            let first = first.map_or(First::NONE, |first| first.to_first(self.part));
            let params = bucket.params.slower(self.part.of_rate);
            arguments.bucket(keyspace, bucket.id.as_bytes(), params, first);
        }
        for step in &self.steps {
            match step {
                Step::Take(take) => take.encode(&mut arguments, self.part),
                Step::Op(bucket, queued) => arguments.op(*bucket, queued.to_send()),
            }
        }
        self.ahead.encode(&mut arguments);
        arguments
    }

    /// Answers all requests; `sent` is when the call was sent.
    pub(super) fn answer<C: Connection>(
        self,
        reply: &Reply<'_>,
        context: &Context<C>,
        sent: Instant,
    ) {
        let params: Vec<_> = self.buckets.iter().map(|bucket| bucket.params).collect();
        let states = params.iter().enumerate();
        let states: Vec<_> = states
            .map(|(bucket, params)| reply.state(bucket, *params))
            .collect();
        // First, so that callers who are answered find the new levels.
        self.update_levels(reply, &states, context, sent);
        let results = Results {
            received: Instant::now(),
            part: self.part,
            time: reply.time(),
            params: &params,
            states: &states,
        };
        let takes = self.later_takes().count();
        let answers = (takes..).map(|nth| reply.answer(nth));
        self.ahead.answer(answers, &states, sent);
        for (index, bucket) in self.buckets.into_iter().enumerate() {
            if let Some(first) = bucket.first {
                let answer = reply.first(index, first.len() as u32);
                first.answer(answer, &results);
            }
        }
        let mut nth = 0;
        for step in self.steps {
            match step {
                Step::Take(take) => {
                    take.answer(reply.answer(nth), &results);
                    nth += 1;
                }
                Step::Op(bucket, queued) => queued.answer(states[bucket].level),
            }
        }
    }

    fn update_levels<C: Connection>(
        &self,
        reply: &Reply<'_>,
        states: &[BucketState],
        context: &Context<C>,
        sent: Instant,
    ) {
        let mut rejects = vec![false; self.buckets.len()];
        let buckets = self.buckets.iter().enumerate();
        let firsts = buckets.filter_map(|(index, bucket)| {
            let first = bucket.first.as_ref()?;
            Some(reply.first(index, first.len() as u32))
        });
        let answers = firsts.chain((0..).map(|nth| reply.answer(nth)));
        for (take, answer) in self.takes().zip(answers) {
            if let Some(bucket) = take.rejected_by(answer) {
                rejects[bucket] = true;
            }
        }
        for (index, bucket) in self.buckets.iter().enumerate() {
            if states[index].pause_us > 0.0 {
                context.leases.forget(&bucket.id);
                context.connection.pause_reported();
            }
            let (id, params) = (bucket.id.as_bytes(), bucket.params);
            context
                .levels
                .update(id, params, states[index], sent, rejects[index]);
        }
    }

    /// Not delivered: because of `failure`, or because the task that sends it ended.
    pub(super) fn undelivered(
        self,
        maybe_executed: bool,
        failure: Option<&Failure>,
        ledger: &dyn Ledger,
    ) {
        let firsts = self.buckets.into_iter().filter_map(|bucket| bucket.first);
        firsts.for_each(|first| first.undelivered(failure));
        for step in self.steps {
            match step {
                Step::Take(take) => take.undelivered(failure),
                Step::Op(_, queued) => queued.undelivered(maybe_executed, failure, ledger),
            }
        }
    }
}
