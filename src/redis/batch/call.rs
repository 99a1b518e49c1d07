//! What goes out as one call: merging, encoding, and telling everybody the answer.

use std::{collections::VecDeque, hash::BuildHasher, sync::Arc, time::Duration};

use hashbrown::HashTable;
use tokio::{sync::oneshot, time::Instant};

use crate::redis::{
    batch::command::{Command, Connection, Deadline, Ledger, PendingRequest, Requester},
    batch::queue_time::QueueTime,
    batch::worker::Shared,
    lease::{LeaseRequest, Leases},
    level_cache::BucketState,
    script::{Answer, Argument, First, Reply},
};
use crate::{
    bucket::{BucketParams, Reservation, Taken},
    clock::{from_us, to_us},
    decision::{Decision, Failure, FailureKind},
    packed_map::Hashing,
    peers::RatePart,
    scope::{BucketId, Scope},
};

/// Redis runs one script at a time: more buckets in one would hold up its other users.
const MOST_BUCKETS: usize = 128;

/// Commands in one call. Equal demands are merged, so that most of these cost Redis nothing.
const MOST_COMMANDS: usize = 16_384;

/// Steps in one call: what is not merged with another command, counted once for each of its
/// buckets. The script takes 1 to 2.5 µs for a step and 2 µs for a bucket, so that no costs and
/// waits that callers choose make one call block Redis for much longer than a millisecond.
const MOST_STEPS: usize = 256;

/// Commands that one call may leave for the next because it has their bucket by another quota:
/// each call looks at all of them again.
const MOST_POSTPONED: usize = 1_024;

/// Equal demands are merged if their waits differ by at most this part of the longest. The
/// shortest is used for all of them, so that nobody waits for longer than asked.
const SIMILAR_WAIT: f64 = 1.0 / 64.0;

/// What goes out as one call.
pub(crate) struct Batch<A: Requester> {
    /// Of each rate, as long as some processes live from their shares.
    part: RatePart,
    places: Vec<Place<A>>,
    /// All but the first demands, in their order.
    steps: Vec<Step<A>>,
    takes: usize,
    /// How many buckets all the steps have together.
    weight: usize,
    /// Places of which a lease is half used.
    half_used: Vec<usize>,
    /// What is taken ahead, after all demands.
    ahead: Vec<(usize, LeaseRequest)>,
    /// Of how many commands it is made.
    length: usize,
}

/// A bucket of this call.
struct Place<A: Requester> {
    /// One that names it; by it the next is compared, which on a hot scope is the same again.
    scope: Scope,
    id: BucketId,
    /// The whole quota.
    params: BucketParams,
    /// Without anything before it in this call, it commutes with all else.
    first: Option<MergedTake<A>>,
    open: Open,
    /// The step that gives tokens back, as long as there have been only demands since. What is
    /// given back later joins it: these tokens are free already, and those who give back a late
    /// turn to ask for another would otherwise divide all demands.
    given_back: Option<usize>,
    /// A correction by another quota is left for the next call, and nothing on this bucket may
    /// overtake it.
    closed: bool,
}

/// Which demand or correction the next equal one may join. What is about other buckets commutes,
/// so only the last one on this bucket counts.
#[derive(Clone, Copy)]
enum Open {
    /// Nobody has asked for it yet.
    Untouched,
    First,
    Step(usize),
    /// The last one has other buckets as well.
    None,
}

/// Demands on one bucket of equal cost and similar waits, in their order.
struct MergedTake<A: Requester> {
    cost: f64,
    /// The shortest of their waits, which counts for all.
    max_wait_us: f64,
    /// The longest of them.
    longest_us: f64,
    requesters: Vec<PendingRequest<A>>,
}

enum Step<A: Requester> {
    Take(usize, MergedTake<A>),
    TakeAll {
        asker: PendingRequest<A>,
        max_wait_us: f64,
        /// Bucket and cost.
        from: Vec<(usize, f64)>,
    },
    GiveBack(usize, Box<Scope>, f64),
    Charge(usize, Box<Scope>, f64),
    Pause(usize, Box<Scope>, Instant),
    Undo(usize, Box<(Scope, Reservation)>),
    CapLevel(usize, f64),
    Reset(usize, oneshot::Sender<Result<f64, Failure>>),
    Look(usize, oneshot::Sender<Result<f64, Failure>>),
}

