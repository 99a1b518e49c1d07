//! Everything that can happen to a few buckets, in virtual time and on one thread.
//!
//! Time here is true time, in which the sleepers sleep; the server's clock, which is all that the
//! buckets know, is that plus an offset.

use crate::bucket::{Bucket, BucketParams, Reservation, TakenAll, take_all};

use super::case::{BUCKETS, Case, Fate, Law, Op, Outcome};
use super::record::{Charged, Jump, Late, Record, Use};

/// Turns of one demand that lie no further apart are used together.
const ALIGNED: f64 = 75_000.0;

/// Whoever holds a token for the rest of its demand longer than this breaks its window.
const TOLERANCE: f64 = 100_000.0;

/// About what Redis says: from here on a double counts in quarters of a microsecond.
const EPOCH: f64 = 1.7e15;

#[derive(Clone, Copy, Debug)]
struct Slot {
    bucket: usize,
    cost: f64,
    turn: f64,
    order: Option<u32>,
    owner: usize,
    /// What a caller that goes away undoes; none where the bucket's time is ahead of the server's,
    /// which is all that a reply tells.
    reservation: Option<Reservation>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Asking,
    Sleeping,
    Granted,
    Done,
}

#[derive(Debug)]
struct Demand {
    id: u32,
    missing: [f64; BUCKETS],
    held: Vec<Slot>,
    deadline: f64,
    fate: Fate,
    state: State,
}

pub(crate) fn run(case: &Case, law: Law) -> Outcome {
    let mut simulator = Simulator {
        case,
        law,
        now: 0.0,
        offset: 0.0,
        jumped: false,
        buckets: case
            .params
            .iter()
            .map(|&t| Bucket::full(EPOCH, t))
            .collect(),
        last_turn: vec![0.0; case.params.len()],
        slots: Vec::new(),
        looks: Vec::new(),
        demands: Vec::new(),
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
        outcome.seen.stated +=
            (record.late.len() + record.charged.len() + record.jumps.len()) as u64;
    }
    outcome
}

