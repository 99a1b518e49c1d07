//! What one run is: how many processes, on which limits, with which load and which faults.

use std::{fmt, time::Duration};

use crate::{
    bucket::law::Rng,
    fallback::{Fallback, Share},
    quota::Quota,
    scope::Scope,
};

/// One run, repeated by printing it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) processes: usize,
    /// Whether they were told how many they are.
    pub(super) hinted: bool,
    /// One way, in milliseconds.
    pub(super) delay: (u32, u32),
    pub(super) limits: Vec<Limit>,
    /// What each process does, all the time.
    pub(super) roles: Vec<Role>,
    /// How many of the processes do it; the others do nothing but connect.
    pub(super) busy: usize,
    pub(super) faults: Vec<Fault>,
    /// For so long before the first fault hardly anybody asks, and buckets fill.
    pub(super) lull: Duration,
    pub(super) length: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit {
    pub(super) capacity: f64,
    pub(super) rate: f64,
    pub(super) strict: bool,
}

impl Limit {
    pub(super) fn scope(&self, index: usize) -> Scope {
        let quota = Quota::per_second(self.rate).burst(self.capacity);
        let scope = quota.scope(["first", "second"][index]);
        match self.strict {
            true => scope.fallback(Fallback::Strict(Share::Auto)),
            false => scope,
        }
    }
}

/// What one task does again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
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
    pub(super) fn cost(&self) -> f64 {
        match *self {
            Self::Asks(_, cost)
            | Self::Waits(_, cost, _)
            | Self::Leaves(_, cost, _)
            | Self::Settles(_, cost) => cost,
            Self::Both(_) => 1.0,
        }
    }

    pub(super) fn concerns(&self, limit: usize) -> bool {
        match *self {
            Self::Asks(of, _)
            | Self::Waits(of, ..)
            | Self::Leaves(of, ..)
            | Self::Settles(of, _) => of == limit,
            Self::Both(_) => true,
        }
    }

    pub(super) fn longest_wait(&self) -> Duration {
        match *self {
            Self::Waits(_, _, wait) | Self::Leaves(_, _, wait) | Self::Both(wait) => ms(wait),
            Self::Asks(..) | Self::Settles(..) => Duration::ZERO,
        }
    }

    /// Whether all that it is granted is admitted, and stays so.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Asks(..) | Self::Waits(..))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    /// The first so many of the processes meet it.
    pub(super) meet: usize,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
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
pub(super) enum Data {
    Kept,
    Lost,
    /// As it was so long before.
    Old(Duration),
}

impl Kind {
    /// As which it is counted.
    pub(super) fn name(&self) -> &'static str {
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

fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn data(rng: &mut Rng) -> Data {
    match rng.below(3) {
        0 => Data::Kept,
        1 => Data::Lost,
        _ => Data::Old(ms(10 + rng.below(2_000) * (1 + rng.below(4)))),
    }
}

fn kind(rng: &mut Rng) -> Kind {
    match rng.below(16) {
        0..4 => Kind::Down(data(rng)),
        4 => Kind::Flaps(ms(50 + rng.below(2_500)), data(rng)),
        5 | 6 => Kind::CutOff,
        7 => Kind::Frozen,
        8 => Kind::HalfOpen,
        9 => Kind::Deaf,
        10 => Kind::Slow(20 + rng.below(200)),
        11 => Kind::ReadOnly,
        12 => Kind::Flushed,
        13 => Kind::Evicted,
        14 => Kind::ClockSet(rng.pick(&[-60_000, -700, 500, 5_000])),
        _ => Kind::Dies,
    }
}

impl Plan {
    pub(super) fn random(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let processes = 1 + rng.below(5) as usize;
        let limit = |rng: &mut Rng, strict| {
            let rate = rng.pick(&[4.0, 8.0, 16.0]);
            let capacity = rate * rng.pick(&[0.25, 0.5, 1.0, 2.0, 4.0]);
            Limit {
                capacity,
                rate,
                strict,
            }
        };
        let strict = rng.percent(30);
        let mut limits = vec![limit(rng, strict)];
        if rng.percent(30) {
            limits.push(limit(rng, !strict));
        }
        let mut plan = Self {
            seed,
            processes,
            hinted: rng.percent(80),
            delay: rng.pick(&[(0, 0), (0, 2), (1, 4), (3, 8)]),
            roles: roles(rng, &limits),
            limits,
            busy: if rng.percent(80) { processes } else { 1 },
            faults: Vec::new(),
            lull: Duration::ZERO,
            length: Duration::ZERO,
        };
        if rng.percent(40) {
            let Limit { capacity, rate, .. } = plan.limits[0];
            plan.lull = Duration::from_secs_f64((0.2 + 0.6 * rng.part()) * capacity / rate);
        }
        if rng.percent(25) {
            plan.simple(rng);
            return plan;
        }
        let mut at = match rng.below(6) {
            0 => 0,
            _ => 2_000 + rng.below(4_000),
        };
        // Nobody knows how many they are, where they never met.
        plan.hinted |= at == 0;
        for _ in 0..1 + rng.below(3) {
            let fault = plan.fault(rng, ms(at));
            at = (fault.at + fault.lasts).as_millis() as u32;
            at += rng.pick(&[50, 300, 1_500, 6_000, 9_000]) + rng.below(500);
            plan.faults.push(fault);
        }
        plan.length = ms(at.max(10_000) + 9_000);
        plan
    }

