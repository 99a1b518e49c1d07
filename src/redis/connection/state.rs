//! What the callers of a link share with the keeper: the connection, and how it is.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};

use crate::redis::{
    connection::breaker::{Act, Breaker, Event},
    connection::failure::{is_paused, timed_out},
    connection::recovery::Payments,
    connection::redis_connection::ConnectionConfig,
    connection::supervisor::Supervisor,
    connection::transport::Session,
    heartbeat::{Age, Answer, Epoch, Heartbeat},
    script::ACQUIRE,
    script::Reply,
};
use crate::{
    clock::to_us,
    decision::{Failure, FailureKind},
    peers::{HeartbeatReply, SILENCE},
};

/// Without a beat for so long a limiter counts as cut off.
const ALIVE: Duration = SILENCE;

/// A limiter that has been counted for less than this is not missed when it falls silent: a
/// process that runs for a moment, again and again, must not cost the others their limit.
const LIVED: Duration = Duration::from_secs(5);

/// After an outage of at least this, whoever was not heard since it began counts as not back
/// yet. In a shorter one too little is spent for that, and those whom it did not hit have not
/// had the time for a beat.
const LONG_OUTAGE: Duration = Duration::from_millis(300);

/// For so long each call may wait for the first connection, up to its own time-out. Connecting
/// takes some ten round trips: that the first calls come too early for it is no outage yet.
const SLOW_START: Duration = Duration::from_secs(1);

pub(crate) struct ConnectionState {
    pub(crate) config: ConnectionConfig,
    state: Mutex<State>,
    /// Says that `state` has changed.
    changed: watch::Sender<()>,
    /// At a glance: connected, and no outage lately.
    pub(crate) steady: AtomicBool,
    /// By which name the other limiters count this one.
    pub(crate) limiter: String,
    random: Mutex<fastrand::Rng>,
    pub(crate) payments: Mutex<Payments>,
    /// This client may not beat, and that was told.
    may_not_beat: AtomicBool,
    /// The other limiters count this one, over a connection that works.
    /// The number of the keeper whose heartbeat they have counted last; 0: none.
    pub(crate) counted: Arc<AtomicU64>,
    /// It has said goodbye, and no longer beats.
    pub(crate) left: AtomicBool,
    /// The limiter is gone: told to those who wait, and kept.
    pub(crate) closed: Arc<Notify>,
    pub(crate) is_closed: AtomicBool,
}

pub(crate) struct State {
    pub(crate) stage: Stage,
    /// The number of the keeper that this state is of; what those before it do is of no account.
    pub(crate) keeper: u64,
    /// When it last began a step, or was given one.
    active: Option<Instant>,
    breaker: Breaker,
    /// Before the next probe.
    pause: Duration,
    /// By what Redis was known when all was well.
    epoch: Option<Epoch>,
    pub(crate) tripped: Option<Instant>,
    pub(crate) recovered: Option<Instant>,
    /// The server's time, in milliseconds, in its last answer, and when that was asked for.
    server_ms: Option<(f64, Instant)>,
    /// When a beat was answered first.
    counted_since: Option<Instant>,
}

impl State {
    /// Whether the keeper does not do its next step, because its runtime is not driven.
    pub(crate) fn is_stalled(&self, after: Duration) -> bool {
        self.active.is_some_and(|active| active.elapsed() > after)
    }

    pub(crate) fn is_in(&self, grace: Duration) -> bool {
        matches!(self.stage, Stage::Up(_)) && self.recovered.is_some_and(|at| at.elapsed() < grace)
    }
}

pub(crate) enum Stage {
    Idle,
    /// Since then the supervisor connects for the first time.
    Starting(Instant),
    Up(Arc<Live>),
    Down(Failure),
}

/// A connection in use.
pub(crate) struct Live {
    pub(crate) session: Box<dyn Session>,
    pub(crate) generation: u64,
    pub(crate) epoch: Option<[u8; 8]>,
    /// Tells all calls in flight that the connection has failed one of them.
    pub(crate) gone: watch::Sender<bool>,
}

pub(crate) fn data_lost() -> Failure {
    Failure::new(
        FailureKind::DataLost,
        "Redis has lost its data: it came back empty, or was flushed",
    )
    .unsent()
}

pub(crate) fn disconnected() -> Failure {
    Failure::new(FailureKind::Disconnected, "the connection was given up")
}

