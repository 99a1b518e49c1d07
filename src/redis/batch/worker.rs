//! One task a limiter that gathers demands while a call is in flight and sends them as one.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    runtime::Id,
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use crate::redis::{
    batch::call::{Batch, InFlight, Index},
    batch::command::{Command, Connection, Deadline, Ledger, PendingRequest, Requester, abandoned},
    batch::queue_time::QueueTime,
    connection::failure::timed_out,
    lease::{IDLE_CHECK, Leases},
    level_cache::LevelCache,
};
use crate::{
    bucket::Reservation,
    clock::LONGEST_WAIT,
    decision::{Failure, FailureKind},
    runtime,
    scope::{Keyspace, Scope},
    task::supervised,
    telemetry::Meter,
};

/// Demands that may queue before further ones are turned away to memory.
pub(crate) const MAX_QUEUED: usize = 131_072;

/// With fewer than this gathered, a second call in flight would only halve the batches.
const SECOND_CALL: usize = 128;

/// What is given back of so many leases by one call: demands shall not wait behind all of them.
const MOST_COOLED: usize = 64;

const NEVER: usize = usize::MAX;

/// How often one question is asked, of workers that end before they have answered.
const MOST_ATTEMPTS: usize = 4;

/// For how many times the patience one question waits for a worker that is driven.
const MOST_ROUNDS: usize = 12;

/// Which worker was given a command, and when in its life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) runtime: Id,
    worker: u64,
    turn: u64,
}

/// The queue in front of Redis, and the task that empties it.
pub(crate) struct Batcher<A: Requester, W: Connection> {
    shared: Arc<Shared<A, W>>,
}

pub(crate) struct Shared<A: Requester, W: Connection> {
    queue: Mutex<Queue<A>>,
    wake: Notify,
    pub(crate) connection: W,
    pub(crate) levels: Arc<LevelCache>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) keyspace: Keyspace,
    pub(crate) meter: Meter,
}

struct Queue<A: Requester> {
    commands: VecDeque<Command<A>>,
    /// How many more the worker holds and has not sent.
    gathered: usize,
    /// With so many in it the worker is woken; until then it has no use for them.
    wake_at: usize,
    /// The runtime of the worker that runs, if one does.
    running: Option<Id>,
    /// The number of the last worker; those before it stop.
    worker: u64,
    /// Counts what workers do: it stands still when their runtime is not driven.
    turn: u64,
    closed: bool,
    /// How long the gauge says that this is.
    reported: usize,
}

impl<A: Requester> Queue<A> {
    /// What the gauge says, and what it is to say; to be told once the lock is free.
    fn report(&mut self) -> (usize, usize) {
        let now = self.commands.len() + self.gathered;
        (std::mem::replace(&mut self.reported, now), now)
    }

    fn mark(&self) -> Option<Mark> {
        Some(Mark {
            runtime: self.running?,
            worker: self.worker,
            turn: self.turn,
        })
    }
}

