//! The task that empties the queue: one call after another, each with what was queued since the
//! one before.

use std::{collections::VecDeque, pin::pin, sync::Arc};

use tokio::time::Instant;

use super::{
    bucket::BucketIndex,
    call::Batch,
    command::Command,
    connection::{Connection, Deadline},
    context::Context,
    depth::{Depth, Load},
    in_flight::InFlight,
    leases,
    leases::IdleLeases,
    pipeline::Pipeline,
    queue::SharedQueue,
    queue_time::QueueTime,
    request::Requester,
};
use crate::decision::Failure;

pub(super) struct Worker<R: Requester, C: Connection> {
    queue: Arc<SharedQueue<R>>,
    context: Arc<Context<C>>,
    number: u64,
    /// Another worker has taken over, or nothing is left to do.
    stops: bool,
    gathered: VecDeque<Command<R>>,
    index: BucketIndex,
    queue_time: QueueTime,
    depth: Depth,
    /// The last call was for several commands.
    is_shared: bool,
    /// Of the last call.
    load: Load,
    /// Of calls that are over.
    deadlines: Vec<Deadline>,
    idle_leases: IdleLeases,
}

impl<R: Requester, C: Connection> Worker<R, C> {
    pub(super) fn new(queue: Arc<SharedQueue<R>>, context: Arc<Context<C>>, number: u64) -> Self {
        Self {
            queue,
            context,
            number,
            stops: false,
            gathered: VecDeque::new(),
            index: BucketIndex::default(),
            queue_time: QueueTime::default(),
            depth: Depth::default(),
            is_shared: false,
            load: Load::default(),
            deadlines: Vec::new(),
            idle_leases: IdleLeases::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut calls = Pipeline::new();
        let queue = self.queue.clone();
        let timeout = self.context.connection.call_timeout();
        // Kept from one wait to the next, so that no wake-up between them is lost.
        let mut wake = pin!(queue.wake.notified());
        loop {
            if let Some(waiting) = self.may_send(calls.len()) {
                if waiting > 1 || self.is_shared {
                    // Callers who were just answered may make their next request: it joins the
                    // call. A lone caller does not wait for others.
                    tokio::task::yield_now().await;
                }
                self.gather();
                let batch = Batch::build(
                    &mut self.gathered,
                    &mut self.index,
                    &mut self.queue_time,
                    &self.context,
                );
                self.report_gathered();
                if batch.is_empty() {
                    continue;
                }
                self.is_shared = batch.length > 1;
                let is_full = batch.is_full() || !self.gathered.is_empty();
                self.load = Load::of(batch.length, is_full);
                let call = InFlight::new(batch, self.context.clone());
                let mut deadline = self.deadlines.pop().unwrap_or_else(Deadline::new);
                let call = async move {
                    let sent = Instant::now();
                    let failure = call.send(&mut deadline).await;
                    (failure, sent.elapsed(), deadline)
                };
                calls.send(call).await;
                continue;
            }
            if self.stops {
                // What is in flight may still be answered.
                while calls.next().await.is_some() {}
                return;
            }
            if calls.is_empty() {
                if self.is_over() {
                    // A worker that was replaced may keep the connection alive.
                    self.context.connection.close();
                    return;
                }
                if !self.gathered.is_empty() || !self.idle_leases.is_empty() {
                    continue;
                }
            }
            tokio::select! {
                biased;
                Some((failure, took, deadline)) = calls.next() => {
                    self.deadlines.push(deadline);
                    match failure {
                        None => self.depth.answered(took, timeout),
                        Some(failure) if failure.single => {}
                        Some(failure) => {
                            self.depth.failed();
                            self.fail_queued(&failure);
                        }
                    }
                    if !calls.is_empty() {
                        // The next reply may be here already, but callers must use their tokens
                        // soon after they are answered.
                        tokio::task::yield_now().await;
                    }
                }
                () = wake.as_mut() => wake.set(queue.wake.notified()),
                () = self.idle_leases.collect(&self.context.leases) => {}
            }
        }
    }

    /// Returns how many commands wait, if there are enough for a call in addition to those in
    /// flight. Otherwise has the worker woken once there are.
    fn may_send(&mut self, in_flight: usize) -> Option<usize> {
        let mut queue = self.queue.lock();
        queue.progress += 1;
        if queue.worker != self.number {
            self.stops = true;
            return None;
        }
        let idle_leases = self.idle_leases.in_next_call();
        let waiting = self.gathered.len() + queue.commands.len() + idle_leases;
        let enough = self.depth.enough(in_flight, self.load);
        if waiting >= enough {
            return Some(waiting);
        }
        queue.wake_at = enough.saturating_sub(self.gathered.len());
        None
    }

    fn gather(&mut self) {
        let mut queue = self.queue.lock();
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
        // In front, where all of them fit and leave room for requests.
        for (scope, tokens) in self.idle_leases.next_call() {
            let queued = leases::give_back(&self.context, scope, tokens);
            self.gathered.push_front(Command::Op(queued));
        }
    }

    fn report_gathered(&self) {
        let mut queue = self.queue.lock();
        if queue.worker != self.number {
            return;
        }
        queue.gathered = self.gathered.len();
        self.queue.unlock_and_report(queue);
    }

    /// Fails the commands queued behind a failed call, so that each does not have to time out
    /// separately.
    fn fail_queued(&mut self, failure: &Failure) {
        self.gather();
        let gathered = std::mem::take(&mut self.gathered);
        self.report_gathered();
        let ledger = &*self.context.ledger;
        self.idle_leases.undelivered(ledger);
        for command in gathered {
            command.undelivered(Some(failure), ledger);
        }
    }

    /// Whether the limiter is dropped and nothing is left to send.
    fn is_over(&mut self) -> bool {
        if self.queue.lock().is_closed {
            self.idle_leases.collect_all(&self.context.leases);
            if !self.idle_leases.is_empty() {
                return false;
            }
        }
        let mut queue = self.queue.lock();
        let over = queue.is_closed && queue.commands.is_empty() && self.gathered.is_empty();
        if over {
            queue.running = None;
            self.stops = true;
        }
        over
    }
}

impl<R: Requester, C: Connection> Drop for Worker<R, C> {
    fn drop(&mut self) {
        let mut orphans = std::mem::take(&mut self.gathered);
        let mut queue = self.queue.lock();
        if queue.worker == self.number && !self.stops {
            // Shut down with its runtime, and so is what drives the connection.
            queue.running = None;
            queue.gathered = 0;
            orphans.append(&mut queue.commands);
            self.queue.unlock_and_report(queue);
            self.context.connection.abandon();
        } else {
            drop(queue);
        }
        let ledger = &*self.context.ledger;
        // Without the lock: a request that is made again is queued.
        for orphan in orphans {
            orphan.undelivered(None, ledger);
        }
        // Leases that are not idle stay: the next worker checks them.
        self.idle_leases.undelivered(ledger);
    }
}
