//! One task a limiter that gathers demands while a call is in flight and sends them as one.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    batch::{Batch, Index, terms_of},
    command::{Asker, Books, Command, Deadline, Pending, Wire},
    known::Known,
    leases::{COOLS, Leases},
    patience::Patience,
};
use crate::{
    bucket::Reservation,
    decision::{Failure, FailureKind},
    observe::Meter,
    scope::{Keyspace, Scope},
    task::supervised,
};

/// Demands that may queue before further ones are turned away to memory.
pub(super) const MOST_QUEUED: usize = 131_072;

/// With fewer than this gathered, a second call in flight would only halve the batches.
const SECOND_CALL: usize = 128;

/// What is given back of so many leases by one call: demands shall not wait behind all of them.
const MOST_COOLED: usize = 64;

const NEVER: usize = usize::MAX;

/// The queue in front of Redis, and the task that empties it.
pub(crate) struct Batcher<A: Asker, W: Wire> {
    shared: Arc<Shared<A, W>>,
}

pub(super) struct Shared<A: Asker, W: Wire> {
    queue: Mutex<Queue<A>>,
    wake: Notify,
    pub(super) wire: W,
    pub(super) known: Arc<Known>,
    pub(super) leases: Arc<Leases>,
    pub(super) books: Arc<dyn Books>,
    pub(super) keyspace: Keyspace,
    pub(super) meter: Meter,
}

struct Queue<A: Asker> {
    commands: VecDeque<Command<A>>,
    /// How many more the worker holds and has not sent.
    gathered: usize,
    /// With so many in it the worker is woken; until then it has no use for them.
    wake_at: usize,
    running: bool,
    closed: bool,
    /// How long the gauge says that this is.
    told: usize,
}

impl<A: Asker> Queue<A> {
    /// What the gauge says, and what it is to say; to be told once the lock is free.
    fn tell(&mut self) -> (usize, usize) {
        let now = self.commands.len() + self.gathered;
        (std::mem::replace(&mut self.told, now), now)
    }
}

