//! Random plans.

use std::time::Duration;

use super::plan::{Data, Fault, Kind, Limit, Plan, Role, ms};
use crate::verification::bucket_model::Rng;

impl Plan {
    pub(crate) fn random(seed: u64) -> Self {
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
            // A generator of its own, so that the rest of a seed's plan does not depend on it.
            lease: Rng::new(!seed).pick(&[0.0, 4.0, 1e9]),
            reserve_for: Rng::new(seed ^ (0x7e5e << 16)).pick(&[ms(0), ms(5_000), ms(60_000)]),
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
        // Limiters that never sent a heartbeat do not know how many they are.
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

    /// One outage of all processes, which all know the same: the bounds are exact, almost to the
    /// token.
    fn simple(&mut self, rng: &mut Rng) {
        self.processes = self.processes.max(2);
        self.busy = self.processes;
        self.limits.truncate(1);
        self.limits[0].capacity = self.limits[0].capacity.max(self.processes as f64);
        self.roles = vec![Role::Tries(0, 1.0)];
        let data = rng.pick(&[Data::Kept, Data::Lost]);
        let kinds = [
            Kind::Down(data),
            Kind::Partitioned,
            Kind::Frozen,
            Kind::HalfOpen,
            Kind::RepliesLost,
            Kind::ReadOnly,
        ];
        let mut fault = Fault {
            at: ms(5_000 + rng.below(1_000)),
            lasts: ms(4_000 + rng.below(6_000)),
            affected: self.processes,
            kind: rng.pick(&kinds),
        };
        match rng.below(4) {
            // A short outage, so that most of the result comes from the lost data.
            0 => {
                self.limits[0].capacity = 4.0 * self.limits[0].rate;
                fault.at += ms(4_000);
                fault.kind = rng.pick(&[Kind::Flushed, Kind::Down(Data::Lost)]);
                fault.lasts = ms(100 + rng.below(1_000));
            }
            // About as slow as a call may be: write-backs are executed and not confirmed.
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
        let (affected, lasts) = match kind {
            Kind::Down(_) | Kind::ReadOnly => (self.processes, lasts),
            Kind::Flaps(..) => (self.processes, lasts.max(5_000)),
            Kind::Flushed | Kind::Evicted | Kind::ClockSet(_) => (self.processes, 0),
            Kind::ProcessDies => (1, 0),
            Kind::Frozen if rng.percent(50) => (self.processes, lasts),
            Kind::Partitioned
            | Kind::Frozen
            | Kind::HalfOpen
            | Kind::RepliesLost
            | Kind::Slow(_) => (some, lasts),
        };
        Fault {
            at,
            lasts: ms(lasts),
            affected,
            kind,
        }
    }
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
        5 | 6 => Kind::Partitioned,
        7 => Kind::Frozen,
        8 => Kind::HalfOpen,
        9 => Kind::RepliesLost,
        10 => Kind::Slow(20 + rng.below(200)),
        11 => Kind::ReadOnly,
        12 => Kind::Flushed,
        13 => Kind::Evicted,
        14 => Kind::ClockSet(rng.pick(&[-60_000, -700, 500, 5_000])),
        _ => Kind::ProcessDies,
    }
}

fn roles(rng: &mut Rng, limits: &[Limit]) -> Vec<Role> {
    let mut roles = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        // This one is certain to spend all tokens.
        roles.push(Role::Tries(index, 1.0));
        let large = (limit.capacity * 0.5).floor().clamp(1.0, 5.0);
        for _ in 0..rng.below(3) {
            let wait = 100 + rng.below(2_000);
            let cost = if rng.percent(25) { large } else { 1.0 };
            roles.push(match rng.below(5) {
                0 => Role::Tries(index, cost),
                1 | 2 => Role::Waits(index, cost, wait),
                3 => Role::Cancels(index, cost, wait),
                _ => Role::Settles(index, large),
            });
        }
    }
    if limits.len() > 1 && rng.percent(50) {
        roles.push(Role::Both(100 + rng.below(1_000)));
    }
    roles
}
