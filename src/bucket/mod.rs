//! The law: a token bucket that promises turns, without clock or I/O.
//!
//! Times are microseconds and levels are tokens, both `f64`, because `redis/acquire.lua` is the
//! twin of this file and Lua knows no other number: the same operations in the same order, so
//! that both agree to the last bit. A level below zero is what sleepers have been promised.
//!
//! While somebody sleeps towards a promised turn, what others give back must not simply raise
//! the level: that would pull turns forward that have been promised for later, and two of them
//! could meet in one window. It goes to a pool, of which a newcomer may take a whole demand at
//! once, as far as the window of the sleepers leaves room.

use crate::clock::ceil;

/// A clock this far ahead of the server's is waited out; further ahead, it was set back.
const CLOCK_SLACK_US: f64 = 1_000_000.0;

/// Longest life of a value in Redis, in milliseconds (2^53: the largest exact integer).
#[cfg(test)]
const MAX_TTL_MS: f64 = 9_007_199_254_740_992.0;

/// A quota in the law's units: tokens, and tokens per microsecond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BucketParams {
    pub(crate) capacity: f64,
    pub(crate) per_us: f64,
}

impl BucketParams {
    pub(crate) fn new(capacity: f64, rate: f64) -> Self {
        Self {
            capacity,
            per_us: rate / 1e6,
        }
    }

    /// This part of the rate, from 0 to 1. The capacity stays: a bucket that was cut to a part
    /// of it, once, would have lost for ever what it held above.
    pub(crate) fn slower(self, part: f64) -> Self {
        Self {
            per_us: self.per_us * part,
            ..self
        }
    }

    /// The part of this quota that one of `n` processes may spend by itself: an `n`th of the
    /// rate, and of the capacity, but not less than one token where the whole has one.
    pub(crate) fn share(self, n: f64) -> Self {
        Self {
            capacity: (self.capacity / n).max(self.capacity.min(1.0)),
            per_us: self.per_us / n,
        }
    }

    /// As `share`, but all `n` of them together are never more than the whole, not even where that
    /// leaves less than a token to each.
    pub(crate) fn strict_share(self, n: f64) -> Self {
        Self {
            capacity: self.capacity / n,
            per_us: self.per_us / n,
        }
    }

    /// Whether a bucket of this quota can ever grant `cost` in one piece.
    ///
    /// There is no lower bound. Each operation rounds the level by at most 2^-54 of the capacity,
    /// so that even costs that vanish in a full bucket exceed it by one capacity after 2^54 of them
    /// at the earliest: 570 years at a million a second. The level from which a cost vanishes
    /// shrinks with the cost, and so does the error, once the burst is used.
    pub(crate) fn can_grant(self, cost: f64) -> bool {
        cost >= 0.0 && cost <= self.capacity
    }
}

/// Reservations that end this close to each other, in microseconds, are neighbours: a due time is
/// rounded up to a whole microsecond, and the rest of the next one is counted from the level.
const ADJACENT_US: f64 = 2.0;

/// A bucket remembers so many cancelled reservations that others stand behind. The tokens of
/// further ones come back only by the refill.
const MAX_GAPS: usize = 64;

/// Tokens that were reserved for a later time: those that refill from `from` until `until`, when
/// they are due, in the bucket's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reservation {
    pub(crate) from: f64,
    pub(crate) until: f64,
    pub(crate) tokens: f64,
}

impl Reservation {
    /// `tokens` that are due at `until`.
    pub(crate) fn due(until: f64, tokens: f64, params: BucketParams) -> Self {
        Self {
            from: until - tokens.min(params.capacity) / params.per_us,
            until,
            tokens,
        }
    }
}

/// One bucket. `Default` is not full: use [`Bucket::full`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bucket {
    /// Tokens now; below zero: promised.
    pub(crate) level: f64,
    /// When the level was that.
    pub(crate) at: f64,
    /// The last promised turn.
    pub(crate) last_due: f64,
    /// The largest cost among the sleepers.
    pub(crate) largest_cost: f64,
    /// Given back while others sleep.
    pub(crate) returned: f64,
    /// Until when nobody is granted anything; zero: it is not held back.
    pub(crate) paused_until: f64,
    /// By which rate the level counts the rest of the hold, in tokens per microsecond.
    pub(crate) pause_rate: f64,
    /// Cancelled reservations that others stand behind, in the order of their due times. Their
    /// tokens are part of the debt.
    pub(crate) gaps: Vec<Reservation>,
}