impl ConnectionState {
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        Self {
            limiter: format!("{:016x}", config.seed),
            random: Mutex::new(fastrand::Rng::with_seed(config.seed)),
            config,
            state: Mutex::new(State {
                stage: Stage::Idle,
                keeper: 0,
                active: None,
                breaker: Breaker::new(),
                pause: Duration::ZERO,
                epoch: None,
                tripped: None,
                recovered: None,
                server_ms: None,
                counted_since: None,
            }),
            changed: watch::Sender::new(()),
            steady: AtomicBool::new(false),
            payments: Mutex::default(),
            may_not_beat: AtomicBool::new(false),
            counted: Arc::default(),
            left: AtomicBool::new(false),
            closed: Arc::default(),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Stages are replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection as it is; only the first connection of all is waited for.
    pub(crate) async fn live(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Live>, Failure> {
        if let Stage::Up(live) = &self.lock().stage {
            return Ok(live.clone());
        }
        let mut changed = self.changed.subscribe();
        let mut started = false;
        loop {
            let starts = {
                let mut state = self.lock();
                match &state.stage {
                    Stage::Up(live) => return Ok(live.clone()),
                    Stage::Down(failure) => return Err(failure.clone()),
                    Stage::Starting(_) => None,
                    // The keeper that this call had started is gone again.
                    Stage::Idle if started => return Err(disconnected()),
                    Stage::Idle => {
                        state.stage = Stage::Starting(Instant::now());
                        state.keeper += 1;
                        started = true;
                        Some(state.keeper)
                    }
                }
            };
            if let Some(number) = starts {
                // Outside the lock: a runtime that shuts down drops the task here.
                Supervisor::spawn(self, number);
            }
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                _ => {
                    let failure = timed_out();
                    let slow = match is_paused() {
                        true => Duration::ZERO,
                        false => SLOW_START,
                    };
                    self.gives_up_starting(slow, &failure);
                    return Err(failure);
                }
            }
        }
    }

    /// Nobody waits any more for a first connection that has been under way for so long.
    fn gives_up_starting(&self, after: Duration, failure: &Failure) {
        let mut state = self.lock();
        if !matches!(state.stage, Stage::Starting(since) if since.elapsed() >= after) {
            return;
        }
        state.stage = Stage::Down(failure.clone());
        state.tripped = Some(Instant::now());
        let noticed = self.config.observer.redis_failed(failure);
        drop(state);
        noticed.report(&self.config.observer);
        self.changed.send_replace(());
    }

    /// A background task has failed, whatever it was doing.
    pub(crate) fn fail(&self, failure: &Failure) {
        let generation = match &self.lock().stage {
            Stage::Up(live) => Some(live.generation),
            _ => None,
        };
        if let Some(generation) = generation {
            self.record(generation, Some(failure));
            return;
        }
        self.gives_up_starting(Duration::ZERO, failure);
        // Without a supervisor the next call connects, and ends what begins here.
        let noticed = self.config.observer.redis_failed(failure);
        noticed.report(&self.config.observer);
        self.config.observer.advise(failure);
    }

    /// Runs the script on buckets of this epoch, where the part `back` of all is back.
    pub(crate) async fn run(
        &self,
        session: &dyn Session,
        epoch: Option<[u8; 8]>,
        back: f64,
        mut keys: Vec<Vec<u8>>,
        argument: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        if epoch.is_some() {
            keys.push(Epoch::key(&self.config.keyspace));
        }
        let epoch = epoch.as_ref().map_or(&[][..], |epoch| epoch);
        let part = if back < 1.0 {
            back.to_string()
        } else {
            String::new()
        };
        let arguments = [argument, epoch, part.as_bytes()];
        let given = match (epoch, back) {
            (_, back) if back < 1.0 => 3,
            ([], _) => 1,
            _ => 2,
        };
        let reply = session.run(&ACQUIRE, &keys, &arguments[..given]).await?;
        if reply.is_empty() {
            return Err(data_lost());
        }
        Ok(reply)
    }

    /// As `run`, within the deadline of a call.
    pub(crate) async fn run_in_time(
        &self,
        session: &dyn Session,
        epoch: Option<[u8; 8]>,
        back: f64,
        keys: Vec<Vec<u8>>,
        argument: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        self.is_active();
        let run = self.run(session, epoch, back, keys, argument);
        timeout(self.config.timeout, run)
            .await
            .unwrap_or_else(|_| Err(timed_out()))
    }

    /// The first call over a connection: it writes, because a Redis that answers but refuses
    /// writes is of no use.
    pub(crate) async fn probe(
        &self,
        session: &dyn Session,
        key: Vec<u8>,
        argument: &[u8],
    ) -> Result<(), Failure> {
        // Where the server does not know the script yet, that takes two round trips.
        let mut sent = Instant::now();
        let first = self.run(session, None, 1.0, vec![key.clone()], argument);
        let mut reply = timeout(self.connect_timeout(), first)
            .await
            .unwrap_or_else(|_| Err(timed_out()))?;
        if sent.elapsed() > self.config.timeout {
            sent = Instant::now();
            reply = self
                .run_in_time(session, None, 1.0, vec![key], argument)
                .await?;
        }
        if let Some(us) = Reply::new(&reply, 1, 0).and_then(|reply| reply.time()) {
            self.learn_time(us / 1e3, sent);
        }
        Ok(())
    }

    /// What a call that connecting consists of may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.config.connect_timeout.max(self.config.timeout)
    }

