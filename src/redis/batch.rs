//! One task a limiter that gathers demands while a call is in flight and sends them as one.

use std::{
    collections::VecDeque,
    future::Future,
    hash::BuildHasher,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use hashbrown::{DefaultHashBuilder, HashTable};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    bounds::Bounds,
    script::{Argument, Reply},
};
use crate::{
    bucket::Terms,
    clock::from_us,
    decision::{Decision, Failure, FailureKind},
    scope::{BucketId, Scope},
};

/// Redis runs one script at a time: more buckets in one would hold up its other users.
const MOST_BUCKETS: usize = 128;

/// Commands in one call. Equal demands are merged, so that most of these cost Redis nothing.
const MOST_COMMANDS: usize = 16_384;

/// Demands that may queue before further ones are turned away to memory.
const MOST_QUEUED: usize = 131_072;

/// With fewer than this gathered, a second call in flight would only halve the batches.
const SECOND_CALL: usize = 128;

/// Carries a call to Redis.
pub(crate) trait Wire: Send + Sync + 'static {
    /// Runs the script, within the deadline of the limiter, at most once.
    fn call(
        &self,
        keys: Vec<Vec<u8>>,
        argument: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;
}

/// Somebody who wants a decision.
pub(crate) trait Asker: Send + 'static {
    /// Different buckets, at least one, all or none of which to take from.
    fn scopes(&self) -> &[Scope];
    fn max_wait_us(&self) -> f64;
    /// False once the answer would be thrown away.
    fn is_wanted(&self) -> bool;
    fn answer(self, answer: Result<Decision, Failure>);
}

/// An asker that is answered in any case.
struct Pending<A: Asker>(Option<A>);

impl<A: Asker> Pending<A> {
    fn answer(mut self, answer: Result<Decision, Failure>) {
        if let Some(asker) = self.0.take() {
            asker.answer(answer);
        }
    }
}

impl<A: Asker> Drop for Pending<A> {
    fn drop(&mut self) {
        if let Some(asker) = self.0.take() {
            // The runtime of the batching task was shut down under it.
            asker.answer(Err(Failure::new(
                FailureKind::Disconnected,
                "the task that speaks to Redis was shut down",
            )));
        }
    }
}

enum Command<A: Asker> {
    Take(Pending<A>),
    GiveBack(Scope, f64),
    Charge(Scope, f64),
    Reset(Scope, oneshot::Sender<Result<f64, Failure>>),
    Look(Scope, oneshot::Sender<Result<f64, Failure>>),
}

/// The queue in front of Redis, and the task that empties it.
pub(crate) struct Batcher<A: Asker, W: Wire> {
    shared: Arc<Shared<A, W>>,
}

struct Shared<A: Asker, W: Wire> {
    queue: Mutex<Queue<A>>,
    wake: Notify,
    wire: W,
    bounds: Bounds,
    salt: [u8; 32],
    prefix: String,
}

struct Queue<A: Asker> {
    commands: VecDeque<Command<A>>,
    running: bool,
    closed: bool,
}