impl<A: Requester> MergedTake<A> {
    fn new(cost: f64, max_wait_us: f64, asker: PendingRequest<A>) -> Self {
        Self {
            cost,
            max_wait_us,
            longest_us: max_wait_us,
            requesters: vec![asker],
        }
    }

    /// Whether another may be merged with these. The order within the run is kept: if some are
    /// refused by the shortest wait, those before them were granted as they would be alone.
    fn admits(&self, cost: f64, max_wait_us: f64) -> bool {
        let longest = self.longest_us.max(max_wait_us);
        let shortest = self.max_wait_us.min(max_wait_us);
        self.cost == cost && longest - shortest <= longest * SIMILAR_WAIT
    }

    fn push(&mut self, asker: PendingRequest<A>, max_wait_us: f64) {
        self.max_wait_us = self.max_wait_us.min(max_wait_us);
        self.longest_us = self.longest_us.max(max_wait_us);
        self.requesters.push(asker);
    }

    fn first(&self) -> First {
        First {
            cost: self.cost,
            // At most `MOST_COMMANDS`.
            n: self.requesters.len() as u32,
            max_wait_us: self.max_wait_us,
        }
    }

    fn is_refused(&self, taken: Taken) -> bool {
        self.bounded(taken, (RatePart::FULL, RatePart::FULL))
            .granted
            < self.requesters.len() as f64
    }

    fn bounded(&self, taken: Taken, parts: (RatePart, RatePart)) -> Taken {
        bounded(taken, self.requesters.len() as f64, self.max_wait_us, parts)
    }

    fn answer(
        self,
        taken: Taken,
        level: f64,
        params: BucketParams,
        parts: (RatePart, RatePart),
        time: Option<f64>,
    ) {
        let taken = self.bounded(taken, parts);
        let (_, part) = parts;
        let waits = Waits {
            max_wait_us: self.max_wait_us,
            part,
            time,
        };
        for (k, asker) in self.requesters.into_iter().enumerate() {
            let k = k as u32;
            let tightest = (0, level);
            let taken = as_asked(taken, &asker, self.max_wait_us);
            asker.answer(Ok(decision(
                taken, 0, k, self.cost, params, waits, tightest,
            )));
        }
    }
}

/// Redis counts `retry_after` from the wait that was sent, the caller from the one it asked with.
fn as_asked<A: Requester>(taken: Taken, asker: &PendingRequest<A>, sent_us: f64) -> Taken {
    let longer = asker.max_wait_us() - sent_us;
    Taken {
        retry_after: (taken.retry_after - longer).max(1.0),
        ..taken
    }
}

/// No more than `n` demands asked for, none of which waits over `max_wait_us`. What a healthy
/// Redis replies is that already. When to come back is counted by the rate that comes back: the
/// part by which the waits were sent, and the same of this bucket, which may be held back.
fn bounded(taken: Taken, n: f64, max_wait_us: f64, (sent, part): (RatePart, RatePart)) -> Taken {
    // `max` takes the other, where one is no number.
    let granted = taken.granted.max(0.0).min(n).floor();
    Taken {
        now: taken.now.max(0.0).min(granted).floor(),
        granted,
        last: taken.last.max(0.0).min(sent.lengthen(max_wait_us)),
        retry_after: part.retry_after(taken.retry_after.max(1.0), max_wait_us),
    }
}

/// How the waits of a reply are read.
#[derive(Clone, Copy)]
struct Waits {
    /// The wait that was sent.
    max_wait_us: f64,
    part: RatePart,
    /// The server's time, from which on they count, if it is known.
    time: Option<f64>,
}

/// What the `k`th of equal demands got, of buckets that refill by a part of the rate for a while:
/// the script counts all waits by that, and here they become those of the rate that comes back.
fn decision(
    taken: Taken,
    which: usize,
    k: u32,
    cost: f64,
    params: BucketParams,
    waits: Waits,
    (tightest, level): (usize, f64),
) -> Decision {
    let Waits {
        max_wait_us,
        part,
        time,
    } = waits;
    let params = params.slower(part.of_rate);
    if f64::from(k) < taken.now {
        Decision::Now { tightest, level }
    } else if f64::from(k) < taken.granted {
        let wait = taken.wait(k, cost, params);
        Decision::Wait {
            which,
            wait: from_us(part.shorten(wait).min(max_wait_us)),
            // The queue in Redis is that of the lower rate.
            reservation: time.map(|time| Reservation::due(time + wait, cost, params)),
        }
    } else {
        Decision::Rejected {
            which,
            retry_after: from_us(taken.retry_after),
        }
    }
}

