//! The state of one connection, shared by its callers and its supervisor. No I/O.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    decision::Failure,
    redis::{
        class::ClassesInUse,
        connection::{
            breaker::{Action, Breaker, Event},
            config::ConnectionConfig,
            corrections::WriteBacks,
            failure::disconnected,
            transport::Session,
        },
        heartbeat::Epoch,
    },
    telemetry::HealthChange,
};

pub(super) struct ConnectionState {
    pub(super) config: ConnectionConfig,
    /// The name under which the peers count this limiter.
    pub(super) limiter: String,
    state: Mutex<State>,
    /// Notifies callers that wait for the first connection that the stage has changed.
    pub(super) changed: watch::Sender<()>,
    /// Whether Redis alone decides: connected, and the recovery window is over. Derived from
    /// `state`, for callers that take no lock.
    pub(super) passing: AtomicBool,
    /// In which classes this limiter has looked for buckets.
    pub(super) classes_in_use: ClassesInUse,
    write_backs: Mutex<WriteBacks>,
    random: Mutex<fastrand::Rng>,
    /// Redis does not allow heartbeats to this client, and that was logged.
    pub(super) heartbeat_denied: AtomicBool,
    /// The number of the supervisor whose heartbeat was answered last; 0 if the peers do not
    /// count this limiter.
    pub(super) registered_by: Arc<AtomicU64>,
    /// The limiter has deregistered, and sends no heartbeats any more.
    pub(super) deregistered: AtomicBool,
    /// This limiter pauses buckets, and announces that with its heartbeats.
    pub(super) announces_pauses: AtomicBool,
    /// Some limiter on this Redis pauses buckets. Never unset, since reservations may be older than
    /// the last pause.
    pub(super) pauses_in_use: AtomicBool,
    /// The limiter is dropped, and its last calls are done.
    pub(super) closed: AtomicBool,
    /// Wakes the supervisor between two heartbeats.
    pub(super) wake: Arc<Notify>,
}

/// What is under the lock.
pub(super) struct State {
    pub(super) stage: Stage,
    /// The number of the current supervisor. Those with a lower number change nothing any more.
    pub(super) supervisor: u64,
    /// When the supervisor last began a step, or was last given one to do.
    last_step: Option<Instant>,
    breaker: Breaker,
    /// Before the next probe.
    pause: Duration,
    /// The epoch of Redis when it was last in use.
    epoch: Option<Epoch>,
    pub(super) tripped: Option<Instant>,
    pub(super) recovered: Option<Instant>,
    /// The server's time in its last reply, in milliseconds, and when that call was sent.
    pub(super) server_ms: Option<(f64, Instant)>,
    /// When a heartbeat was first answered.
    pub(super) registered_since: Option<Instant>,
}

/// ```text
/// Idle => Connecting           the first call starts the supervisor
/// Connecting => Connected      a call that writes succeeded
/// Connecting => Unavailable    it did not, or took too long
/// Connected => Unavailable     the breaker tripped: the connection is dropped
/// Unavailable => Connected     a later call that writes succeeded
/// any => Idle                  the supervisor's runtime shut down, or does not drive it
/// ```
pub(super) enum Stage {
    Idle,
    /// Since then, for the first time.
    Connecting(Instant),
    Connected(Arc<LiveSession>),
    Unavailable(Failure),
}

/// A connection in use.
pub(super) struct LiveSession {
    pub(super) session: Box<dyn Session>,
    /// The number that the breaker gave to it.
    pub(super) generation: u64,
    pub(super) epoch: Option<[u8; 8]>,
    /// Set once the connection is dropped, so that all calls in flight end.
    pub(super) dropped: watch::Sender<bool>,
}

impl State {
    /// Whether the supervisor is not driven by its runtime.
    pub(super) fn is_stalled(&self, after: Duration) -> bool {
        self.last_step.is_some_and(|step| step.elapsed() > after)
    }

