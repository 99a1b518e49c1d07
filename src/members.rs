//! How many share the limits, and how many of them can be heard. Pure: time is passed in.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// For so long the largest count holds: shares must add up to one limit also for those who
/// have not heard of a change yet.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(60);

/// After so long a silence there was no contact.
const SILENCE: Duration = Duration::from_secs(3);

/// What the heartbeat told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Beat {
    /// Limiters heard within the last three seconds, this one included.
    pub(crate) alive: u32,
    /// Those last heard longer ago, up to a minute, that did not say goodbye.
    pub(crate) lapsed: u32,
}

/// The limiters on one Redis and prefix.
#[derive(Debug)]
pub(crate) struct Members {
    hint: u32,
    heard: Mutex<Heard>,
    /// The bits of `part`, to be read on the way of each call.
    part: AtomicU64,
}

#[derive(Debug, Default)]
struct Heard {
    /// Counts, each larger than all later ones, with when each was last heard.
    largest: VecDeque<(Instant, u32)>,
    last: Option<(Instant, Beat)>,
    grace_until: Option<Instant>,
}

impl Members {
    pub(crate) fn new(hint: u32) -> Self {
        Self {
            hint,
            heard: Mutex::default(),
            part: AtomicU64::new(1f64.to_bits()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        // Nothing under this lock can stop half way.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hear(&self, beat: Beat, now: Instant) {
        let mut heard = self.lock();
        match heard.last {
            // Those who come back first see few others: an outage ages no count.
            Some((last, _)) => {
                let silence = now.saturating_duration_since(last);
                if silence > SILENCE {
                    heard.largest.iter_mut().for_each(|(at, _)| *at += silence);
                }
            }
            // Nor does whoever starts first: the hint is the first count.
            None => heard.largest.push_back((now, self.hint)),
        }
        while heard
            .largest
            .back()
            .is_some_and(|(_, count)| *count <= beat.alive)
        {
            heard.largest.pop_back();
        }
        heard.largest.push_back((now, beat.alive));
        while heard
            .largest
            .front()
            .is_some_and(|(at, _)| now - *at > REMEMBERED)
        {
            heard.largest.pop_front();
        }
        heard.last = Some((now, beat));
        self.update(&heard, now);
    }

    /// Until then, those who have not come back yet are expected.
    pub(crate) fn expect_all_until(&self, until: Instant, now: Instant) {
        let mut heard = self.lock();
        heard.grace_until = heard.grace_until.max(Some(until));
        self.update(&heard, now);
    }

    fn update(&self, heard: &Heard, now: Instant) {
        let part = heard.last.map_or(1.0, |(_, beat)| {
            let mut expected = beat.alive + beat.lapsed;
            if heard.grace_until.is_some_and(|until| now < until) {
                expected = expected.max(self.count(heard));
            }
            f64::from(beat.alive.max(1)) / f64::from(expected.max(1))
        });
        self.part.store(part.to_bits(), Ordering::Relaxed);
    }

    /// The part of all that was back before the limiter that sends this beat.
    pub(crate) fn back_before(&self, beat: Beat) -> f64 {
        let expected = (beat.alive + beat.lapsed).max(self.count(&self.lock()));
        f64::from(beat.alive.saturating_sub(1)) / f64::from(expected.max(1))
    }

    fn count(&self, heard: &Heard) -> u32 {
        heard
            .largest
            .front()
            .map_or(self.hint, |(_, count)| *count)
            .max(1)
    }

    /// Among how many a limit is shared.
    pub(crate) fn processes(&self) -> f64 {
        f64::from(self.count(&self.lock()))
    }

    /// The part of each limit that is left to those who reach Redis: the others live from their
    /// shares.
    pub(crate) fn part(&self) -> f64 {
        f64::from_bits(self.part.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn beat(alive: u32, lapsed: u32) -> Beat {
        Beat { alive, lapsed }
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_count_of_the_last_minute_of_contact() {
        let start = Instant::now();
        let members = Members::new(3);
        assert_eq!(members.processes(), 3.0, "the hint, before any contact");
        // A beat each second, of so many, until then.
        let hear = |seconds: std::ops::RangeInclusive<u32>, alive, processes| {
            for at in seconds.clone() {
                members.hear(beat(alive, 0), start + at * SECOND);
            }
            assert_eq!(members.processes(), processes, "after {seconds:?}");
        };
        hear(1..=1, 1, 3.0);
        hear(2..=2, 4, 4.0);
        hear(3..=32, 2, 4.0);
        hear(33..=33, 3, 4.0);
        hear(34..=62, 2, 4.0);
        hear(63..=63, 2, 3.0);
        hear(64..=93, 2, 3.0);
        hear(94..=94, 2, 2.0);
        // An hour without contact, and the first to be back sees nobody else.
        hear(3_694..=3_694, 1, 2.0);
        hear(3_695..=3_754, 1, 2.0);
        hear(3_755..=3_755, 1, 1.0);
        // The hint holds for a minute too.
        let members = Members::new(3);
        for at in 0..=61 {
            members.hear(beat(1, 0), start + at * SECOND);
            let processes = if at <= 60 { 3.0 } else { 1.0 };
            assert_eq!(members.processes(), processes, "at {at} s");
        }
        let members = Members::new(1);
        members.hear(beat(8, 0), start);
        assert_eq!(members.processes(), 8.0, "without contact nothing ages");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_reach_redis_leave_room_for_the_others() {
        let start = Instant::now();
        let members = Members::new(1);
        assert_eq!(members.part(), 1.0);
        members.hear(beat(4, 0), start);
        assert_eq!(members.part(), 1.0);
        members.hear(beat(1, 3), start);
        assert_eq!(members.part(), 0.25);
        members.hear(beat(3, 1), start);
        assert_eq!(members.part(), 0.75);
        // The first to come back, on a Redis that has lost its data, sees nobody else.
        members.expect_all_until(start + 2 * SECOND, start);
        members.hear(beat(1, 0), start + SECOND);
        assert_eq!(members.part(), 0.25);
        members.hear(beat(1, 0), start + 2 * SECOND);
        assert_eq!(members.part(), 1.0);
    }
}
