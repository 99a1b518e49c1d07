//! Requests that wait: first for a backend's decision, then until their reservation is due.
//!
//! | file | contents |
//! |---|---|
//! | `waiter` | one pending request, shared by the caller and the task that answers it |
//! | `wait_queue` | the reservations of one bucket, cost and backend; all such queues of a limiter |
//! | `dispatcher` | the task that serves one wait queue |
//! | `deliver` | turns a backend's decision into an answer or a place in a wait queue |

mod deliver;
mod dispatcher;
mod wait_queue;
mod waiter;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

pub(crate) use self::{
    dispatcher::take_over,
    wait_queue::WaitQueues,
    waiter::{Delivery, TOLERANCE, Waiter, WaitsFor},
};
use crate::{
    bucket::Reservation,
    decision::{DecidedBy, Failure},
    scope::{Lookup, Scope},
};

/// What waiters and wait queues need of the limiter whose backends decide.
pub(crate) trait Backends: Send + Sync {
    fn queues(&self) -> &WaitQueues<Waiter>;

    /// Gives back the tokens of a scope that were granted for `due` and not used, less what the
    /// bucket has refilled since, if that is more than [`TOLERANCE`] ago.
    fn give_back_late(&self, scope: &Scope, decided_by: DecidedBy, due: Instant);

    /// Undoes a reservation that was cancelled before it was due.
    fn undo(&self, scope: &Scope, reservation: Reservation, decided_by: DecidedBy);

    /// The end of a bucket's pause, as last reported to this process.
    fn paused_until(&self, id: &Lookup<'_>, decided_by: DecidedBy) -> Option<Instant>;

    /// Requests the pause of the bucket from Redis. `None` if no limiter pauses buckets, or if the
    /// last report is recent.
    fn refresh_pause<'a>(&'a self, scope: &'a Scope, id: &Lookup<'_>) -> Option<BoxFuture<'a, ()>>;

    /// Whether the local share decides about reservations that Redis made earlier: Redis is
    /// unavailable, and the peers that spend their shares do not know of that debt.
    fn spends_local_share(&self, scope: &Scope) -> bool;

    /// Credits Redis with a reservation for which the local share is asked instead.
    fn credit_reservation(&self, scope: &Scope);

    fn task_panicked(&self, failure: &Failure);
}