impl<A: Asker, W: Wire> Batcher<A, W> {
    pub(crate) fn new(
        wire: W,
        keyspace: Keyspace,
        known: Arc<Known>,
        leases: Arc<Leases>,
        books: Arc<dyn Books>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    commands: VecDeque::new(),
                    gathered: 0,
                    wake_at: NEVER,
                    running: false,
                    closed: false,
                    told: 0,
                }),
                wake: Notify::new(),
                wire,
                known,
                leases,
                books,
                keyspace,
                meter: Meter::new(),
            }),
        }
    }

    pub(crate) fn wire(&self) -> &W {
        &self.shared.wire
    }

    /// Queues a demand; it is answered in any case.
    pub(crate) fn take(&self, asker: A) {
        self.push(Command::Take(Pending(Some(asker)), Instant::now()));
    }

    /// Gives back tokens that Redis granted and nobody used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64) {
        let shared = &self.shared;
        let id = scope.id(shared.keyspace.secret());
        shared.known.raise(&id, terms_of(scope), tokens);
        self.push(Command::GiveBack(Box::new(scope.clone()), tokens));
    }

    /// Undoes a reservation whose caller has gone away.
    pub(crate) fn undo(&self, gone: Box<(Scope, Reservation)>) {
        let (scope, reservation) = &*gone;
        let id = scope.id(self.shared.keyspace.secret());
        let known = &self.shared.known;
        known.raise(&id, terms_of(scope), reservation.tokens);
        self.push(Command::Undo(gone));
    }

    /// Charges tokens that were used beyond what was taken.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64) {
        self.push(Command::Charge(Box::new(scope.clone()), tokens));
    }

    /// Grants nobody anything of a bucket before `until`.
    pub(crate) fn hold_back(&self, scope: &Scope, until: Instant) {
        self.push(Command::HoldBack(Box::new(scope.clone()), until));
    }

    /// Leaves no more than so many tokens in a bucket.
    pub(crate) fn lower(&self, scope: &Scope, tokens: f64) {
        self.push(Command::Lower(Box::new(scope.clone()), tokens));
    }

    /// Makes a bucket full.
    pub(crate) async fn reset(&self, scope: &Scope) -> Result<f64, Failure> {
        let shared = &self.shared;
        let id = scope.id(shared.keyspace.secret());
        shared.known.fill(&id, terms_of(scope));
        let scope = Box::new(scope.clone());
        self.ask(|reply| Command::Reset(scope, reply)).await
    }

    /// The level of a bucket.
    pub(crate) async fn look(&self, scope: &Scope) -> Result<f64, Failure> {
        let scope = Box::new(scope.clone());
        self.ask(|reply| Command::Look(scope, reply)).await
    }

    /// Asks for more of a lease that is half used.
    pub(crate) fn lease(&self, scope: &Scope) {
        let shared = &self.shared;
        let asked = shared.leases.asked(scope.id(shared.keyspace.secret()), 0.0);
        self.push(Command::Lease(Box::new(scope.clone()), Box::new(asked)));
    }

    /// Gives back what is leased, and takes nothing ahead any more.
    pub(crate) async fn leave(&self) {
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

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<f64, Failure>>) -> Command<A>,
    ) -> Result<f64, Failure> {
        let (reply, answer) = oneshot::channel();
        self.push(command(reply));
        answer.await.unwrap_or_else(|_| {
            Err(Failure::new(
                FailureKind::Disconnected,
                "the task that speaks to Redis was shut down",
            ))
        })
    }

    fn push(&self, command: Command<A>) {
        let mut queue = self.shared.lock();
        // What gives back is bounded by what was granted; only demands are turned away.
        if queue.commands.len() + queue.gathered >= MOST_QUEUED
            && let Command::Take(asker, _) = command
        {
            drop(queue);
            asker.answer(Err(Failure::new(
                FailureKind::Overloaded,
                "too many demands are queued for Redis",
            )));
            return;
        }
        queue.commands.push_back(command);
        if queue.running {
            let wakes = queue.commands.len() >= queue.wake_at;
            if wakes {
                queue.wake_at = NEVER;
            }
            // Between two calls to Redis the gauge follows in such steps: each demand must not
            // pay for it.
            let length = queue.commands.len() + queue.gathered;
            let told = length.is_power_of_two().then(|| queue.tell());
            drop(queue);
            if let Some((before, now)) = told {
                self.shared.meter.queue(before, now);
            }
            if wakes {
                self.shared.wake.notify_one();
            }
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            // Outside a runtime nobody can be asked. Corrections stay for the next.
            let (kept, orphans): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut queue.commands)
                .into_iter()
                .partition(|command| {
                    matches!(
                        command,
                        Command::GiveBack(..)
                            | Command::Charge(..)
                            | Command::HoldBack(..)
                            | Command::Undo(..)
                    )
                });
            queue.commands = kept;
            drop(queue);
            // Answered outside the lock: an answer may queue something.
            drop(orphans);
            return;
        };
        queue.running = true;
        drop(queue);
        let worker = Worker {
            shared: self.shared.clone(),
            gathered: VecDeque::new(),
            index: Index::default(),
            patience: Patience::default(),
            crowded: false,
            deadlines: Vec::new(),
            cools: None,
            cooled: Vec::new(),
        };
        // Outside the lock: a runtime that shuts down drops the worker here.
        let shared = self.shared.clone();
        let panicked = move |failure: &Failure| shared.wire.fails(failure);
        runtime.spawn(supervised("calls Redis", worker.run(), panicked));
    }
}

impl<A: Asker, W: Wire> Drop for Batcher<A, W> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl<A: Asker, W: Wire> Shared<A, W> {
    fn lock(&self) -> MutexGuard<'_, Queue<A>> {
        // Nothing that runs under this lock can leave the queue half written.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a lease.
    fn give_back(&self, scope: Scope, tokens: f64) -> Command<A> {
        let id = scope.id(self.keyspace.secret());
        // In an outage it goes to the books, and must not be counted here as well.
        let told = if self.wire.is_calm() { tokens } else { 0.0 };
        self.known.raise(&id, terms_of(&scope), told);
        Command::GiveBack(Box::new(scope), tokens)
    }
}

fn cooling() -> Deadline {
    let mut deadline = Deadline::new();
    deadline.set(Instant::now() + COOLS);
    deadline
}