/// Why a command is not part of this call.
enum Unfit {
    /// The call has too many buckets or steps with it: this, and all that is behind it, is for
    /// the next.
    Next,
    /// Of a bucket that this call knows by another quota: this is for the next, and what is
    /// behind it may still go.
    Postponed,
    /// Of one bucket by two quotas, in itself. Nobody asks for that; kept, it would hold up
    /// everybody behind it for ever.
    Never,
}

impl<A: Requester> Batch<A> {
    pub(crate) fn build<W: Connection>(
        commands: &mut VecDeque<Command<A>>,
        index: &mut Index,
        patience: &mut QueueTime,
        shared: &Shared<A, W>,
    ) -> Self {
        let mut batch = Self {
            part: shared.connection.part(),
            places: Vec::with_capacity(commands.len().min(MOST_BUCKETS)),
            steps: Vec::new(),
            takes: 0,
            weight: 0,
            half_used: Vec::new(),
            ahead: Vec::new(),
            length: 0,
        };
        index.clear();
        let (now, timeout) = (Instant::now(), shared.connection.call_timeout());
        let mut longest = None;
        let mut postponed = Vec::new();
        let leases = shared.leases.are_on() && shared.connection.is_steady();
        while batch.length < MOST_COMMANDS
            && let Some(command) = commands.pop_front()
        {
            let command = match command {
                Command::Take(asker, since) => {
                    let queued = now.duration_since(since);
                    // The first one has been queued for the longest time.
                    let longest =
                        *longest.get_or_insert_with(|| patience.longest(queued, timeout, now));
                    if !asker.is_wanted() || queued > longest {
                        // Cancelled before it was sent: nothing was taken, nobody listens. Or
                        // more was asked of Redis than it decides in time.
                        asker.answer(Err(Failure::new(
                            FailureKind::Overloaded,
                            "Redis answers, but not as fast as requests are queued for it",
                        )));
                        continue;
                    }
                    Command::Take(asker, since)
                }
                // No call for what will not be asked for.
                Command::Lease(..) if !leases => continue,
                command => command,
            };
            match batch.add(command, index, shared.keyspace.secret(), now) {
                Ok(()) => batch.length += 1,
                Err((Unfit::Next, command)) => {
                    commands.push_front(command);
                    break;
                }
                Err((Unfit::Postponed, command)) => {
                    postponed.push(command);
                    if postponed.len() >= MOST_POSTPONED {
                        break;
                    }
                }
                // Dropped, it is answered.
                Err((Unfit::Never, command)) => drop(command),
            }
        }
        // In front of all else: the next call has their quota.
        for command in postponed.into_iter().rev() {
            commands.push_front(command);
        }
        if leases {
            batch.take_ahead(&shared.leases);
        }
        batch
    }

    fn take_ahead(&mut self, leases: &Arc<Leases>) {
        let demanded = |demand: &MergedTake<A>, params| {
            // What no lease can pay is none of its demand.
            if demand.cost > leases.max_for(params) {
                return (0.0, 0.0);
            }
            let callers = demand.requesters.len() as f64;
            (demand.cost * callers, callers)
        };
        let mut demands = vec![(0.0, 0.0); self.places.len()];
        for (place, demands) in self.places.iter().zip(&mut demands) {
            let first = place.first.as_ref();
            *demands = first.map_or((0.0, 0.0), |first| demanded(first, place.params));
        }
        for step in &self.steps {
            if let Step::Take(place, demand) = step {
                let (tokens, callers) = demanded(demand, self.places[*place].params);
                demands[*place].0 += tokens;
                demands[*place].1 += callers;
            }
        }
        for (index, (place, demand)) in self.places.iter().zip(demands).enumerate() {
            if (demand.1 > 0.0 || self.half_used.contains(&index))
                && let Some(asked) = leases.ask(&place.scope, &place.id, place.params, demand)
            {
                self.ahead.push((index, asked));
            }
        }
    }