struct Simulator<'a> {
    case: &'a Case,
    law: Law,
    now: f64,
    offset: f64,
    jumped: bool,
    buckets: Vec<Bucket>,
    last_turn: Vec<f64>,
    slots: Vec<Slot>,
    /// When a demand asks for the rest, unless something happens to it earlier.
    looks: Vec<(f64, usize)>,
    demands: Vec<Demand>,
    order: u32,
    /// By how much the clock was set back, of each bucket.
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
            Op::Late(id) => {
                if let Some(demand) = self.find(id, State::Granted, |fate| fate == Fate::Hold) {
                    self.spend(demand, 1.0);
                    self.demands[demand].state = State::Done;
                }
            }
            Op::Step(us) => self.jump(us),
        }
    }

    /// Serves all turns up to then, each at its time.
    fn advance(&mut self, to: f64) {
        loop {
            let turns = self.slots.iter().enumerate();
            let next = turns.min_by(|(_, a), (_, b)| a.turn.total_cmp(&b.turn));
            let looks = self.looks.iter().copied().enumerate();
            let look = looks.min_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b));
            if let Some((index, (at, demand))) = look
                && at <= next.map_or(to, |(_, slot)| slot.turn.min(to))
            {
                self.looks.remove(index);
                self.now = at;
                self.ask_for_the_rest(demand, false);
                continue;
            }
            let Some((index, slot)) = next.map(|(index, &slot)| (index, slot)) else {
                break;
            };
            if slot.turn > to {
                break;
            }
            // Not swapped: of equal turns the first promised comes first.
            self.slots.remove(index);
            self.now = slot.turn;
            self.demands[slot.owner].held.push(slot);
            if self.is_reserving(slot.owner) {
                self.realign(slot.owner);
            } else {
                self.ask(slot.owner, 1);
            }
        }
        if to.is_finite() {
            self.now = to;
        }
    }

    fn take(&mut self, id: u32, n: u32, costs: [f64; BUCKETS], max_wait: f64, fate: Fate) {
        let first = self.demands.len();
        for k in 0..n {
            self.demands.push(Demand {
                id: id + k,
                missing: costs,
                held: Vec::new(),
                deadline: self.now + max_wait,
                fate,
                state: State::Asking,
            });
        }
        self.ask(first, n);
    }

    /// Asks for what a demand misses; `n` demands at once only for a single bucket.
    fn ask(&mut self, demand: usize, n: u32) {
        let missing = self.demands[demand].missing;
        let max_wait = self.demands[demand].deadline - self.now;
        let time = self.server_time();
        let wanted = |index: usize| missing[index] > 0.0;
        for index in (0..self.buckets.len()).filter(|&index| wanted(index)) {
            self.buckets[index].advance(time, self.case.params[index]);
        }
        if let Some((bucket, cost)) = single(&missing) {
            let params = self.case.params[bucket];
            let (pool, gaps) = (self.buckets[bucket].returned, gaps(&self.buckets[bucket]));
            let taken = self.buckets[bucket].take(cost, n, max_wait, params);
            let fills = gaps != self::gaps(&self.buckets[bucket]);
            self.outcome.seen.filled += u64::from(fills);
            let pooled = ((pool - self.buckets[bucket].returned) / cost + 1e-9).floor();
            let pooled = pooled.min(taken.now);
            for k in 0..n {
                let demand = demand + k as usize;
                if f64::from(k) < taken.granted {
                    let wait = taken.wait(k, cost, params);
                    let level = f64::from(k) < taken.now - pooled || f64::from(k) >= taken.now;
                    let level = level && !fills;
                    self.granted(demand, bucket, wait, level);
                } else {
                    self.refused(demand);
                }
            }
            return;
        }
        if missing.iter().all(|&cost| cost == 0.0) {
            self.complete(demand);
            return;
        }
        if self.law == Law::AllAtOnce {
            self.ask_all_at_once(demand, max_wait);
            return;
        }
        let pools: Vec<f64> = self.buckets.iter().map(|bucket| bucket.returned).collect();
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
                    let level = self.buckets[bucket].returned == pools[bucket]
                        && gaps(&self.buckets[bucket]) == before[bucket];
                    self.granted_now(demand, bucket, level);
                }
                self.settle(demand);
            }
            TakenAll::Slowest { which, wait, .. } => {
                let bucket = asked[which];
                let level = gaps(&self.buckets[bucket]) == before[bucket];
                self.granted(demand, bucket, wait, level);
            }
            TakenAll::Rejected { .. } => self.refused(demand),
        }
    }

    fn is_reserving(&self, demand: usize) -> bool {
        self.slots.iter().any(|slot| slot.owner == demand)
    }

    /// The latest turn of a demand sets the time: what is due earlier is given back, and asked
    /// for again as long before it as it would have to wait.
    fn realign(&mut self, demand: usize) {
        if matches!(self.law, Law::Kept | Law::AllAtOnce) {
            return;
        }
        let held = std::mem::take(&mut self.demands[demand].held);
        let owned = self.slots.iter().filter(|slot| slot.owner == demand);
        let time = owned.chain(&held).map(|slot| slot.turn).fold(0.0, f64::max);
        let mut early = false;
        for slot in held {
            if slot.turn + ALIGNED >= time {
                self.demands[demand].held.push(slot);
            } else {
                early = true;
                self.demands[demand].missing[slot.bucket] = slot.cost;
                self.return_late(slot.bucket, slot.turn, slot.cost);
            }
        }
        let is_early = |slot: &Slot| slot.owner == demand && slot.turn + ALIGNED < time;
        while let Some(index) = self.slots.iter().position(is_early) {
            early = true;
            let slot = self.slots[index];
            self.demands[demand].missing[slot.bucket] = slot.cost;
            self.release(index);
        }
        self.outcome.seen.realigned += u64::from(early);
        self.ask_for_the_rest(demand, early);
    }

    fn ask_for_the_rest(&mut self, demand: usize, early: bool) {
        self.looks.retain(|(_, other)| *other != demand);
        let missing = self.demands[demand].missing;
        if missing.iter().all(|&cost| cost == 0.0) || !self.is_reserving(demand) {
            return;
        }
        let owned = self.slots.iter().filter(|slot| slot.owner == demand);
        let time = owned.map(|slot| slot.turn).fold(0.0, f64::max);
        let server_time = self.server_time();
        let quotes = (0..self.buckets.len()).filter(|&index| missing[index] > 0.0);
        let quotes = quotes.map(|index| {
            let (bucket, params) = (&mut self.buckets[index], self.case.params[index]);
            bucket.advance(server_time, params);
            bucket.quote(missing[index], params)
        });
        let (quote, until) = (quotes.fold(0.0, f64::max), time - self.now);
        let mut pause = until / 2.0;
        if !early && quote > 0.0 {
            if quote + ALIGNED >= until {
                return self.ask(demand, 1);
            }
            pause = pause.min(until - quote - ALIGNED);
        }
        if until > ALIGNED {
            // Whole microseconds, as all turns are.
            self.looks
                .push((self.now + pause.max(5_000.0).ceil(), demand));
        }
    }

    fn ask_all_at_once(&mut self, demand: usize, max_wait: f64) {
        let missing = self.demands[demand].missing;
        let asked: Vec<usize> = (0..self.buckets.len())
            .filter(|&bucket| missing[bucket] > 0.0)
            .collect();
        let quotes = asked.iter().map(|&bucket| {
            let params = self.case.params[bucket];
            self.buckets[bucket].quote(missing[bucket], params)
        });
        let longest = quotes.fold(0.0, f64::max);
        if longest > max_wait {
            return self.refused(demand);
        }
        let mut sleeps = false;
        for &bucket in &asked {
            let params = self.case.params[bucket];
            let taken = self.buckets[bucket].take(missing[bucket], 1, max_wait, params);
            if sleeps || taken.last < longest {
                self.granted_now(demand, bucket, true);
                self.settle(demand);
            } else {
                sleeps = longest > 0.0;
                self.granted(demand, bucket, taken.last, true);
            }
        }
    }

    fn granted(&mut self, demand: usize, bucket: usize, wait: f64, from_level: bool) {
        if wait <= 0.0 {
            self.granted_now(demand, bucket, from_level);
            self.settle(demand);
            return;
        }
        if !self.demands[demand].held.is_empty() {
            self.outcome.seen.second_waits += 1;
        }
        let slot = self.slot(demand, bucket, wait, from_level);
        self.slots.push(slot);
        self.demands[demand].state = State::Sleeping;
        self.outcome.seen.slept += 1;
        self.realign(demand);
    }

    fn granted_now(&mut self, demand: usize, bucket: usize, from_level: bool) {
        let slot = self.slot(demand, bucket, 0.0, from_level);
        self.demands[demand].held.push(slot);
        self.outcome.seen.pooled += u64::from(!from_level);
    }

    fn settle(&mut self, demand: usize) {
        if self.is_reserving(demand) {
            self.realign(demand);
        } else if self.demands[demand].missing.iter().all(|&c| c == 0.0) {
            self.complete(demand);
        }
    }

    fn slot(&mut self, demand: usize, bucket: usize, wait: f64, from_level: bool) -> Slot {
        self.order += 1;
        let turn = self.now + wait;
        if from_level {
            // Due times closer than this count as the same.
            let earlier = turn + 2.0 < self.last_turn[bucket];
            self.outcome.out_of_turn |= earlier && !self.jumped;
            self.last_turn[bucket] = self.last_turn[bucket].max(turn);
        }
        let cost = std::mem::take(&mut self.demands[demand].missing[bucket]);
        let (at, params) = (self.buckets[bucket].at, self.case.params[bucket]);
        let is_known = at == self.server_time();
        Slot {
            bucket,
            cost,
            turn,
            order: from_level.then_some(self.order),
            owner: demand,
            reservation: is_known.then(|| Reservation::due(at + wait, cost, params)),
        }
    }

    fn refused(&mut self, demand: usize) {
        if !self.demands[demand].held.is_empty() || self.is_reserving(demand) {
            self.outcome.seen.second_refusals += 1;
        }
        self.let_go(demand);
        self.demands[demand].state = State::Done;
    }

    /// Gives back what a demand holds, and undoes its other reservations.
    fn let_go(&mut self, demand: usize) {
        self.return_held(demand);
        self.looks.retain(|(_, other)| *other != demand);
        let owned = |slot: &Slot| slot.owner == demand;
        while let Some(index) = self.slots.iter().position(owned) {
            self.release(index);
        }
    }

    /// Its owner does not want this slot any more.
    fn release(&mut self, index: usize) {
        let free = match self.case.hand_over && self.law != Law::Early {
            true => self.hand_over(index),
            false => index,
        };
        self.undo(free);
    }

    fn complete(&mut self, demand: usize) {
        let state = match self.demands[demand].fate {
            Fate::Hold => State::Granted,
            Fate::Use => {
                self.spend(demand, 1.0);
                State::Done
            }
            Fate::Part(part) => {
                self.spend(demand, part);
                State::Granted
            }
            Fate::Over(_) => {
                self.spend(demand, 1.0);
                State::Granted
            }
        };
        self.demands[demand].state = state;
    }

    /// Uses this part of everything that a demand holds.
    fn spend(&mut self, demand: usize, part: f64) {
        for slot in &self.demands[demand].held {
            let record = &mut self.outcome.records[slot.bucket];
            record.uses.push(Use {
                time: self.now,
                tokens: part * slot.cost,
                order: slot.order,
                over: (slot.cost - self.case.params[slot.bucket].capacity).max(0.0),
            });
            // What is charged early to be used late is the fault of that law, and no excuse. Nor
            // is what was kept for the rest of a demand.
            let kept = self.demands[demand].state == State::Sleeping;
            let late = self.now - slot.turn;
            let excused = self.law != Law::AllAtOnce && !(kept && late > TOLERANCE);
            if late > 0.0 && excused {
                record.late.push(Late {
                    turn: slot.turn,
                    end: self.now,
                    tokens: part * slot.cost,
                });
            }
        }
    }

    /// Gives back what a demand holds, all of it past its turn.
    fn return_held(&mut self, demand: usize) {
        for slot in std::mem::take(&mut self.demands[demand].held) {
            self.return_late(slot.bucket, slot.turn, slot.cost);
        }
    }

    fn return_late(&mut self, bucket: usize, turn: f64, tokens: f64) {
        if turn < self.now {
            self.outcome.records[bucket].late.push(Late {
                turn,
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
        if self.law == Law::Plain {
            bucket.level = params.capacity.min(bucket.level + tokens);
        } else {
            bucket.give_back(tokens, params);
        }
        self.outcome.records[index].given_back(self.now, tokens);
        self.outcome.seen.refunded += 1;
    }

    fn cancel(&mut self, id: u32) {
        let Some(demand) = self.find(id, State::Sleeping, |_| true) else {
            return;
        };
        self.let_go(demand);
        self.demands[demand].state = State::Done;
        self.outcome.seen.cancelled += 1;
    }

    /// Those of the same cost behind a freed slot move up by one: the slot that is free then.
    fn hand_over(&mut self, freed: usize) -> usize {
        let Slot {
            bucket, cost, turn, ..
        } = self.slots[freed];
        let same = |slot: &Slot| (slot.bucket, slot.cost) == (bucket, cost) && slot.turn >= turn;
        let mut line: Vec<usize> = (0..self.slots.len())
            .filter(|&index| same(&self.slots[index]) && index != freed)
            .collect();
        line.sort_by(|&a, &b| self.slots[a].turn.total_cmp(&self.slots[b].turn));
        self.outcome.seen.handed_over += line.len() as u64;
        let mut free = freed;
        for index in line {
            self.slots[free].owner = self.slots[index].owner;
            free = index;
        }
        free
    }

    fn undo(&mut self, index: usize) {
        let slot = self.slots.remove(index);
        if self.law == Law::Early {
            return self.give_back(slot.bucket, slot.cost);
        }
        let (time, params) = (self.server_time(), self.case.params[slot.bucket]);
        let bucket = &mut self.buckets[slot.bucket];
        bucket.advance(time, params);
        if let Some(reservation) = slot.reservation {
            bucket.undo(reservation, params);
        }
        let others = self
            .slots
            .iter()
            .filter(|other| other.bucket == slot.bucket);
        self.last_turn[slot.bucket] = others.map(|other| other.turn).fold(0.0, f64::max);
        self.outcome.records[slot.bucket].given_back(self.now, slot.cost);
        self.outcome.seen.undone += 1;
    }

    fn finish(&mut self, id: u32) {
        let Some(demand) = self.find(id, State::Granted, |_| true) else {
            return;
        };
        self.demands[demand].state = State::Done;
        match self.demands[demand].fate {
            Fate::Use => {}
            Fate::Hold => self.return_held(demand),
            Fate::Part(part) => {
                for slot in std::mem::take(&mut self.demands[demand].held) {
                    self.return_late(slot.bucket, slot.turn, (1.0 - part) * slot.cost);
                }
            }
            Fate::Over(tokens) => {
                for slot in std::mem::take(&mut self.demands[demand].held) {
                    self.charge(slot.bucket, tokens);
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
        let paid = before - bucket.level - bucket.returned;
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
            forgiven: forgiven(&self.buckets[index], tokens, paid, params),
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
            let slots = self.slots.iter().filter(|slot| slot.bucket == index);
            let promised: f64 = slots.clone().map(|slot| slot.cost).sum();
            let debt = promised.max(-self.buckets[index].level);
            let last_turn = slots.map(|slot| slot.turn).fold(self.now, f64::max);
            let most = params.capacity + debt;
            let jump = Jump {
                time: self.now,
                last_turn: last_turn.max(self.now + debt / params.per_us),
                tokens: (us.abs() * params.per_us).min(most),
                most,
            };
            if us > 0.0 {
                self.outcome.records[index].jumps.push(jump);
            } else {
                // As long as there is a queue, it is that much late.
                let last_turn = f64::INFINITY;
                self.back.push(Jump { last_turn, ..jump });
            }
        }
    }

    fn find(&self, id: u32, state: State, fate: impl Fn(Fate) -> bool) -> Option<usize> {
        let wanted = |demand: &Demand| demand.id == id && demand.state == state;
        let index = self.demands.iter().position(wanted)?;
        fate(self.demands[index].fate).then_some(index)
    }

    fn server_time(&self) -> f64 {
        EPOCH + self.now + self.offset
    }
}

/// The one bucket that is asked for, and its cost.
fn single(costs: &[f64; BUCKETS]) -> Option<(usize, f64)> {
    let mut asked = costs.iter().enumerate().filter(|(_, cost)| **cost > 0.0);
    let (index, &cost) = asked.next()?;
    asked.next().is_none().then_some((index, cost))
}

/// Tokens that are reserved by nobody any more.
fn gaps(bucket: &Bucket) -> f64 {
    bucket.gaps.iter().map(|gap| gap.tokens).sum()
}

/// What a charge may leave unpaid: only what is beyond the floor of the debt.
fn forgiven(after: &Bucket, tokens: f64, paid: f64, params: BucketParams) -> f64 {
    let promised = (after.last_due - after.at).max(0.0) * params.per_us;
    if after.level <= -params.capacity - promised {
        tokens - paid
    } else {
        0.0
    }
}