impl<A: Requester, W: Connection> Batcher<A, W> {
    pub(crate) fn new(
        wire: W,
        keyspace: Keyspace,
        known: Arc<LevelCache>,
        leases: Arc<Leases>,
        books: Arc<dyn Ledger>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    commands: VecDeque::new(),
                    gathered: 0,
                    wake_at: NEVER,
                    running: None,
                    worker: 0,
                    turn: 0,
                    closed: false,
                    reported: 0,
                }),
                wake: Notify::new(),
                connection: wire,
                levels: known,
                leases,
                ledger: books,
                keyspace,
                meter: Meter::new(),
            }),
        }
    }

    pub(crate) fn connection(&self) -> &W {
        &self.shared.connection
    }

    /// Queues a demand; it is answered in any case, as long as the marked runtime is driven.
    ///
    /// # Panics
    ///
    /// Outside a runtime with a timer, if a worker is to be started.
    pub(crate) fn take(&self, asker: A) -> Option<Mark> {
        self.push(Command::Take(PendingRequest(Some(asker)), Instant::now()))
    }

    /// A worker that is driven has done something after so long.
    pub(crate) fn max_silence(&self) -> Duration {
        (self.connection().call_timeout() * 3 / 2).min(LONGEST_WAIT)
    }

    /// Starts a worker on the current runtime if the one that was given a command has done nothing
    /// since: then, and where it has been replaced already, none, and whoever waits asks again.
    /// Else when in its life it is now.
    pub(crate) fn take_over(&self, mark: Mark) -> Option<Mark> {
        let here = runtime::current();
        let mut queue = self.shared.lock();
        if queue.worker != mark.worker {
            return None;
        }
        if queue.turn != mark.turn || queue.running == Some(here) {
            return queue.mark();
        }
        queue.running = None;
        queue.worker += 1;
        queue.gathered = 0;
        // What an upstream said some time ago is of no use now.
        let (abandoned, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut queue.commands)
            .into_iter()
            .partition(|command| matches!(command, Command::Take(..) | Command::CapLevel(..)));
        queue.commands = rest;
        let (before, now) = queue.report();
        drop(queue);
        self.shared.meter.queue(before, now);
        self.shared.connection.abandon();
        self.start();
        // Outside the lock: whoever asks again queues something.
        abandoned.into_iter().for_each(Command::abandon);
        None
    }

    /// Gives back tokens that Redis granted and nobody used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64) {
        let shared = &self.shared;
        let id = scope.id(shared.keyspace.secret());
        shared.levels.raise(&id, scope.params(), tokens);
        self.push(Command::GiveBack(Box::new(scope.clone()), tokens));
    }

    /// Undoes a reservation whose caller has gone away.
    pub(crate) fn undo(&self, gone: Box<(Scope, Reservation)>) {
        let (scope, reservation) = &*gone;
        let id = scope.id(self.shared.keyspace.secret());
        let known = &self.shared.levels;
        known.raise(&id, scope.params(), reservation.tokens);
        self.push(Command::Undo(gone));
    }

    /// Charges tokens that were used beyond what was taken.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64) {
        self.push(Command::Charge(Box::new(scope.clone()), tokens));
    }

    /// Grants nobody anything of a bucket before `until`.
    pub(crate) fn pause(&self, scope: &Scope, until: Instant) {
        self.push(Command::Pause(Box::new(scope.clone()), until));
    }

    /// Leaves no more than so many tokens in a bucket.
    pub(crate) fn cap_level(&self, scope: &Scope, tokens: f64) {
        self.push(Command::CapLevel(Box::new(scope.clone()), tokens));
    }

    /// Makes a bucket full.
    pub(crate) async fn reset(&self, scope: &Scope) -> Result<f64, Failure> {
        let shared = &self.shared;
        let id = scope.id(shared.keyspace.secret());
        shared.levels.fill(&id, scope.params());
        self.ask(|reply| Command::Reset(Box::new(scope.clone()), reply))
            .await
    }

    /// The level of a bucket.
    pub(crate) async fn look(&self, scope: &Scope) -> Result<f64, Failure> {
        self.ask(|reply| Command::Look(Box::new(scope.clone()), reply))
            .await
    }

    /// Asks for more of a lease that is half used.
    pub(crate) fn lease(&self, scope: &Scope) {
        let shared = &self.shared;
        let asked = shared.leases.asked(scope.id(shared.keyspace.secret()), 0.0);
        self.push(Command::Lease(Box::new(scope.clone()), Box::new(asked)));
    }

    /// Gives back what is leased, and takes nothing ahead any more.
    pub(crate) async fn return_leases(&self) {
        let shared = &self.shared;
        shared.leases.end();
        // What is on its way is there when the first of these is answered.
        for _ in 0..2 {
            let mut last = None;
            for (scope, tokens) in shared.leases.drain() {
                self.push(shared.give_back(scope.clone(), tokens));
                last = Some(scope);
            }
            if let Some(scope) = last {
                // Redis was told, or it is in the books.
                let _ = self.look(&scope).await;
            }
        }
    }

    /// As long as the worker may take, by a timer of the runtime that asks.
    async fn ask(
        &self,
        command: impl Fn(oneshot::Sender<Result<f64, Failure>>) -> Command<A>,
    ) -> Result<f64, Failure> {
        runtime::require();
        for _ in 0..MOST_ATTEMPTS {
            let (reply, mut answer) = oneshot::channel();
            let mut mark = self.push(command(reply));
            let mut rounds = 0;
            while let Some(known) = mark {
                match timeout(self.max_silence(), &mut answer).await {
                    Ok(Ok(answer)) => return answer,
                    Ok(Err(_)) => break,
                    Err(_) if rounds == MOST_ROUNDS => return Err(timed_out()),
                    Err(_) => mark = self.take_over(known),
                }
                rounds += 1;
            }
        }
        Err(abandoned())
    }

    /// Which worker will do it; none where there is none, and so nobody will before one starts.
    fn push(&self, command: Command<A>) -> Option<Mark> {
        let mut queue = self.shared.lock();
        // What gives back is bounded by what was granted; only demands are turned away.
        if queue.commands.len() + queue.gathered >= MAX_QUEUED
            && let Command::Take(asker, _) = command
        {
            drop(queue);
            asker.answer(Err(Failure::new(
                FailureKind::Overloaded,
                "too many demands are queued for Redis",
            )));
            return None;
        }
        if queue.running.is_none() {
            drop(queue);
            let usable = match command {
                Command::Take(..) => {
                    runtime::require();
                    true
                }
                // Its caller has made sure, or must not panic.
                _ => runtime::is_usable(),
            };
            if !usable && !command.is_kept() {
                return None;
            }
            queue = self.shared.lock();
            if queue.running.is_none() {
                queue.commands.push_back(command);
                drop(queue);
                return if usable { self.start() } else { None };
            }
        }
        queue.commands.push_back(command);
        let wakes = queue.commands.len() >= queue.wake_at;
        if wakes {
            queue.wake_at = NEVER;
        }
        // Between two calls to Redis the gauge follows in such steps: each demand must not
        // pay for it.
        let length = queue.commands.len() + queue.gathered;
        let told = length.is_power_of_two().then(|| queue.report());
        let mark = queue.mark();
        drop(queue);
        if let Some((before, now)) = told {
            self.shared.meter.queue(before, now);
        }
        if wakes {
            self.shared.wake.notify_waiters();
        }
        mark
    }

    /// Starts a worker on the current runtime, unless one runs.
    fn start(&self) -> Option<Mark> {
        let here = runtime::current();
        let mut queue = self.shared.lock();
        if queue.running.is_none() {
            queue.running = Some(here);
            queue.worker += 1;
            let (number, mark) = (queue.worker, queue.mark());
            drop(queue);
            let worker = Worker {
                shared: self.shared.clone(),
                number,
                stops: false,
                gathered: VecDeque::new(),
                index: Index::default(),
                patience: QueueTime::default(),
                crowded: false,
                deadlines: Vec::new(),
                cools: None,
                cooled: Vec::new(),
            };
            // Outside the lock: a runtime that shuts down drops the worker here.
            let shared = self.shared.clone();
            let panicked = move |failure: &Failure| shared.connection.fail(failure);
            tokio::spawn(supervised("calls Redis", worker.run(), panicked));
            return mark;
        }
        queue.mark()
    }
}