    pub(super) fn is_recovering(&self, window: Duration) -> bool {
        let connected = matches!(self.stage, Stage::Connected(_));
        connected && self.recovered.is_some_and(|at| at.elapsed() < window)
    }

    /// Idle => Connecting. The number of the supervisor to start.
    pub(super) fn start(&mut self) -> u64 {
        self.stage = Stage::Connecting(Instant::now());
        self.supervisor += 1;
        self.supervisor
    }
}

impl ConnectionState {
    pub(super) fn new(config: ConnectionConfig) -> Self {
        Self {
            classes_in_use: ClassesInUse::default(),
            limiter: format!("{:016x}", config.seed),
            random: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            config,
            state: Mutex::new(State {
                stage: Stage::Idle,
                supervisor: 0,
                last_step: None,
                breaker: Breaker::new(),
                pause: Duration::ZERO,
                epoch: None,
                tripped: None,
                recovered: None,
                server_ms: None,
                registered_since: None,
            }),
            changed: watch::Sender::new(()),
            passing: AtomicBool::new(false),
            write_backs: Mutex::default(),
            heartbeat_denied: AtomicBool::new(false),
            registered_by: Arc::default(),
            deregistered: AtomicBool::new(false),
            announces_pauses: AtomicBool::new(false),
            pauses_in_use: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wake: Arc::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so a panic leaves no half of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_backs(&self) -> MutexGuard<'_, WriteBacks> {
        self.write_backs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the next probe.
    pub(super) fn pause(&self) -> Duration {
        self.lock().pause
    }

    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.lock().epoch
    }

    pub(super) fn set_epoch(&self, epoch: Option<Epoch>) {
        self.lock().epoch = epoch;
    }

    pub(super) fn is_recovering(&self) -> bool {
        !self.passing.load(Ordering::Acquire)
            && self.lock().is_recovering(self.config.recovery_window())
    }

    /// Whether no other supervisor has replaced this one.
    pub(super) fn is_supervised_by(&self, supervisor: u64) -> bool {
        self.lock().supervisor == supervisor
    }

    /// Records that the supervisor, or a call for it, makes progress.
    pub(super) fn begin_step(&self) {
        self.lock().last_step = Some(Instant::now());
    }

    /// Before a probe. False if another supervisor has taken over, or the limiter is closed.
    pub(super) fn begin_probe(&self, supervisor: u64) -> bool {
        let mut state = self.lock();
        if state.supervisor != supervisor || self.closed.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        state.last_step = Some(now);
        state.breaker.on(Event::PauseOver, now);
        true
    }

    /// Connecting, Unavailable => Connected. The steps of recovery are done.
    pub(super) fn probe_succeeded(
        &self,
        supervisor: u64,
        session: Box<dyn Session>,
    ) -> Option<Arc<LiveSession>> {
        let mut state = self.lock();
        if state.supervisor != supervisor {
            return None;
        }
        let now = Instant::now();
        let Action::Pass(generation) = state.breaker.on(Event::ProbeAnswered, now) else {
            return None;
        };
        let live = Arc::new(LiveSession {
            session,
            generation,
            epoch: state.epoch.map(|epoch| epoch.id),
            dropped: watch::Sender::new(false),
        });
        // Also if the outage began under an earlier supervisor.
        if state.tripped > state.recovered {
            state.recovered = Some(now);
            let until = now + self.config.recovery_window();
            self.config.peers.expect_all_until(until, now);
        }
        let change = self.config.observer.redis_recovered();
        self.enter(state, Stage::Connected(live.clone()), Some(change));
        Some(live)
    }

    /// Connecting, Unavailable => Unavailable.
    pub(super) fn probe_failed(&self, supervisor: u64, failure: &Failure) {
        let mut state = self.lock();
        if state.supervisor != supervisor {
            return;
        }
        let now = Instant::now();
        state.last_step = Some(now);
        if let Action::Trip(pause) = state.breaker.on(Event::ProbeFailed, now) {
            state.pause = pause;
        }
        if !matches!(state.stage, Stage::Unavailable(_)) {
            state.tripped = Some(now);
        }
        self.enter_unavailable(state, failure);
        self.config.observer.advise(failure);
    }

    /// Connecting => Unavailable, if connecting has taken at least this long: no caller waits for
    /// it any more.
    pub(super) fn give_up_connecting(&self, after: Duration, failure: &Failure) {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Connecting(since) if since.elapsed() >= after) {
            state.tripped = Some(Instant::now());
            self.enter_unavailable(state, failure);
        }
    }

