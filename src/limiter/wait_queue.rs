//! Those who sleep until their turn.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hashbrown::HashTable;
use tokio::{runtime::Id, sync::Notify, time::Instant};

use super::{
    core::Core,
    waiter::{Waiter, Wake},
};
use crate::{
    bucket::Reservation,
    decision::{DecidedBy, Failure},
    packed_map::Hashing,
    runtime,
    scope::{BucketId, Lookup, Scope},
    task::supervised,
};

/// A turn that is used later than this counts as missed: after a pause of the whole process,
/// all the turns that passed in it would otherwise go out at once.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(100);

/// What it takes to look for a hold does not count as late, up to this: where Redis is far away,
/// every other turn would be missed.
const MAX_CHECK: Duration = Duration::from_millis(500);

/// The lines of this process: one per bucket, cost and store.
///
/// Turns belong to the line, not to the sleeper: when one goes away, those behind it move up, and
/// the reservation of the last turn is undone.
#[derive(Default)]
pub(crate) struct WaitQueues {
    queues: Mutex<HashTable<BucketQueues>>,
    hasher: Hashing,
    count: AtomicUsize,
}

/// The lines of one bucket: what is said of the bucket is said to all of them.
struct BucketQueues {
    id: Box<[u8]>,
    /// By cost, which callers choose, and store.
    queues: HashMap<(u64, DecidedBy), Arc<WaitQueue>, Hashing>,
}

pub(crate) struct WaitQueue {
    scope: Scope,
    origin: DecidedBy,
    id: Box<[u8]>,
    state: Mutex<State>,
    /// An earlier turn than the first has come.
    earlier: Notify,
}

/// When a sleeper may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueuedReservation {
    pub(crate) due: Instant,
    /// What undoes it; none where the store's clock was set back.
    pub(crate) reservation: Option<Reservation>,
}

#[derive(Default)]
struct State {
    /// In order, one for each sleeper.
    reservations: VecDeque<QueuedReservation>,
    /// In order; some may have gone away.
    waiters: VecDeque<Arc<Waiter>>,
    /// Those of them who have not.
    present: usize,
    is_served: bool,
    /// The number of the last driver, those before which stop, and its runtime.
    driver: u64,
    runtime: Option<Id>,
}

impl State {
    /// A driver is started: its number.
    fn start(&mut self, runtime: Id) -> u64 {
        self.is_served = true;
        self.driver += 1;
        self.runtime = Some(runtime);
        self.driver
    }
}

impl State {
    /// A turn that nobody sleeps for.
    fn free(&mut self) -> Option<QueuedReservation> {
        let is_free = self.reservations.len() > self.present;
        is_free.then(|| self.reservations.pop_back()).flatten()
    }
}

impl WaitQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No user code runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sleeper goes away: the last turn is undone.
    pub(crate) fn cancel(&self, core: &Core) {
        let mut state = self.lock();
        state.present -= 1;
        if state.waiters.len() > 2 * state.present + 16 {
            state.waiters.retain(|sleeper| sleeper.is_wanted());
        }
        let free = state.free();
        let is_empty = state.reservations.is_empty();
        drop(state);
        if is_empty {
            // Its driver has nothing to wait for.
            self.earlier.notify_waiters();
        }
        self.undo(core, free);
    }

    fn undo(&self, core: &Core, turn: Option<QueuedReservation>) {
        if let Some(reservation) = turn.and_then(|turn| turn.reservation) {
            core.undo(&self.scope, reservation, self.origin);
        }
    }
}