impl<A: Requester, W: Connection> Drop for Batcher<A, W> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_waiters();
    }
}

impl<A: Requester, W: Connection> Shared<A, W> {
    fn lock(&self) -> MutexGuard<'_, Queue<A>> {
        // Nothing that runs under this lock can leave the queue half written.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a lease.
    fn give_back(&self, scope: Scope, tokens: f64) -> Command<A> {
        let id = scope.id(self.keyspace.secret());
        // In an outage it goes to the books, and must not be counted here as well.
        let told = if self.connection.is_steady() {
            tokens
        } else {
            0.0
        };
        self.levels.raise(&id, scope.params(), told);
        Command::GiveBack(Box::new(scope), tokens)
    }
}

fn cooling() -> Deadline {
    let mut deadline = Deadline::new();
    deadline.set(Instant::now() + IDLE_CHECK);
    deadline
}

async fn passed(deadline: Option<&mut Deadline>) {
    match deadline {
        Some(deadline) => deadline.passed().await,
        None => std::future::pending().await,
    }
}

struct Worker<A: Requester, W: Connection> {
    shared: Arc<Shared<A, W>>,
    number: u64,
    /// Another has taken over, or nothing is left to do.
    stops: bool,
    gathered: VecDeque<Command<A>>,
    index: Index,
    patience: QueueTime,
    /// The last call was for several.
    crowded: bool,
    /// Of calls that are over.
    deadlines: Vec<Deadline>,
    /// When leases are looked at next, where there have been any.
    cools: Option<Deadline>,
    /// What is to be given back of them.
    cooled: Vec<(Scope, f64)>,
}