impl<A: Asker, W: Wire> Batcher<A, W> {
    pub(crate) fn new(wire: W, prefix: String, salt: [u8; 32]) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    commands: VecDeque::new(),
                    running: false,
                    closed: false,
                }),
                wake: Notify::new(),
                wire,
                bounds: Bounds::default(),
                salt,
                prefix,
            }),
        }
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.shared.bounds
    }

    /// Queues a demand; it is answered in any case.
    pub(crate) fn take(&self, asker: A) {
        self.push(Command::Take(Pending(Some(asker))));
    }

    /// Gives back tokens that Redis granted and nobody used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64) {
        self.forget(scope);
        self.push(Command::GiveBack(scope.clone(), tokens));
    }

    /// Charges tokens that were used beyond what was taken.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64) {
        self.push(Command::Charge(scope.clone(), tokens));
    }

    /// Makes a bucket full.
    pub(crate) async fn reset(&self, scope: &Scope) -> Result<f64, Failure> {
        self.forget(scope);
        self.ask(|reply| Command::Reset(scope.clone(), reply)).await
    }

    /// The level of a bucket.
    pub(crate) async fn look(&self, scope: &Scope) -> Result<f64, Failure> {
        self.ask(|reply| Command::Look(scope.clone(), reply)).await
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

    fn forget(&self, scope: &Scope) {
        let shared = &self.shared;
        shared
            .bounds
            .forget(&scope.id(&shared.salt), terms_of(scope));
    }

    fn push(&self, command: Command<A>) {
        let mut queue = self.shared.lock();
        // What gives back is bounded by what was granted; only demands are turned away.
        if queue.commands.len() >= MOST_QUEUED
            && let Command::Take(asker) = command
        {
            drop(queue);
            asker.answer(Err(Failure::new(
                FailureKind::Overloaded,
                "too many demands are queued for Redis",
            )));
            return;
        }
        queue.commands.push_back(command);
        let runtime = match Handle::try_current() {
            Ok(runtime) if !queue.running => Some(runtime),
            _ => None,
        };
        queue.running |= runtime.is_some();
        drop(queue);
        match runtime {
            // Outside the lock: a runtime that shuts down drops the worker here.
            Some(runtime) => {
                let worker = Worker {
                    shared: self.shared.clone(),
                    gathered: VecDeque::new(),
                };
                runtime.spawn(worker.run());
            }
            None => self.shared.wake.notify_one(),
        }
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
}

struct Worker<A: Asker, W: Wire> {
    shared: Arc<Shared<A, W>>,
    gathered: VecDeque<Command<A>>,
}

impl<A: Asker, W: Wire> Worker<A, W> {
    async fn run(mut self) {
        let mut calls = pin!(FuturesUnordered::new());
        loop {
            if self.may_send(calls.len()) {
                // Those who were just answered may have the next demand ready: let them join.
                tokio::task::yield_now().await;
                self.gather();
                let batch = Batch::build(&mut self.gathered, &self.shared);
                if batch.is_empty() {
                    continue;
                }
                calls.push(batch.send(self.shared.clone()));
                continue;
            }
            if calls.is_empty() && self.is_over() {
                return;
            }
            tokio::select! {
                biased;
                Some(failed) = calls.next(), if !calls.is_empty() => {
                    if let Some(failure) = failed {
                        self.turn_away(&failure);
                    }
                }
                () = self.shared.wake.notified() => {}
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
    }

    fn may_send(&self, in_flight: usize) -> bool {
        let waiting = || self.gathered.len() + self.shared.lock().commands.len();
        match in_flight {
            0 => waiting() > 0,
            1 => waiting() >= SECOND_CALL,
            _ => false,
        }
    }

    /// Redis does not answer: nobody who waits behind the failed call shall find that out again.
    fn turn_away(&mut self, failure: &Failure) {
        self.gather();
        for command in std::mem::take(&mut self.gathered) {
            match command {
                Command::Take(asker) => asker.answer(Err(failure.clone())),
                Command::Reset(_, reply) | Command::Look(_, reply) => {
                    let _ = reply.send(Err(failure.clone()));
                }
                // What was granted before is not given back twice late: it is lost, and the
                // bucket refills by itself.
                Command::GiveBack(..) | Command::Charge(..) => {}
            }
        }
    }

    /// The limiter is gone and nothing is left to send.
    fn is_over(&self) -> bool {
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
        let orphans = {
            let mut queue = self.shared.lock();
            queue.running = false;
            std::mem::take(&mut queue.commands)
        };
        // Answered outside the lock: an answer may queue something.
        drop(orphans);
    }
}

/// What goes out as one call.
struct Batch<A: Asker> {
    ids: Vec<BucketId>,
    terms: Vec<Terms>,
    /// Per bucket, the merged demand that the next equal one may join.
    open: Vec<Option<usize>>,
    steps: Vec<Step<A>>,
    takes: usize,
}

enum Step<A: Asker> {
    Take {
        askers: Vec<Pending<A>>,
        max_wait_us: f64,
        /// Bucket and cost.
        from: Vec<(usize, f64)>,
    },
    GiveBack(usize, f64),
    Charge(usize, f64),
    Reset(usize, oneshot::Sender<Result<f64, Failure>>),
    Look(usize, oneshot::Sender<Result<f64, Failure>>),
}

impl<A: Asker> Batch<A> {
    fn build<W: Wire>(commands: &mut VecDeque<Command<A>>, shared: &Shared<A, W>) -> Self {
        let mut batch = Self {
            ids: Vec::new(),
            terms: Vec::new(),
            open: Vec::new(),
            steps: Vec::new(),
            takes: 0,
        };
        let mut index = Index::default();
        let mut left = MOST_COMMANDS;
        while let Some(command) = commands.front() {
            let scopes = match command {
                Command::Take(Pending(Some(asker))) if asker.is_wanted() => asker.scopes(),
                Command::Take(_) => {
                    // Cancelled before it was sent: nothing was taken, nobody listens.
                    if let Some(Command::Take(mut gone)) = commands.pop_front() {
                        gone.0 = None;
                    }
                    continue;
                }
                Command::GiveBack(scope, _)
                | Command::Charge(scope, _)
                | Command::Reset(scope, _)
                | Command::Look(scope, _) => std::slice::from_ref(scope),
            };
            if left == 0 || (batch.ids.len() + scopes.len() > MOST_BUCKETS && !batch.ids.is_empty())
            {
                break;
            }
            let Some(places) = batch.places(scopes, &mut index, &shared.salt) else {
                // The same bucket by another quota: that is another call.
                break;
            };
            left -= 1;
            if let Some(command) = commands.pop_front() {
                batch.add(command, &places);
            }
        }
        batch
    }

    /// The places of these buckets in this batch, added where they are new; none of them, where
    /// one is known by another quota.
    fn places(
        &mut self,
        scopes: &[Scope],
        index: &mut Index,
        salt: &[u8; 32],
    ) -> Option<Vec<usize>> {
        let known = self.ids.len();
        let mut places = Vec::with_capacity(scopes.len());
        for scope in scopes {
            let (id, terms) = (scope.id(salt), terms_of(scope));
            let place = index.find_or_insert(&mut self.ids, &id);
            if place == self.terms.len() {
                self.terms.push(terms);
                self.open.push(None);
            } else if self.terms[place] != terms {
                // Buckets that this demand added stay; they are only looked at.
                debug_assert!(known <= self.ids.len());
                return None;
            }
            places.push(place);
        }
        Some(places)
    }

    fn add(&mut self, command: Command<A>, places: &[usize]) {
        let place = places[0];
        match command {
            Command::Take(asker) => {
                let Some((scopes, max_wait_us)) = asker
                    .0
                    .as_ref()
                    .map(|asker| (asker.scopes(), asker.max_wait_us()))
                else {
                    return;
                };
                let from: Vec<_> = places
                    .iter()
                    .zip(scopes)
                    .map(|(place, scope)| (*place, scope.tokens()))
                    .collect();
                // Demands on other buckets commute, so only the last one on this bucket counts.
                if let (Some(open), [_]) = (self.open[place], places)
                    && let Step::Take {
                        askers,
                        max_wait_us: merged_wait,
                        from: merged,
                    } = &mut self.steps[open]
                    && *merged == from
                    && *merged_wait == max_wait_us
                {
                    askers.push(asker);
                    return;
                }
                for place in places {
                    self.open[*place] = (places.len() == 1).then_some(self.steps.len());
                }
                self.takes += 1;
                self.steps.push(Step::Take {
                    askers: vec![asker],
                    max_wait_us,
                    from,
                });
                return;
            }
            Command::GiveBack(_, tokens) => self.steps.push(Step::GiveBack(place, tokens)),
            Command::Charge(_, tokens) => self.steps.push(Step::Charge(place, tokens)),
            Command::Reset(_, reply) => self.steps.push(Step::Reset(place, reply)),
            Command::Look(_, reply) => self.steps.push(Step::Look(place, reply)),
        }
        self.open[place] = None;
    }

    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::default();
        for terms in &self.terms {
            argument.key(*terms);
        }
        for step in &self.steps {
            match step {
                Step::Take {
                    askers,
                    max_wait_us,
                    from,
                } => argument.take(
                    // At most `MOST_COMMANDS`.
                    askers.len() as u32,
                    *max_wait_us,
                    from.iter().map(|(place, cost)| (place + 1, *cost)),
                ),
                Step::GiveBack(place, tokens) => argument.give_back(place + 1, *tokens),
                Step::Charge(place, tokens) => argument.charge(place + 1, *tokens),
                Step::Reset(place, _) => argument.reset(place + 1),
                Step::Look(place, _) => argument.look(place + 1),
            }
        }
        argument.into_bytes()
    }

    /// Sends, and answers all askers. The failure, where there was one.
    async fn send<W: Wire>(self, shared: Arc<Shared<A, W>>) -> Option<Failure> {
        let keys = self
            .ids
            .iter()
            .map(|id| id.redis_key(&shared.prefix))
            .collect();
        let sent = Instant::now();
        let result = shared.wire.call(keys, self.argument()).await;
        let reply = result.as_ref().map_err(Clone::clone).and_then(|bytes| {
            Reply::new(bytes, self.takes, self.ids.len()).ok_or_else(|| {
                Failure::new(
                    FailureKind::Misconfigured,
                    "the script's reply is of another length",
                )
            })
        });
        match reply {
            Ok(reply) => {
                self.answer(&reply, &shared.bounds, sent);
                None
            }
            Err(failure) => {
                self.fail(&failure);
                Some(failure)
            }
        }
    }

    fn answer(self, reply: &Reply<'_>, bounds: &Bounds, sent: Instant) {
        let mut take = 0;
        for step in self.steps {
            match step {
                Step::Take { askers, from, .. } => {
                    let answer = reply.answer(take);
                    take += 1;
                    let (place, cost) = from[answer.which.min(from.len() - 1)];
                    let terms = self.terms[place];
                    if answer.taken.granted < askers.len() as f64 {
                        let (level, pool) = reply.level(place);
                        bounds.learn(&self.ids[place], terms, level.max(pool), sent);
                    }
                    let (tightest, level) = tightest(&from, &self.terms, reply);
                    for (k, asker) in askers.into_iter().enumerate() {
                        let k = k as u32;
                        asker.answer(Ok(if f64::from(k) < answer.taken.now {
                            Decision::Now { tightest, level }
                        } else if f64::from(k) < answer.taken.granted {
                            Decision::Wait {
                                which: answer.which,
                                wait: from_us(answer.taken.wait(k, cost, terms)),
                            }
                        } else {
                            Decision::Refused {
                                which: answer.which,
                                retry_after: from_us(answer.taken.retry_after),
                            }
                        }));
                    }
                }
                Step::Reset(place, answer) | Step::Look(place, answer) => {
                    let _ = answer.send(Ok(reply.level(place).0));
                }
                Step::GiveBack(..) | Step::Charge(..) => {}
            }
        }
    }

    fn fail(self, failure: &Failure) {
        for step in self.steps {
            match step {
                Step::Take { askers, .. } => {
                    for asker in askers {
                        asker.answer(Err(failure.clone()));
                    }
                }
                Step::Reset(_, answer) | Step::Look(_, answer) => {
                    let _ = answer.send(Err(failure.clone()));
                }
                Step::GiveBack(..) | Step::Charge(..) => {}
            }
        }
    }
}

fn terms_of(scope: &Scope) -> Terms {
    Terms::new(scope.quota().capacity(), scope.quota().rate())
}

/// The bucket that has the smallest part of its capacity left.
fn tightest(from: &[(usize, f64)], terms: &[Terms], reply: &Reply<'_>) -> (usize, f64) {
    let mut tightest = (0, f64::INFINITY, 0.0);
    for (which, (place, _)) in from.iter().enumerate() {
        let (level, _) = reply.level(*place);
        let part = level / terms[*place].cap;
        if part < tightest.1 {
            tightest = (which, part, level);
        }
    }
    (tightest.0, tightest.2)
}

/// Finds a bucket's place in a batch.
#[derive(Default)]
struct Index {
    table: HashTable<usize>,
    hasher: DefaultHashBuilder,
    last: usize,
}

impl Index {
    fn find_or_insert(&mut self, ids: &mut Vec<BucketId>, id: &BucketId) -> usize {
        // On a hot scope it is the same again.
        if ids
            .get(self.last)
            .is_some_and(|last| last.as_bytes() == id.as_bytes())
        {
            return self.last;
        }
        let hash = self.hasher.hash_one(id.as_bytes());
        let found = self
            .table
            .find(hash, |place| ids[*place].as_bytes() == id.as_bytes());
        self.last = match found {
            Some(place) => *place,
            None => {
                ids.push(*id);
                let hasher = &self.hasher;
                self.table.insert_unique(hash, ids.len() - 1, |place| {
                    hasher.hash_one(ids[*place].as_bytes())
                });
                ids.len() - 1
            }
        };
        self.last
    }
}