impl WaitQueues {
    fn lock(&self) -> MutexGuard<'_, HashTable<BucketQueues>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody sleeps at all, at a glance.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn find(&self, core: &Core, scope: &Scope, origin: DecidedBy) -> Option<Arc<WaitQueue>> {
        if self.is_empty() {
            return None;
        }
        let id = scope.id(&core.salt);
        let id = id.as_bytes();
        self.lock()
            .find(self.hasher.hash_one(id), |bucket| *bucket.id == *id)
            .and_then(|bucket| bucket.queues.get(&(scope.tokens().to_bits(), origin)))
            .cloned()
    }

    pub(crate) fn has_waiters(&self, core: &Core, scope: &Scope, origin: DecidedBy) -> bool {
        self.find(core, scope, origin)
            .is_some_and(|line| line.lock().present > 0)
    }

    /// A turn was granted. Where its waiter has gone away, those behind it move up.
    pub(crate) fn add(
        &self,
        core: &Arc<Core>,
        waiter: &Arc<Waiter>,
        scope: &Scope,
        origin: DecidedBy,
        turn: QueuedReservation,
    ) {
        let here = runtime::current();
        let line = self.find_or_insert(core, scope, origin);
        let mut state = line.lock();
        let place = state
            .reservations
            .partition_point(|other| other.due <= turn.due);
        state.reservations.insert(place, turn);
        let wake = waiter.reserve(&line, turn.due);
        if wake.is_some() {
            // Those before it keep their order, and none gets a later turn than its own.
            if place < state.present && state.present < state.waiters.len() {
                state.waiters.retain(|sleeper| sleeper.is_wanted());
            }
            let at = if place < state.present {
                place.min(state.waiters.len())
            } else {
                state.waiters.len()
            };
            state.waiters.insert(at, waiter.clone());
            state.present += 1;
        }
        let free = state.free();
        let starts = (!state.is_served).then(|| state.start(here));
        drop(state);
        line.undo(core, free);
        if let Some(wake) = wake {
            wake.wake();
        }
        if let Some(number) = starts {
            Server::spawn(core, line, number);
        } else if place == 0 {
            line.earlier.notify_waiters();
        }
    }

    /// A turn of this line has come and nobody was woken: its driver's runtime is not driven. The
    /// runtime of the caller drives it from here on.
    pub(crate) fn take_over(&self, core: &Arc<Core>, line: &Arc<WaitQueue>) {
        let here = runtime::current();
        let mut state = line.lock();
        if state.is_served && state.runtime == Some(here) {
            return;
        }
        let number = state.start(here);
        let sleepers = state.waiters.iter();
        let nudged: Vec<_> = sleepers.map(|sleeper| sleeper.nudge()).collect();
        drop(state);
        // Those on other runtimes are to have timers of their own from here on.
        nudged.into_iter().for_each(Wake::wake);
        Server::spawn(core, line.clone(), number);
    }

    fn find_or_insert(&self, core: &Core, scope: &Scope, origin: DecidedBy) -> Arc<WaitQueue> {
        let id = scope.id(&core.salt);
        let id = id.as_bytes();
        let mut lines = self.lock();
        let is_it = |bucket: &BucketQueues| *bucket.id == *id;
        let hash_of = |bucket: &BucketQueues| self.hasher.hash_one(&*bucket.id);
        let bucket = lines
            .entry(self.hasher.hash_one(id), is_it, hash_of)
            .or_insert_with(|| BucketQueues {
                id: id.into(),
                queues: HashMap::with_hasher(self.hasher.clone()),
            })
            .into_mut();
        let new = || {
            self.count.fetch_add(1, Ordering::Relaxed);
            Arc::new(WaitQueue {
                scope: scope.clone(),
                origin,
                id: id.into(),
                state: Mutex::default(),
                earlier: Notify::new(),
            })
        };
        let line = (scope.tokens().to_bits(), origin);
        bucket.queues.entry(line).or_insert_with(new).clone()
    }

    /// What the callers of this process have reserved of a bucket, in tokens.
    pub(crate) fn reserved(&self, id: &BucketId, origin: DecidedBy) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let id = id.as_bytes();
        let all = self.lock();
        let Some(bucket) = all.find(self.hasher.hash_one(id), |bucket| *bucket.id == *id) else {
            return 0.0;
        };
        let lines = bucket.queues.values().filter(|line| line.origin == origin);
        lines
            .map(|line| line.scope.tokens() * line.lock().reservations.len() as f64)
            .sum()
    }

    /// This process has heard that a bucket is held back.
    pub(crate) fn recheck(&self, id: &[u8]) {
        if self.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one(id);
        if let Some(bucket) = self.lock().find(hash, |bucket| *bucket.id == *id) {
            for line in bucket.queues.values() {
                line.earlier.notify_waiters();
            }
        }
    }

    /// Forgets a line that has no turns left; false where one has just come.
    fn remove(&self, line: &Arc<WaitQueue>) -> bool {
        let hash = self.hasher.hash_one(&*line.id);
        // Both locks, in the order in which `add` takes them one after the other: whoever holds
        // this line from `find_or_insert` finds `driven` false and starts a driver of its own.
        let mut lines = self.lock();
        let mut state = line.lock();
        if !state.reservations.is_empty() {
            return false;
        }
        state.is_served = false;
        if let Ok(mut bucket) = lines.find_entry(hash, |bucket| *bucket.id == *line.id) {
            let key = (line.scope.tokens().to_bits(), line.origin);
            let of_bucket = &mut bucket.get_mut().queues;
            if of_bucket
                .get(&key)
                .is_some_and(|other| Arc::ptr_eq(other, line))
            {
                of_bucket.remove(&key);
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            if of_bucket.is_empty() {
                bucket.remove();
            }
        }
        true
    }
}

impl WaitQueue {
    pub(crate) fn origin(&self) -> DecidedBy {
        self.origin
    }

    /// Whether the runtime that is current here wakes the sleepers.
    pub(crate) fn is_served_on(&self, here: Id) -> bool {
        let state = self.lock();
        state.is_served && state.runtime == Some(here)
    }

    pub(crate) fn serves(&self, scope: &Scope, salt: &[u8; 32]) -> bool {
        self.is(scope.id(salt).as_bytes(), scope, self.origin)
    }

    fn is(&self, id: &[u8], scope: &Scope, origin: DecidedBy) -> bool {
        *self.id == *id
            && self.origin == origin
            && self.scope.tokens().to_bits() == scope.tokens().to_bits()
    }
}

/// The task that wakes the sleepers of one line; it ends when no turn is left.
///
/// A task, not the first sleeper's own timer: a future that nobody polls must block nobody.
struct Server {
    core: Arc<Core>,
    queue: Arc<WaitQueue>,
    number: u64,
    finished: bool,
}

