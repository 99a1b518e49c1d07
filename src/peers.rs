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

use crate::clock::to_us;

/// For so long the largest count holds: shares must add up to one limit also for those who
/// have not heard of a change yet.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(60);

/// After so long a silence there was no contact.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// Those who reach Redis keep at least this part of each limit, however many are missing.
pub(crate) const MIN_PART: f64 = 0.25;

/// Between heartbeats, at most: a count is this old.
const BEAT: Duration = Duration::from_secs(1);

/// What the heartbeat told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HeartbeatReply {
    /// Limiters heard within the last three seconds, this one included.
    pub(crate) alive: u32,
    /// Those last heard longer ago, for as long as a share is reserved for them, that had lived for
    /// some seconds and did not deregister.
    pub(crate) lapsed: u32,
}

/// What a limiter that reaches Redis leaves to those who are missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RatePart {
    /// The part of each rate that is left to those who reach Redis.
    pub(crate) of_rate: f64,
    /// In microseconds from now, the whole rate is theirs again.
    pub(crate) lasts_us: f64,
}

impl RatePart {
    pub(crate) const FULL: Self = Self {
        of_rate: 1.0,
        lasts_us: 0.0,
    };

    /// A wait by the lower rate, as it is once the whole rate is back.
    pub(crate) fn shorten(self, us: f64) -> f64 {
        if us <= self.lasts_us {
            us
        } else {
            self.lasts_us + (us - self.lasts_us) * self.of_rate
        }
    }

    /// The wait by the lower rate that `shorten` makes so long.
    pub(crate) fn lengthen(self, us: f64) -> f64 {
        if us <= self.lasts_us {
            us
        } else {
            self.lasts_us + (us - self.lasts_us) / self.of_rate
        }
    }

    /// The same of a bucket that is held back for so long, which no rate shortens.
    pub(crate) fn with_pause(self, us: f64) -> Self {
        Self {
            lasts_us: self.lasts_us.max(us),
            ..self
        }
    }

    /// When to come back, in microseconds, for one who would wait for `max_wait` again.
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
    hint: u32,
    /// For how long a share is reserved for a limiter that is missing.
    pub(crate) reserve_for: Duration,
    heard: Mutex<Heard>,
    /// The bits of `back`, to be read on the way of each call.
    back: AtomicU64,
}

#[derive(Debug, Default)]
struct Heard {
    /// Counts, each larger than all later ones, with when each was last heard.
    largest: VecDeque<(Instant, u32)>,
    last: Option<(Instant, HeartbeatReply)>,
    grace_until: Option<Instant>,
    /// On a Redis that has lost its data, so many are expected until then.
    lost: Option<(Instant, u32)>,
    /// How many are missing now, and until when shares are reserved for them.
    missing: u32,
    reserved_until: Option<Instant>,
}

