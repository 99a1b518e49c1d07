//! Decides when Redis gets no requests, and when it is probed. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

/// The pause after the first failed probe; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause, and so about the longest delay until a recovered Redis is used again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// If Redis fails again within this time, it had not recovered: the pauses continue to double.
const STABLE: Duration = Duration::from_secs(2);

/// The number of calls whose results are kept.
const RECENT: u32 = 16;

/// The breaker trips if so many of them failed singly.
const MOST_FAILED: u32 = 8;

/// ```text
/// Passing => Tripped     a call failed with the connection, or 8 of the last 16 failed singly
/// Tripped => Probing     the pause is over
/// Probing => Passing     the probe, a call that writes, was answered
/// Probing => Tripped     it was not
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    /// Requests go to Redis, over this connection.
    Passing {
        generation: u64,
        since: Instant,
        recent: Recent,
    },
    /// Redis gets no requests.
    Tripped,
    /// Only the supervisor calls Redis.
    Probing,
}

/// The results of the last calls, the latest in the lowest bit: 1 if it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Recent(u16);

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
pub(super) enum Event {
    /// A call over this connection was answered.
    Answered(u64),
    /// A call failed, for a reason that may concern only itself.
    FailedSingly(u64),
    /// A call failed, because of the connection or the server.
    Failed(u64),
    PauseOver,
    ProbeAnswered,
    ProbeFailed,
}

/// What the owner of the breaker must do after a transition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// Drop the connection, and probe after at most this pause.
    Trip(Duration),
    /// Connect, and make a call that writes.
    Probe,
    /// Use the new connection, under this number.
    Pass(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Breaker {
    phase: Phase,
    /// Counts connections. Results of an earlier one do not count for the current one.
    generations: u64,
    /// Probes that failed in a row, including trips that came too soon after a probe.
    failures: u32,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Tripped,
            generations: 0,
            failures: 0,
        }
    }

    pub(super) fn on(&mut self, event: Event, now: Instant) -> Action {
        match (self.phase, event) {
            (
                Phase::Passing {
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
                self.phase = Phase::Passing {
                    generation,
                    since,
                    recent,
                };
                Action::Nothing
            }
            (
                Phase::Passing {
                    generation, since, ..
                },
                Event::Failed(of),
            ) if of == generation => self.trip(since, now),
            (Phase::Tripped, Event::PauseOver) => {
                self.phase = Phase::Probing;
                Action::Probe
            }
            (Phase::Probing, Event::ProbeAnswered) => {
                self.generations += 1;
                self.phase = Phase::Passing {
                    generation: self.generations,
                    since: now,
                    recent: Recent::default(),
                };
                Action::Pass(self.generations)
            }
            (Phase::Probing, Event::ProbeFailed) => {
                self.phase = Phase::Tripped;
                self.failures += 1;
                Action::Trip(self.pause())
            }
            _ => Action::Nothing,
        }
    }

    /// The supervisor has ended, without the result of its probe.
    pub(super) fn abandon(&mut self) {
        self.phase = Phase::Tripped;
    }

    fn trip(&mut self, since: Instant, now: Instant) -> Action {
        self.phase = Phase::Tripped;
        if now.saturating_duration_since(since) >= STABLE {
            // It worked for a while: a lost connection is replaced at once.
            self.failures = 0;
            return Action::Trip(Duration::ZERO);
        }
        self.failures += 1;
        Action::Trip(self.pause())
    }

    fn pause(&self) -> Duration {
        FIRST_PAUSE
            .saturating_mul(1 << (self.failures - 1).min(16))
            .min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests;
