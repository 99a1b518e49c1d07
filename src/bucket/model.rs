//! One bucket and its operations.

use super::{
    BucketParams, Reservation,
    gaps::{self, ADJACENT_US, Place},
};

/// If the bucket's time is at most this far ahead of the clock, in microseconds, the bucket waits
/// for the clock. If it is further ahead, the clock was set back.
pub(super) const CLOCK_SLACK_US: f64 = 1_000_000.0;

/// One bucket. Times are in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bucket {
    /// Tokens at the time `at`. Below zero: reserved by waiters, or debt.
    pub(crate) level: f64,
    /// The bucket's time: when it had that level.
    pub(crate) at: f64,
    /// When the last reservation is due; zero if there are none.
    pub(crate) last_due: f64,
    /// The largest cost among the outstanding reservations.
    pub(crate) largest_cost: f64,
    /// Tokens returned while reservations are outstanding.
    pub(crate) returned: f64,
    /// The end of the pause; zero if the bucket is not paused.
    pub(crate) paused_until: f64,
    /// The rate by which the level counts the rest of the pause, in tokens per microsecond.
    pub(crate) pause_rate: f64,
    /// Cancelled reservations that later ones depend on, in the order of their due times. The
    /// level still counts their tokens as reserved.
    pub(crate) gaps: Vec<Reservation>,
}

/// What several equal requests got, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Taken {
    /// How many were granted without a wait.
    pub(crate) now: f64,
    /// How many were granted, including those of `now`.
    pub(crate) granted: f64,
    /// The wait of the last granted one, in microseconds.
    pub(crate) last: f64,
    /// When the first rejected one may retry, in microseconds.
    pub(crate) retry_after: f64,
}

impl Taken {
    /// The wait of the granted request number `index`, counted from zero, in microseconds.
    pub(crate) fn wait(&self, index: u32, cost: f64, params: BucketParams) -> f64 {
        let index = f64::from(index);
        if index < self.now {
            0.0
        } else {
            (self.last - (self.granted - 1.0 - index) * cost / params.per_us).max(0.0)
        }
    }
}

impl Bucket {
    /// A full bucket without reservations.
    pub(crate) fn full(now: f64, params: BucketParams) -> Self {
        Self {
            level: params.capacity,
            at: now,
            last_due: 0.0,
            largest_cost: 0.0,
            returned: 0.0,
            paused_until: 0.0,
            pause_rate: 0.0,
            gaps: Vec::new(),
        }
    }

    /// Refills the bucket up to `now`. Returns true if the clock was set back and the bucket's
    /// times were repaired: that must be stored even if nothing else changes.
    pub(crate) fn advance(&mut self, now: f64, params: BucketParams) -> bool {
        self.advance_in_recovery(now, params, 1.0)
    }

    /// Like [`advance`](Self::advance), after an outage from which only the fraction `recovered` of
    /// all processes has recovered.
    ///
    /// The others have yet to charge what they spent of their local shares, so the bucket still
    /// holds those tokens. As long as their shares are full, they do not refill, and the bucket must
    /// not refill in their place: from that point on it refills by the fraction only.
    pub(crate) fn advance_in_recovery(
        &mut self,
        now: f64,
        params: BucketParams,
        recovered: f64,
    ) -> bool {
        let repaired = self.at > now + CLOCK_SLACK_US;
        if repaired {
            let step = self.at - now;
            self.last_due -= step;
            self.paused_until -= step;
            for gap in &mut self.gaps {
                gap.from -= step;
                gap.until -= step;
            }
            self.at = now;
        }
        // A pause keeps its length when the rate changes.
        if self.paused_until > self.at && self.pause_rate != params.per_us {
            self.level += (self.paused_until - self.at) * (self.pause_rate - params.per_us);
            self.pause_rate = params.per_us;
        }
        let time = self.at.max(now);
        let mut us = time - self.at;
        if recovered < 1.0 {
            let reserved = (self.last_due - self.at).max(0.0) * params.per_us * recovered;
            let to_full = (1.0 - recovered) * params.capacity - reserved - self.level;
            let at_full_rate = us.min((to_full / (params.per_us * (1.0 - recovered))).max(0.0));
            us = at_full_rate + (us - at_full_rate) * recovered;
        }
        self.level = params.capacity.min(self.level + us * params.per_us);
        self.at = time;
        // The tokens of a gap are returned when they are due.
        let due = self.gaps.partition_point(|gap| gap.until <= time);
        for gap in self.gaps.drain(..due) {
            self.returned += gap.tokens;
        }
        // A request may use at once what has refilled of the next gap. That is no more than a
        // reservation that is due, so that it and the returned tokens do not exceed a window.
        self.returned += gaps::trim(&mut self.gaps, time, self.largest_cost);
        // If the last reservation is due, the room is that of the time when it was.
        let since = (time - self.last_due).max(0.0) * params.per_us * recovered;
        self.returned = self.returned.min(self.room(self.level - since, params));
        if self.last_due <= time {
            self.end_queue(params);
        }
        if self.paused_until > time {
            self.apply_pause(params);
        } else {
            self.paused_until = 0.0;
            self.pause_rate = 0.0;
        }
        repaired
    }

