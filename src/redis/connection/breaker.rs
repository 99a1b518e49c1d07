//! When Redis is left alone, and when it is tried again. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// The pause after the first failed probe; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause, and so about the longest time in which a Redis that is back goes unseen.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Redis that fails again within this time was not back: the pauses go on doubling.
const STEADY: Duration = Duration::from_secs(2);

/// Of so many calls the outcome is remembered …
const RECENT: u32 = 16;

/// … and when so many of them failed, each by itself, something is wrong with all.
const MOST_FAILED: u32 = 8;

/// What is to be done.
///
/// ```text
/// Passing => Tripped     the connection failed a call, or half of the last calls failed singly
/// Tripped => Probing     the pause is over
/// Probing => Passing     a call that writes was answered
/// Probing => Tripped     it was not
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    /// Calls go to Redis, over this connection.
    Passing {
        generation: u64,
        since: Instant,
        recent: Recent,
    },
    /// Nobody touches a socket.
    Tripped,
    /// One background task tries; nobody else does.
    Probing,
}

/// The outcomes of the last calls, the latest in the lowest bit: 1 where it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Recent(u16);

impl Recent {
    fn with(self, failed: bool) -> Self {
        Self(self.0 << 1 | u16::from(failed))
    }

    fn is_bad(self) -> bool {
        const { assert!(RECENT == u16::BITS) };
        self.0.count_ones() >= MOST_FAILED
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    /// A call over this connection was answered.
    Answered(u64),
    /// A call failed by itself: the next one might not.
    FailedSingly(u64),
    /// A call failed because of the connection, or of what is behind it.
    Failed(u64),
    PauseOver,
    ProbeAnswered,
    ProbeFailed,
}

/// What the transition asks its owner to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    Nothing,
    /// Drop the connection, and probe after at most this pause.
    Trip(Duration),
    /// Connect, and make a call that writes.
    Probe,
    /// Use the new connection under this number.
    Pass(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Breaker {
    state: State,
    /// Counts connections. What is told of an older one says nothing about this one.
    generations: u64,
    /// Probes that failed in a row, trips that came too soon after one included.
    failures: u32,
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Tripped,
            generations: 0,
            failures: 0,
        }
    }

    #[cfg(test)]
    fn state(&self) -> State {
        self.state
    }

    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Act {
        match (self.state, event) {
            (
                State::Passing {
                    generation,
                    since,
                    recent,
                },
                Event::Answered(of) | Event::FailedSingly(of),
            ) if of == generation => {
                let recent = recent.with(matches!(event, Event::FailedSingly(_)));
                if recent.is_bad() {
                    return self.trip(since, now);
                }
                self.state = State::Passing {
                    generation,
                    since,
                    recent,
                };
                Act::Nothing
            }
            (
                State::Passing {
                    generation, since, ..
                },
                Event::Failed(of),
            ) if of == generation => self.trip(since, now),
            (State::Tripped, Event::PauseOver) => {
                self.state = State::Probing;
                Act::Probe
            }
            (State::Probing, Event::ProbeAnswered) => {
                self.generations += 1;
                self.state = State::Passing {
                    generation: self.generations,
                    since: now,
                    recent: Recent::default(),
                };
                Act::Pass(self.generations)
            }
            (State::Probing, Event::ProbeFailed) => {
                self.state = State::Tripped;
                self.failures += 1;
                Act::Trip(self.pause())
            }
            _ => Act::Nothing,
        }
    }

    /// Whoever was to act is gone.
    pub(crate) fn abandon(&mut self) {
        self.state = State::Tripped;
    }

    fn trip(&mut self, since: Instant, now: Instant) -> Act {
        self.state = State::Tripped;
        if now.saturating_duration_since(since) >= STEADY {
            // It has worked for a while: a lost connection is mended at once.
            self.failures = 0;
            return Act::Trip(Duration::ZERO);
        }
        self.failures += 1;
        Act::Trip(self.pause())
    }

    fn pause(&self) -> Duration {
        FIRST_PAUSE
            .saturating_mul(1 << (self.failures - 1).min(16))
            .min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn passing(now: Instant) -> (Breaker, u64) {
        let mut breaker = Breaker::new();
        assert_eq!(breaker.on(Event::PauseOver, now), Act::Probe);
        let Act::Pass(generation) = breaker.on(Event::ProbeAnswered, now) else {
            panic!("{breaker:?}");
        };
        (breaker, generation)
    }

    /// Every event in every state that a few events lead to, from a fresh start and from one
    /// failure short of too many, in steps of time on both sides of the threshold.
    #[tokio::test(start_paused = true)]
    async fn every_transition() {
        let start = Instant::now();
        let mut failing = passing(start).0;
        for _ in 1..MOST_FAILED {
            failing.on(Event::FailedSingly(1), start);
        }
        let mut edges = HashSet::new();
        let mut seen = HashSet::new();
        let mut queue = VecDeque::from([(Breaker::new(), start, 0), (failing, start, 0)]);
        while let Some((breaker, now, depth)) = queue.pop_front() {
            if depth > 4 || !seen.insert(format!("{breaker:?} {now:?}")) {
                continue;
            }
            for then in [now, now + STEADY / 2, now + STEADY] {
                for generation in 0..=breaker.generations + 1 {
                    for event in [
                        Event::Answered(generation),
                        Event::FailedSingly(generation),
                        Event::Failed(generation),
                        Event::PauseOver,
                        Event::ProbeAnswered,
                        Event::ProbeFailed,
                    ] {
                        let mut next = breaker;
                        let act = next.on(event, then);
                        check(&breaker, event, then, &next, act);
                        edges.insert(format!(
                            "{} {} {}",
                            name(breaker.state()),
                            name(next.state()),
                            act == Act::Nothing
                        ));
                        if next != breaker {
                            queue.push_back((next, then, depth + 1));
                        }
                    }
                }
            }
        }
        let mut edges: Vec<_> = edges.into_iter().collect();
        edges.sort();
        assert_eq!(
            edges,
            [
                "passing passing true",
                "passing tripped false",
                "probing passing false",
                "probing probing true",
                "probing tripped false",
                "tripped probing false",
                "tripped tripped true",
            ]
        );
        assert!(seen.len() > 100, "only {} states", seen.len());
    }

    fn name(state: State) -> &'static str {
        match state {
            State::Passing { .. } => "passing",
            State::Tripped => "tripped",
            State::Probing => "probing",
        }
    }

