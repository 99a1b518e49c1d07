//! The limiters on one Redis and prefix: how many share a limit, and how many of them reach Redis.
//! Pure: time is passed in.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::clock::to_us;

/// How long the largest count is used: local shares must add up to one limit even if some limiters
/// do not know the newest count.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(60);

/// A limiter whose last heartbeat is older than this is not alive.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// Limiters that reach Redis use at least this part of each rate, however many are missing.
pub(crate) const MIN_PART: f64 = 0.25;

/// The longest interval between heartbeats, and so the age of a count.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The counts in the reply to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HeartbeatReply {
    /// Limiters that are alive, including this one.
    pub(crate) alive: u32,
    /// Limiters that are not alive, did not deregister, and for which a share is still reserved.
    pub(crate) missing: u32,
}

/// The part of each rate that limiters may use that reach Redis; the rest is reserved for those
/// that are missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RatePart {
    /// From 0 to 1.
    pub(crate) of_rate: f64,
    /// For so many microseconds; after that, the full rate applies.
    pub(crate) lasts_us: f64,
}

impl RatePart {
    pub(crate) const FULL: Self = Self {
        of_rate: 1.0,
        lasts_us: 0.0,
    };

    /// Converts a wait at the reduced rate to the real one, which is shorter because the full rate
    /// applies later.
    pub(crate) fn shorten(self, us: f64) -> f64 {
        if us <= self.lasts_us {
            us
        } else {
            self.lasts_us + (us - self.lasts_us) * self.of_rate
        }
    }

    /// The inverse of `shorten`.
    pub(crate) fn lengthen(self, us: f64) -> f64 {
        if us <= self.lasts_us {
            us
        } else {
            self.lasts_us + (us - self.lasts_us) / self.of_rate
        }
    }

    /// For a bucket that is paused for so many microseconds, which no rate shortens.
    pub(crate) fn with_pause(self, us: f64) -> Self {
        Self {
            lasts_us: self.lasts_us.max(us),
            ..self
        }
    }

    /// When to retry, in microseconds, for a caller that waits for up to `max_wait` again.
    pub(crate) fn retry_after(self, us: f64, max_wait: f64) -> f64 {
        if self.of_rate >= 1.0 {
            return us;
        }
        (self.shorten(us + self.lengthen(max_wait)) - max_wait).max(1.0)
    }
}

/// The limiters on one Redis and prefix.
#[derive(Debug)]
pub(crate) struct Peers {
    /// The count before the first heartbeat.
    hint: u32,
    /// How long a share is reserved for a limiter that is missing.
    pub(crate) reserve_for: Duration,
    counts: Mutex<Counts>,
    /// The bits of the part that reaches Redis: each call reads it, without the lock.
    recovered: AtomicU64,
}

#[derive(Debug, Default)]
struct Counts {
    /// Counts, each larger than all later ones, with the time of the last heartbeat that had it.
    largest: VecDeque<(Instant, u32)>,
    last: Option<(Instant, HeartbeatReply)>,
    /// Until then, all limiters that were counted lately are expected.
    all_expected_until: Option<Instant>,
    /// After Redis has lost its data, so many limiters are expected until then.
    expected_after_loss: Option<(Instant, u32)>,
    /// Limiters that are expected and not alive.
    missing: u32,
    /// Until then, shares are reserved for them.
    reserved_until: Option<Instant>,
}