    fn add(
        &mut self,
        command: Command<A>,
        index: &mut Index,
        salt: &[u8; 32],
        now: Instant,
    ) -> Result<(), (Unfit, Command<A>)> {
        let scopes = command.scopes();
        let [scope] = scopes else {
            return self.add_all(command, index, salt, now);
        };
        // Requests by two quotas may overtake each other within a call, as those of two processes
        // do. A correction is not overtaken: whoever made it and asks afterwards relies on it.
        let overtakable = matches!(command, Command::Take(..) | Command::Lease(..));
        if !overtakable && self.has_no_room(1) {
            return Err((Unfit::Next, command));
        }
        let place = match index.place(&mut self.places, scope, salt) {
            Ok(place) => place,
            Err(unfit) => {
                if let Unfit::Postponed = unfit
                    && !overtakable
                {
                    self.places[index.last].closed = true;
                }
                return Err((unfit, command));
            }
        };
        match command {
            Command::Take(asker, since) => {
                let max_wait_us = left(&asker, now - since);
                return self
                    .take(place, asker, max_wait_us)
                    .map_err(|asker| (Unfit::Next, Command::Take(asker, since)));
            }
            Command::GiveBack(scope, tokens) => self.give_back(place, scope, tokens),
            Command::Charge(scope, tokens) => match self.last_step(place) {
                Some(Step::Charge(_, _, sum)) => *sum += tokens,
                _ => self.step(place, Step::Charge(place, scope, tokens)),
            },
            Command::CapLevel(_, tokens) => self.step(place, Step::CapLevel(place, tokens)),
            Command::Pause(scope, until) => {
                self.step(place, Step::Pause(place, scope, until));
            }
            Command::Undo(gone) => self.step(place, Step::Undo(place, gone)),
            Command::Reset(_, reply) => self.step(place, Step::Reset(place, reply)),
            Command::Look(_, reply) => self.step(place, Step::Look(place, reply)),
            // It is asked for by what is known when all demands are gathered.
            Command::Lease(_, asked) => {
                drop(asked);
                self.half_used.push(place);
            }
        }
        Ok(())
    }

    /// A demand of several buckets.
    fn add_all(
        &mut self,
        command: Command<A>,
        index: &mut Index,
        salt: &[u8; 32],
        now: Instant,
    ) -> Result<(), (Unfit, Command<A>)> {
        let known = self.places.len();
        let scopes = command.scopes();
        if self.has_no_room(scopes.len()) {
            return Err((Unfit::Next, command));
        }
        let mut from = Vec::with_capacity(scopes.len());
        for scope in scopes {
            match index.place(&mut self.places, scope, salt) {
                Ok(place) => from.push((place, scope.tokens())),
                Err(unfit) => {
                    index.truncate(&mut self.places, known);
                    let unfit = if known > 0 { unfit } else { Unfit::Never };
                    return Err((unfit, command));
                }
            }
        }
        if let Command::Take(asker, since) = command {
            for (place, _) in &from {
                self.places[*place].open = Open::None;
            }
            self.takes += 1;
            self.weight += from.len();
            self.steps.push(Step::TakeAll {
                max_wait_us: left(&asker, now - since),
                asker,
                from,
            });
        }
        Ok(())
    }

    /// Gives it back where it would be one step too many.
    fn take(
        &mut self,
        at: usize,
        asker: PendingRequest<A>,
        max_wait_us: f64,
    ) -> Result<(), PendingRequest<A>> {
        let cost = asker.scopes()[0].tokens();
        let has_no_room = self.has_no_room(1);
        let place = &mut self.places[at];
        let open = match place.open {
            Open::Untouched | Open::None => None,
            Open::First => place.first.as_mut(),
            Open::Step(step) => match &mut self.steps[step] {
                Step::Take(_, demand) => Some(demand),
                _ => None,
            },
        };
        if let Some(demand) = open.filter(|open| open.admits(cost, max_wait_us)) {
            demand.push(asker, max_wait_us);
            return Ok(());
        }
        if has_no_room && !matches!(place.open, Open::Untouched) {
            return Err(asker);
        }
        let demand = MergedTake::new(cost, max_wait_us, asker);
        if let Open::Untouched = place.open {
            place.open = Open::First;
            place.first = Some(demand);
        } else {
            place.open = Open::Step(self.steps.len());
            self.takes += 1;
            self.weight += 1;
            self.steps.push(Step::Take(at, demand));
        }
        Ok(())
    }