/// What `n` equal demands got, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Taken {
    /// How many may go now.
    pub(crate) now: f64,
    /// How many have a turn, those of `now` included.
    pub(crate) granted: f64,
    /// The wait of the last of them, in microseconds.
    pub(crate) last: f64,
    /// When the first that was refused may try again, in microseconds.
    pub(crate) retry_after: f64,
}

impl Taken {
    /// The wait of the `k`th granted demand of cost `c`, counted from zero.
    pub(crate) fn wait(&self, k: u32, c: f64, params: BucketParams) -> f64 {
        let k = f64::from(k);
        if k < self.now {
            0.0
        } else {
            (self.last - (self.granted - 1.0 - k) * c / params.per_us).max(0.0)
        }
    }
}

impl Bucket {
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

    /// Brings the bucket to `now`. True where the clock was mended, which must be kept even
    /// when nothing else changes.
    pub(crate) fn advance(&mut self, now: f64, params: BucketParams) -> bool {
        self.advance_in_recovery(now, params, 1.0)
    }

    /// As `visit`, after an outage from which only the part `back` of all processes is back.
    ///
    /// The others will charge what they spent of their shares, so the bucket still holds the
    /// tokens of those. Once these shares are full they do not refill, and must not refill what
    /// the others spend, or were promised: from there on the bucket refills in part.
    pub(crate) fn advance_in_recovery(
        &mut self,
        now: f64,
        params: BucketParams,
        back: f64,
    ) -> bool {
        let mended = self.at > now + CLOCK_SLACK_US;
        if mended {
            let step = self.at - now;
            self.last_due -= step;
            self.paused_until -= step;
            for gap in &mut self.gaps {
                gap.from -= step;
                gap.until -= step;
            }
            self.at = now;
        }
        // A hold is as long by any rate.
        if self.paused_until > self.at && self.pause_rate != params.per_us {
            self.level += (self.paused_until - self.at) * (self.pause_rate - params.per_us);
            self.pause_rate = params.per_us;
        }
        let n = self.at.max(now);
        let mut us = n - self.at;
        if back < 1.0 {
            let promised = (self.last_due - self.at).max(0.0) * params.per_us * back;
            let to_full = (1.0 - back) * params.capacity - promised - self.level;
            let at_whole = us.min((to_full / (params.per_us * (1.0 - back))).max(0.0));
            us = at_whole + (us - at_whole) * back;
        }
        self.level = params.capacity.min(self.level + us * params.per_us);
        self.at = n;
        // What is due and was cancelled is given back.
        let due = self.gaps.partition_point(|gap| gap.until <= n);
        for gap in self.gaps.drain(..due) {
            self.returned += gap.tokens;
        }
        // The room is that of the time when the last reservation was due, if it was.
        let since = (n - self.last_due).max(0.0) * params.per_us * back;
        self.returned = self.returned.min(self.room(self.level - since, params));
        if self.last_due <= n {
            self.end_queue(params);
        }
        if self.paused_until > n {
            self.bind(params);
        } else {
            self.paused_until = 0.0;
            self.pause_rate = 0.0;
        }
        mended
    }

    /// No reservation is outstanding.
    fn end_queue(&mut self, params: BucketParams) {
        for gap in self.gaps.drain(..) {
            self.returned += gap.tokens;
        }
        self.level = params.capacity.min(self.level + self.returned);
        self.last_due = 0.0;
        self.returned = 0.0;
        self.largest_cost = 0.0;
    }

    /// How much may be given back at this level, without crowding those who wait.
    fn room(&self, level: f64, params: BucketParams) -> f64 {
        (params.capacity - self.largest_cost - level.max(0.0)).max(0.0)
    }

    /// How long a demand of `c` would wait now, in microseconds.
    pub(crate) fn quote(&self, c: f64, params: BucketParams) -> f64 {
        let need = c.min(params.capacity);
        if self.level >= need || self.returned >= c {
            0.0
        } else if let Some((_, start, length)) = self.gap_for(c, params) {
            self.wait_until(start + length)
        } else {
            ((need - self.level) / params.per_us).ceil()
        }
    }

    fn wait_until(&self, due: f64) -> f64 {
        (due - self.at).ceil().max(0.0)
    }

