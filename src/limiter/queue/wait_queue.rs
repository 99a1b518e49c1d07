//! [`WaitQueue`]: the reservations of one bucket, cost and backend, and the waiters for them.
//! [`WaitQueues`]: all wait queues of a limiter.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hashbrown::{HashMap, hash_map::EntryRef};
use tokio::{runtime::Id, sync::Notify, time::Instant};

use crate::{
    bucket::Reservation,
    decision::DecidedBy,
    packed_map::Hashing,
    scope::{BucketId, Scope},
};

/// Reservations belong to the queue, not to the waiters: if a waiter is cancelled, those behind it
/// move up, and the last reservation is undone.
pub(crate) struct WaitQueue<W> {
    pub(super) scope: Scope,
    pub(super) decided_by: DecidedBy,
    pub(super) id: Box<[u8]>,
    state: Mutex<QueueState<W>>,
    /// Wakes the dispatcher before the first reservation is due.
    pub(super) changed: Notify,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct QueuedReservation {
    pub(super) due: Instant,
    /// What undoes it. `None` if the backend's clock was set back.
    pub(super) reservation: Option<Reservation>,
}

pub(super) struct QueueState<W> {
    /// By time; at least one for each present waiter.
    pub(super) reservations: VecDeque<QueuedReservation>,
    /// In order; some of them may have been cancelled.
    pub(super) waiters: VecDeque<Arc<W>>,
    /// The number of waiters that have not been cancelled.
    pub(super) present: usize,
    pub(super) is_served: bool,
    /// The number of the last dispatcher, and its runtime. Earlier ones end.
    pub(super) dispatcher: u64,
    runtime: Option<Id>,
}

impl<W> WaitQueue<W> {
    pub(super) fn new(scope: Scope, decided_by: DecidedBy, id: Box<[u8]>) -> Self {
        Self {
            scope,
            decided_by,
            id,
            state: Mutex::new(QueueState {
                reservations: VecDeque::new(),
                waiters: VecDeque::new(),
                present: 0,
                is_served: false,
                dispatcher: 0,
                runtime: None,
            }),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState<W>> {
        // No user code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a dispatcher on this runtime wakes the waiters.
    pub(crate) fn is_served_on(&self, runtime: Id) -> bool {
        self.lock().is_served_on(runtime)
    }

    /// A waiter of this queue has been cancelled: returns the reservation to be undone.
    pub(super) fn cancel(&self, is_wanted: impl Fn(&W) -> bool) -> Option<Reservation> {
        let mut state = self.lock();
        state.present -= 1;
        if state.waiters.len() > 2 * state.present + 16 {
            state.waiters.retain(|waiter| is_wanted(waiter));
        }
        let unclaimed = state.take_unclaimed();
        let is_empty = state.reservations.is_empty();
        drop(state);
        if is_empty {
            // The dispatcher has nothing left to wait for.
            self.changed.notify_waiters();
        }
        unclaimed
    }
}

impl<W> QueueState<W> {
    /// Removes the last reservation, if there are more of them than waiters.
    pub(super) fn take_unclaimed(&mut self) -> Option<Reservation> {
        let is_unclaimed = self.reservations.len() > self.present;
        let last = is_unclaimed.then(|| self.reservations.pop_back());
        last.flatten()?.reservation
    }

    pub(super) fn is_served_on(&self, runtime: Id) -> bool {
        self.is_served && self.runtime == Some(runtime)
    }

    /// A dispatcher starts on `runtime`: returns its number.
    pub(super) fn start_dispatcher(&mut self, runtime: Id) -> u64 {
        self.is_served = true;
        self.dispatcher += 1;
        self.runtime = Some(runtime);
        self.dispatcher
    }
}

pub(crate) struct WaitQueues<W> {
    /// By bucket, because a bucket is paused as a whole.
    buckets: Mutex<HashMap<Vec<u8>, BucketQueues<W>, Hashing>>,
    salt: [u8; 32],
    /// The number of queues.
    count: AtomicUsize,
}

/// By the bits of the cost, which callers choose, and by backend.
type BucketQueues<W> = HashMap<(u64, DecidedBy), Arc<WaitQueue<W>>, Hashing>;

fn key(scope: &Scope, decided_by: DecidedBy) -> (u64, DecidedBy) {
    (scope.tokens().to_bits(), decided_by)
}

impl<W> WaitQueues<W> {
    pub(crate) fn new(salt: [u8; 32]) -> Self {
        Self {
            buckets: Mutex::default(),
            salt,
            count: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, BucketQueues<W>, Hashing>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no request waits in any queue, without a lock.
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Whether a caller of this process waits for this scope, whichever backend decides.
    pub(crate) fn has_waiters(&self, scope: &Scope) -> bool {
        if self.is_empty() {
            return false;
        }
        let id = scope.id(&self.salt);
        let buckets = self.lock();
        let Some(queues) = buckets.get(id.as_bytes()) else {
            return false;
        };
        let backends = [
            DecidedBy::Memory,
            DecidedBy::LocalShare,
            DecidedBy::DualAdmission,
            DecidedBy::Redis,
        ];
        let queues = backends.map(|decided_by| queues.get(&key(scope, decided_by)));
        let mut queues = queues.into_iter().flatten();
        queues.any(|queue| queue.lock().present > 0)
    }

    /// What the callers of this process have reserved of a bucket, in tokens.
    pub(crate) fn reserved(&self, id: &BucketId, decided_by: DecidedBy) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let buckets = self.lock();
        let queues = buckets.get(id.as_bytes()).into_iter().flatten();
        queues
            .filter(|((_, backend), _)| *backend == decided_by)
            .map(|(_, queue)| queue.scope.tokens() * queue.lock().reservations.len() as f64)
            .sum()
    }

    /// Makes the dispatchers of a bucket check whether it is paused.
    pub(crate) fn recheck(&self, id: &[u8]) {
        if self.is_empty() {
            return;
        }
        for queue in self
            .lock()
            .get(id)
            .iter()
            .flat_map(|queues| queues.values())
        {
            queue.changed.notify_waiters();
        }
    }

    pub(super) fn find_or_insert(&self, scope: &Scope, decided_by: DecidedBy) -> Arc<WaitQueue<W>> {
        let id = scope.id(&self.salt);
        let id = id.as_bytes();
        let mut buckets = self.lock();
        let hasher = buckets.hasher().clone();
        let queues = buckets.entry_ref(id);
        let queues = queues.or_insert_with(|| HashMap::with_hasher(hasher));
        let new = || {
            self.count.fetch_add(1, Ordering::Relaxed);
            Arc::new(WaitQueue::new(scope.clone(), decided_by, id.into()))
        };
        let queue = queues.entry(key(scope, decided_by));
        queue.or_insert_with(new).clone()
    }

    /// Removes a queue that has no reservations left. Returns false if one was just added.
    pub(super) fn remove(&self, queue: &Arc<WaitQueue<W>>) -> bool {
        // Both locks, in the order in which `enqueue` takes them one after the other: a caller
        // that has this queue from `find_or_insert` finds `is_served` false and starts a
        // dispatcher.
        let mut buckets = self.lock();
        let mut state = queue.lock();
        if !state.reservations.is_empty() {
            return false;
        }
        state.is_served = false;
        if let EntryRef::Occupied(mut bucket) = buckets.entry_ref(&*queue.id) {
            let key = key(&queue.scope, queue.decided_by);
            let queues = bucket.get_mut();
            let known = queues.get(&key);
            if known.is_some_and(|known| Arc::ptr_eq(known, queue)) {
                queues.remove(&key);
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            if queues.is_empty() {
                bucket.remove();
            }
        }
        true
    }
}