    /// No reservation is outstanding any more.
    fn end_queue(&mut self, params: BucketParams) {
        for gap in self.gaps.drain(..) {
            self.returned += gap.tokens;
        }
        self.level = params.capacity.min(self.level + self.returned);
        self.last_due = 0.0;
        self.returned = 0.0;
        self.largest_cost = 0.0;
    }

    /// How many tokens may be returned at this level, so that they and the largest reservation
    /// together do not exceed a window.
    fn room(&self, level: f64, params: BucketParams) -> f64 {
        (params.capacity - self.largest_cost - level.max(0.0)).max(0.0)
    }

    /// How long a request of `cost` would wait now, in microseconds.
    pub(crate) fn quote(&self, cost: f64, params: BucketParams) -> f64 {
        let need = cost.min(params.capacity);
        if self.level >= need || self.returned >= cost {
            0.0
        } else if let Some(place) = self.find_place(cost, params) {
            self.wait_until(place.due)
        } else {
            ((need - self.level) / params.per_us).ceil()
        }
    }

    fn wait_until(&self, due: f64) -> f64 {
        (due - self.at).ceil().max(0.0)
    }

    fn find_place(&self, cost: f64, params: BucketParams) -> Option<Place> {
        gaps::find_place(&self.gaps, cost, self.at, self.paused_until, params)
    }

    /// Reserves `cost` in a gap. Returns the wait, if there is a gap that it fits into and it is
    /// due there within `max_wait`.
    fn fill_gap(&mut self, cost: f64, max_wait: f64, params: BucketParams) -> Option<f64> {
        let place = self.find_place(cost, params)?;
        let wait = self.wait_until(place.due);
        if wait > max_wait {
            return None;
        }
        gaps::fill(&mut self.gaps, &place, cost);
        self.largest_cost = self.largest_cost.max(cost);
        Some(wait)
    }

    /// Takes `cost` for each of `count` requests, in order, none of which waits longer than
    /// `max_wait` microseconds.
    ///
    /// A cost over the capacity is granted when the bucket is full, and leaves debt. Otherwise a
    /// local share could never grant what the full quota can.
    pub(crate) fn take(
        &mut self,
        cost: f64,
        count: u32,
        max_wait: f64,
        params: BucketParams,
    ) -> Taken {
        let count = f64::from(count);
        // A division by a cost of zero would leave NaN.
        if cost <= 0.0 {
            return Taken {
                now: count,
                granted: count,
                ..Taken::default()
            };
        }
        let over = (cost - params.capacity).max(0.0);
        let from_level = if over > 0.0 {
            f64::from(u8::from(self.level >= params.capacity))
        } else {
            whole_costs(self.level, cost).min(count)
        };
        self.level -= from_level * cost;
        let from_returned = whole_costs(self.returned, cost).min(count - from_level);
        self.returned -= from_returned * cost;
        let mut taken = Taken {
            now: from_level + from_returned,
            granted: from_level + from_returned,
            ..Taken::default()
        };
        let left = count - taken.now;
        if left <= 0.0 {
            return taken;
        }
        if count == 1.0
            && let Some(wait) = self.fill_gap(cost, max_wait, params)
        {
            return Taken {
                now: f64::from(u8::from(wait <= 0.0)),
                granted: 1.0,
                last: wait,
                retry_after: 0.0,
            };
        }
        let level = self.level;
        let wait_of = |number: f64| ((number * cost - over - level) / params.per_us).ceil();
        let mut reserved = ((level + over + max_wait * params.per_us) / cost)
            .floor()
            .max(0.0)
            .min(left);
        // The division may round across a whole number, by one.
        if reserved > 0.0 && wait_of(reserved) > max_wait {
            reserved -= 1.0;
        } else if reserved < left && wait_of(reserved + 1.0) <= max_wait {
            reserved += 1.0;
        }
        if reserved > 0.0 {
            taken.granted += reserved;
            taken.last = wait_of(reserved);
            self.level -= reserved * cost;
            self.last_due = self.last_due.max(self.at + taken.last);
            self.largest_cost = self.largest_cost.max(cost.min(params.capacity));
        }
        if reserved < left {
            let mut wait = wait_of(reserved + 1.0);
            if count == 1.0
                && let Some(place) = self.find_place(cost, params)
            {
                wait = wait.min(self.wait_until(place.due));
            }
            taken.retry_after = (wait - max_wait).max(1.0);
        }
        taken
    }

