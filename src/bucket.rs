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
pub(crate) struct Terms {
    pub(crate) cap: f64,
    pub(crate) per_us: f64,
}

impl Terms {
    pub(crate) fn new(capacity: f64, rate: f64) -> Self {
        Self {
            cap: capacity,
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
            cap: (self.cap / n).max(self.cap.min(1.0)),
            per_us: self.per_us / n,
        }
    }

    /// As `share`, but all `n` of them together are never more than the whole, not even where that
    /// leaves less than a token to each.
    pub(crate) fn strict_share(self, n: f64) -> Self {
        Self {
            cap: self.cap / n,
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
        cost >= 0.0 && cost <= self.cap
    }
}

/// Reservations that end this close to each other, in microseconds, are neighbours: a due time is
/// rounded up to a whole microsecond, and the rest of the next one is counted from the level.
const NEIGHBOURS_US: f64 = 2.0;

/// A bucket remembers so many cancelled reservations that others stand behind. The tokens of
/// further ones come back only by the refill.
const MOST_CANCELLED: usize = 64;

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
    pub(crate) fn due(until: f64, tokens: f64, terms: Terms) -> Self {
        Self {
            from: until - tokens.min(terms.cap) / terms.per_us,
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
    pub(crate) tail: f64,
    /// The largest cost among the sleepers.
    pub(crate) big: f64,
    /// Given back while others sleep.
    pub(crate) pool: f64,
    /// Until when nobody is granted anything; zero: it is not held back.
    pub(crate) held: f64,
    /// By which rate the level counts the rest of the hold, in tokens per microsecond.
    pub(crate) by: f64,
    /// Cancelled reservations that others stand behind, in the order of their due times. Their
    /// tokens are part of the debt.
    pub(crate) cancelled: Vec<Reservation>,
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
    pub(crate) fn wait(&self, k: u32, c: f64, terms: Terms) -> f64 {
        let k = f64::from(k);
        if k < self.now {
            0.0
        } else {
            (self.last - (self.granted - 1.0 - k) * c / terms.per_us).max(0.0)
        }
    }
}

impl Bucket {
    pub(crate) fn full(now: f64, terms: Terms) -> Self {
        Self {
            level: terms.cap,
            at: now,
            tail: 0.0,
            big: 0.0,
            pool: 0.0,
            held: 0.0,
            by: 0.0,
            cancelled: Vec::new(),
        }
    }

    /// Brings the bucket to `now`. True where the clock was mended, which must be kept even
    /// when nothing else changes.
    pub(crate) fn visit(&mut self, now: f64, terms: Terms) -> bool {
        self.visit_by(now, terms, 1.0)
    }

    /// As `visit`, after an outage from which only the part `back` of all processes is back.
    ///
    /// The others will charge what they spent of their shares, so the bucket still holds the
    /// tokens of those. Once these shares are full they do not refill, and must not refill what
    /// the others spend, or were promised: from there on the bucket refills in part.
    pub(crate) fn visit_by(&mut self, now: f64, terms: Terms, back: f64) -> bool {
        let mended = self.at > now + CLOCK_SLACK_US;
        if mended {
            let step = self.at - now;
            self.tail -= step;
            self.held -= step;
            for gap in &mut self.cancelled {
                gap.from -= step;
                gap.until -= step;
            }
            self.at = now;
        }
        // A hold is as long by any rate.
        if self.held > self.at && self.by != terms.per_us {
            self.level += (self.held - self.at) * (self.by - terms.per_us);
            self.by = terms.per_us;
        }
        let n = self.at.max(now);
        let mut us = n - self.at;
        if back < 1.0 {
            let promised = (self.tail - self.at).max(0.0) * terms.per_us * back;
            let to_full = (1.0 - back) * terms.cap - promised - self.level;
            let at_whole = us.min((to_full / (terms.per_us * (1.0 - back))).max(0.0));
            us = at_whole + (us - at_whole) * back;
        }
        self.level = terms.cap.min(self.level + us * terms.per_us);
        self.at = n;
        // What is due and was cancelled is given back.
        let due = self.cancelled.partition_point(|gap| gap.until <= n);
        for gap in self.cancelled.drain(..due) {
            self.pool += gap.tokens;
        }
        // The room is that of the time when the last reservation was due, if it was.
        let since = (n - self.tail).max(0.0) * terms.per_us * back;
        self.pool = self.pool.min(self.room(self.level - since, terms));
        if self.tail <= n {
            self.end_queue(terms);
        }
        if self.held > n {
            self.bind(terms);
        } else {
            self.held = 0.0;
            self.by = 0.0;
        }
        mended
    }

    /// No reservation is outstanding.
    fn end_queue(&mut self, terms: Terms) {
        for gap in self.cancelled.drain(..) {
            self.pool += gap.tokens;
        }
        self.level = terms.cap.min(self.level + self.pool);
        self.tail = 0.0;
        self.pool = 0.0;
        self.big = 0.0;
    }

    /// How much may be given back at this level, without crowding those who wait.
    fn room(&self, level: f64, terms: Terms) -> f64 {
        (terms.cap - self.big - level.max(0.0)).max(0.0)
    }

    /// How long a demand of `c` would wait now, in microseconds.
    pub(crate) fn quote(&self, c: f64, terms: Terms) -> f64 {
        let need = c.min(terms.cap);
        if self.level >= need || self.pool >= c {
            0.0
        } else if let Some((_, start, length)) = self.gap_for(c, terms) {
            self.wait_until(start + length)
        } else {
            ((need - self.level) / terms.per_us).ceil()
        }
    }

    fn wait_until(&self, due: f64) -> f64 {
        (due - self.at).ceil().max(0.0)
    }

    /// The first cancelled reservation that has room for `c`: which, from when on, and for how
    /// long.
    fn gap_for(&self, c: f64, terms: Terms) -> Option<(usize, f64, f64)> {
        if c > terms.cap {
            return None;
        }
        self.cancelled.iter().enumerate().find_map(|(index, gap)| {
            let length = (gap.until - gap.from) * (c / gap.tokens);
            let start = if self.held > self.at {
                gap.from.max(self.held)
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
    fn fill_gap(&mut self, c: f64, max_wait: f64, terms: Terms) -> Option<f64> {
        let (index, start, length) = self.gap_for(c, terms)?;
        let wait = self.wait_until(start + length);
        if wait > max_wait {
            return None;
        }
        let gap = &mut self.cancelled[index];
        let passed = gap.tokens * ((start - gap.from) / (gap.until - gap.from));
        gap.tokens -= c + passed;
        gap.from = start + length;
        if gap.tokens <= 0.0 || gap.from >= gap.until {
            self.cancelled.remove(index);
        }
        if passed > 0.0 && self.held <= self.at {
            self.pool = (self.pool + passed).min(self.room(self.level, terms));
        }
        self.big = self.big.max(c);
        Some(wait)
    }

    /// Takes `c` for each of `n` demands, in order, none of which waits over `max_wait`.
    ///
    /// A demand over the whole capacity goes when the bucket is full, into debt: where this
    /// bucket is a process's share of a larger one, it would else be locked out.
    pub(crate) fn take(&mut self, c: f64, n: u32, max_wait: f64, terms: Terms) -> Taken {
        let n = f64::from(n);
        // Zero takes nothing; divided by, it would leave what is no number.
        if c <= 0.0 {
            return Taken {
                now: n,
                granted: n,
                ..Taken::default()
            };
        }
        let over = (c - terms.cap).max(0.0);
        let ready = if over > 0.0 {
            f64::from(u8::from(self.level >= terms.cap))
        } else {
            whole(self.level, c).min(n)
        };
        self.level -= ready * c;
        let pooled = whole(self.pool, c).min(n - ready);
        self.pool -= pooled * c;
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
            && let Some(wait) = self.fill_gap(c, max_wait, terms)
        {
            return Taken {
                now: f64::from(u8::from(wait <= 0.0)),
                granted: 1.0,
                last: wait,
                retry_after: 0.0,
            };
        }
        let level = self.level;
        let wait_of = |j: f64| ((j * c - over - level) / terms.per_us).ceil();
        let mut later = ((level + over + max_wait * terms.per_us) / c)
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
            self.tail = self.tail.max(self.at + taken.last);
            self.big = self.big.max(c.min(terms.cap));
        }
        if later < left {
            let mut wait = wait_of(later + 1.0);
            if n == 1.0
                && let Some((_, start, length)) = self.gap_for(c, terms)
            {
                wait = wait.min(self.wait_until(start + length));
            }
            taken.retry_after = (wait - max_wait).max(1.0);
        }
        taken
    }

    /// Gives back `c` tokens that were taken and not used.
    pub(crate) fn give_back(&mut self, c: f64, terms: Terms) {
        if self.held > self.at {
            // It would pull the end of the hold forward, or go out as a burst after it.
        } else if self.tail <= self.at {
            self.level = terms.cap.min(self.level + c);
        } else {
            self.pool = (self.pool + c).min(self.room(self.level, terms));
        }
    }

    /// Undoes a reservation whose caller has gone away.
    ///
    /// The last of the queue is undone as if it had never been made, and then the one before it,
    /// if that is cancelled as well. Others stand behind one in the middle, and rely on it: its
    /// tokens come back when it is the last, or due; a newcomer may take its place.
    pub(crate) fn undo(&mut self, gone: Reservation, terms: Terms) {
        if gone.until <= self.at {
            // What has refilled since may have been used by others.
            let unused = gone.tokens - (self.at - gone.until) * terms.per_us;
            return self.give_back(unused.max(0.0), terms);
        }
        // What is due in a pause has paid for it. Beyond the tail is what this bucket does not
        // know: it was reset or lost.
        if gone.until <= self.held || gone.until > self.tail + NEIGHBOURS_US {
            return;
        }
        if gone.until < self.tail - NEIGHBOURS_US {
            // One over the capacity refills in part after it is due.
            if gone.tokens <= terms.cap {
                self.remember(gone);
            }
            return;
        }
        let mut last = gone;
        loop {
            self.level = terms.cap.min(self.level + last.tokens);
            self.tail = last.from;
            match self.cancelled.pop() {
                Some(next) if next.until >= self.tail - NEIGHBOURS_US => last = next,
                Some(next) => {
                    self.cancelled.push(next);
                    break;
                }
                None => break,
            }
        }
        if self.tail <= self.at + NEIGHBOURS_US {
            self.end_queue(terms);
        }
        if self.held > self.at {
            self.bind(terms);
        }
    }

    /// Keeps a cancelled reservation of the middle, as one with its neighbours. One that is shorter
    /// than a double can tell comes back by the refill.
    fn remember(&mut self, gone: Reservation) {
        if gone.from >= gone.until {
            return;
        }
        let next = self.cancelled.partition_point(|gap| gap.until < gone.until);
        let joins = |before: &Reservation, after: &Reservation| {
            (after.from - before.until).abs() <= NEIGHBOURS_US
        };
        let before = next.checked_sub(1);
        let before = before.filter(|&before| joins(&self.cancelled[before], &gone));
        let after = self
            .cancelled
            .get(next)
            .is_some_and(|after| joins(&gone, after));
        match (before, after) {
            (Some(before), true) => {
                let after = self.cancelled.remove(next);
                let gap = &mut self.cancelled[before];
                gap.until = after.until;
                gap.tokens += gone.tokens + after.tokens;
            }
            (Some(before), false) => {
                let gap = &mut self.cancelled[before];
                gap.until = gone.until;
                gap.tokens += gone.tokens;
            }
            (None, true) => {
                let gap = &mut self.cancelled[next];
                gap.from = gone.from;
                gap.tokens += gone.tokens;
            }
            (None, false) if self.cancelled.len() < MOST_CANCELLED => {
                self.cancelled.insert(next, gone);
            }
            (None, false) => {}
        }
    }

    /// The level without what is reserved by nobody any more: at most so much is free.
    pub(crate) fn free(&self) -> f64 {
        self.cancelled
            .iter()
            .fold(self.level, |level, gap| level + gap.tokens)
    }

    /// Charges `x` tokens that were used without having been taken. The debt is bounded by one
    /// capacity beyond what sleepers were promised, so that no single charge blocks a scope for
    /// ever.
    pub(crate) fn charge(&mut self, x: f64, terms: Terms) {
        let from_pool = self.pool.min(x);
        self.pool -= from_pool;
        let promised = (self.tail - self.at).max(0.0) * terms.per_us;
        let floor = -terms.cap - promised;
        self.level = self.level.min((self.level - (x - from_pool)).max(floor));
    }

    /// Charges `x` tokens that memory granted while the store was away, those included that it
    /// promised to sleepers, the largest of cost `big`, for turns that come within `wait`: so no
    /// bound may forget them.
    #[cfg(test)]
    pub(crate) fn pay(&mut self, x: f64, wait: f64, big: f64) {
        let from_pool = self.pool.min(x);
        self.pool -= from_pool;
        self.level = self.level.min(self.level - (x - from_pool));
        if wait > 0.0 {
            self.tail = self.tail.max(self.at + wait);
            self.big = self.big.max(big);
        }
    }

    /// Takes up to `x` tokens ahead of any demand, of what is over half the capacity, while nobody
    /// sleeps. How many.
    #[cfg(test)]
    pub(crate) fn lease(&mut self, x: f64, terms: Terms) -> f64 {
        if self.tail > self.at {
            return 0.0;
        }
        let ahead = x.min((self.level - terms.cap / 2.0).floor()).max(0.0);
        self.level -= ahead;
        ahead
    }

    /// Leaves no more than `x` tokens.
    pub(crate) fn lower(&mut self, x: f64) {
        self.level = self.level.min(x);
        self.pool = self.pool.min(x.max(0.0));
    }

    /// Grants nobody anything for `us` microseconds, whoever was promised a turn in that time:
    /// what such turns have taken pays for the hold, so they are not given back. After it the
    /// rate goes on, without a burst. A hold is never shortened by another.
    pub(crate) fn hold_back(&mut self, us: f64, terms: Terms) {
        self.held = self.held.max(self.at + us);
        if self.held > self.at {
            self.by = terms.per_us;
            // What is due in a pause pays for it.
            self.cancelled.retain(|gap| gap.until > self.held);
            self.bind(terms);
        }
    }

    /// At the end of the hold the bucket is empty at most.
    fn bind(&mut self, terms: Terms) {
        self.level = self.level.min((self.at - self.held) * terms.per_us);
        self.pool = 0.0;
    }

    /// For how long nobody is granted anything, in microseconds.
    #[cfg(test)]
    pub(crate) fn held_for(&self) -> f64 {
        (self.held - self.at).max(0.0)
    }

    /// When the bucket equals an absent one, counted from its `at`, in microseconds.
    pub(crate) fn full_in(&self, terms: Terms) -> f64 {
        ((terms.cap - self.level) / terms.per_us).max(self.tail - self.at)
    }

    /// For how many milliseconds Redis is told to remember this bucket: twice as long as needed,
    /// because an expiry costs as much as a value. None while `left`, in microseconds, is enough
    /// and not too much. What the script must say.
    #[cfg(test)]
    pub(crate) fn ttl_ms(&self, now: f64, left: f64, terms: Terms) -> Option<f64> {
        let us = self.at - now + self.full_in(terms);
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
    terms: Terms,
) -> AtOnce {
    let n = at.max(now);
    let refilled = terms.cap.min(*level + (n - *at) * terms.per_us);
    if *at > now + CLOCK_SLACK_US {
        return AtOnce::Mends;
    }
    if refilled < c {
        return AtOnce::Short(ceil((c - refilled) / terms.per_us).max(1.0));
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
    Refused { which: usize, retry_after: f64 },
}

/// Takes from several different buckets, all or none.
pub(crate) fn take_all<'a>(
    buckets: impl Iterator<Item = (&'a mut Bucket, f64, Terms)>,
    max_wait: f64,
) -> TakenAll {
    let mut buckets: Vec<_> = buckets.collect();
    let (mut which, mut wait) = (0, -1.0);
    for (index, (bucket, c, terms)) in buckets.iter().enumerate() {
        let quoted = bucket.quote(*c, *terms);
        if quoted > wait {
            (which, wait) = (index, quoted);
        }
    }
    if wait <= 0.0 {
        for (bucket, c, terms) in &mut buckets {
            bucket.take(*c, 1, 0.0, *terms);
        }
        TakenAll::All
    } else if wait <= max_wait {
        let (bucket, c, terms) = &mut buckets[which];
        bucket.take(*c, 1, max_wait, *terms);
        TakenAll::Slowest {
            which,
            wait,
            reservation: Reservation::due(bucket.at + wait, *c, *terms),
        }
    } else {
        TakenAll::Refused {
            which,
            retry_after: (wait - max_wait).max(1.0),
        }
    }
}

#[cfg(test)]
pub(crate) mod law;
