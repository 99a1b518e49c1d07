//! Everything that can happen to a few buckets, in virtual time and on one thread.
//!
//! Time here is true time, by which requests wait. The buckets know only the server's clock, which
//! is that plus an offset.

use super::{
    case::{BUCKETS, Case, Fate, Model, Op, Outcome},
    record::{Charged, Jump, Late, Record, Use},
};
use crate::bucket::{Bucket, BucketParams, Reservation, TakenAll, take_all};

/// Reservations of one request are used together if they are due within this time, in
/// microseconds.
const ALIGNED: f64 = 75_000.0;

/// A request must not keep tokens for its other buckets longer than this, in microseconds.
const TOLERANCE: f64 = 100_000.0;

/// About the time of a Redis server: from here on a double has a resolution of a quarter of a
/// microsecond.
const EPOCH: f64 = 1.7e15;

/// A cost granted to a request by one bucket, now or for a later time.
#[derive(Clone, Copy, Debug)]
struct Grant {
    bucket: usize,
    cost: f64,
    due: f64,
    order: Option<u32>,
    owner: usize,
    /// What a cancelled request undoes. None if the bucket's time is ahead of the server's, since
    /// a reply contains only the latter.
    reservation: Option<Reservation>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Requesting,
    Waiting,
    Granted,
    Done,
}

#[derive(Debug)]
struct Request {
    id: u32,
    missing: [f64; BUCKETS],
    granted: Vec<Grant>,
    deadline: f64,
    fate: Fate,
    state: State,
}

pub(crate) fn run(case: &Case, model: Model) -> Outcome {
    let mut simulator = Simulator {
        case,
        model,
        now: 0.0,
        offset: 0.0,
        jumped: false,
        buckets: case
            .params
            .iter()
            .map(|&t| Bucket::full(EPOCH, t))
            .collect(),
        last_due: vec![0.0; case.params.len()],
        reserved: Vec::new(),
        checks: Vec::new(),
        requests: Vec::new(),
        order: 0,
        back: Vec::new(),
        outcome: Outcome {
            records: vec![Record::default(); case.params.len()],
            ..Outcome::default()
        },
    };
    for &op in &case.ops {
        simulator.step(op);
    }
    simulator.advance(f64::INFINITY);
    let mut outcome = simulator.outcome;
    if outcome.seen.undone > 0 {
        let buckets = case.params.len();
        for (index, jump) in simulator.back.into_iter().enumerate() {
            outcome.records[index % buckets].jumps.push(jump);
        }
    }
    for (record, &params) in outcome.records.iter_mut().zip(&case.params) {
        outcome.excess = outcome.excess.max(record.excess(params));
        outcome.seen.exceptions +=
            (record.late.len() + record.charged.len() + record.jumps.len()) as u64;
    }
    outcome
}

struct Simulator<'a> {
    case: &'a Case,
    model: Model,
    now: f64,
    offset: f64,
    jumped: bool,
    buckets: Vec<Bucket>,
    last_due: Vec<f64>,
    reserved: Vec<Grant>,
    /// When a request asks for its other buckets, unless something happens to it earlier.
    checks: Vec<(f64, usize)>,
    requests: Vec<Request>,
    order: u32,
    /// Jumps back of the clock, for each bucket.
    back: Vec<Jump>,
    outcome: Outcome,
}

