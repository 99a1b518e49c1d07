//! What becomes of a backend's decision: an answer to the caller, or a place in a wait queue.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    dispatcher::Dispatcher,
    wait_queue::QueuedReservation,
    waiter::{Delivery, Waiter},
};
use crate::{
    decision::{DecidedBy, Decision, Failure},
    runtime,
};

impl Waiter {
    /// A backend has decided; waits count from `decided_at`. What it granted to a caller that was
    /// dropped is given back, at once or when the reservation is undone.
    pub(crate) fn decide(
        self: &Arc<Self>,
        decision: Result<Decision, Failure>,
        decided_by: DecidedBy,
        decided_at: Instant,
    ) {
        let delivery = match decision {
            Ok(Decision::Now { tightest, level }) => Delivery::Granted {
                tightest,
                level,
                decided_by,
                decided_at,
            },
            Ok(Decision::Wait {
                which,
                wait,
                reservation,
            }) => {
                let due = decided_at + wait;
                let reservation = QueuedReservation { due, reservation };
                return self.enqueue(which, reservation, decided_by);
            }
            Ok(Decision::Rejected { which, retry_after }) => Delivery::Rejected {
                which,
                retry_after,
                decided_at,
            },
            Err(failure) => Delivery::Failed(failure),
        };
        match self.deliver(delivery) {
            Ok(wake) => wake.wake(),
            Err(unwanted) => self.give_back(&unwanted),
        }
    }

    /// Adds a reservation to its queue, in order of time. If the caller was dropped, the waiters
    /// behind it move up and the last reservation is undone.
    fn enqueue(
        self: &Arc<Self>,
        which: usize,
        reservation: QueuedReservation,
        decided_by: DecidedBy,
    ) {
        let here = runtime::current();
        let (backends, scope) = (self.backends(), &self.scopes()[which]);
        let queue = backends.queues().find_or_insert(scope, decided_by);
        let mut state = queue.lock();
        let place = state
            .reservations
            .partition_point(|other| other.due <= reservation.due);
        state.reservations.insert(place, reservation);
        let wake = self.reserve(which, &queue, reservation.due);
        if wake.is_some() {
            // The waiters before it keep their order, and none gets a later reservation than its
            // own.
            if place < state.present && state.present < state.waiters.len() {
                state.waiters.retain(|waiter| waiter.is_wanted());
            }
            let last = state.waiters.len();
            let at = if place < state.present { place } else { last };
            state.waiters.insert(at.min(last), self.clone());
            state.present += 1;
        }
        let unclaimed = state.take_unclaimed();
        let number = (!state.is_served).then(|| state.start_dispatcher(here));
        drop(state);
        if let Some(reservation) = unclaimed {
            backends.undo(&queue.scope, reservation, decided_by);
        }
        if let Some(wake) = wake {
            wake.wake();
        }
        if let Some(number) = number {
            Dispatcher::spawn(backends, queue, number);
        } else if place == 0 {
            queue.changed.notify_waiters();
        }
    }
}
