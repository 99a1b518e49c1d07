//! What is told to a Redis that is back, before anybody is served by it: how low the buckets
//! were, if it has lost them, and what memory granted meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::redis::{
    level_cache::{LastLevel, LevelCache},
    op::Op,
    script::{Argument, First, Reply},
};
use crate::{
    bucket::{BucketParams, Debt, Reservation},
    clock::from_us,
    scope::{BucketId, Keyspace, Scope},
};

/// Buckets in one call.
const MOST_BUCKETS: usize = 127;

/// For so long Redis remembers that a payment was made.
const PAID: Duration = Duration::from_secs(3_600);

/// One call of the script.
pub(crate) struct Call {
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) argument: Vec<u8>,
    /// The buckets of the last so many keys.
    buckets: Vec<(Box<[u8]>, BucketParams)>,
}

impl Call {
    /// What the reply tells of the buckets. If Redis loses them before it is asked again, what
    /// was charged here must not be forgotten with them.
    pub(crate) fn learn(&self, reply: &[u8], sent: Instant, known: &LevelCache) {
        let keys = self.keys.len();
        let Some(reply) = Reply::new(reply, keys, 0) else {
            return;
        };
        let first = keys - self.buckets.len();
        for (index, (id, params)) in self.buckets.iter().enumerate() {
            known.update(id, *params, reply.level(first + index), sent, false);
        }
    }
}

/// Leaves in each bucket no more than is remembered. Doing it twice does no harm.
pub(crate) fn lower(keyspace: &Keyspace, remembered: &[LastLevel]) -> impl Iterator<Item = Call> {
    remembered.chunks(MOST_BUCKETS).map(|buckets| {
        let mut argument = Argument::default();
        for bucket in buckets {
            argument.bucket(bucket.params, First::NONE);
        }
        for (index, bucket) in buckets.iter().enumerate() {
            let tokens = bucket.level;
            argument.op(index, Op::CapLevel { tokens });
        }
        Call {
            keys: buckets
                .iter()
                .map(|bucket| keyspace.bucket(&bucket.id))
                .collect(),
            argument: argument.into_bytes(),
            buckets: buckets
                .iter()
                .map(|bucket| (bucket.id.clone(), bucket.params))
                .collect(),
        }
    })
}

/// Undoes reservations whose callers have gone away while Redis could not be told. Where a call is
/// lost, their tokens come back by the refill.
pub(crate) fn undo(keyspace: &Keyspace, gone: &[(Scope, Reservation)]) -> Vec<Call> {
    let mut buckets: Vec<(BucketId, BucketParams, Vec<Reservation>)> = Vec::new();
    let mut places: HashMap<Box<[u8]>, usize> = HashMap::new();
    for (scope, reservation) in gone {
        let id = scope.id(keyspace.secret());
        let place = *places.entry(id.as_bytes().into()).or_insert_with(|| {
            buckets.push((id, scope.params(), Vec::new()));
            buckets.len() - 1
        });
        buckets[place].2.push(*reservation);
    }
    let calls = buckets.chunks(MOST_BUCKETS).map(|buckets| {
        let mut argument = Argument::default();
        for (_, params, _) in buckets {
            argument.bucket(*params, First::NONE);
        }
        for (index, (.., reservations)) in buckets.iter().enumerate() {
            // The last of a queue first, so that the one before it is the last then.
            for reservation in reservations.iter().rev() {
                argument.op(index, Op::Undo(*reservation));
            }
        }
        Call {
            keys: buckets
                .iter()
                .map(|(id, ..)| keyspace.bucket(id.as_bytes()))
                .collect(),
            argument: argument.into_bytes(),
            buckets: buckets
                .iter()
                .map(|(id, params, _)| (id.as_bytes().into(), *params))
                .collect(),
        }
    });
    calls.collect()
}

/// What is to be charged once, under a number of its own: charged again because no reply came,
/// the amounts stay those of the number, and what was spent later has another.
#[derive(Debug)]
pub(crate) struct Payment {
    number: u64,
    since: Instant,
    owed: Vec<Debt>,
}