    /// Whether so many steps more are too many. There is always room in an empty call.
    fn has_no_room(&self, weight: usize) -> bool {
        self.weight > 0 && self.weight + weight > MOST_STEPS
    }

    /// The last step on this bucket, unless it has other buckets as well.
    fn last_step(&mut self, place: usize) -> Option<&mut Step<A>> {
        match self.places[place].open {
            Open::Step(step) => self.steps.get_mut(step),
            Open::Untouched | Open::First | Open::None => None,
        }
    }

    fn give_back(&mut self, place: usize, scope: Box<Scope>, tokens: f64) {
        let earlier = self.places[place].given_back;
        match earlier.and_then(|step| self.steps.get_mut(step)) {
            Some(Step::GiveBack(_, _, sum)) => *sum += tokens,
            _ => {
                self.step(place, Step::GiveBack(place, scope, tokens));
                self.places[place].given_back = Some(self.steps.len() - 1);
            }
        }
    }

    fn step(&mut self, place: usize, step: Step<A>) {
        self.places[place].open = Open::Step(self.steps.len());
        self.places[place].given_back = None;
        self.weight += 1;
        self.steps.push(step);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Of how many commands it is made.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::with_keys(self.places.len());
        for place in &self.places {
            let mut first = place.first.as_ref().map_or(First::NONE, MergedTake::first);
            first.max_wait_us = self.part.lengthen(first.max_wait_us);
            argument.key(place.params.slower(self.part.of_rate), first);
        }
        for step in &self.steps {
            match step {
                Step::Take(place, demand) => {
                    let First { cost, n, .. } = demand.first();
                    let max_wait_us = self.part.lengthen(demand.max_wait_us);
                    argument.take(n, max_wait_us, std::iter::once((place + 1, cost)));
                }
                Step::TakeAll {
                    max_wait_us, from, ..
                } => {
                    let from = from.iter().map(|(place, cost)| (place + 1, *cost));
                    argument.take(1, self.part.lengthen(*max_wait_us), from);
                }
                Step::GiveBack(place, _, tokens) => argument.give_back(place + 1, *tokens),
                Step::Charge(place, _, tokens) => argument.charge(place + 1, *tokens),
                Step::CapLevel(place, tokens) => argument.cap_level(place + 1, *tokens),
                Step::Pause(place, _, until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    argument.pause(place + 1, to_us(left));
                }
                Step::Undo(place, gone) => argument.undo(place + 1, gone.1),
                Step::Reset(place, _) => argument.reset(place + 1),
                Step::Look(place, _) => argument.look(place + 1),
            }
        }
        for (place, asked) in &self.ahead {
            argument.lease(place + 1, asked.tokens);
        }
        argument.into_bytes()
    }

    /// Sends, and answers all askers. The failure, where there was one.
    async fn send<W: Connection>(
        in_flight: &mut InFlight<A, W>,
        deadline: &mut Deadline,
    ) -> Option<Failure> {
        let InFlight {
            batch,
            shared,
            sent: is_sent,
        } = in_flight;
        let this = batch.as_ref()?;
        let places = this.places.iter();
        let keys = places.map(|place| shared.keyspace.bucket(place.id.as_bytes()));
        let keys: Vec<_> = keys.collect();
        let (places, takes) = (keys.len(), this.takes + this.ahead.len());
        let (length, argument) = (this.length, this.argument());
        let sent = Instant::now();
        *is_sent = true;
        let result = shared.connection.call(keys, argument, deadline).await;
        shared.meter.call(length, sent.elapsed());
        let reply = result.as_ref().map_err(Clone::clone).and_then(|bytes| {
            Reply::new(bytes, places, takes).ok_or_else(|| {
                let failure = Failure::new(
                    FailureKind::Misconfigured,
                    "the script's reply is of another length",
                );
                // The connection is out of step, or something else than Redis is at its end.
                shared.connection.fail(&failure);
                failure
            })
        });
        let this = batch.take()?;
        match reply {
            Ok(reply) => {
                this.answer(&reply, shared, sent);
                None
            }
            Err(failure) => {
                this.undelivered(Some(&failure), failure.sent, &*shared.ledger);
                Some(failure)
            }
        }
    }

