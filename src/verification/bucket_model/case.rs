//! What can happen, and what a run of it showed.

use crate::bucket::BucketParams;

use super::record::Record;

/// The most buckets of one case.
pub(crate) const BUCKETS: usize = 3;

/// The law, or one that a search must find wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Law {
    Real,
    /// No pool: what is given back raises the level.
    Plain,
    /// A cancelled sleeper's slot is given back at once, not when its turn comes.
    Early,
    /// Several buckets are all taken at once, and used after the longest wait.
    AllAtOnce,
    /// Of several buckets the slowest is taken first, and kept while the rest is waited for.
    Kept,
}

/// What becomes of a grant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Use,
    /// Not used at its turn: `Finish` refunds it, `Late` uses it.
    Hold,
    /// This part of it used, the rest given back by `Finish`.
    Part(f64),
    /// Used, and so much more, charged by `Finish`.
    Over(f64),
}

/// `id`s are said by the `Take`, not counted, so that removing an operation keeps the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Wait(f64),
    /// `n` equal demands, with consecutive ids; zero asks nothing of a bucket.
    Take {
        id: u32,
        n: u32,
        costs: [f64; BUCKETS],
        max_wait: f64,
        fate: Fate,
    },
    Cancel(u32),
    Finish(u32),
    Late(u32),
    /// The server's clock jumps.
    Step(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) params: Vec<BucketParams>,
    /// A cancelled sleeper's slot goes to the next sleeper of the same process, bucket and cost.
    pub(crate) hand_over: bool,
    pub(crate) ops: Vec<Op>,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// By how much the worst window breaks the promise.
    pub(crate) excess: f64,
    /// Somebody got an earlier turn than one who came before, and not from the pool.
    pub(crate) out_of_turn: bool,
    pub(crate) seen: Seen,
    /// When and how much, per bucket.
    pub(crate) records: Vec<Record>,
}

/// What happened at all: a search that never meets a case says nothing about it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) slept: u64,
    pub(crate) pooled: u64,
    pub(crate) cancelled: u64,
    pub(crate) handed_over: u64,
    pub(crate) refunded: u64,
    pub(crate) charged: u64,
    pub(crate) second_waits: u64,
    pub(crate) second_refusals: u64,
    pub(crate) undone: u64,
    pub(crate) filled: u64,
    pub(crate) realigned: u64,
    pub(crate) stated: u64,
}

impl Seen {
    fn counts(&mut self) -> [&mut u64; 12] {
        [
            &mut self.slept,
            &mut self.pooled,
            &mut self.cancelled,
            &mut self.handed_over,
            &mut self.refunded,
            &mut self.charged,
            &mut self.second_waits,
            &mut self.second_refusals,
            &mut self.undone,
            &mut self.filled,
            &mut self.realigned,
            &mut self.stated,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = *other;
        for (sum, more) in self.counts().into_iter().zip(other.counts()) {
            *sum += *more;
        }
    }
}