impl Simulator<'_> {
    fn step(&mut self, op: Op) {
        match op {
            Op::Wait(us) => self.advance(self.now + us),
            Op::Take {
                id,
                n,
                costs,
                max_wait,
                fate,
            } => self.take(id, n, costs, max_wait, fate),
            Op::Cancel(id) => self.cancel(id),
            Op::Finish(id) => self.finish(id),
            Op::UseLate(id) => {
                if let Some(request) = self.find(id, State::Granted, |fate| fate == Fate::Defer) {
                    self.spend(request, 1.0);
                    self.requests[request].state = State::Done;
                }
            }
            Op::StepClock(us) => self.jump(us),
        }
    }

    /// Grants all reservations up to then, each when it is due.
    fn advance(&mut self, to: f64) {
        loop {
            let reserved = self.reserved.iter().enumerate();
            let next = reserved.min_by(|(_, a), (_, b)| a.due.total_cmp(&b.due));
            let checks = self.checks.iter().copied().enumerate();
            let check = checks.min_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b));
            if let Some((index, (at, request))) = check
                && at <= next.map_or(to, |(_, grant)| grant.due.min(to))
            {
                self.checks.remove(index);
                self.now = at;
                self.ask_for_others(request, false);
                continue;
            }
            let Some((index, grant)) = next.map(|(index, &grant)| (index, grant)) else {
                break;
            };
            if grant.due > to {
                break;
            }
            // Not `swap_remove`: of reservations due at one time, the earliest made comes first.
            self.reserved.remove(index);
            self.now = grant.due;
            self.requests[grant.owner].granted.push(grant);
            if self.is_reserving(grant.owner) {
                self.realign(grant.owner);
            } else {
                self.ask(grant.owner, 1);
            }
        }
        if to.is_finite() {
            self.now = to;
        }
    }

    fn take(&mut self, id: u32, n: u32, costs: [f64; BUCKETS], max_wait: f64, fate: Fate) {
        let first = self.requests.len();
        for k in 0..n {
            self.requests.push(Request {
                id: id + k,
                missing: costs,
                granted: Vec::new(),
                deadline: self.now + max_wait,
                fate,
                state: State::Requesting,
            });
        }
        self.ask(first, n);
    }

    /// Takes what a request misses. `n` equal requests at once for a single bucket only.
    fn ask(&mut self, request: usize, n: u32) {
        let missing = self.requests[request].missing;
        let max_wait = self.requests[request].deadline - self.now;
        let time = self.server_time();
        let wanted = |index: usize| missing[index] > 0.0;
        for index in (0..self.buckets.len()).filter(|&index| wanted(index)) {
            self.buckets[index].advance(time, self.case.params[index]);
        }
        if let Some((bucket, cost)) = single(&missing) {
            let params = self.case.params[bucket];
            let (returned, gaps) = (self.buckets[bucket].returned, gaps(&self.buckets[bucket]));
            let taken = self.buckets[bucket].take(cost, n, max_wait, params);
            let fills = gaps != self::gaps(&self.buckets[bucket]);
            self.outcome.seen.filled += u64::from(fills);
            let from_returned = ((returned - self.buckets[bucket].returned) / cost + 1e-9).floor();
            let from_returned = from_returned.min(taken.now);
            for k in 0..n {
                let request = request + k as usize;
                if f64::from(k) < taken.granted {
                    let wait = taken.wait(k, cost, params);
                    let level =
                        f64::from(k) < taken.now - from_returned || f64::from(k) >= taken.now;
                    let level = level && !fills;
                    self.granted(request, bucket, wait, level);
                } else {
                    self.rejected(request);
                }
            }
            return;
        }
        if missing.iter().all(|&cost| cost == 0.0) {
            self.complete(request);
            return;
        }
        if self.model == Model::AllAtOnce {
            self.ask_all_at_once(request, max_wait);
            return;
        }
        let returned_before: Vec<f64> = self.buckets.iter().map(|bucket| bucket.returned).collect();
        let before: Vec<f64> = self.buckets.iter().map(gaps).collect();
        let asked: Vec<usize> = (0..self.buckets.len()).filter(|&b| wanted(b)).collect();
        let buckets = self.buckets.iter_mut().enumerate();
        let buckets = buckets.filter(|(index, _)| wanted(*index));
        let params = &self.case.params;
        let answer = take_all(
            buckets.map(|(index, bucket)| (bucket, missing[index], params[index])),
            max_wait,
        );
        match answer {
            TakenAll::All => {
                for bucket in asked {
                    let level = self.buckets[bucket].returned == returned_before[bucket]
                        && gaps(&self.buckets[bucket]) == before[bucket];
                    self.granted_now(request, bucket, level);
                }
                self.proceed(request);
            }
            TakenAll::Slowest { which, wait, .. } => {
                let bucket = asked[which];
                let level = gaps(&self.buckets[bucket]) == before[bucket];
                self.granted(request, bucket, wait, level);
            }
            TakenAll::Rejected { .. } => self.rejected(request),
        }
    }

    fn is_reserving(&self, request: usize) -> bool {
        self.reserved.iter().any(|grant| grant.owner == request)
    }

    /// The latest reservation of a request sets the time. What is due earlier is given back, and
    /// requested again as long before that time as it would have to wait.
    fn realign(&mut self, request: usize) {
        if matches!(self.model, Model::KeepsSlowest | Model::AllAtOnce) {
            return;
        }
        let granted = std::mem::take(&mut self.requests[request].granted);
        let owned = self.reserved.iter().filter(|grant| grant.owner == request);
        let time = owned
            .chain(&granted)
            .map(|grant| grant.due)
            .fold(0.0, f64::max);
        let mut early = false;
        for grant in granted {
            if grant.due + ALIGNED >= time {
                self.requests[request].granted.push(grant);
            } else {
                early = true;
                self.requests[request].missing[grant.bucket] = grant.cost;
                self.return_late(grant.bucket, grant.due, grant.cost);
            }
        }
        let is_early = |grant: &Grant| grant.owner == request && grant.due + ALIGNED < time;
        while let Some(index) = self.reserved.iter().position(is_early) {
            early = true;
            let grant = self.reserved[index];
            self.requests[request].missing[grant.bucket] = grant.cost;
            self.release(index);
        }
        self.outcome.seen.realigned += u64::from(early);
        self.ask_for_others(request, early);
    }

    fn ask_for_others(&mut self, request: usize, early: bool) {
        self.checks.retain(|(_, other)| *other != request);
        let missing = self.requests[request].missing;
        if missing.iter().all(|&cost| cost == 0.0) || !self.is_reserving(request) {
            return;
        }
        let owned = self.reserved.iter().filter(|grant| grant.owner == request);
        let time = owned.map(|grant| grant.due).fold(0.0, f64::max);
        let server_time = self.server_time();
        let quotes = (0..self.buckets.len()).filter(|&index| missing[index] > 0.0);
        let quotes = quotes.map(|index| {
            let (bucket, params) = (&mut self.buckets[index], self.case.params[index]);
            bucket.advance(server_time, params);
            bucket.quote(missing[index], params)
        });
        let (quote, until) = (quotes.fold(0.0, f64::max), time - self.now);
        let mut delay = until / 2.0;
        if !early && quote > 0.0 {
            if quote + ALIGNED >= until {
                return self.ask(request, 1);
            }
            delay = delay.min(until - quote - ALIGNED);
        }
        if until > ALIGNED {
            // In whole microseconds, as all due times are.
            self.checks
                .push((self.now + delay.max(5_000.0).ceil(), request));
        }
    }

    fn ask_all_at_once(&mut self, request: usize, max_wait: f64) {
        let missing = self.requests[request].missing;
        let asked: Vec<usize> = (0..self.buckets.len())
            .filter(|&bucket| missing[bucket] > 0.0)
            .collect();
        let quotes = asked.iter().map(|&bucket| {
            let params = self.case.params[bucket];
            self.buckets[bucket].quote(missing[bucket], params)
        });
        let longest = quotes.fold(0.0, f64::max);
        if longest > max_wait {
            return self.rejected(request);
        }
        let mut waits = false;
        for &bucket in &asked {
            let params = self.case.params[bucket];
            let taken = self.buckets[bucket].take(missing[bucket], 1, max_wait, params);
            if waits || taken.last < longest {
                self.granted_now(request, bucket, true);
                self.proceed(request);
            } else {
                waits = longest > 0.0;
                self.granted(request, bucket, taken.last, true);
            }
        }
    }

    fn granted(&mut self, request: usize, bucket: usize, wait: f64, from_level: bool) {
        if wait <= 0.0 {
            self.granted_now(request, bucket, from_level);
            self.proceed(request);
            return;
        }
        if !self.requests[request].granted.is_empty() {
            self.outcome.seen.second_waits += 1;
        }
        let grant = self.grant(request, bucket, wait, from_level);
        self.reserved.push(grant);
        self.requests[request].state = State::Waiting;
        self.outcome.seen.waited += 1;
        self.realign(request);
    }

    fn granted_now(&mut self, request: usize, bucket: usize, from_level: bool) {
        let grant = self.grant(request, bucket, 0.0, from_level);
        self.requests[request].granted.push(grant);
        self.outcome.seen.from_returned += u64::from(!from_level);
    }

    fn proceed(&mut self, request: usize) {
        if self.is_reserving(request) {
            self.realign(request);
        } else if self.requests[request].missing.iter().all(|&c| c == 0.0) {
            self.complete(request);
        }
    }

    fn grant(&mut self, request: usize, bucket: usize, wait: f64, from_level: bool) -> Grant {
        self.order += 1;
        let due = self.now + wait;
        if from_level {
            // Due times closer than this count as the same.
            let earlier = due + 2.0 < self.last_due[bucket];
            self.outcome.out_of_order |= earlier && !self.jumped;
            self.last_due[bucket] = self.last_due[bucket].max(due);
        }
        let cost = std::mem::take(&mut self.requests[request].missing[bucket]);
        let (at, params) = (self.buckets[bucket].at, self.case.params[bucket]);
        let is_known = at == self.server_time();
        Grant {
            bucket,
            cost,
            due,
            order: from_level.then_some(self.order),
            owner: request,
            reservation: is_known.then(|| Reservation::due(at + wait, cost, params)),
        }
    }

    fn rejected(&mut self, request: usize) {
        if !self.requests[request].granted.is_empty() || self.is_reserving(request) {
            self.outcome.seen.second_rejections += 1;
        }
        self.release_all(request);
        self.requests[request].state = State::Done;
    }

    /// Gives back what a request was granted, and undoes its reservations.
    fn release_all(&mut self, request: usize) {
        self.return_granted(request);
        self.checks.retain(|(_, other)| *other != request);
        let owned = |grant: &Grant| grant.owner == request;
        while let Some(index) = self.reserved.iter().position(owned) {
            self.release(index);
        }
    }

    /// Undoes a reservation, or that of the last waiter it is handed over to.
    fn release(&mut self, index: usize) {
        let free = match self.case.hand_over && self.model != Model::GivesBackEarly {
            true => self.hand_over(index),
            false => index,
        };
        self.undo(free);
    }

    fn complete(&mut self, request: usize) {
        let state = match self.requests[request].fate {
            Fate::Defer => State::Granted,
            Fate::Use => {
                self.spend(request, 1.0);
                State::Done
            }
            Fate::UsePart(part) => {
                self.spend(request, part);
                State::Granted
            }
            Fate::UseMore(_) => {
                self.spend(request, 1.0);
                State::Granted
            }
        };
        self.requests[request].state = state;
    }

    /// Uses this part of everything that a request was granted.
    fn spend(&mut self, request: usize, part: f64) {
        for grant in &self.requests[request].granted {
            let record = &mut self.outcome.records[grant.bucket];
            record.uses.push(Use {
                time: self.now,
                tokens: part * grant.cost,
                order: grant.order,
                over: (grant.cost - self.case.params[grant.bucket].capacity).max(0.0),
            });
            // Taking tokens early to use them late is the error of that model, not an exception.
            // Nor is keeping them for the other buckets of a request.
            let kept = self.requests[request].state == State::Waiting;
            let late = self.now - grant.due;
            let excused = self.model != Model::AllAtOnce && !(kept && late > TOLERANCE);
            if late > 0.0 && excused {
                record.late.push(Late {
                    due: grant.due,
                    end: self.now,
                    tokens: part * grant.cost,
                });
            }
        }
    }

    /// Gives back what a request was granted, all of which is due.
    fn return_granted(&mut self, request: usize) {
        for grant in std::mem::take(&mut self.requests[request].granted) {
            self.return_late(grant.bucket, grant.due, grant.cost);
        }
    }

    fn return_late(&mut self, bucket: usize, due: f64, tokens: f64) {
        if due < self.now {
            self.outcome.records[bucket].late.push(Late {
                due,
                end: self.now,
                tokens,
            });
        }
        self.give_back(bucket, tokens);
    }

    fn give_back(&mut self, index: usize, tokens: f64) {
        let (time, params) = (self.server_time(), self.case.params[index]);
        let bucket = &mut self.buckets[index];
        bucket.advance(time, params);
        if self.model == Model::RaisesLevel {
            bucket.level = params.capacity.min(bucket.level + tokens);
        } else {
            bucket.give_back(tokens, params);
        }
        self.outcome.records[index].given_back(self.now, tokens);
        self.outcome.seen.refunded += 1;
    }

    fn cancel(&mut self, id: u32) {
        let Some(request) = self.find(id, State::Waiting, |_| true) else {
            return;
        };
        self.release_all(request);
        self.requests[request].state = State::Done;
        self.outcome.seen.cancelled += 1;
    }

    /// Waiters of the same cost behind a freed reservation move up by one. Returns the reservation
    /// that is free then.
    fn hand_over(&mut self, freed: usize) -> usize {
        let Grant {
            bucket, cost, due, ..
        } = self.reserved[freed];
        let same = |grant: &Grant| (grant.bucket, grant.cost) == (bucket, cost) && grant.due >= due;
        let mut behind: Vec<usize> = (0..self.reserved.len())
            .filter(|&index| same(&self.reserved[index]) && index != freed)
            .collect();
        behind.sort_by(|&a, &b| self.reserved[a].due.total_cmp(&self.reserved[b].due));
        self.outcome.seen.handed_over += behind.len() as u64;
        let mut free = freed;
        for index in behind {
            self.reserved[free].owner = self.reserved[index].owner;
            free = index;
        }
        free
    }

    fn undo(&mut self, index: usize) {
        let grant = self.reserved.remove(index);
        if self.model == Model::GivesBackEarly {
            return self.give_back(grant.bucket, grant.cost);
        }
        let (time, params) = (self.server_time(), self.case.params[grant.bucket]);
        let bucket = &mut self.buckets[grant.bucket];
        bucket.advance(time, params);
        if let Some(reservation) = grant.reservation {
            bucket.undo(reservation, params);
        }
        let others = self
            .reserved
            .iter()
            .filter(|other| other.bucket == grant.bucket);
        self.last_due[grant.bucket] = others.map(|other| other.due).fold(0.0, f64::max);
        self.outcome.records[grant.bucket].given_back(self.now, grant.cost);
        self.outcome.seen.undone += 1;
    }

    fn finish(&mut self, id: u32) {
        let Some(request) = self.find(id, State::Granted, |_| true) else {
            return;
        };
        self.requests[request].state = State::Done;
        match self.requests[request].fate {
            Fate::Use => {}
            Fate::Defer => self.return_granted(request),
            Fate::UsePart(part) => {
                for grant in std::mem::take(&mut self.requests[request].granted) {
                    self.return_late(grant.bucket, grant.due, (1.0 - part) * grant.cost);
                }
            }
            Fate::UseMore(tokens) => {
                for grant in std::mem::take(&mut self.requests[request].granted) {
                    self.charge(grant.bucket, tokens);
                }
            }
        }
    }

    fn charge(&mut self, index: usize, tokens: f64) {
        let (time, params) = (self.server_time(), self.case.params[index]);
        let bucket = &mut self.buckets[index];
        bucket.advance(time, params);
        let before = bucket.level + bucket.returned;
        bucket.charge(tokens, params);
        let charged = before - bucket.level - bucket.returned;
        self.order += 1;
        let record = &mut self.outcome.records[index];
        record.uses.push(Use {
            time: self.now,
            tokens,
            order: None,
            over: 0.0,
        });
        record.charged.push(Charged {
            time: self.now,
            tokens,
            forgiven: forgiven(&self.buckets[index], tokens, charged, params),
            order: self.order,
        });
        self.outcome.seen.charged += 1;
    }

    fn jump(&mut self, us: f64) {
        let before = self.server_time();
        self.offset += us;
        self.jumped = true;
        for index in 0..self.buckets.len() {
            let params = self.case.params[index];
            self.buckets[index].advance(before, params);
            let reserved = self.reserved.iter().filter(|grant| grant.bucket == index);
            let reserved_tokens: f64 = reserved.clone().map(|grant| grant.cost).sum();
            let debt = reserved_tokens.max(-self.buckets[index].level);
            let last_due = reserved.map(|grant| grant.due).fold(self.now, f64::max);
            let most = params.capacity + debt;
            let jump = Jump {
                time: self.now,
                last_due: last_due.max(self.now + debt / params.per_us),
                tokens: (us.abs() * params.per_us).min(most),
                most,
            };
            if us > 0.0 {
                self.outcome.records[index].jumps.push(jump);
            } else {
                // The queue is late by that much as long as it lasts.
                let last_due = f64::INFINITY;
                self.back.push(Jump { last_due, ..jump });
            }
        }
    }

    fn find(&self, id: u32, state: State, fate: impl Fn(Fate) -> bool) -> Option<usize> {
        let wanted = |request: &Request| request.id == id && request.state == state;
        let index = self.requests.iter().position(wanted)?;
        fate(self.requests[index].fate).then_some(index)
    }

    fn server_time(&self) -> f64 {
        EPOCH + self.now + self.offset
    }
}

/// The bucket and the cost, if a request is for one bucket only.
fn single(costs: &[f64; BUCKETS]) -> Option<(usize, f64)> {
    let mut asked = costs.iter().enumerate().filter(|(_, cost)| **cost > 0.0);
    let (index, &cost) = asked.next()?;
    asked.next().is_none().then_some((index, cost))
}

/// The tokens in gaps.
fn gaps(bucket: &Bucket) -> f64 {
    bucket.gaps.iter().map(|gap| gap.tokens).sum()
}

/// The part of a charge that is forgiven: what is below the floor of the debt.
fn forgiven(after: &Bucket, tokens: f64, charged: f64, params: BucketParams) -> f64 {
    let reserved_tokens = (after.last_due - after.at).max(0.0) * params.per_us;
    if after.level <= -params.capacity - reserved_tokens {
        tokens - charged
    } else {
        0.0
    }
}
