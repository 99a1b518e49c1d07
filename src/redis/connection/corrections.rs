//! The calls that correct buckets after an outage: levels that were lost, reservations that were
//! cancelled, and tokens that memory granted. No I/O.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    bucket::{BucketParams, Debt},
    clock::from_us,
    redis::{
        level_cache::{LastLevel, LevelCache},
        op::Op,
        script::{Arguments, First, Reply},
    },
    scope::{BucketId, Keyspace, Scope},
};

/// The most buckets in one call: one of the 128 is the marker of the write-back.
const MOST_BUCKETS: usize = 127;

/// How long Redis keeps the marker of a write-back that was executed.
const MARKER_KEPT: Duration = Duration::from_secs(3_600);

/// One call of the script.
pub(super) struct Call {
    pub(super) arguments: Arguments,
    /// The last buckets of the call, in their order.
    buckets: Vec<(Box<[u8]>, BucketParams)>,
}

impl Call {
    /// Updates the level cache from the reply. So the charges of this call survive if Redis loses
    /// its data before the next request.
    pub(super) fn update_levels(&self, reply: &[u8], sent: Instant, levels: &LevelCache) {
        let all = self.arguments.buckets();
        let Some(reply) = Reply::new(reply, all, 0) else {
            return;
        };
        let first = all - self.buckets.len();
        for (index, (id, params)) in self.buckets.iter().enumerate() {
            let state = reply.state(first + index, *params);
            levels.update(id, *params, state, sent, false);
        }
    }
}

/// Lowers each bucket to its last reported level. Repeating it changes nothing.
pub(super) fn cap_levels(keyspace: &Keyspace, levels: &[LastLevel]) -> impl Iterator<Item = Call> {
    levels.chunks(MOST_BUCKETS).map(|buckets| {
        let mut arguments = Arguments::with_buckets(keyspace, buckets.len());
        for bucket in buckets {
            arguments.bucket(keyspace, &bucket.id, bucket.params, First::NONE);
        }
        for (index, bucket) in buckets.iter().enumerate() {
            let tokens = bucket.level;
            arguments.op(index, Op::CapLevel { tokens });
        }
        Call {
            arguments,
            buckets: buckets
                .iter()
                .map(|bucket| (bucket.id.clone(), bucket.params))
                .collect(),
        }
    })
}

/// Delivers operations on many buckets. Those on one bucket keep their order.
pub(super) fn corrections(keyspace: &Keyspace, corrections: &[(Scope, Op)]) -> Vec<Call> {
    let mut buckets: Vec<(BucketId, BucketParams, Vec<Op>)> = Vec::new();
    let mut places: HashMap<Box<[u8]>, usize> = HashMap::new();
    for (scope, op) in corrections {
        let id = scope.id(keyspace.secret());
        let place = *places.entry(id.as_bytes().into()).or_insert_with(|| {
            buckets.push((id, scope.params(), Vec::new()));
            buckets.len() - 1
        });
        buckets[place].2.push(*op);
    }
    let calls = buckets.chunks(MOST_BUCKETS).map(|buckets| {
        let mut arguments = Arguments::with_buckets(keyspace, buckets.len());
        for (id, params, _) in buckets {
            arguments.bucket(keyspace, id.as_bytes(), *params, First::NONE);
        }
        for (index, (.., ops)) in buckets.iter().enumerate() {
            for op in ops {
                arguments.op(index, *op);
            }
        }
        Call {
            arguments,
            buckets: buckets
                .iter()
                .map(|(id, params, _)| (id.as_bytes().into(), *params))
                .collect(),
        }
    });
    calls.collect()
}

/// Tokens to charge once, with a number that identifies them. The amounts do not change after that,
/// so that a call without a reply can be repeated. Tokens taken later get another number.
#[derive(Debug)]
pub(super) struct WriteBack {
    number: u64,
    since: Instant,
    debts: Vec<Debt>,
}

/// Write-backs that Redis has not confirmed.
#[derive(Debug, Default)]
pub(super) struct WriteBacks {
    open: VecDeque<WriteBack>,
    last: u64,
}

impl WriteBacks {
    pub(super) fn add(&mut self, debts: &[Debt], now: Instant) {
        for debts in debts.chunks(MOST_BUCKETS) {
            self.last += 1;
            self.open.push_back(WriteBack {
                number: self.last,
                since: now,
                debts: debts.to_vec(),
            });
        }
    }

    pub(super) fn first(&self) -> Option<&WriteBack> {
        self.open.front()
    }

    /// Removes this write-back, if it is still the first.
    pub(super) fn confirm(&mut self, number: u64) {
        if self
            .open
            .front()
            .is_some_and(|first| first.number == number)
        {
            self.open.pop_front();
        }
    }
}

impl WriteBack {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn call(&self, keyspace: &Keyspace, limiter: &str, now: Instant) -> Call {
        let mut arguments = Arguments::new(keyspace);
        // The marker is a bucket that this call empties. It is full again when it is not needed any
        // more.
        let marker = format!("paid:{limiter}:{}", self.number);
        let marker_params = BucketParams::new(1.0, MARKER_KEPT.as_secs_f64().recip());
        arguments.own_bucket(keyspace, &marker, marker_params);
        // A debt is forgiven once it would have refilled if it had been charged to an empty bucket
        // at the start.
        let age = now.saturating_duration_since(self.since);
        let due: Vec<_> = self
            .debts
            .iter()
            .filter(|debt| {
                age < from_us((debt.params.capacity + debt.tokens.max(0.0)) / debt.params.per_us)
            })
            .collect();
        for debt in &due {
            arguments.bucket(keyspace, &debt.id, debt.params, First::NONE);
        }
        arguments.op(0, Op::EmptyOrStop);
        for (index, debt) in due.iter().enumerate() {
            let op = match debt.tokens > 0.0 {
                true => Op::WriteBack {
                    tokens: debt.tokens,
                    wait_us: debt.wait_us,
                    largest_cost: debt.largest_cost,
                },
                false => Op::GiveBack {
                    tokens: -debt.tokens,
                },
            };
            arguments.op(index + 1, op);
        }
        Call {
            arguments,
            buckets: due
                .iter()
                .map(|debt| (debt.id.clone(), debt.params))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