impl Peers {
    pub(crate) fn new(hint: u32, reserve_for: Duration) -> Self {
        Self {
            hint,
            reserve_for,
            counts: Mutex::default(),
            recovered: AtomicU64::new(1f64.to_bits()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics under this lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the reply to a heartbeat.
    pub(crate) fn record(&self, reply: HeartbeatReply, now: Instant) {
        let mut counts = self.lock();
        match counts.last {
            // The first limiters to recover see few others, so counts do not age in an outage.
            Some((last, _)) => {
                let silence = now.saturating_duration_since(last);
                if silence > SILENCE {
                    counts.largest.iter_mut().for_each(|(at, _)| *at += silence);
                }
            }
            // The same holds for the first limiters to start: the hint is the first count.
            None => counts.largest.push_back((now, self.hint)),
        }
        while counts
            .largest
            .back()
            .is_some_and(|(_, count)| *count <= reply.alive)
        {
            counts.largest.pop_back();
        }
        counts.largest.push_back((now, reply.alive));
        while counts
            .largest
            .front()
            .is_some_and(|(at, _)| now - *at > REMEMBERED)
        {
            counts.largest.pop_front();
        }
        counts.last = Some((now, reply));
        self.update(&mut counts, now);
    }

    /// Expects all limiters that were counted lately: in the recovery window, those that have not
    /// recovered yet.
    pub(crate) fn expect_all_until(&self, until: Instant, now: Instant) {
        let mut counts = self.lock();
        counts.all_expected_until = counts.all_expected_until.max(Some(until));
        self.update(&mut counts, now);
    }

    /// After Redis has lost its data, and with it which limiters are missing: expects those of the
    /// last heartbeat, for as long as if all of them had fallen silent now.
    pub(crate) fn expect_as_before(&self, now: Instant) {
        let mut counts = self.lock();
        let before = counts
            .last
            .map_or(0, |(_, reply)| reply.alive.saturating_add(reply.missing));
        let expected = before.max(counts.expected_after_loss(now));
        counts.expected_after_loss = Some((now + SILENCE + self.reserve_for, expected));
        self.update(&mut counts, now);
    }

    fn update(&self, counts: &mut Counts, now: Instant) {
        let (recovered, missing) = counts.last.map_or((1.0, 0), |(_, reply)| {
            let mut expected = reply
                .alive
                .saturating_add(reply.missing)
                .max(counts.expected_after_loss(now));
            if counts.all_expected_until.is_some_and(|until| now < until) {
                expected = expected.max(self.count(counts));
            }
            let recovered = f64::from(reply.alive.max(1)) / f64::from(expected.max(1));
            (recovered, expected.saturating_sub(reply.alive.max(1)))
        });
        let is_reserved = counts.reserved_until.is_some_and(|until| now < until);
        if missing > counts.missing || !is_reserved {
            let after_loss = counts.expected_after_loss.map(|(until, _)| until);
            counts.reserved_until = after_loss.max(Some(now + self.reserve_for));
        }
        counts.missing = missing;
        self.recovered.store(recovered.to_bits(), Ordering::Relaxed);
    }

    /// The part of all limiters that had recovered before the one that got this reply.
    pub(crate) fn recovered_before(&self, reply: HeartbeatReply) -> f64 {
        let expected = (reply.alive + reply.missing).max(self.count(&self.lock()));
        f64::from(reply.alive.saturating_sub(1)) / f64::from(expected.max(1))
    }

    fn count(&self, counts: &Counts) -> u32 {
        counts
            .largest
            .front()
            .map_or(self.hint, |(_, count)| *count)
            .max(1)
    }

    /// How many limiters share a limit.
    pub(crate) fn processes(&self) -> f64 {
        f64::from(self.count(&self.lock()))
    }

    /// The part of all limiters that reach Redis; the others use their local shares.
    pub(crate) fn recovered(&self) -> f64 {
        f64::from_bits(self.recovered.load(Ordering::Relaxed))
    }

    /// The part of each rate that limiters may use that reach Redis.
    pub(crate) fn part(&self, now: Instant) -> RatePart {
        let of_rate = self.recovered().max(MIN_PART);
        if of_rate >= 1.0 {
            return RatePart::FULL;
        }
        let until = self.lock().reserved_until.unwrap_or(now);
        if now > until + SILENCE {
            // This limiter sends no heartbeats any more, so none has ended the reservation.
            return RatePart::FULL;
        }
        // The first heartbeat after it ends the reservation.
        let lasts = until.saturating_duration_since(now).max(HEARTBEAT);
        RatePart {
            of_rate,
            lasts_us: to_us(lasts),
        }
    }

    /// How many limiters are missing.
    pub(crate) fn missing(&self) -> u32 {
        self.lock().missing
    }
}

impl Counts {
    /// How many limiters are expected after Redis has lost its data; else 0.
    fn expected_after_loss(&self, now: Instant) -> u32 {
        let expected = self.expected_after_loss.filter(|(until, _)| now < *until);
        expected.map_or(0, |(_, expected)| expected)
    }
}

#[cfg(test)]
mod tests;