    /// Records the result of a call over a connection. Connected => Unavailable, if the breaker
    /// trips.
    pub(super) fn record(&self, generation: u64, failure: Option<&Failure>) {
        let event = match failure {
            None => Event::Answered(generation),
            Some(failure) if failure.single => Event::FailedSingly(generation),
            Some(_) => Event::Failed(generation),
        };
        let mut state = self.lock();
        let now = Instant::now();
        if let Action::Trip(pause) = state.breaker.on(event, now) {
            self.passing.store(false, Ordering::Release);
            state.pause = pause;
            state.last_step = Some(now);
            state.tripped = Some(now);
            self.enter_unavailable(state, &failure.cloned().unwrap_or_else(disconnected));
        } else {
            drop(state);
        }
        if let Some(failure) = failure {
            self.config.observer.advise(failure);
        }
    }

    /// A background task other than the supervisor has failed.
    pub(super) fn task_failed(&self, failure: &Failure) {
        let generation = match &self.lock().stage {
            Stage::Connected(live) => Some(live.generation),
            _ => None,
        };
        if let Some(generation) = generation {
            return self.record(generation, Some(failure));
        }
        self.give_up_connecting(Duration::ZERO, failure);
        // Without a supervisor the next call connects, and so ends this outage.
        let change = self.config.observer.redis_failed(failure);
        change.report(&self.config.observer);
        self.config.observer.advise(failure);
    }

    /// The supervisor has panicked, and continues.
    pub(super) fn supervisor_panicked(&self, supervisor: u64, failure: &Failure) {
        let state = self.lock();
        let is_connected = matches!(state.stage, Stage::Connected(_));
        let is_current = state.supervisor == supervisor;
        drop(state);
        match is_connected {
            _ if !is_current => self.config.observer.advise(failure),
            true => self.task_failed(failure),
            false => self.probe_failed(supervisor, failure),
        }
    }

    /// Any => Idle, unless the supervisor is another one than this: the next call, perhaps on
    /// another runtime, starts a new one.
    pub(super) fn abandon(&self, supervisor: Option<u64>) {
        let mut state = self.lock();
        if supervisor.is_some_and(|supervisor| supervisor != state.supervisor) {
            return;
        }
        state.supervisor += 1;
        self.passing.store(false, Ordering::Release);
        state.breaker.abandon();
        self.enter(state, Stage::Idle, None);
    }

    fn enter_unavailable(&self, state: MutexGuard<'_, State>, failure: &Failure) {
        // Under the lock, so that health and stage change in the same order.
        let change = self.config.observer.redis_failed(failure);
        self.enter(state, Stage::Unavailable(failure.clone()), Some(change));
    }

    /// Changes the stage. Once the lock is released: reports the change of health, and wakes
    /// callers that wait for a connection and those whose connection is dropped.
    fn enter(&self, mut state: MutexGuard<'_, State>, stage: Stage, change: Option<HealthChange>) {
        let before = mem::replace(&mut state.stage, stage);
        drop(state);
        if let Some(change) = change {
            change.report(&self.config.observer);
        }
        self.changed.send_replace(());
        if let Stage::Connected(live) = before {
            live.dropped.send_replace(true);
        }
    }
}
