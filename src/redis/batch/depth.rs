//! How many calls may be in flight. No I/O and no clock.

use std::time::Duration;

use super::{bucket::MOST_BUCKETS, queue::NEVER};

/// Redis is far if its fastest reply took longer than this.
const FAR: Duration = Duration::from_micros(500);

/// The most calls in flight to a Redis that is near. More would only wait at its socket.
const MOST_NEAR: usize = 8;

/// The most commands in a call, and the most calls in flight to a Redis that is near, while there is
/// little to do: nothing is saved by letting commands wait for each other.
const LIGHT: usize = 4;

/// The most calls in flight to a Redis that is far. A Redis that was frozen executes at most this
/// many calls late.
const MOST_FAR: usize = 32;

/// With more calls than this in flight to a far Redis, another one has at least as many commands.
const WORTH_A_CALL: usize = 8;

/// A call may wait behind others in Redis for a fourth of its time limit.
const PART_OF_TIMEOUT: u32 = 4;

/// Decides when to send a call in addition to those in flight.
///
/// Near Redis, a call is over before many others could join the next one, and smaller calls cost
/// more: another one is sent if full ones are left over, or if there is little to do. Far from
/// Redis, commands would wait up to a round trip for the call in flight: the first few calls are sent
/// at once, and further ones as soon as they are worth it.
///
/// Calls wait for each other in Redis. So that a Redis that is slow, and not far, is not driven into
/// time-outs, each reply that came in time allows one call more, and each late one half as many.
#[derive(Debug)]
pub(super) struct Depth {
    /// How long the fastest call took.
    nearest: Duration,
    allowed: usize,
}

/// How much the last call had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Load {
    #[default]
    Light,
    Usual,
    /// It was full, or left commands over.
    Crowded,
}

impl Load {
    /// Of a call of this many commands.
    pub(super) fn of(commands: usize, is_full: bool) -> Self {
        match commands {
            _ if is_full => Self::Crowded,
            ..=LIGHT => Self::Light,
            _ => Self::Usual,
        }
    }
}

impl Default for Depth {
    fn default() -> Self {
        Self {
            nearest: Duration::MAX,
            allowed: 1,
        }
    }
}

impl Depth {
    /// A call was answered after `took`, of at most `timeout`.
    pub(super) fn answered(&mut self, took: Duration, timeout: Duration) {
        self.nearest = self.nearest.min(took);
        self.allowed = match took - self.nearest <= timeout / PART_OF_TIMEOUT {
            true => (self.allowed + 1).min(MOST_FAR),
            false => (self.allowed / 2).max(1),
        };
    }

    /// A call failed: the next one may be to another server.
    pub(super) fn failed(&mut self) {
        *self = Self::default();
    }

    /// How many commands must be queued for another call.
    pub(super) fn enough(&self, in_flight: usize, load: Load) -> usize {
        if in_flight == 0 {
            1
        } else if in_flight >= self.allowed {
            NEVER
        } else if self.nearest > FAR {
            in_flight.min(WORTH_A_CALL)
        } else {
            match load {
                Load::Light if in_flight < LIGHT => 1,
                Load::Crowded if in_flight < MOST_NEAR => MOST_BUCKETS,
                _ => NEVER,
            }
        }
    }
}

#[cfg(test)]
mod tests;