    /// The first cancelled reservation that has room for `c`: which, from when on, and for how
    /// long.
    fn gap_for(&self, c: f64, params: BucketParams) -> Option<(usize, f64, f64)> {
        if c > params.capacity {
            return None;
        }
        self.gaps.iter().enumerate().find_map(|(index, gap)| {
            let length = (gap.until - gap.from) * (c / gap.tokens);
            let start = if self.paused_until > self.at {
                gap.from.max(self.paused_until)
            } else {
                gap.from.max(self.at - length)
            };
            // The same length from the same start may round to the last bit but one.
            let fits = c <= gap.tokens && start + length <= gap.until + 0.5;
            fits.then_some((index, start, length))
        })
    }

    /// Reserves `c` in place of a cancelled reservation: the wait, if there is one that fits and
    /// is due within `max_wait`.
    fn fill_gap(&mut self, c: f64, max_wait: f64, params: BucketParams) -> Option<f64> {
        let (index, start, length) = self.gap_for(c, params)?;
        let wait = self.wait_until(start + length);
        if wait > max_wait {
            return None;
        }
        let gap = &mut self.gaps[index];
        let passed = gap.tokens * ((start - gap.from) / (gap.until - gap.from));
        gap.tokens -= c + passed;
        gap.from = start + length;
        if gap.tokens <= 0.0 || gap.from >= gap.until {
            self.gaps.remove(index);
        }
        if passed > 0.0 && self.paused_until <= self.at {
            self.returned = (self.returned + passed).min(self.room(self.level, params));
        }
        self.largest_cost = self.largest_cost.max(c);
        Some(wait)
    }

    /// Takes `c` for each of `n` demands, in order, none of which waits over `max_wait`.
    ///
    /// A demand over the whole capacity goes when the bucket is full, into debt: where this
    /// bucket is a process's share of a larger one, it would else be locked out.
    pub(crate) fn take(&mut self, c: f64, n: u32, max_wait: f64, params: BucketParams) -> Taken {
        let n = f64::from(n);
        // Zero takes nothing; divided by, it would leave what is no number.
        if c <= 0.0 {
            return Taken {
                now: n,
                granted: n,
                ..Taken::default()
            };
        }
        let over = (c - params.capacity).max(0.0);
        let ready = if over > 0.0 {
            f64::from(u8::from(self.level >= params.capacity))
        } else {
            whole(self.level, c).min(n)
        };
        self.level -= ready * c;
        let pooled = whole(self.returned, c).min(n - ready);
        self.returned -= pooled * c;
        let mut taken = Taken {
            now: ready + pooled,
            granted: ready + pooled,
            ..Taken::default()
        };
        let left = n - taken.now;
        if left <= 0.0 {
            return taken;
        }
        if n == 1.0
            && let Some(wait) = self.fill_gap(c, max_wait, params)
        {
            return Taken {
                now: f64::from(u8::from(wait <= 0.0)),
                granted: 1.0,
                last: wait,
                retry_after: 0.0,
            };
        }
        let level = self.level;
        let wait_of = |j: f64| ((j * c - over - level) / params.per_us).ceil();
        let mut later = ((level + over + max_wait * params.per_us) / c)
            .floor()
            .max(0.0)
            .min(left);
        // The division may round across a whole number, by one.
        if later > 0.0 && wait_of(later) > max_wait {
            later -= 1.0;
        } else if later < left && wait_of(later + 1.0) <= max_wait {
            later += 1.0;
        }
        if later > 0.0 {
            taken.granted += later;
            taken.last = wait_of(later);
            self.level -= later * c;
            self.last_due = self.last_due.max(self.at + taken.last);
            self.largest_cost = self.largest_cost.max(c.min(params.capacity));
        }
        if later < left {
            let mut wait = wait_of(later + 1.0);
            if n == 1.0
                && let Some((_, start, length)) = self.gap_for(c, params)
            {
                wait = wait.min(self.wait_until(start + length));
            }
            taken.retry_after = (wait - max_wait).max(1.0);
        }
        taken
    }

    /// Gives back `c` tokens that were taken and not used.
    pub(crate) fn give_back(&mut self, c: f64, params: BucketParams) {
        if self.paused_until > self.at {
            // It would pull the end of the hold forward, or go out as a burst after it.
        } else if self.last_due <= self.at {
            self.level = params.capacity.min(self.level + c);
        } else {
            self.returned = (self.returned + c).min(self.room(self.level, params));
        }
    }

