//! What one bucket let through, and how far that is beyond what the law promises.
//!
//! No window of w may hold more than `capacity + rate * w`, plus what is stated:
//!
//! - **Late.** Tokens whose turn came, and that were used, or given back and then used by another,
//!   only later: they count for windows that begin after the turn and hold the late event. A
//!   demand on several buckets makes the slowest one's tokens late while it waits for the rest. A
//!   cancelled sleeper is never late, since its slot is given back at its turn.
//! - **Charged.** A settle-up reports tokens already used, and nobody can take that back. Those
//!   who had a turn before keep it, so the amount counts until somebody uses a turn that was
//!   promised after it: by then it has been paid. What the floor of the debt forgives stays.
//! - **Over.** A demand over the whole capacity (of a process's share: the whole limit knows no
//!   such demand) goes when the bucket is full, into debt. What it is over counts until somebody
//!   uses a turn that was promised after it: the debt does not add up.
//! - **Jumps.** A server's clock that steps forward by s refills by s and forgets who sleeps and
//!   what was charged: `rate * s`, and what is given back while somebody still sleeps, which no
//!   pool then keeps back; together not over `capacity + debt`. It counts for windows that reach
//!   from before the debt would have been paid to after the step. After a step back by s a
//!   cancelled reservation may be undone in a place that is off by up to s: `rate * s`. Without
//!   one, a step back costs nothing.

use crate::bucket::BucketParams;

/// Turns are whole microseconds, rounded up: a window that begins at such a turn may be shorter by
/// the rest, and what refills in it less by that; so may one that begins in the place of a
/// cancelled reservation. Beside it, the rounding of doubles.
fn rounding(params: BucketParams) -> f64 {
    2.0 * params.per_us + 1e-9
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    pub(crate) time: f64,
    pub(crate) tokens: f64,
    /// Which grant, counted over the case, if it came from the level: turns are paid in order,
    /// and only the pool overtakes.
    pub(crate) order: Option<u32>,
    /// By how much the demand was over the capacity.
    pub(crate) over: f64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    pub(crate) turn: f64,
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
    pub(crate) last_turn: f64,
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
        for jump in self.jumps.iter_mut().filter(|jump| now < jump.last_turn) {
            jump.tokens = jump.most.min(jump.tokens + tokens);
        }
    }

    /// The most by which any window breaks the promise; zero where none does.
    pub(crate) fn excess(&mut self, params: BucketParams) -> f64 {
        self.uses.sort_by(|a, b| a.time.total_cmp(&b.time));
        let mut worst = 0.0_f64;
        // A window is worst from one use to another; from a turn on, nobody is late for it.
        for index in 0..self.uses.len() {
            worst = worst.max(self.excess_from(self.uses[index].time, index, params));
        }
        for late in &self.late {
            let first = self.uses.partition_point(|used| used.time < late.turn);
            worst = worst.max(self.excess_from(late.turn, first, params));
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
                worst = worst.max(beyond - over - self.stated(start, last.time, newest));
            }
        }
        if worst > rounding { worst } else { 0.0 }
    }

    fn stated(&self, start: f64, end: f64, newest: Option<u32>) -> f64 {
        let late = self.late.iter();
        let late = late.filter(|late| late.turn < start && start <= late.end && late.end <= end);
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
        let jumps = jumps.filter(|jump| start <= jump.last_turn && jump.time <= end);
        let jumps: f64 = jumps.map(|jump| jump.tokens).sum();
        late + charged + jumps
    }
}