    /// After an outage, the part of all that is back.
    pub(crate) fn recovered_part(&self) -> f64 {
        match self.is_recovering() {
            true => self.config.peers.recovered(),
            false => 1.0,
        }
    }

    /// Of this connection's server, in its answer to what was asked at `sent`.
    pub(crate) fn learn_time(&self, ms: f64, sent: Instant) {
        self.lock().server_ms = Some((ms, sent));
    }

    /// The server's time, in milliseconds, at which a call that is sent now is given up, or a
    /// little later. Its clock alone decides, so that the clocks of the processes do not matter.
    fn given_up_at(&self, within: Duration) -> Option<f64> {
        let (ms, sent) = self.lock().server_ms?;
        Some(ms + to_us(sent.elapsed() + within) / 1e3)
    }

    fn age(&self) -> Age {
        match self.lock().counted_since {
            None => Age::First,
            Some(since) if since.elapsed() < LIVED => Age::New,
            Some(_) => Age::Lived,
        }
    }

    /// Reports what is reserved for those who are missing.
    pub(crate) fn report_reserved(&self) {
        let members = &self.config.peers;
        let (missing, part) = match self.is_recovering() {
            true => (0, 1.0),
            false => (members.missing(), members.part(Instant::now()).of_rate),
        };
        self.config.observer.reserved(missing, part);
    }

    pub(crate) fn is_recovering(&self) -> bool {
        !self.steady.load(Ordering::Acquire) && self.lock().is_in(self.config.recovery_window())
    }

    /// Who was heard within this time counts as alive; in and after an outage, whoever was heard
    /// since it began.
    fn alive_within(&self) -> Duration {
        let state = self.lock();
        let away = matches!(state.stage, Stage::Down(_));
        match state.tripped {
            Some(tripped) if away || state.is_in(self.config.recovery_window()) => {
                let back = state.recovered.filter(|_| !away);
                let outage = back.unwrap_or_else(Instant::now) - tripped;
                match outage >= LONG_OUTAGE {
                    true => tripped.elapsed().min(ALIVE),
                    false => ALIVE,
                }
            }
            _ => ALIVE,
        }
    }

    /// Beats. None where this client may not.
    pub(crate) async fn heartbeat(
        &self,
        session: &dyn Session,
        within: Duration,
        keeper: u64,
    ) -> Result<Option<(Epoch, HeartbeatReply)>, Failure> {
        // An answer in time which says that the heartbeat was late: the server's clock was set.
        for _ in 0..2 {
            let heartbeat = Heartbeat {
                instance: self.config.instance.as_deref(),
                age: self.age(),
                epoch: self.epoch(),
                leaves: false,
                alive_within: self.alive_within(),
                reserve_for: self.config.peers.reserve_for,
                random: self.random().u64(..),
                good_until: self.given_up_at(within),
                ..Heartbeat::last(&self.config.keyspace, &self.limiter)
            };
            match self.send(session, heartbeat, within).await? {
                Answer::Counted(epoch, beat) => {
                    let mut state = self.lock();
                    state.counted_since = state.counted_since.or_else(|| Some(Instant::now()));
                    drop(state);
                    self.counted.store(keeper, Ordering::Relaxed);
                    return Ok(Some((epoch, beat)));
                }
                Answer::None => return Ok(None),
                Answer::Late => {}
            }
        }
        Err(timed_out())
    }

    /// The other limiters do not count this one any more.
    pub(crate) async fn deregister(
        &self,
        session: &dyn Session,
        within: Duration,
    ) -> Result<(), Failure> {
        let last = Heartbeat::last(&self.config.keyspace, &self.limiter);
        self.send(session, last, within).await?;
        self.counted.store(0, Ordering::Relaxed);
        Ok(())
    }

