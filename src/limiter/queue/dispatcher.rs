//! [`Dispatcher`]: the task that serves one wait queue.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Backends,
    wait_queue::{QueueState, QueuedReservation, WaitQueue},
    waiter::{TOLERANCE, Waiter, Wake},
};
use crate::{
    decision::{DecidedBy, Failure},
    runtime,
    scope::Lookup,
    task::supervised,
};

/// The time of a call that requests the pause from Redis does not count as late, up to this:
/// otherwise, with a long round trip, every second reservation would be missed.
const MAX_CHECK: Duration = Duration::from_millis(500);

/// Wakes the waiters of one queue when their reservations are due, and ends when no reservation
/// is left. It is a task, not a timer of the first waiter, so that a future that is not polled
/// blocks no other waiter.
pub(super) struct Dispatcher {
    backends: Arc<dyn Backends>,
    queue: Arc<WaitQueue<Waiter>>,
    number: u64,
    is_finished: bool,
}

/// Replaces the dispatcher by one on the caller's runtime. Called if a reservation of this queue is
/// due and its caller was not woken, because the runtime of the dispatcher is not driven.
pub(crate) fn take_over(backends: &Arc<dyn Backends>, queue: &Arc<WaitQueue<Waiter>>) {
    let here = runtime::current();
    let mut state = queue.lock();
    if state.is_served_on(here) {
        return;
    }
    let number = state.start_dispatcher(here);
    let nudged: Vec<_> = state.waiters.iter().map(|waiter| waiter.nudge()).collect();
    drop(state);
    // Callers on other runtimes need timers of their own from now on.
    nudged.into_iter().for_each(Wake::wake);
    Dispatcher::spawn(backends, queue.clone(), number);
}

impl Dispatcher {
    /// On the current runtime.
    pub(super) fn spawn(backends: &Arc<dyn Backends>, queue: Arc<WaitQueue<Waiter>>, number: u64) {
        let dispatcher = Self {
            backends: backends.clone(),
            queue,
            number,
            is_finished: false,
        };
        let backends = backends.clone();
        let panicked = move |failure: &Failure| backends.task_panicked(failure);
        tokio::spawn(supervised("wakes waiters", dispatcher.run(), panicked));
    }

    async fn run(mut self) {
        let queue = self.queue.clone();
        let (scope, id) = (&queue.scope, Lookup::of(&queue.id));
        // Kept from one wait to the next, so that no notification between them is lost.
        let mut changed = pin!(queue.changed.notified());
        loop {
            let first = {
                let state = queue.lock();
                // Another dispatcher has taken over.
                self.is_finished = state.dispatcher != self.number;
                state.reservations.front().map(|first| first.due)
            };
            if self.is_finished {
                return;
            }
            let Some(due) = first else {
                self.is_finished = self.backends.queues().remove(&queue);
                if self.is_finished {
                    return;
                }
                continue;
            };
            let is_due = tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => true,
                () = changed.as_mut() => {
                    changed.set(queue.changed.notified());
                    false
                }
            };
            let before = Instant::now();
            if is_due
                && queue.decided_by == DecidedBy::Redis
                && let Some(refreshed) = self.backends.refresh_pause(scope, &id)
            {
                refreshed.await;
            }
            if let Some(until) = self.backends.paused_until(&id, queue.decided_by) {
                self.miss_before(until);
            }
            if !is_due {
                continue;
            }
            let now = Instant::now();
            if queue.decided_by == DecidedBy::Redis && self.backends.spends_local_share(scope) {
                self.move_to_share(now);
            } else {
                self.serve(now, (now - before).min(MAX_CHECK));
            }
        }
    }

    /// The bucket is paused: requests whose reservation is due before the end of the pause are
    /// made again. The reservations are not given back: during a pause a bucket must not gain
    /// tokens.
    fn miss_before(&self, until: Instant) {
        let (_, woken) = self.miss(|reservation| reservation.due < until);
        woken.into_iter().for_each(Wake::wake);
    }

    /// Requests whose reservation is due are made again, and the local share decides.
    fn move_to_share(&self, now: Instant) {
        let (moved, woken) = self.miss(|reservation| reservation.due <= now);
        for _ in 0..moved {
            self.backends.credit_reservation(&self.queue.scope);
        }
        woken.into_iter().for_each(Wake::wake);
    }

    /// Removes the first reservations: how many, and whose requests are to be made again.
    fn miss(&self, is_missed: impl Fn(&QueuedReservation) -> bool) -> (usize, Vec<Wake>) {
        let (mut missed, mut woken) = (0, Vec::new());
        let mut state = self.queue.lock();
        while let Some((_, wake)) = state.pop(&is_missed, |waiter, _| waiter.miss()) {
            missed += 1;
            woken.extend(wake);
        }
        (missed, woken)
    }

    /// Reservations that are due are used. Those that are late by more than [`TOLERANCE`], not
    /// counting the time that `check` took, are missed.
    fn serve(&self, now: Instant, check: Duration) {
        let (mut unused, mut woken) = (0, Vec::new());
        let is_late = |due: Instant| now - due > TOLERANCE + check;
        let answer = |waiter: &Waiter, due: Instant| match is_late(due) {
            true => waiter.miss(),
            false => waiter.serve(due + check),
        };
        let mut state = self.queue.lock();
        while let Some((due, wake)) = state.pop(|first| first.due <= now, answer) {
            unused += usize::from(is_late(due) || wake.is_none());
            woken.extend(wake);
        }
        drop(state);
        for _ in 0..unused {
            let queue = &self.queue;
            self.backends
                .give_back_late(&queue.scope, queue.decided_by, now);
        }
        woken.into_iter().for_each(Wake::wake);
    }
}

impl QueueState<Waiter> {
    /// Removes the first reservation, if `is_meant`, and answers the first waiter whose caller was
    /// not dropped. Returns when the reservation was due.
    fn pop(
        &mut self,
        is_meant: impl Fn(&QueuedReservation) -> bool,
        answer: impl Fn(&Waiter, Instant) -> Option<Wake>,
    ) -> Option<(Instant, Option<Wake>)> {
        let due = self
            .reservations
            .front()
            .filter(|first| is_meant(first))?
            .due;
        self.reservations.pop_front();
        while let Some(waiter) = self.waiters.pop_front() {
            let wake = answer(&waiter, due);
            if wake.is_some() {
                self.present -= 1;
                return Some((due, wake));
            }
        }
        Some((due, None))
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // Shut down with its runtime: callers on other runtimes make their requests again.
        let mut woken = Vec::new();
        let mut state = self.queue.lock();
        if state.dispatcher != self.number {
            return;
        }
        state.is_served = false;
        let reservations = std::mem::take(&mut state.reservations);
        for waiter in std::mem::take(&mut state.waiters) {
            if let Some(wake) = waiter.miss() {
                state.present -= 1;
                woken.push(wake);
            }
        }
        drop(state);
        let queue = &self.queue;
        self.backends.queues().remove(queue);
        for queued in reservations.into_iter().rev() {
            if let Some(reservation) = queued.reservation {
                self.backends
                    .undo(&queue.scope, reservation, queue.decided_by);
            }
        }
        woken.into_iter().for_each(Wake::wake);
    }
}