    fn answer<W: Connection>(self, reply: &Reply<'_>, shared: &Shared<A, W>, sent: Instant) {
        let (known, time) = (&shared.levels, reply.time());
        // First, so that whoever is answered finds what is known.
        let mut refusing = vec![false; self.places.len()];
        for (index, place) in self.places.iter().enumerate() {
            let first = place.first.as_ref();
            refusing[index] = first.is_some_and(|first| first.is_refused(reply.first(index)));
        }
        let mut take = 0;
        for step in &self.steps {
            match step {
                Step::Take(place, demand) => {
                    refusing[*place] |= demand.is_refused(reply.answer(take).taken);
                    take += 1;
                }
                Step::TakeAll {
                    from, max_wait_us, ..
                } => {
                    let answer = reply.answer(take);
                    let (place, _) = from[answer.which.min(from.len() - 1)];
                    refusing[place] |= bounded(
                        answer.taken,
                        1.0,
                        *max_wait_us,
                        (RatePart::FULL, RatePart::FULL),
                    )
                    .granted
                        < 1.0;
                    take += 1;
                }
                _ => {}
            }
        }
        let params: Vec<_> = self.places.iter().map(|place| place.params).collect();
        let told = params.iter().enumerate();
        let told: Vec<_> = told.map(|(at, params)| reply.state(at, *params)).collect();
        for (index, place) in self.places.iter().enumerate() {
            if told[index].pause_us > 0.0 {
                shared.leases.forget(&place.id);
            }
            known.update(
                place.id.as_bytes(),
                place.params,
                told[index],
                sent,
                refusing[index],
            );
        }
        for (nth, (place, asked)) in self.ahead.into_iter().enumerate() {
            let tokens = reply.answer(self.takes + nth).taken.granted;
            let tokens = tokens.max(0.0).min(asked.tokens);
            asked.answer(tokens, told[place].level, sent);
        }
        for (index, place) in self.places.into_iter().enumerate() {
            if let Some(first) = place.first {
                let part = self.part.with_pause(told[index].pause_us);
                let taken = reply.first(index);
                first.answer(
                    taken,
                    told[index].level,
                    place.params,
                    (self.part, part),
                    time,
                );
            }
        }
        let mut take = 0;
        for step in self.steps {
            match step {
                Step::Take(place, demand) => {
                    let taken = reply.answer(take).taken;
                    let part = self.part.with_pause(told[place].pause_us);
                    demand.answer(
                        taken,
                        told[place].level,
                        params[place],
                        (self.part, part),
                        time,
                    );
                    take += 1;
                }
                Step::TakeAll {
                    asker,
                    max_wait_us,
                    from,
                } => {
                    let Answer { taken, which } = reply.answer(take);
                    take += 1;
                    let which = which.min(from.len() - 1);
                    let (place, cost) = from[which];
                    let part = self.part.with_pause(told[place].pause_us);
                    let taken = bounded(taken, 1.0, max_wait_us, (self.part, part));
                    let taken = as_asked(taken, &asker, max_wait_us);
                    let tightest = tightest(&from, &params, &told);
                    let waits = Waits {
                        max_wait_us,
                        part,
                        time,
                    };
                    let params = params[place];
                    let decision = decision(taken, which, 0, cost, params, waits, tightest);
                    asker.answer(Ok(decision));
                }
                Step::Look(place, answer) | Step::Reset(place, answer) => {
                    let _ = answer.send(Ok(told[place].level));
                }
                Step::GiveBack(..)
                | Step::Charge(..)
                | Step::Pause(..)
                | Step::Undo(..)
                | Step::CapLevel(..) => {}
            }
        }
    }

    /// The call failed, or, without a failure, its task ended under it; `sent` if Redis may have
    /// executed it.
    fn undelivered(self, failure: Option<&Failure>, sent: bool, books: &dyn Ledger) {
        let tell = |asker: PendingRequest<A>| match failure {
            Some(failure) => asker.answer(Err(failure.clone())),
            None => asker.abandon(),
        };
        let firsts = self.places.into_iter().filter_map(|place| place.first);
        firsts.flat_map(|first| first.requesters).for_each(tell);
        for step in self.steps {
            match step {
                Step::Take(_, demand) => demand.requesters.into_iter().for_each(tell),
                Step::TakeAll { asker, .. } => tell(asker),
                Step::Reset(_, answer) | Step::Look(_, answer) => {
                    // Without an answer, whoever asks asks again.
                    if let Some(failure) = failure {
                        let _ = answer.send(Err(failure.clone()));
                    }
                }
                // Perhaps it was executed: rather charged twice, and not given back twice.
                Step::Charge(_, scope, tokens) => books.correct(&scope, tokens),
                Step::Pause(_, scope, until) => books.pause(&scope, until),
                Step::GiveBack(_, scope, tokens) if !sent => {
                    books.correct(&scope, -tokens);
                }
                Step::Undo(_, gone) if !sent => books.undo(gone),
                // The next answer of the upstream tells it anew.
                Step::GiveBack(..) | Step::Undo(..) | Step::CapLevel(..) => {}
            }
        }
    }
}