impl Peers {
    pub(crate) fn new(hint: u32, reserve_for: Duration) -> Self {
        Self {
            hint,
            reserve_for,
            heard: Mutex::default(),
            back: AtomicU64::new(1f64.to_bits()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        // Nothing under this lock can stop half way.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self, beat: HeartbeatReply, now: Instant) {
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
        self.update(&mut heard, now);
    }

    /// Until then, those who have not come back yet are expected.
    pub(crate) fn expect_all_until(&self, until: Instant, now: Instant) {
        let mut heard = self.lock();
        heard.grace_until = heard.grace_until.max(Some(until));
        self.update(&mut heard, now);
    }

    /// Redis has lost its data, and with it who is missing: those who were there before are
    /// expected for as long as if they had fallen silent now.
    pub(crate) fn expect_as_before(&self, now: Instant) {
        let mut heard = self.lock();
        let before = heard
            .last
            .map_or(0, |(_, beat)| beat.alive.saturating_add(beat.lapsed));
        let expected = before.max(heard.expected(now));
        heard.lost = Some((now + SILENCE + self.reserve_for, expected));
        self.update(&mut heard, now);
    }

    fn update(&self, heard: &mut Heard, now: Instant) {
        let (back, missing) = heard.last.map_or((1.0, 0), |(_, beat)| {
            let mut expected = beat
                .alive
                .saturating_add(beat.lapsed)
                .max(heard.expected(now));
            if heard.grace_until.is_some_and(|until| now < until) {
                expected = expected.max(self.count(heard));
            }
            let back = f64::from(beat.alive.max(1)) / f64::from(expected.max(1));
            (back, expected.saturating_sub(beat.alive.max(1)))
        });
        let goes_on = heard.reserved_until.is_some_and(|until| now < until);
        if missing > heard.missing || !goes_on {
            let lost = heard.lost.map(|(until, _)| until);
            heard.reserved_until = lost.max(Some(now + self.reserve_for));
        }
        heard.missing = missing;
        self.back.store(back.to_bits(), Ordering::Relaxed);
    }

    /// The part of all that was back before the limiter that sends this beat.
    pub(crate) fn back_before(&self, beat: HeartbeatReply) -> f64 {
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

    /// The part of all that reach Redis; the others live from their shares.
    pub(crate) fn recovered(&self) -> f64 {
        f64::from_bits(self.back.load(Ordering::Relaxed))
    }

    /// What is left to those who reach Redis.
    pub(crate) fn part(&self, now: Instant) -> RatePart {
        let of_rate = self.recovered().max(MIN_PART);
        if of_rate >= 1.0 {
            return RatePart::FULL;
        }
        let until = self.lock().reserved_until.unwrap_or(now);
        if now > until + SILENCE {
            // No heartbeat has found it over: this limiter sends none any more.
            return RatePart::FULL;
        }
        // It ends with the first beat that finds it over.
        let lasts = until.saturating_duration_since(now).max(BEAT);
        RatePart {
            of_rate,
            lasts_us: to_us(lasts),
        }
    }

    /// How many are missing.
    pub(crate) fn missing(&self) -> u32 {
        self.lock().missing
    }
}

impl Heard {
    /// How many are expected on a Redis that has lost its data.
    fn expected(&self, now: Instant) -> u32 {
        let lost = self.lost.filter(|(until, _)| now < *until);
        lost.map_or(0, |(_, expected)| expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const RESERVE: Duration = Duration::from_secs(5);

    fn beat(alive: u32, lapsed: u32) -> HeartbeatReply {
        HeartbeatReply { alive, lapsed }
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_count_of_the_last_minute_of_contact() {
        let start = Instant::now();
        let members = Peers::new(3, RESERVE);
        assert_eq!(members.processes(), 3.0, "the hint, before any contact");
        // A beat each second, of so many, until then.
        let hear = |seconds: std::ops::RangeInclusive<u32>, alive, processes| {
            for at in seconds.clone() {
                members.record(beat(alive, 0), start + at * SECOND);
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
        let members = Peers::new(3, RESERVE);
        for at in 0..=61 {
            members.record(beat(1, 0), start + at * SECOND);
            let processes = if at <= 60 { 3.0 } else { 1.0 };
            assert_eq!(members.processes(), processes, "at {at} s");
        }
        let members = Peers::new(1, RESERVE);
        members.record(beat(8, 0), start);
        assert_eq!(members.processes(), 8.0, "without contact nothing ages");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_reach_redis_leave_room_for_the_others() {
        let start = Instant::now();
        let members = Peers::new(1, RESERVE);
        assert_eq!(members.part(Instant::now()), RatePart::FULL);
        members.record(beat(4, 0), start);
        assert_eq!(members.part(Instant::now()), RatePart::FULL);
        members.record(beat(1, 3), start);
        assert_eq!(members.part(Instant::now()).of_rate, 0.25);
        members.record(beat(3, 1), start);
        assert_eq!(
            (members.part(Instant::now()).of_rate, members.missing()),
            (0.75, 1)
        );
        // The first to come back, on a Redis that has lost its data, sees nobody else.
        members.expect_all_until(start + 2 * SECOND, start);
        members.record(beat(1, 0), start + SECOND);
        assert_eq!(members.recovered(), 0.25);
        members.record(beat(1, 0), start + 2 * SECOND);
        assert_eq!(members.part(Instant::now()), RatePart::FULL);
    }

    #[tokio::test(start_paused = true)]
    async fn survivors_keep_the_floor() {
        let members = Peers::new(1, RESERVE);
        members.record(beat(1, 99), Instant::now());
        assert_eq!(members.recovered(), 0.01);
        assert_eq!(members.part(Instant::now()).of_rate, MIN_PART);
    }

    #[tokio::test(start_paused = true)]
    async fn reservation_ends_after_its_time() {
        let members = Peers::new(1, RESERVE);
        let left = |members: &Peers| members.part(Instant::now()).lasts_us / 1e6;
        members.record(beat(3, 1), Instant::now());
        assert_eq!(left(&members), 5.0);
        tokio::time::advance(2 * SECOND).await;
        members.record(beat(3, 1), Instant::now());
        assert_eq!(left(&members), 3.0);
        // Another one, so the last of them ends later.
        members.record(beat(2, 2), Instant::now());
        assert_eq!(left(&members), 5.0);
        members.record(beat(2, 1), Instant::now());
        assert_eq!(left(&members), 5.0);
        tokio::time::advance(9 * SECOND / 2).await;
        assert_eq!(left(&members), 1.0, "until the next beat");
        members.record(beat(2, 0), Instant::now());
        assert_eq!(members.part(Instant::now()), RatePart::FULL);
    }

    #[tokio::test(start_paused = true)]
    async fn data_loss_expects_those_of_the_last_beat_only() {
        let members = Peers::new(1, RESERVE);
        // A deployment: four more within the last minute, which have said goodbye.
        members.record(beat(8, 0), Instant::now());
        tokio::time::advance(SECOND).await;
        members.record(beat(4, 0), Instant::now());
        members.expect_as_before(Instant::now());
        members.record(beat(1, 0), Instant::now());
        assert_eq!(members.part(Instant::now()).of_rate, 0.25);
        members.record(beat(4, 0), Instant::now());
        assert_eq!(members.part(Instant::now()), RatePart::FULL);
        tokio::time::advance(SECOND).await;
        // Twice in a row, it is still the same four.
        members.record(beat(1, 0), Instant::now());
        members.expect_as_before(Instant::now());
        members.record(beat(2, 0), Instant::now());
        assert_eq!(members.part(Instant::now()).of_rate, 0.5);
        tokio::time::advance(SILENCE + RESERVE).await;
        members.record(beat(2, 0), Instant::now());
        assert_eq!(members.part(Instant::now()), RatePart::FULL);
    }

    #[test]
    fn waits_are_those_of_a_rate_that_comes_back() {
        let part = RatePart {
            of_rate: 0.25,
            lasts_us: 5e6,
        };
        // A wait of a day at the whole rate is four at the lower one.
        let day = 86_400e6;
        let real = part.shorten(4.0 * day);
        assert!(real >= day && real <= day + 5e6, "{real}");
        for us in [0.0, 1.0, 4e6, 5e6, 6e6, day] {
            assert!((part.shorten(part.lengthen(us)) - us).abs() < 1e-3, "{us}");
            assert!(part.shorten(us) <= us);
            assert_eq!(RatePart::FULL.shorten(us), us);
            assert_eq!(RatePart::FULL.lengthen(us), us);
        }
        let max_wait = 2e6;
        let refused = 4.0 * day - part.lengthen(max_wait);
        let retry_after = part.retry_after(refused, max_wait);
        assert!((retry_after + max_wait - real).abs() < 1e-3);
        assert_eq!(RatePart::FULL.retry_after(7e6, max_wait), 7e6);
        // While a bucket is held back, no rate is behind its waits.
        assert_eq!(part.with_pause(60e6).shorten(61e6), 60.25e6);
        assert_eq!(part.with_pause(2e6).shorten(9e6), 6e6);
    }
}
