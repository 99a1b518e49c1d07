//! The batcher as callers see it: queues requests and operations, and starts the worker.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    command::Command,
    connection::Connection,
    context::Context,
    leases,
    queue::{MAX_QUEUED, Mark, NEVER, SharedQueue},
    request::{PendingRequest, Requester, abandoned},
    worker::Worker,
};
use crate::{
    clock::LONGEST_WAIT,
    decision::{Failure, FailureKind},
    redis::{
        connection::failure::timed_out,
        lease::Leases,
        ledger::Ledger,
        level_cache::LevelCache,
        op::{Op, QueuedOp},
    },
    runtime,
    scope::{Keyspace, Scope},
    task::supervised,
    telemetry::Meter,
};

/// How often an operation is queued again because workers end before they have answered.
const MOST_ATTEMPTS: usize = 4;

/// How many times `max_silence` an operation waits for a worker that is driven.
const MOST_ROUNDS: usize = 12;

/// Sends what is queued together, as calls to Redis.
pub(crate) struct Batcher<R: Requester, C: Connection> {
    queue: Arc<SharedQueue<R>>,
    context: Arc<Context<C>>,
}

impl<R: Requester, C: Connection> Batcher<R, C> {
    pub(crate) fn new(
        connection: C,
        keyspace: Keyspace,
        levels: Arc<LevelCache>,
        leases: Arc<Leases>,
        ledger: Arc<dyn Ledger>,
    ) -> Self {
        let meter = Meter::new();
        Self {
            queue: Arc::new(SharedQueue::new(meter)),
            context: Arc::new(Context {
                connection,
                keyspace,
                levels,
                leases,
                ledger,
                meter,
            }),
        }
    }

    pub(crate) fn connection(&self) -> &C {
        &self.context.connection
    }

    /// Queues a request. It is answered in any case, as long as the marked runtime is driven.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime with a timer, if a worker has to be started.
    pub(crate) fn take(&self, requester: R) -> Option<Mark> {
        self.push(Command::Take {
            request: PendingRequest::new(requester),
            queued_at: Instant::now(),
        })
    }

    /// Queues an operation without waiting for its result.
    pub(crate) fn send(&self, scope: &Scope, op: Op) {
        self.anticipate(scope, op);
        let queued = QueuedOp::new(scope.clone(), op, None);
        self.push(Command::Op(Box::new(queued)));
    }

    /// Queues an operation and returns the level of the bucket after it.
    ///
    /// Waits as long as the worker may take, by a timer of the current runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the operation may be delivered all the same.
    pub(crate) async fn ask(&self, scope: &Scope, op: Op) -> Result<f64, Failure> {
        self.anticipate(scope, op);
        runtime::require();
        for _ in 0..MOST_ATTEMPTS {
            let (reply, mut answer) = oneshot::channel();
            let queued = QueuedOp::new(scope.clone(), op, Some(reply));
            let mut mark = self.push(Command::Op(Box::new(queued)));
            let mut rounds = 0;
            while let Some(last_mark) = mark {
                match timeout(self.max_silence(), &mut answer).await {
                    Ok(Ok(answer)) => return answer,
                    Ok(Err(_)) => break,
                    Err(_) if rounds == MOST_ROUNDS => return Err(timed_out()),
                    Err(_) => mark = self.take_over(last_mark),
                }
                rounds += 1;
            }
        }
        Err(abandoned())
    }

    fn anticipate(&self, scope: &Scope, op: Op) {
        let context = &self.context;
        let secret = context.keyspace.secret();
        op.anticipate(scope, secret, &context.levels, &context.leases);
    }

    /// Requests more of a lease that is half used.
    pub(crate) fn lease(&self, scope: &Scope) {
        let id = scope.id(self.context.keyspace.secret());
        let request = self.context.leases.asked(id, 0.0);
        self.push(Command::Lease(Box::new((scope.clone(), request))));
    }

    /// Returns all leased tokens, and takes nothing ahead any more.
    pub(crate) async fn return_leases(&self) {
        self.context.leases.end();
        // What is on its way has arrived when the first of these is answered.
        for _ in 0..2 {
            let mut last = None;
            for (scope, tokens) in self.context.leases.drain() {
                let queued = leases::give_back(&self.context, scope.clone(), tokens);
                self.push(Command::Op(queued));
                last = Some(scope);
            }
            if let Some(scope) = last {
                // By then the tokens are delivered, or recorded in the ledger.
                let _ = self.ask(&scope, Op::Look).await;
            }
        }
    }

    /// A worker that is driven makes progress within this time.
    pub(crate) fn max_silence(&self) -> Duration {
        (self.connection().call_timeout() * 3 / 2).min(LONGEST_WAIT)
    }

    /// Replaces the marked worker by one on the current runtime, if it has made no progress.
    ///
    /// Returns a new mark if it has. Returns none if the worker is replaced, now or earlier: then
    /// requests are made again.
    pub(crate) fn take_over(&self, mark: Mark) -> Option<Mark> {
        let here = runtime::current();
        let mut queue = self.queue.lock();
        if queue.worker != mark.worker {
            return None;
        }
        if queue.progress != mark.progress || queue.running == Some(here) {
            return queue.mark();
        }
        queue.running = None;
        queue.worker += 1;
        queue.gathered = 0;
        let (kept, abandoned): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut queue.commands)
            .into_iter()
            .partition(Command::is_kept);
        queue.commands = kept;
        self.queue.unlock_and_report(queue);
        self.connection().abandon();
        self.start();
        // Without the lock: a request that is made again is queued.
        for command in abandoned {
            command.undelivered(None, &*self.context.ledger);
        }
        None
    }

    /// Returns which worker will send the command; none if a worker must start first.
    fn push(&self, command: Command<R>) -> Option<Mark> {
        let mut queue = self.queue.lock();
        // Only requests fail if the queue is full: returned tokens are bounded by granted ones.
        if queue.len() >= MAX_QUEUED
            && let Command::Take { request, .. } = command
        {
            drop(queue);
            request.fail(Failure::new(
                FailureKind::Overloaded,
                "too many requests are queued for Redis",
            ));
            return None;
        }
        if queue.running.is_none() {
            drop(queue);
            let usable = match command {
                Command::Take { .. } => {
                    runtime::require();
                    true
                }
                // The caller has checked, or must not panic.
                Command::Op(_) | Command::Lease(_) => runtime::is_usable(),
            };
            if !usable && !command.is_kept() {
                return None;
            }
            queue = self.queue.lock();
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
        // Between two calls the gauge is updated at powers of two, which costs most requests
        // nothing.
        let (length, mark) = (queue.len(), queue.mark());
        match length.is_power_of_two() {
            true => self.queue.unlock_and_report(queue),
            false => drop(queue),
        }
        if wakes {
            self.queue.wake.notify_waiters();
        }
        mark
    }

    /// Starts a worker on the current runtime, unless one runs.
    fn start(&self) -> Option<Mark> {
        let here = runtime::current();
        let mut queue = self.queue.lock();
        if queue.running.is_none() {
            queue.running = Some(here);
            queue.worker += 1;
            let (number, mark) = (queue.worker, queue.mark());
            drop(queue);
            let worker = Worker::new(self.queue.clone(), self.context.clone(), number);
            // Without the lock: a runtime that shuts down drops the worker here.
            let context = self.context.clone();
            let panicked = move |failure: &Failure| context.connection.fail(failure);
            tokio::spawn(supervised("calls Redis", worker.run(), panicked));
            return mark;
        }
        queue.mark()
    }
}

impl<R: Requester, C: Connection> Drop for Batcher<R, C> {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.wake.notify_waiters();
    }
}
