//! The operations of a case, and the outcome of a run.

use super::record::Record;
use crate::bucket::BucketParams;

/// The maximum number of buckets in a case.
pub(crate) const BUCKETS: usize = 3;

/// The bucket model, or a wrong one that a search must find wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Model {
    Real,
    /// Tokens that are given back always raise the level.
    RaisesLevel,
    /// A cancelled reservation is given back at once, not when it is due.
    GivesBackEarly,
    /// Several buckets are all taken from at once, and their tokens used after the longest wait.
    AllAtOnce,
    /// Of several buckets, the slowest is taken from first, and its tokens are kept while the
    /// request waits for the others.
    KeepsSlowest,
}

/// What happens to granted tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Use,
    /// Not used when due: `Finish` gives them back, `UseLate` uses them.
    Defer,
    /// This part of them is used. `Finish` gives the rest back.
    UsePart(f64),
    /// All are used, and this many more. `Finish` charges those.
    UseMore(f64),
}

/// `Take` contains the ids of its requests, rather than their being counted, so that other
/// operations keep their meaning when one is removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Wait(f64),
    /// `n` equal requests, with consecutive ids. A cost of zero takes nothing from a bucket.
    Take {
        id: u32,
        n: u32,
        costs: [f64; BUCKETS],
        max_wait: f64,
        fate: Fate,
    },
    Cancel(u32),
    Finish(u32),
    UseLate(u32),
    /// The server's clock jumps.
    StepClock(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) params: Vec<BucketParams>,
    /// A cancelled reservation goes to the next waiter of the same process, bucket and cost.
    pub(crate) hand_over: bool,
    pub(crate) ops: Vec<Op>,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// By how many tokens the worst window exceeds the guarantee.
    pub(crate) excess: f64,
    /// A request got an earlier due time than one before it, and not from returned tokens.
    pub(crate) out_of_order: bool,
    pub(crate) seen: Seen,
    /// The tokens used, per bucket.
    pub(crate) records: Vec<Record>,
}

/// How often each event happened: a search that never meets a situation proves nothing about it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) waited: u64,
    pub(crate) from_returned: u64,
    pub(crate) cancelled: u64,
    pub(crate) handed_over: u64,
    pub(crate) refunded: u64,
    pub(crate) charged: u64,
    pub(crate) second_waits: u64,
    pub(crate) second_rejections: u64,
    pub(crate) undone: u64,
    pub(crate) filled: u64,
    pub(crate) realigned: u64,
    pub(crate) exceptions: u64,
}

impl Seen {
    fn counts(&mut self) -> [&mut u64; 12] {
        [
            &mut self.waited,
            &mut self.from_returned,
            &mut self.cancelled,
            &mut self.handed_over,
            &mut self.refunded,
            &mut self.charged,
            &mut self.second_waits,
            &mut self.second_rejections,
            &mut self.undone,
            &mut self.filled,
            &mut self.realigned,
            &mut self.exceptions,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = *other;
        for (sum, more) in self.counts().into_iter().zip(other.counts()) {
            *sum += *more;
        }
    }
}