    /// One outage of all, in which all know the same: what must come out is known almost to the
    /// token.
    fn simple(&mut self, rng: &mut Rng) {
        self.processes = self.processes.max(2);
        self.busy = self.processes;
        self.limits.truncate(1);
        self.limits[0].capacity = self.limits[0].capacity.max(self.processes as f64);
        self.roles = vec![Role::Asks(0, 1.0)];
        let data = rng.pick(&[Data::Kept, Data::Lost]);
        let kinds = [
            Kind::Down(data),
            Kind::CutOff,
            Kind::Frozen,
            Kind::HalfOpen,
            Kind::Deaf,
            Kind::ReadOnly,
        ];
        let mut fault = Fault {
            at: ms(5_000 + rng.below(1_000)),
            lasts: ms(4_000 + rng.below(6_000)),
            meet: self.processes,
            kind: rng.pick(&kinds),
        };
        match rng.below(4) {
            // Little was spent meanwhile, so what was lost is all that counts.
            0 => {
                self.limits[0].capacity = 4.0 * self.limits[0].rate;
                fault.at += ms(4_000);
                fault.kind = rng.pick(&[Kind::Flushed, Kind::Down(Data::Lost)]);
                fault.lasts = ms(100 + rng.below(1_000));
            }
            // About as slow as a call may be: payments are made and not confirmed.
            1 => fault.kind = Kind::Slow(35 + rng.below(12)),
            _ => {}
        }
        self.length = fault.at + fault.lasts + ms(8_000);
        self.faults = vec![fault];
    }

    fn fault(&self, rng: &mut Rng, at: Duration) -> Fault {
        let kind = kind(rng);
        let some = 1 + rng.below(self.processes as u32) as usize;
        let lasts = match rng.below(6) {
            0..2 => 50 + rng.below(500),
            2..5 => 500 + rng.below(8_000),
            _ => 8_000 + rng.below(8_000) * (1 + rng.below(2) * rng.below(5)),
        };
        let (meet, lasts) = match kind {
            Kind::Down(_) | Kind::ReadOnly => (self.processes, lasts),
            Kind::Flaps(..) => (self.processes, lasts.max(5_000)),
            Kind::Flushed | Kind::Evicted | Kind::ClockSet(_) => (self.processes, 0),
            Kind::Dies => (1, 0),
            Kind::Frozen if rng.percent(50) => (self.processes, lasts),
            Kind::CutOff | Kind::Frozen | Kind::HalfOpen | Kind::Deaf | Kind::Slow(_) => {
                (some, lasts)
            }
        };
        Fault {
            at,
            lasts: ms(lasts),
            meet,
            kind,
        }
    }

    /// The most tokens that sleepers can have been promised of this limit.
    pub(super) fn promised(&self, limit: usize) -> f64 {
        let (rate, busy) = (self.limits[limit].rate, self.busy as f64);
        let roles = self.roles.iter().filter(|role| role.concerns(limit));
        roles
            .map(|role| (role.cost() * busy).min(rate * role.longest_wait().as_secs_f64()))
            .sum()
    }

    /// When hardly anybody asks.
    pub(super) fn quiet(&self) -> std::ops::Range<Duration> {
        let first = self.faults.first().map_or(self.length, |fault| fault.at);
        first.saturating_sub(self.lull)..first
    }

    /// Whether all processes ask for all there is of this limit, or all rest together, and keep
    /// what they get.
    pub(super) fn is_even(&self, limit: usize) -> bool {
        let mut roles = self.roles.iter().filter(|role| role.concerns(limit));
        self.busy == self.processes && roles.all(Role::is_plain)
    }

    /// Whether Redis never forgets anything.
    pub(super) fn keeps_data(&self) -> bool {
        self.faults.iter().all(|fault| match fault.kind {
            Kind::Down(data) | Kind::Flaps(_, data) => data == Data::Kept,
            Kind::Flushed | Kind::Evicted => false,
            _ => true,
        })
    }

    /// The most that one acquisition takes of this limit.
    pub(super) fn largest(&self, limit: usize) -> f64 {
        let roles = self.roles.iter().filter(|role| role.concerns(limit));
        roles.map(Role::cost).fold(1.0, f64::max)
    }
}

fn roles(rng: &mut Rng, limits: &[Limit]) -> Vec<Role> {
    let mut roles = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        // Without this one nothing is certain to be spent.
        roles.push(Role::Asks(index, 1.0));
        let large = (limit.capacity * 0.5).floor().clamp(1.0, 5.0);
        for _ in 0..rng.below(3) {
            let wait = 100 + rng.below(2_000);
            let cost = if rng.percent(25) { large } else { 1.0 };
            roles.push(match rng.below(5) {
                0 => Role::Asks(index, cost),
                1 | 2 => Role::Waits(index, cost, wait),
                3 => Role::Leaves(index, cost, wait),
                _ => Role::Settles(index, large),
            });
        }
    }
    if limits.len() > 1 && rng.percent(50) {
        roles.push(Role::Both(100 + rng.below(1_000)));
    }
    roles
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hinted = if self.hinted { "hinted" } else { "not hinted" };
        let (processes, busy, delay) = (self.processes, self.busy, self.delay);
        writeln!(
            f,
            "{processes} processes ({busy} busy, {hinted}), delay {delay:?} ms, lull {:?} of {:?}, \
             seed {}",
            self.lull, self.length, self.seed
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