    async fn send(
        &self,
        session: &dyn Session,
        heartbeat: Heartbeat<'_>,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let sent = Instant::now();
        match heartbeat.send(session, within).await {
            Ok((answer, ms)) => {
                self.may_not_beat.store(false, Ordering::Relaxed);
                if let Some(ms) = ms {
                    self.learn_time(ms, sent);
                }
                Ok(answer)
            }
            // The limits are kept without it, only less well when Redis goes.
            Err(failure) if failure.single || failure.kind == FailureKind::Misconfigured => {
                if !self.may_not_beat.swap(true, Ordering::Relaxed) {
                    self.config.observer.advise(&failure);
                }
                Ok(Answer::None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// What a call over this connection met.
    pub(crate) fn record(&self, generation: u64, failure: Option<&Failure>) {
        self.observe(generation, failure);
        if let Some(failure) = failure {
            self.config.observer.advise(failure);
        }
    }

    fn observe(&self, generation: u64, failure: Option<&Failure>) {
        let mut state = self.lock();
        let event = match failure {
            None => Event::Answered(generation),
            Some(failure) if failure.single => Event::FailedSingly(generation),
            Some(_) => Event::Failed(generation),
        };
        let now = Instant::now();
        let Act::Trip(pause) = state.breaker.on(event, now) else {
            return;
        };
        let failure = failure.cloned().unwrap_or_else(disconnected);
        self.steady.store(false, Ordering::Release);
        state.pause = pause;
        state.active = Some(now);
        state.tripped = Some(now);
        let down = Stage::Down(failure.clone());
        let up = std::mem::replace(&mut state.stage, down);
        let noticed = self.config.observer.redis_failed(&failure);
        drop(state);
        noticed.report(&self.config.observer);
        self.changed.send_replace(());
        if let Stage::Up(live) = up {
            live.gone.send_replace(true);
        }
    }

    /// Before the next probe.
    pub(crate) fn pause(&self) -> Duration {
        self.lock().pause
    }

    /// Whether nothing has replaced this keeper.
    pub(crate) fn is_kept_by(&self, keeper: u64) -> bool {
        self.lock().keeper == keeper
    }

    /// False where another keeper has taken over, or the limiter is gone.
    pub(crate) fn probes(&self, keeper: u64) -> bool {
        let mut state = self.lock();
        if state.keeper != keeper || self.is_closed.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        state.active = Some(now);
        state.breaker.on(Event::PauseOver, now);
        true
    }

    fn is_active(&self) {
        self.lock().active = Some(Instant::now());
    }

    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.lock().epoch
    }

    pub(crate) fn set_epoch(&self, epoch: Option<Epoch>) {
        self.lock().epoch = epoch;
    }

    /// The probe failed.
    pub(crate) fn stay_down(&self, keeper: u64, failure: Failure) {
        let mut state = self.lock();
        if state.keeper != keeper {
            return;
        }
        let noticed = self.config.observer.redis_failed(&failure);
        let now = Instant::now();
        state.active = Some(now);
        if let Act::Trip(pause) = state.breaker.on(Event::ProbeFailed, now) {
            state.pause = pause;
        }
        if !matches!(state.stage, Stage::Down(_)) {
            state.tripped = Some(now);
        }
        let down = Stage::Down(failure.clone());
        let before = std::mem::replace(&mut state.stage, down);
        drop(state);
        drop(before);
        noticed.report(&self.config.observer);
        self.config.observer.advise(&failure);
        self.changed.send_replace(());
    }

    /// The supervisor panicked, and goes on.
    pub(crate) fn crash(&self, keeper: u64, failure: Failure) {
        let state = self.lock();
        let (is_up, is_last) = (matches!(state.stage, Stage::Up(_)), state.keeper == keeper);
        drop(state);
        match is_up {
            _ if !is_last => self.config.observer.advise(&failure),
            true => self.fail(&failure),
            false => self.stay_down(keeper, failure),
        }
    }

    /// The probe was answered, and all that was owed is charged.
    pub(crate) fn recover(&self, keeper: u64, session: Box<dyn Session>) -> Option<Arc<Live>> {
        let mut state = self.lock();
        if state.keeper != keeper {
            return None;
        }
        let now = Instant::now();
        let Act::Pass(generation) = state.breaker.on(Event::ProbeAnswered, now) else {
            return None;
        };
        let live = Arc::new(Live {
            session,
            generation,
            epoch: state.epoch.map(|epoch| epoch.id),
            gone: watch::Sender::new(false),
        });
        // Also where the keeper that saw it go is gone itself.
        if state.tripped > state.recovered {
            state.recovered = Some(now);
            let until = now + self.config.recovery_window();
            self.config.peers.expect_all_until(until, now);
        }
        let up = Stage::Up(live.clone());
        let before = std::mem::replace(&mut state.stage, up);
        let noticed = self.config.observer.redis_recovered();
        drop(state);
        drop(before);
        noticed.report(&self.config.observer);
        self.changed.send_replace(());
        Some(live)
    }

    /// The keeper's runtime was shut down under it, or is not driven, or the driver panicked: the
    /// next call, perhaps on another runtime, starts anew. Nothing, where it is another keeper's.
    pub(crate) fn abandon(&self, keeper: Option<u64>) {
        let mut state = self.lock();
        if keeper.is_some_and(|keeper| keeper != state.keeper) {
            return;
        }
        state.keeper += 1;
        self.steady.store(false, Ordering::Release);
        state.breaker.abandon();
        let before = std::mem::replace(&mut state.stage, Stage::Idle);
        drop(state);
        self.changed.send_replace(());
        if let Stage::Up(live) = before {
            live.gone.send_replace(true);
        }
    }
}