    fn check(before: &Breaker, event: Event, now: Instant, after: &Breaker, act: Act) {
        let told = format!("{before:?} {event:?} {after:?} {act:?}");
        match (before.state(), event) {
            (
                State::Passing {
                    generation, since, ..
                },
                Event::Failed(of),
            ) if of == generation => {
                assert_eq!(after.state(), State::Tripped, "{told}");
                let steady = now - since >= STEADY;
                match act {
                    Act::Trip(pause) => assert_eq!(pause.is_zero(), steady, "{told}"),
                    _ => panic!("{told}"),
                }
            }
            (
                State::Passing {
                    generation, recent, ..
                },
                Event::FailedSingly(of),
            ) if of == generation => {
                let bad = recent.with(true).is_bad();
                assert_eq!(after.state() == State::Tripped, bad, "{told}");
            }
            (State::Passing { generation, .. }, Event::Answered(of)) if of == generation => {
                // The success may push the window's oldest failure out, never one in.
                assert_eq!(name(after.state()), "passing", "{told}");
                assert_eq!(act, Act::Nothing, "{told}");
            }
            (State::Tripped, Event::PauseOver) => {
                assert_eq!((after.state(), act), (State::Probing, Act::Probe), "{told}");
            }
            (State::Probing, Event::ProbeAnswered) => {
                let fresh = before.generations + 1;
                assert_eq!(act, Act::Pass(fresh), "{told}");
                let expected = State::Passing {
                    generation: fresh,
                    since: now,
                    recent: Recent::default(),
                };
                assert_eq!(after.state(), expected, "{told}");
            }
            (State::Probing, Event::ProbeFailed) => {
                assert_eq!(after.state(), State::Tripped, "{told}");
                match act {
                    Act::Trip(pause) => {
                        assert!(pause >= FIRST_PAUSE && pause <= LONGEST_PAUSE, "{told}");
                    }
                    _ => panic!("{told}"),
                }
            }
            // Results of older connections, and what does not belong here.
            _ => assert_eq!((after, act), (before, Act::Nothing), "{told}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_and_start_anew_after_a_steady_time() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            breaker.on(Event::PauseOver, now);
            match breaker.on(Event::ProbeFailed, now) {
                Act::Trip(pause) => pauses.push(pause.as_millis()),
                act => panic!("{act:?}"),
            }
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000, 1_000]);
        breaker.on(Event::PauseOver, now);
        assert_eq!(breaker.on(Event::ProbeAnswered, now), Act::Pass(1));
        // Not back for long enough: it flaps.
        let act = breaker.on(Event::Failed(1), now + STEADY - MS);
        assert_eq!(act, Act::Trip(LONGEST_PAUSE));
        breaker.on(Event::PauseOver, now);
        assert_eq!(breaker.on(Event::ProbeAnswered, now), Act::Pass(2));
        let act = breaker.on(Event::Failed(2), now + STEADY);
        assert_eq!(act, Act::Trip(Duration::ZERO));
        breaker.on(Event::PauseOver, now);
        let act = breaker.on(Event::ProbeFailed, now);
        assert_eq!(act, Act::Trip(FIRST_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_last_calls_may_not_fail() {
        let now = Instant::now();
        let (mut breaker, generation) = passing(now);
        // Every third call fails: that is five or six of sixteen.
        for n in 0..1_000 {
            let event = match n % 3 {
                0 => Event::FailedSingly(generation),
                _ => Event::Answered(generation),
            };
            assert_eq!(breaker.on(event, now), Act::Nothing, "call {n}");
        }
        // Every second one does.
        let trips = (0..32).position(|n| {
            let event = match n % 2 {
                0 => Event::FailedSingly(generation),
                _ => Event::Answered(generation),
            };
            breaker.on(event, now) != Act::Nothing
        });
        assert!(trips.is_some());
        // All of them, from the start.
        let (mut breaker, generation) = passing(now);
        for _ in 1..MOST_FAILED {
            let act = breaker.on(Event::FailedSingly(generation), now);
            assert_eq!(act, Act::Nothing);
        }
        let act = breaker.on(Event::FailedSingly(generation), now);
        assert!(matches!(act, Act::Trip(_)));
    }
}