    /// Undoes a reservation whose caller has gone away.
    ///
    /// The last of the queue is undone as if it had never been made, and then the one before it,
    /// if that is cancelled as well. Others stand behind one in the middle, and rely on it: its
    /// tokens come back when it is the last, or due; a newcomer may take its place.
    pub(crate) fn undo(&mut self, gone: Reservation, params: BucketParams) {
        if gone.until <= self.at {
            // What has refilled since may have been used by others.
            let unused = gone.tokens - (self.at - gone.until) * params.per_us;
            return self.give_back(unused.max(0.0), params);
        }
        // What is due in a pause has paid for it. Beyond the tail is what this bucket does not
        // know: it was reset or lost.
        if gone.until <= self.paused_until || gone.until > self.last_due + ADJACENT_US {
            return;
        }
        if gone.until < self.last_due - ADJACENT_US {
            // One over the capacity refills in part after it is due.
            if gone.tokens <= params.capacity {
                self.remember(gone);
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
            self.bind(params);
        }
    }

    /// Keeps a cancelled reservation of the middle, as one with its neighbours. One that is shorter
    /// than a double can tell comes back by the refill.
    fn remember(&mut self, gone: Reservation) {
        if gone.from >= gone.until {
            return;
        }
        let next = self.gaps.partition_point(|gap| gap.until < gone.until);
        let joins = |before: &Reservation, after: &Reservation| {
            (after.from - before.until).abs() <= ADJACENT_US
        };
        let before = next.checked_sub(1);
        let before = before.filter(|&before| joins(&self.gaps[before], &gone));
        let after = self.gaps.get(next).is_some_and(|after| joins(&gone, after));
        match (before, after) {
            (Some(before), true) => {
                let after = self.gaps.remove(next);
                let gap = &mut self.gaps[before];
                gap.until = after.until;
                gap.tokens += gone.tokens + after.tokens;
            }
            (Some(before), false) => {
                let gap = &mut self.gaps[before];
                gap.until = gone.until;
                gap.tokens += gone.tokens;
            }
            (None, true) => {
                let gap = &mut self.gaps[next];
                gap.from = gone.from;
                gap.tokens += gone.tokens;
            }
            (None, false) if self.gaps.len() < MAX_GAPS => {
                self.gaps.insert(next, gone);
            }
            (None, false) => {}
        }
    }

    /// The level without what is reserved by nobody any more: at most so much is free.
    pub(crate) fn free(&self) -> f64 {
        self.gaps
            .iter()
            .fold(self.level, |level, gap| level + gap.tokens)
    }

    /// Charges `x` tokens that were used without having been taken. The debt is bounded by one
    /// capacity beyond what sleepers were promised, so that no single charge blocks a scope for
    /// ever.
    pub(crate) fn charge(&mut self, x: f64, params: BucketParams) {
        let from_pool = self.returned.min(x);
        self.returned -= from_pool;
        let promised = (self.last_due - self.at).max(0.0) * params.per_us;
        let floor = -params.capacity - promised;
        self.level = self.level.min((self.level - (x - from_pool)).max(floor));
    }

    /// Charges `x` tokens that memory granted while the store was away, those included that it
    /// promised to sleepers, the largest of cost `big`, for turns that come within `wait`: so no
    /// bound may forget them.
    #[cfg(test)]
    pub(crate) fn write_back(&mut self, x: f64, wait: f64, big: f64) {
        let from_pool = self.returned.min(x);
        self.returned -= from_pool;
        self.level = self.level.min(self.level - (x - from_pool));
        if wait > 0.0 {
            self.last_due = self.last_due.max(self.at + wait);
            self.largest_cost = self.largest_cost.max(big);
        }
    }

    /// Takes up to `x` tokens ahead of any demand, of what is over half the capacity, while nobody
    /// sleeps. How many.
    #[cfg(test)]
    pub(crate) fn lease(&mut self, x: f64, params: BucketParams) -> f64 {
        if self.last_due > self.at {
            return 0.0;
        }
        let ahead = x.min((self.level - params.capacity / 2.0).floor()).max(0.0);
        self.level -= ahead;
        ahead
    }

    /// Leaves no more than `x` tokens.
    pub(crate) fn cap_level(&mut self, x: f64) {
        self.level = self.level.min(x);
        self.returned = self.returned.min(x.max(0.0));
    }

    /// Grants nobody anything for `us` microseconds, whoever was promised a turn in that time:
    /// what such turns have taken pays for the hold, so they are not given back. After it the
    /// rate goes on, without a burst. A hold is never shortened by another.
    pub(crate) fn pause(&mut self, us: f64, params: BucketParams) {
        self.paused_until = self.paused_until.max(self.at + us);
        if self.paused_until > self.at {
            self.pause_rate = params.per_us;
            // What is due in a pause pays for it.
            self.gaps.retain(|gap| gap.until > self.paused_until);
            self.bind(params);
        }
    }

    /// At the end of the hold the bucket is empty at most.
    fn bind(&mut self, params: BucketParams) {
        self.level = self
            .level
            .min((self.at - self.paused_until) * params.per_us);
        self.returned = 0.0;
    }

    /// For how long nobody is granted anything, in microseconds.
    #[cfg(test)]
    pub(crate) fn pause_left(&self) -> f64 {
        (self.paused_until - self.at).max(0.0)
    }

    /// When the bucket equals an absent one, counted from its `at`, in microseconds.
    pub(crate) fn full_in(&self, params: BucketParams) -> f64 {
        ((params.capacity - self.level) / params.per_us).max(self.last_due - self.at)
    }

    /// For how many milliseconds Redis is told to remember this bucket: twice as long as needed,
    /// because an expiry costs as much as a value. None while `left`, in microseconds, is enough
    /// and not too much. What the script must say.
    #[cfg(test)]
    pub(crate) fn ttl_ms(&self, now: f64, left: f64, params: BucketParams) -> Option<f64> {
        let us = self.at - now + self.full_in(params);
        let anew = left < us || left > 4.0 * us;
        anew.then(|| (2.0 * us / 1_000.0).ceil().clamp(1.0, MAX_TTL_MS))
    }
}

/// What a short cut came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum AtOnce {
    Taken,
    /// When to come back, in microseconds; nothing has happened.
    Short(f64),
    /// The clock is to be mended first; nothing has happened.
    Mends,
}