async fn passed(deadline: Option<&mut Deadline>) {
    match deadline {
        Some(deadline) => deadline.passed().await,
        None => std::future::pending().await,
    }
}

struct Worker<A: Asker, W: Wire> {
    shared: Arc<Shared<A, W>>,
    gathered: VecDeque<Command<A>>,
    index: Index,
    patience: Patience,
    /// The last call was for several.
    crowded: bool,
    /// Of calls that are over.
    deadlines: Vec<Deadline>,
    /// When leases are looked at next, where there have been any.
    cools: Option<Deadline>,
    /// What is to be given back of them.
    cooled: Vec<(Scope, f64)>,
}

impl<A: Asker, W: Wire> Worker<A, W> {
    async fn run(mut self) {
        let mut calls = pin!(FuturesUnordered::new());
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
                let (before, now) = {
                    let mut queue = self.shared.lock();
                    queue.gathered = self.gathered.len();
                    queue.tell()
                };
                self.shared.meter.queue(before, now);
                if batch.is_empty() {
                    continue;
                }
                self.crowded = batch.len() > 1;
                let shared = self.shared.clone();
                let mut deadline = self.deadlines.pop().unwrap_or_else(Deadline::new);
                calls.push(async move {
                    let failed = batch.send(shared, &mut deadline).await;
                    (failed, deadline)
                });
                continue;
            }
            if calls.is_empty() {
                if self.is_over() {
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
                        self.turn_away(&failure);
                    }
                }
                () = self.shared.wake.notified() => {}
                () = passed(cools) => {
                    self.cools = Some(cooling());
                    self.cooled.extend(self.shared.leases.cool());
                }
            }
        }
    }

    fn gather(&mut self) {
        let mut queue = self.shared.lock();
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
    fn may_send(&self, in_flight: usize) -> Option<usize> {
        let mut queue = self.shared.lock();
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

    /// Redis does not answer: nobody who waits behind the failed call shall find that out again.
    fn turn_away(&mut self, failure: &Failure) {
        self.gather();
        let (before, now) = {
            let mut queue = self.shared.lock();
            queue.gathered = 0;
            queue.tell()
        };
        self.shared.meter.queue(before, now);
        for (scope, tokens) in std::mem::take(&mut self.cooled) {
            self.shared.books.correct(&scope, -tokens);
        }
        for command in std::mem::take(&mut self.gathered) {
            match command {
                Command::Take(asker, _) => asker.answer(Err(failure.clone())),
                Command::Reset(_, reply) | Command::Look(_, reply) => {
                    let _ = reply.send(Err(failure.clone()));
                }
                Command::GiveBack(scope, tokens) => self.shared.books.correct(&scope, -tokens),
                Command::Charge(scope, tokens) => self.shared.books.correct(&scope, tokens),
                Command::Lease(..) => {}
                Command::HoldBack(scope, until) => self.shared.books.hold_back(&scope, until),
                Command::Undo(gone) => self.shared.books.undo(gone),
                // The next answer of the upstream tells it anew.
                Command::Lower(..) => {}
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
            queue.running = false;
        }
        over
    }
}

impl<A: Asker, W: Wire> Drop for Worker<A, W> {
    fn drop(&mut self) {
        let (orphans, (before, now)) = {
            let mut queue = self.shared.lock();
            queue.running = false;
            queue.gathered = 0;
            (std::mem::take(&mut queue.commands), queue.tell())
        };
        self.shared.meter.queue(before, now);
        // Outside the lock: an answer may queue something.
        for orphan in orphans
            .into_iter()
            .chain(std::mem::take(&mut self.gathered))
        {
            match orphan {
                Command::GiveBack(scope, tokens) => self.shared.books.correct(&scope, -tokens),
                Command::Charge(scope, tokens) => self.shared.books.correct(&scope, tokens),
                Command::HoldBack(scope, until) => self.shared.books.hold_back(&scope, until),
                Command::Undo(gone) => self.shared.books.undo(gone),
                // Answered as they are dropped.
                _ => {}
            }
        }
        // What is still in hand stays there: the next worker looks after it.
        for (scope, tokens) in std::mem::take(&mut self.cooled) {
            self.shared.books.correct(&scope, -tokens);
        }
    }
}