    /// Gives back tokens that were taken and not used.
    pub(crate) fn give_back(&mut self, tokens: f64, params: BucketParams) {
        if self.paused_until > self.at {
            // Dropped: the tokens would end the pause early, or be granted as a burst after it.
        } else if self.last_due <= self.at {
            self.level = params.capacity.min(self.level + tokens);
        } else {
            self.returned = (self.returned + tokens).min(self.room(self.level, params));
        }
    }

    /// Undoes a reservation that was cancelled.
    ///
    /// The last one of the queue is undone as if it had never been made, and then the one before
    /// it, if that is a gap, and so on. One in the middle becomes a gap, since later ones depend on
    /// it: its tokens return when it is the last one, or due, or a new request fills the gap.
    pub(crate) fn undo(&mut self, gone: Reservation, params: BucketParams) {
        if gone.until <= self.at {
            // Others may have used what has refilled since it was due.
            let unused = gone.tokens - (self.at - gone.until) * params.per_us;
            return self.give_back(unused.max(0.0), params);
        }
        // A reservation that is due within a pause is charged for the pause. One beyond the last
        // reservation is unknown to this bucket, which was reset or lost.
        if gone.until <= self.paused_until || gone.until > self.last_due + ADJACENT_US {
            return;
        }
        if gone.until < self.last_due - ADJACENT_US {
            // A cost over the capacity refills in part after it is due, so it cannot be a gap.
            if gone.tokens <= params.capacity {
                gaps::remember(&mut self.gaps, gone);
            }
            return;
        }
        let mut last = gone;
        loop {
            self.level = params.capacity.min(self.level + last.tokens);
            self.last_due = last.from;
            match self.gaps.pop() {
                Some(next) if next.until >= self.last_due - ADJACENT_US => last = next,
                Some(next) => {
                    self.gaps.push(next);
                    break;
                }
                None => break,
            }
        }
        if self.last_due <= self.at + ADJACENT_US {
            self.end_queue(params);
        }
        if self.paused_until > self.at {
            self.apply_pause(params);
        }
    }

    /// The level plus the tokens of the gaps, for which no caller waits any more: at most this many
    /// tokens are free.
    pub(crate) fn free(&self) -> f64 {
        self.gaps
            .iter()
            .fold(self.level, |level, gap| level + gap.tokens)
    }

    /// Charges tokens that were used without having been taken. The debt is at most one capacity
    /// beyond what waiters have reserved, so that a single charge does not block a bucket
    /// permanently.
    pub(crate) fn charge(&mut self, tokens: f64, params: BucketParams) {
        let from_returned = self.returned.min(tokens);
        self.returned -= from_returned;
        let reserved = (self.last_due - self.at).max(0.0) * params.per_us;
        let floor = -params.capacity - reserved;
        self.level = self
            .level
            .min((self.level - (tokens - from_returned)).max(floor));
    }

    /// Charges tokens, or gives them back if `tokens` is negative.
    pub(crate) fn correct(&mut self, tokens: f64, params: BucketParams) {
        if tokens > 0.0 {
            self.charge(tokens, params);
        } else {
            self.give_back(-tokens, params);
        }
    }

    /// Leaves at most this many tokens in the bucket.
    pub(crate) fn cap_level(&mut self, tokens: f64) {
        self.level = self.level.min(tokens);
        self.returned = self.returned.min(tokens.max(0.0));
    }

    /// Pauses the bucket for `us` microseconds: nothing is granted in that time, not even to
    /// reservations that are due within it. Their tokens are not given back: they are charged for
    /// the pause. When the pause ends, the bucket is empty and refills at its rate. A pause never
    /// shortens another one.
    pub(crate) fn pause(&mut self, us: f64, params: BucketParams) {
        self.paused_until = self.paused_until.max(self.at + us);
        if self.paused_until > self.at {
            self.pause_rate = params.per_us;
            self.gaps.retain(|gap| gap.until > self.paused_until);
            self.apply_pause(params);
        }
    }

    /// Lowers the level so that the bucket is at most empty when the pause ends.
    fn apply_pause(&mut self, params: BucketParams) {
        self.level = self
            .level
            .min((self.at - self.paused_until) * params.per_us);
        self.returned = 0.0;
    }

    /// When the bucket equals an absent one, counted from its time, in microseconds.
    pub(crate) fn full_in(&self, params: BucketParams) -> f64 {
        ((params.capacity - self.level) / params.per_us).max(self.last_due - self.at)
    }
}

/// How many whole costs are in `level`, without exceeding it.
fn whole_costs(level: f64, cost: f64) -> f64 {
    if level < cost {
        return 0.0;
    }
    let count = (level / cost).floor();
    if count * cost > level {
        count - 1.0
    } else {
        count
    }
}
