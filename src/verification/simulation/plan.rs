//! The plan of one run: the processes, their limits and load, and the faults.

use std::{fmt, time::Duration};

use crate::{
    fallback::{Fallback, Share},
    quota::Quota,
    scope::Scope,
};

/// The plan of one run. It prints all that is needed to repeat it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) processes: usize,
    /// Whether `replicas` is set to the number of processes.
    pub(crate) hinted: bool,
    /// One way, in milliseconds: the shortest, and the longest.
    pub(crate) delay: (u32, u32),
    pub(crate) limits: Vec<Limit>,
    /// The tasks of each busy process.
    pub(crate) roles: Vec<Role>,
    /// How many processes are busy. The others only connect.
    pub(crate) busy: usize,
    pub(crate) faults: Vec<Fault>,
    /// Before the first fault there are few requests for so long, and buckets fill.
    pub(crate) lull: Duration,
    pub(crate) length: Duration,
    /// How many tokens each process may lease.
    pub(crate) lease: f64,
    /// How long a share is reserved for a process that is missing.
    pub(crate) reserve_for: Duration,
}

impl Plan {
    /// The most tokens that all processes lease together.
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

/// What one task repeats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Acquires so many tokens of a limit, without waiting.
    Tries(usize, f64),
    /// Waits for them, for at most so many milliseconds.
    Waits(usize, f64, u32),
    /// The same, but cancels at a random time.
    Cancels(usize, f64, u32),
    /// Acquires them, and returns a part of them later.
    Settles(usize, f64),
    /// Waits for a token of each limit.
    Both(u32),
}

impl Role {
    /// The largest cost.
    pub(crate) fn cost(&self) -> f64 {
        match *self {
            Self::Tries(_, cost)
            | Self::Waits(_, cost, _)
            | Self::Cancels(_, cost, _)
            | Self::Settles(_, cost) => cost,
            Self::Both(_) => 1.0,
        }
    }

    pub(crate) fn concerns(&self, limit: usize) -> bool {
        match *self {
            Self::Tries(of, _)
            | Self::Waits(of, ..)
            | Self::Cancels(of, ..)
            | Self::Settles(of, _) => of == limit,
            Self::Both(_) => true,
        }
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        match *self {
            Self::Waits(_, _, wait) | Self::Cancels(_, _, wait) | Self::Both(wait) => ms(wait),
            Self::Tries(..) | Self::Settles(..) => Duration::ZERO,
        }
    }

    /// Whether it uses all tokens that it is granted.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Tries(..) | Self::Waits(..))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) lasts: Duration,
    /// How many processes it affects: the first ones.
    pub(crate) affected: usize,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The server stops, and restarts with this data.
    Down(Data),
    /// The server is down for so long and up for as long, repeatedly.
    Flaps(Duration, Data),
    /// Connections are dropped and refused.
    Partitioned,
    /// The server stops executing; requests arrive afterwards.
    Frozen,
    /// Requests are lost without an error.
    HalfOpen,
    /// Requests arrive, replies are lost.
    RepliesLost,
    /// The delay one way is so many milliseconds, or up to half as much more.
    Slow(u32),
    /// The server rejects writes.
    ReadOnly,
    /// All data is lost; connections stay.
    Flushed,
    /// One key is lost.
    Evicted,
    /// The server's clock is set, by so many milliseconds.
    ClockSet(i32),
    /// The last process ends without deregistering.
    ProcessDies,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Data {
    Kept,
    Lost,
    /// A copy that is so old.
    Old(Duration),
}

impl Kind {
    /// In the table of results.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Down(Data::Kept) => "down, data kept",
            Self::Down(Data::Lost) => "down, data lost",
            Self::Down(Data::Old(_)) => "down, data old",
            Self::Flaps(..) => "flapping",
            Self::Partitioned => "partitioned",
            Self::Frozen => "frozen",
            Self::HalfOpen => "half-open",
            Self::RepliesLost => "replies lost",
            Self::Slow(_) => "slow",
            Self::ReadOnly => "read-only",
            Self::Flushed => "flushed",
            Self::Evicted => "evicted",
            Self::ClockSet(_) => "clock set",
            Self::ProcessDies => "a process dies",
        }
    }
}

pub(crate) fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

impl Plan {
    /// The most tokens of this limit that waiters can have reserved.
    pub(crate) fn reserved(&self, limit: usize) -> f64 {
        let (rate, busy) = (self.limits[limit].rate, self.busy as f64);
        let roles = self.roles.iter().filter(|role| role.concerns(limit));
        roles
            .map(|role| (role.cost() * busy).min(rate * role.longest_wait().as_secs_f64()))
            .sum()
    }

    /// When there are few requests.
    pub(crate) fn quiet(&self) -> std::ops::Range<Duration> {
        let first = self.faults.first().map_or(self.length, |fault| fault.at);
        first.saturating_sub(self.lull)..first
    }

    /// Whether all processes have the same load on this limit, at all times, and use all tokens
    /// that they are granted.
    pub(crate) fn is_even(&self, limit: usize) -> bool {
        let mut roles = self.roles.iter().filter(|role| role.concerns(limit));
        self.busy == self.processes && roles.all(Role::is_plain)
    }

    /// Whether Redis never loses data.
    pub(crate) fn keeps_data(&self) -> bool {
        self.faults.iter().all(|fault| match fault.kind {
            Kind::Down(data) | Kind::Flaps(_, data) => data == Data::Kept,
            Kind::Flushed | Kind::Evicted => false,
            _ => true,
        })
    }

    /// The largest cost of this limit.
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
             reserve for {:?}, seed {}",
            self.lull, self.length, self.reserve_for, self.seed
        )?;
        for limit in &self.limits {
            writeln!(f, "  {limit:?}")?;
        }
        writeln!(f, "  {:?}", self.roles)?;
        for Fault {
            at,
            lasts,
            affected,
            kind,
        } in &self.faults
        {
            writeln!(f, "  at {at:?} for {lasts:?}: {kind:?}, affects {affected}")?;
        }
        Ok(())
    }
}