impl<A: Requester, W: Connection> Worker<A, W> {
    async fn run(mut self) {
        let mut calls = pin!(FuturesUnordered::new());
        let shared = self.shared.clone();
        // Kept from one wait to the next, so that no wake-up between them is lost.
        let mut wake = pin!(shared.wake.notified());
        loop {
            if let Some(waiting) = self.may_send(calls.len()) {
                if waiting > 1 || self.crowded {
                    // Those who were just answered may have the next demand ready: let them join.
                    // A lone caller shall not wait for nobody.
                    tokio::task::yield_now().await;
                }
                self.gather();
                let batch = Batch::build(
                    &mut self.gathered,
                    &mut self.index,
                    &mut self.patience,
                    &self.shared,
                );
                self.report_gathered();
                if batch.is_empty() {
                    continue;
                }
                self.crowded = batch.len() > 1;
                let batch = InFlight::new(batch, self.shared.clone());
                let mut deadline = self.deadlines.pop().unwrap_or_else(Deadline::new);
                calls.push(async move {
                    let failed = batch.send(&mut deadline).await;
                    (failed, deadline)
                });
                continue;
            }
            if self.stops {
                // What is in flight may be answered still.
                while calls.next().await.is_some() {}
                return;
            }
            if calls.is_empty() {
                if self.is_over() {
                    // A worker that was replaced may keep the wire alive.
                    self.shared.connection.close();
                    return;
                }
                if !self.gathered.is_empty() || !self.cooled.is_empty() {
                    continue;
                }
            }
            let cools = match self.shared.leases.is_empty() {
                true => None,
                false => Some(self.cools.get_or_insert_with(cooling)),
            };
            tokio::select! {
                biased;
                Some((failed, deadline)) = calls.next(), if !calls.is_empty() => {
                    self.deadlines.push(deadline);
                    if let Some(failure) = failed.filter(|failure| !failure.single) {
                        self.fail_queued(&failure);
                    }
                }
                () = wake.as_mut() => wake.set(shared.wake.notified()),
                () = passed(cools) => {
                    self.cools = Some(cooling());
                    self.cooled.extend(self.shared.leases.reclaim_idle());
                }
            }
        }
    }

    fn gather(&mut self) {
        let mut queue = self.shared.lock();
        if queue.worker != self.number {
            return;
        }
        if self.gathered.is_empty() {
            std::mem::swap(&mut self.gathered, &mut queue.commands);
        } else {
            self.gathered.append(&mut queue.commands);
        }
        queue.gathered = self.gathered.len();
        drop(queue);
        // In front, where all of these fit, and leave room for demands.
        let some = self.cooled.len().min(MOST_COOLED);
        for (scope, tokens) in self.cooled.drain(..some) {
            let command = self.shared.give_back(scope, tokens);
            self.gathered.push_front(command);
        }
    }

