//! One call: its buckets and steps, their encoding, and the answers from its reply.

use tokio::time::Instant;

use crate::{
    decision::Failure,
    peers::RatePart,
    redis::{
        batch::{
            bucket::CallBucket,
            connection::Connection,
            context::Context,
            leases::TakenAhead,
            merged_take::{MergedTake, Results},
            request::Requester,
        },
        ledger::Ledger,
        level_cache::BucketState,
        op::QueuedOp,
        script::{Argument, First, Reply},
    },
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

    /// All requests for tokens.
    pub(super) fn takes(&self) -> impl Iterator<Item = &MergedTake<R>> {
        let firsts = self
            .buckets
            .iter()
            .filter_map(|bucket| bucket.first.as_ref());
        firsts.chain(self.steps.iter().filter_map(|step| match step {
            Step::Take(take) => Some(take),
            Step::Op(..) => None,
        }))
    }

    fn step_answers(&self) -> usize {
        let is_take = |step: &&Step<R>| matches!(step, Step::Take(_));
        self.steps.iter().filter(is_take).count()
    }

    /// How many answers the reply has, those of the first requests aside.
    pub(super) fn answers(&self) -> usize {
        self.step_answers() + self.ahead.len()
    }

    pub(super) fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::with_buckets(self.buckets.len());
        for bucket in &self.buckets {
            let first = bucket.first.as_ref();
            let first = first.map_or(First::NONE, |first| first.to_first(self.part));
            argument.bucket(bucket.params.slower(self.part.of_rate), first);
        }
        for step in &self.steps {
            match step {
                Step::Take(take) => take.encode(&mut argument, self.part),
                Step::Op(bucket, queued) => argument.op(*bucket, queued.to_send()),
            }
        }
        self.ahead.encode(&mut argument);
        argument.into_bytes()
    }

    /// Answers everybody; `sent` is when the call was sent.
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
        // First, so that whoever is answered finds the new levels.
        self.update_levels(reply, &states, context, sent);
        let results = Results {
            part: self.part,
            time: reply.time(),
            params: &params,
            states: &states,
        };
        let of_leases = (self.step_answers()..).map(|nth| reply.answer(nth));
        self.ahead.answer(of_leases, &states, sent);
        for (index, bucket) in self.buckets.into_iter().enumerate() {
            if let Some(first) = bucket.first {
                first.answer(reply.first(index), &results);
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
        let firsts = self.buckets.iter().enumerate();
        let firsts = firsts.filter_map(|(index, bucket)| {
            let first = bucket.first.as_ref()?;
            first.rejected_by(reply.first(index))
        });
        firsts.for_each(|bucket| rejects[bucket] = true);
        let mut nth = 0;
        for step in &self.steps {
            if let Step::Take(take) = step {
                if let Some(bucket) = take.rejected_by(reply.answer(nth)) {
                    rejects[bucket] = true;
                }
                nth += 1;
            }
        }
        for (index, bucket) in self.buckets.iter().enumerate() {
            if states[index].pause_us > 0.0 {
                context.leases.forget(&bucket.id);
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
