//! What one run is: how many processes, on which limits, with which load and which faults.

use std::{fmt, time::Duration};

use crate::{
    fallback::{Fallback, Share},
    quota::Quota,
    scope::Scope,
};

/// One run, repeated by printing it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) processes: usize,
    /// Whether they were told how many they are.
    pub(crate) hinted: bool,
    /// One way, in milliseconds.
    pub(crate) delay: (u32, u32),
    pub(crate) limits: Vec<Limit>,
    /// What each process does, all the time.
    pub(crate) roles: Vec<Role>,
    /// How many of the processes do it; the others do nothing but connect.
    pub(crate) busy: usize,
    pub(crate) faults: Vec<Fault>,
    /// For so long before the first fault hardly anybody asks, and buckets fill.
    pub(crate) lull: Duration,
    pub(crate) length: Duration,
    /// How many tokens each process may take ahead.
    pub(crate) lease: f64,
    /// For how long a share is reserved for a process that is missing.
    pub(crate) reserve_for: Duration,
}

impl Plan {
    /// What all processes hold ahead at most.
    pub(crate) fn ahead(&self, limit: usize) -> f64 {
        let most = self.lease.min(self.limits[limit].capacity / 8.0).floor();
        most * self.processes as f64
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limit {
    pub(crate) capacity: f64,
    pub(crate) rate: f64,
    pub(crate) strict: bool,
}

impl Limit {
    pub(crate) fn scope(&self, index: usize) -> Scope {
        let quota = Quota::per_second(self.rate).burst(self.capacity);
        let scope = quota.scope(["first", "second"][index]);
        match self.strict {
            true => scope.fallback(Fallback::StrictShare(Share::Auto)),
            false => scope,
        }
    }
}

/// What one task does again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Asks for so many tokens of a limit, without waiting.
    Asks(usize, f64),
    /// Waits for them, at most so many milliseconds.
    Waits(usize, f64, u32),
    /// As long, but goes away at a random time.
    Leaves(usize, f64, u32),
    /// Takes them, and gives a part of them back later.
    Settles(usize, f64),
    /// Waits for a token of each limit.
    Both(u32),
}

impl Role {
    /// The most that it takes at once.
    pub(crate) fn cost(&self) -> f64 {
        match *self {
            Self::Asks(_, cost)
            | Self::Waits(_, cost, _)
            | Self::Leaves(_, cost, _)
            | Self::Settles(_, cost) => cost,
            Self::Both(_) => 1.0,
        }
    }

    pub(crate) fn concerns(&self, limit: usize) -> bool {
        match *self {
            Self::Asks(of, _)
            | Self::Waits(of, ..)
            | Self::Leaves(of, ..)
            | Self::Settles(of, _) => of == limit,
            Self::Both(_) => true,
        }
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        match *self {
            Self::Waits(_, _, wait) | Self::Leaves(_, _, wait) | Self::Both(wait) => ms(wait),
            Self::Asks(..) | Self::Settles(..) => Duration::ZERO,
        }
    }

    /// Whether all that it is granted is admitted, and stays so.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Asks(..) | Self::Waits(..))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    /// The first so many of the processes meet it.
    pub(crate) meet: usize,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The server dies, and comes back with this data.
    Down(Data),
    /// Up for so long, down for as long, again and again.
    Flaps(Duration, Data),
    /// Connections are lost and refused.
    CutOff,
    /// Nothing moves; what was sent arrives afterwards.
    Frozen,
    /// What is sent is lost without a word.
    HalfOpen,
    /// What is sent arrives, answers do not.
    Deaf,
    /// One way takes so many milliseconds, half as much more at most.
    Slow(u32),
    /// Writes are refused.
    ReadOnly,
    /// All data goes, no connection does.
    Flushed,
    /// One key goes.
    Evicted,
    /// The server's clock is set, by so many milliseconds.
    ClockSet(i32),
    /// The process dies, as the last of them.
    Dies,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Data {
    Kept,
    Lost,
    /// As it was so long before.
    Old(Duration),
}

impl Kind {
    /// As which it is counted.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Down(Data::Kept) => "down, data kept",
            Self::Down(Data::Lost) => "down, data lost",
            Self::Down(Data::Old(_)) => "down, data old",
            Self::Flaps(..) => "flapping",
            Self::CutOff => "cut off",
            Self::Frozen => "frozen",
            Self::HalfOpen => "half-open",
            Self::Deaf => "answers lost",
            Self::Slow(_) => "slow",
            Self::ReadOnly => "read-only",
            Self::Flushed => "flushed",
            Self::Evicted => "evicted",
            Self::ClockSet(_) => "clock set",
            Self::Dies => "a process dies",
        }
    }
}

pub(crate) fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

impl Plan {
    /// The most tokens that sleepers can have been promised of this limit.
    pub(crate) fn promised(&self, limit: usize) -> f64 {
        let (rate, busy) = (self.limits[limit].rate, self.busy as f64);
        let roles = self.roles.iter().filter(|role| role.concerns(limit));
        roles
            .map(|role| (role.cost() * busy).min(rate * role.longest_wait().as_secs_f64()))
            .sum()
    }

    /// When hardly anybody asks.
    pub(crate) fn quiet(&self) -> std::ops::Range<Duration> {
        let first = self.faults.first().map_or(self.length, |fault| fault.at);
        first.saturating_sub(self.lull)..first
    }

    /// Whether all processes ask for all there is of this limit, or all rest together, and keep
    /// what they get.
    pub(crate) fn is_even(&self, limit: usize) -> bool {
        let mut roles = self.roles.iter().filter(|role| role.concerns(limit));
        self.busy == self.processes && roles.all(Role::is_plain)
    }

    /// Whether Redis never forgets anything.
    pub(crate) fn keeps_data(&self) -> bool {
        self.faults.iter().all(|fault| match fault.kind {
            Kind::Down(data) | Kind::Flaps(_, data) => data == Data::Kept,
            Kind::Flushed | Kind::Evicted => false,
            _ => true,
        })
    }

    /// The most that one acquisition takes of this limit.
    pub(crate) fn largest(&self, limit: usize) -> f64 {
        let roles = self.roles.iter().filter(|role| role.concerns(limit));
        roles.map(Role::cost).fold(1.0, f64::max)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hinted = if self.hinted { "hinted" } else { "not hinted" };
        let (processes, busy, delay) = (self.processes, self.busy, self.delay);
        writeln!(
            f,
            "{processes} processes ({busy} busy, {hinted}), delay {delay:?} ms, lull {:?} of {:?}, \
             missing for {:?}, seed {}",
            self.lull, self.length, self.reserve_for, self.seed
        )?;
        for limit in &self.limits {
            writeln!(f, "  {limit:?}")?;
        }
        writeln!(f, "  {:?}", self.roles)?;
        for Fault {
            at,
            lasts,
            meet,
            kind,
        } in &self.faults
        {
            writeln!(f, "  at {at:?} for {lasts:?}: {kind:?}, met by {meet}")?;
        }
        Ok(())
    }
}