    /// How many wait, where they may go out beside so many calls in flight; else the worker is
    /// woken once there are enough.
    fn may_send(&mut self, in_flight: usize) -> Option<usize> {
        let mut queue = self.shared.lock();
        queue.turn += 1;
        if queue.worker != self.number {
            self.stops = true;
            return None;
        }
        let cooled = self.cooled.len().min(MOST_COOLED);
        let waiting = self.gathered.len() + queue.commands.len() + cooled;
        let enough = match in_flight {
            0 => 1,
            1 => SECOND_CALL,
            _ => NEVER,
        };
        if waiting >= enough {
            return Some(waiting);
        }
        queue.wake_at = enough.saturating_sub(self.gathered.len());
        None
    }

    fn report_gathered(&self) {
        let mut queue = self.shared.lock();
        if queue.worker != self.number {
            return;
        }
        queue.gathered = self.gathered.len();
        let (before, now) = queue.report();
        drop(queue);
        self.shared.meter.queue(before, now);
    }

    /// Redis does not answer: nobody who waits behind the failed call shall find that out again.
    fn fail_queued(&mut self, failure: &Failure) {
        self.gather();
        let gathered = std::mem::take(&mut self.gathered);
        self.report_gathered();
        for (scope, tokens) in std::mem::take(&mut self.cooled) {
            self.shared.ledger.correct(&scope, -tokens);
        }
        for command in gathered {
            match command {
                Command::Take(asker, _) => asker.answer(Err(failure.clone())),
                Command::Reset(_, reply) | Command::Look(_, reply) => {
                    let _ = reply.send(Err(failure.clone()));
                }
                Command::GiveBack(scope, tokens) => self.shared.ledger.correct(&scope, -tokens),
                Command::Charge(scope, tokens) => self.shared.ledger.correct(&scope, tokens),
                Command::Lease(..) => {}
                Command::Pause(scope, until) => self.shared.ledger.pause(&scope, until),
                Command::Undo(gone) => self.shared.ledger.undo(gone),
                // The next answer of the upstream tells it anew.
                Command::CapLevel(..) => {}
            }
        }
    }

    /// The limiter is gone and nothing is left to send.
    fn is_over(&mut self) -> bool {
        if self.shared.lock().closed {
            self.cooled.extend(self.shared.leases.drain());
            if !self.cooled.is_empty() {
                return false;
            }
        }
        let mut queue = self.shared.lock();
        let over = queue.closed && queue.commands.is_empty() && self.gathered.is_empty();
        if over {
            queue.running = None;
            self.stops = true;
        }
        over
    }
}

impl<A: Requester, W: Connection> Drop for Worker<A, W> {
    fn drop(&mut self) {
        let mut orphans = std::mem::take(&mut self.gathered);
        let mut queue = self.shared.lock();
        if queue.worker == self.number && !self.stops {
            // Shut down with its runtime: so is what drives the connection.
            queue.running = None;
            queue.gathered = 0;
            orphans.append(&mut queue.commands);
            let (before, now) = queue.report();
            drop(queue);
            self.shared.meter.queue(before, now);
            self.shared.connection.abandon();
        } else {
            drop(queue);
        }
        // Outside the lock: whoever asks again queues something.
        for orphan in orphans {
            match orphan {
                Command::GiveBack(scope, tokens) => self.shared.ledger.correct(&scope, -tokens),
                Command::Charge(scope, tokens) => self.shared.ledger.correct(&scope, tokens),
                Command::Pause(scope, until) => self.shared.ledger.pause(&scope, until),
                Command::Undo(gone) => self.shared.ledger.undo(gone),
                other => other.abandon(),
            }
        }
        // What is still in hand stays there: the next worker looks after it.
        for (scope, tokens) in std::mem::take(&mut self.cooled) {
            self.shared.ledger.correct(&scope, -tokens);
        }
    }
}
