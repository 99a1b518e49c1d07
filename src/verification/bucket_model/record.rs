//! The tokens used from one bucket, and by how many they exceed the guarantee.
//!
//! No window of length w may contain more than `capacity + rate * w`, plus these exceptions:
//!
//! - **Late.** Tokens that were used, or given back and then used by another request, only after
//!   they were due. They count for windows that begin after the due time and contain the late
//!   event, or begin up to 2 us after it: a due time is rounded up, and a queue may end that much
//!   earlier. A request for several buckets uses the tokens of the slowest one late while it waits
//!   for the others. A cancelled waiter is never late, since its reservation is undone by its due
//!   time.
//! - **Charged.** A settlement above the estimate reports tokens that are used already. Waiters
//!   keep their reservations, so the amount counts until a reservation made after it is used: by
//!   then it has refilled. What the floor of the debt forgives counts for good.
//! - **Over.** A cost over the capacity (of a local share: with the full quota it is rejected) is
//!   granted when the bucket is full, and leaves debt. The excess counts until a reservation made
//!   after it is used: the debt does not add up.
//! - **Jumps.** When the server's clock jumps forward by s, the bucket refills by s and forgets
//!   waiters and debt: `rate * s`, plus what is given back while requests still wait, which is not
//!   kept apart then; together at most `capacity + debt`. It counts for windows that reach from
//!   before the debt would have refilled to after the jump. After a jump back by s, a cancelled
//!   reservation may be undone in a place that is off by up to s: `rate * s`. Otherwise a jump back
//!   costs nothing.

use crate::bucket::BucketParams;

/// Due times are rounded up to whole microseconds: a window that begins at one may be shorter by
/// up to a microsecond, and what refills in it less by that; so may one that begins in a filled
/// gap.
const ROUNDING_US: f64 = 2.0;

/// What refills in that time. The rest is for the rounding of doubles.
fn rounding(params: BucketParams) -> f64 {
    ROUNDING_US * params.per_us + 1e-9
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    pub(crate) time: f64,
    pub(crate) tokens: f64,
    /// The number of the grant within the case, if it came from the level: only requests that use
    /// returned tokens overtake others.
    pub(crate) order: Option<u32>,
    /// By how much the cost exceeded the capacity.
    pub(crate) over: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    pub(crate) due: f64,
    pub(crate) end: f64,
    pub(crate) tokens: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Charged {
    pub(crate) time: f64,
    pub(crate) tokens: f64,
    pub(crate) forgiven: f64,
    pub(crate) order: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Jump {
    pub(crate) time: f64,
    pub(crate) last_due: f64,
    pub(crate) tokens: f64,
    pub(crate) most: f64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) uses: Vec<Use>,
    pub(crate) late: Vec<Late>,
    pub(crate) charged: Vec<Charged>,
    pub(crate) jumps: Vec<Jump>,
}

impl Record {
    pub(crate) fn given_back(&mut self, now: f64, tokens: f64) {
        for jump in self.jumps.iter_mut().filter(|jump| now < jump.last_due) {
            jump.tokens = jump.most.min(jump.tokens + tokens);
        }
    }

    /// The most tokens by which a window exceeds the guarantee; zero if none does.
    pub(crate) fn excess(&mut self, params: BucketParams) -> f64 {
        self.uses.sort_by(|a, b| a.time.total_cmp(&b.time));
        let mut worst = 0.0_f64;
        // The worst windows reach from one use to another, or from the due time of a late use.
        for index in 0..self.uses.len() {
            worst = worst.max(self.excess_from(self.uses[index].time, index, params));
        }
        for late in &self.late {
            let first = self.uses.partition_point(|used| used.time < late.due);
            worst = worst.max(self.excess_from(late.due, first, params));
        }
        worst
    }

    fn excess_from(&self, start: f64, first: usize, params: BucketParams) -> f64 {
        let (mut used, mut newest, mut over, mut worst) = (0.0, None, 0.0, 0.0_f64);
        let rounding = rounding(params);
        for (index, last) in self.uses.iter().enumerate().skip(first) {
            used += last.tokens;
            if last.order > newest {
                (newest, over) = (last.order, last.over);
            }
            let same_time = |next: &Use| next.time == last.time;
            if self.uses.get(index + 1).is_some_and(same_time) {
                continue;
            }
            let beyond = used - params.capacity - (last.time - start) * params.per_us;
            if beyond > worst + rounding {
                worst = worst.max(beyond - over - self.exceptions(start, last.time, newest));
            }
        }
        if worst > rounding { worst } else { 0.0 }
    }

    fn exceptions(&self, start: f64, end: f64, newest: Option<u32>) -> f64 {
        let late = self.late.iter();
        let begun = |late: &Late| late.due < start && start <= late.end + ROUNDING_US;
        let late = late.filter(|late| begun(late) && late.end <= end);
        let late: f64 = late.map(|late| late.tokens).sum();
        let charged = self.charged.iter();
        let charged = charged.filter(|charged| start <= charged.time && charged.time <= end);
        let charged: f64 = charged
            .map(|charged| match newest {
                Some(newest) if newest > charged.order => charged.forgiven,
                _ => charged.tokens,
            })
            .sum();
        let jumps = self.jumps.iter();
        let jumps = jumps.filter(|jump| start <= jump.last_due && jump.time <= end);
        let jumps: f64 = jumps.map(|jump| jump.tokens).sum();
        late + charged + jumps
    }
}