/// As `visit` and then `take` once without waiting, for a bucket for which nobody waits, which
/// nearly all are.
#[inline]
pub(crate) fn take_at_once(
    level: &mut f64,
    at: &mut f64,
    now: f64,
    c: f64,
    params: BucketParams,
) -> AtOnce {
    let n = at.max(now);
    let refilled = params.capacity.min(*level + (n - *at) * params.per_us);
    if *at > now + CLOCK_SLACK_US {
        return AtOnce::Mends;
    }
    if refilled < c {
        return AtOnce::Short(ceil((c - refilled) / params.per_us).max(1.0));
    }
    *level = refilled - c;
    *at = n;
    AtOnce::Taken
}

/// How many whole `c` are in `level`, without ever taking more than is there.
fn whole(level: f64, c: f64) -> f64 {
    if level < c {
        return 0.0;
    }
    let k = (level / c).floor();
    if k * c > level { k - 1.0 } else { k }
}

/// What several buckets at once answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TakenAll {
    /// Every one was taken.
    All,
    /// Only the slowest was taken, with a wait in microseconds; the rest is to be asked for at
    /// its turn. Taking all now and using them later would break the others' windows; holding
    /// room in them would let one slow tenant idle a shared bucket.
    Slowest {
        which: usize,
        wait: f64,
        reservation: Reservation,
    },
    /// Nothing was taken.
    Rejected { which: usize, retry_after: f64 },
}

/// Takes from several different buckets, all or none.
pub(crate) fn take_all<'a>(
    buckets: impl Iterator<Item = (&'a mut Bucket, f64, BucketParams)>,
    max_wait: f64,
) -> TakenAll {
    let mut buckets: Vec<_> = buckets.collect();
    let (mut which, mut wait) = (0, -1.0);
    for (index, (bucket, c, params)) in buckets.iter().enumerate() {
        let quoted = bucket.quote(*c, *params);
        if quoted > wait {
            (which, wait) = (index, quoted);
        }
    }
    if wait <= 0.0 {
        for (bucket, c, params) in &mut buckets {
            bucket.take(*c, 1, 0.0, *params);
        }
        TakenAll::All
    } else if wait <= max_wait {
        let (bucket, c, params) = &mut buckets[which];
        bucket.take(*c, 1, max_wait, *params);
        TakenAll::Slowest {
            which,
            wait,
            reservation: Reservation::due(bucket.at + wait, *c, *params),
        }
    } else {
        TakenAll::Rejected {
            which,
            retry_after: (wait - max_wait).max(1.0),
        }
    }
}