/// A batch from when it is built until it is answered. Dropped before that, as the shutdown of a
/// runtime does, its charges and holds go to the books: charged twice at most where Redis executed
/// the call, never lost.
pub(crate) struct InFlight<A: Requester, W: Connection> {
    batch: Option<Batch<A>>,
    shared: Arc<Shared<A, W>>,
    sent: bool,
}

impl<A: Requester, W: Connection> InFlight<A, W> {
    pub(crate) fn new(batch: Batch<A>, shared: Arc<Shared<A, W>>) -> Self {
        Self {
            batch: Some(batch),
            shared,
            sent: false,
        }
    }

    /// Sends, and answers all askers. The failure, where there was one.
    pub(crate) async fn send(mut self, deadline: &mut Deadline) -> Option<Failure> {
        Batch::send(&mut self, deadline).await
    }
}

impl<A: Requester, W: Connection> Drop for InFlight<A, W> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.undelivered(None, self.sent, &*self.shared.ledger);
        }
    }
}

/// What is left of the wait of somebody who has been queued for so long, in microseconds.
fn left<A: Requester>(asker: &PendingRequest<A>, queued: Duration) -> f64 {
    (asker.max_wait_us() - to_us(queued)).max(0.0)
}

/// The bucket that has the smallest part of its capacity left.
fn tightest(from: &[(usize, f64)], params: &[BucketParams], told: &[BucketState]) -> (usize, f64) {
    let mut tightest = (0, f64::INFINITY, 0.0);
    for (which, (place, _)) in from.iter().enumerate() {
        let level = told[*place].level;
        let part = level / params[*place].capacity;
        if part < tightest.1 {
            tightest = (which, part, level);
        }
    }
    (tightest.0, tightest.2)
}

/// Finds a bucket's place in a call.
#[derive(Default)]
pub(crate) struct Index {
    table: HashTable<usize>,
    hasher: Hashing,
    last: usize,
}

impl Index {
    fn clear(&mut self) {
        self.table.clear();
        self.last = 0;
    }

    /// Where this bucket is, added where it is new.
    fn place<A: Requester>(
        &mut self,
        places: &mut Vec<Place<A>>,
        scope: &Scope,
        salt: &[u8; 32],
    ) -> Result<usize, Unfit> {
        let params = scope.params();
        // On a hot scope it is the same again.
        let last = places.get(self.last);
        if !last.is_some_and(|last| last.scope.same_bucket(scope)) {
            let id = scope.id(salt);
            let hash = self.hasher.hash_one(id.as_bytes());
            let is_it = |place: &usize| places[*place].id.as_bytes() == id.as_bytes();
            if let Some(place) = self.table.find(hash, is_it) {
                self.last = *place;
            } else if places.len() < MOST_BUCKETS {
                self.last = places.len();
                places.push(Place {
                    scope: scope.clone(),
                    id,
                    params,
                    first: None,
                    open: Open::Untouched,
                    given_back: None,
                    closed: false,
                });
                let hasher = &self.hasher;
                self.table.insert_unique(hash, self.last, |place| {
                    hasher.hash_one(places[*place].id.as_bytes())
                });
            } else {
                return Err(Unfit::Next);
            }
        }
        let place = &places[self.last];
        if place.params == params && !place.closed {
            Ok(self.last)
        } else {
            Err(Unfit::Postponed)
        }
    }

    /// Forgets all but the first so many.
    fn truncate<A: Requester>(&mut self, places: &mut Vec<Place<A>>, known: usize) {
        places.truncate(known);
        self.table.retain(|place| *place < known);
        self.last = 0;
    }
}