/// Payments that Redis has not confirmed.
#[derive(Debug, Default)]
pub(crate) struct Payments {
    open: VecDeque<Payment>,
    last: u64,
}

impl Payments {
    pub(crate) fn add(&mut self, owed: &[Debt], now: Instant) {
        for owed in owed.chunks(MOST_BUCKETS) {
            self.last += 1;
            self.open.push_back(Payment {
                number: self.last,
                since: now,
                owed: owed.to_vec(),
            });
        }
    }

    pub(crate) fn first(&self) -> Option<&Payment> {
        self.open.front()
    }

    /// This one was confirmed, if it is still the first.
    pub(crate) fn confirm(&mut self, number: u64) {
        if self
            .open
            .front()
            .is_some_and(|first| first.number == number)
        {
            self.open.pop_front();
        }
    }
}

impl Payment {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn call(&self, keyspace: &Keyspace, limiter: &str, now: Instant) -> Call {
        let mut argument = Argument::default();
        // A bucket that is emptied by the payment, and full again when it is forgotten.
        argument.bucket(
            BucketParams::new(1.0, PAID.as_secs_f64().recip()),
            First::NONE,
        );
        let mut keys = vec![keyspace.own(&format!("#paid:{limiter}:{}", self.number))];
        // Not charged in the time in which an empty bucket would have refilled in spite of it, it
        // is forgiven, as if it had been charged then.
        let age = now.saturating_duration_since(self.since);
        let due: Vec<_> = self
            .owed
            .iter()
            .filter(|owed| {
                age < from_us((owed.params.capacity + owed.tokens.max(0.0)) / owed.params.per_us)
            })
            .collect();
        for owed in &due {
            keys.push(keyspace.bucket(&owed.id));
            argument.bucket(owed.params, First::NONE);
        }
        argument.op(0, Op::EmptyOrStop);
        for (index, owed) in due.iter().enumerate() {
            let op = match owed.tokens > 0.0 {
                true => Op::WriteBack {
                    tokens: owed.tokens,
                    wait_us: owed.wait_us,
                    largest_cost: owed.largest_cost,
                },
                false => Op::GiveBack {
                    tokens: -owed.tokens,
                },
            };
            argument.op(index + 1, op);
        }
        Call {
            keys,
            argument: argument.into_bytes(),
            buckets: due
                .iter()
                .map(|owed| (owed.id.clone(), owed.params))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(n: usize) -> Vec<Debt> {
        (0..n)
            .map(|n| Debt {
                id: format!("s{n}").into_bytes().into(),
                params: BucketParams::new(10.0, 1.0),
                tokens: 3.0,
                wait_us: 0.0,
                largest_cost: 0.0,
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn amounts_are_frozen_with_their_number() {
        let mut payments = Payments::default();
        payments.add(&owed(1), Instant::now());
        let call = |payments: &Payments| {
            let call = payments
                .first()
                .map(|first| first.call(&Keyspace::new("p:", [0; 32]), "me", Instant::now()));
            call.map(|call| (call.keys, call.argument))
        };
        let first = call(&payments).expect("one");
        payments.add(&owed(300), Instant::now());
        assert_eq!(call(&payments), Some(first), "as it was, until confirmed");
        let mut seen = Vec::new();
        while let Some((keys, _)) = call(&payments) {
            assert!(keys.len() <= 128);
            seen.push((
                String::from_utf8(keys[0].clone()).expect("text"),
                keys.len(),
            ));
            payments.confirm(seen.len() as u64);
        }
        assert_eq!(
            seen,
            [
                ("p:|#paid:me:1".to_owned(), 2),
                ("p:|#paid:me:2".to_owned(), 128),
                ("p:|#paid:me:3".to_owned(), 128),
                ("p:|#paid:me:4".to_owned(), 47),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_refilled_meanwhile_is_forgiven() {
        let mut payments = Payments::default();
        payments.add(&owed(1), Instant::now());
        let keys = |payments: &Payments| {
            let first = payments.first().expect("one");
            first
                .call(&Keyspace::new("p:", [0; 32]), "me", Instant::now())
                .keys
                .len()
        };
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!(keys(&payments), 2);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(keys(&payments), 1);
    }
}