impl Server {
    /// On the current runtime.
    fn spawn(core: &Arc<Core>, line: Arc<WaitQueue>, number: u64) {
        let driver = Self {
            core: core.clone(),
            queue: line,
            number,
            finished: false,
        };
        let core = core.clone();
        let panicked = move |failure: &Failure| core.task_panicked(failure);
        tokio::spawn(supervised("wakes waiters", driver.run(), panicked));
    }

    async fn run(mut self) {
        let line = self.queue.clone();
        // Kept from one wait to the next, so that no wake-up between them is lost.
        let mut earlier = pin!(line.earlier.notified());
        loop {
            let first = {
                let state = line.lock();
                // Another has taken over.
                self.finished = state.driver != self.number;
                state.reservations.front().map(|turn| turn.due)
            };
            if self.finished {
                return;
            }
            let Some(turn) = first else {
                if self.core.queues.remove(&self.queue) {
                    self.finished = true;
                    return;
                }
                continue;
            };
            let due = tokio::select! {
                biased;
                () = tokio::time::sleep_until(turn) => true,
                () = earlier.as_mut() => {
                    earlier.set(line.earlier.notified());
                    false
                }
            };
            let id = Lookup::of(&self.queue.id);
            let before = Instant::now();
            if due && self.queue.origin == DecidedBy::Redis {
                self.core.refresh_pause(&self.queue.scope, &id).await;
            }
            if let Some(until) = self.core.paused_until(&id, self.queue.origin) {
                self.miss_before(until);
            }
            if !due {
                continue;
            }
            let now = Instant::now();
            if self.queue.origin == DecidedBy::Redis
                && self.core.spends_local_share(&self.queue.scope)
            {
                self.move_to_share(now);
            } else {
                self.serve(now, (now - before).min(MAX_CHECK));
            }
        }
    }

    /// The bucket is held back: whose turn comes before that is over asks again. The turns are
    /// not given back, because what they have taken pays for the hold.
    fn miss_before(&self, until: Instant) {
        let (_, woken) = self.miss(|turn| turn.due < until);
        woken.into_iter().for_each(Wake::wake);
    }

    /// Whose turn has come asks again, and is answered by the share.
    fn move_to_share(&self, now: Instant) {
        let (moved, woken) = self.miss(|turn| turn.due <= now);
        for _ in 0..moved {
            self.core.shares.credit_reservation(&self.queue.scope);
        }
        woken.into_iter().for_each(Wake::wake);
    }

    /// Takes these first turns from the line: how many there were, and who is to ask again.
    fn miss(&self, is_missed: impl Fn(&QueuedReservation) -> bool) -> (usize, Vec<Wake>) {
        let (mut missed, mut woken) = (0, Vec::new());
        let mut state = self.queue.lock();
        while state.reservations.front().is_some_and(&is_missed) {
            state.reservations.pop_front();
            missed += 1;
            while let Some(sleeper) = state.waiters.pop_front() {
                if let Some(wake) = sleeper.miss() {
                    state.present -= 1;
                    woken.push(wake);
                    break;
                }
            }
        }
        (missed, woken)
    }

    /// Turns that have come are used, those that are late by more than the tolerance and what a
    /// look took are missed.
    fn serve(&self, now: Instant, look: Duration) {
        let mut unused = 0;
        let mut woken = Vec::new();
        let mut state = self.queue.lock();
        while let Some(turn) = state
            .reservations
            .front()
            .map(|turn| turn.due)
            .filter(|turn| *turn <= now)
        {
            state.reservations.pop_front();
            let late = now - turn > TOLERANCE + look;
            let wake = loop {
                let Some(sleeper) = state.waiters.pop_front() else {
                    break None;
                };
                let wake = if late {
                    sleeper.miss()
                } else {
                    sleeper.serve(&self.queue, turn + look)
                };
                if wake.is_some() {
                    state.present -= 1;
                    break wake;
                }
            };
            if late || wake.is_none() {
                unused += 1;
            }
            woken.extend(wake);
        }
        drop(state);
        self.give_back(unused);
        woken.into_iter().for_each(Wake::wake);
    }

    fn give_back(&self, turns: usize) {
        let line = &self.queue;
        for _ in 0..turns {
            self.core
                .give_back(&line.scope, line.scope.tokens(), line.origin);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Shut down with its runtime: who sleeps on another one asks again.
        let mut woken = Vec::new();
        let mut state = self.queue.lock();
        if state.driver != self.number {
            return;
        }
        state.is_served = false;
        let turns = std::mem::take(&mut state.reservations);
        for sleeper in std::mem::take(&mut state.waiters) {
            if let Some(wake) = sleeper.miss() {
                state.present -= 1;
                woken.push(wake);
            }
        }
        drop(state);
        self.core.queues.remove(&self.queue);
        for turn in turns.into_iter().rev() {
            self.queue.undo(&self.core, Some(turn));
        }
        woken.into_iter().for_each(Wake::wake);
    }
}
