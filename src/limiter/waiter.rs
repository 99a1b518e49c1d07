//! The meeting point of a caller and whoever answers it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{
    backend::Mark,
    core::Core,
    wait_queue::{QueuedReservation, TOLERANCE, WaitQueue},
};
use crate::{
    decision::{DecidedBy, Decision, Failure},
    scope::{Scope, Scopes},
};

/// One demand of one caller, from when it is sent until the caller knows or goes away.
pub(crate) struct Waiter {
    core: Arc<Core>,
    scopes: Scopes,
    max_wait_us: f64,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// Who was asked.
    mark: Option<Mark>,
    waker: Option<Waker>,
}

/// How far the demand is.
pub(crate) enum Whereabouts {
    /// Sent to whoever is marked.
    Asked(Option<Mark>),
    /// In this line, towards a turn that is not later than this.
    Reserved(Arc<WaitQueue>, Instant),
    Answered,
}

/// ```text
/// Asked => Told        taken at once, refused, or failed
/// Asked => Asleep      a turn is promised
/// Asleep => Told       the turn has come, or was missed
/// Asked | Asleep | Told => Gone    the caller was dropped, or has read what it was told
/// ```
enum Stage {
    Asked,
    /// Until then, or until an earlier turn that another has left.
    Reserved(Arc<WaitQueue>, Instant),
    Answered(Outcome),
    Gone,
}

/// Wakes the caller; to be used once no lock is held, because a waker may run anything.
#[must_use]
pub(crate) struct Wake(Option<Waker>);

impl Wake {
    pub(crate) fn wake(self) {
        if let Some(waker) = self.0 {
            waker.wake();
        }
    }
}

/// What the caller is told.
#[derive(Debug)]
pub(crate) enum Outcome {
    Now {
        tightest: usize,
        level: f64,
        origin: DecidedBy,
        told: Instant,
    },
    Due {
        which: usize,
        due: Instant,
        origin: DecidedBy,
    },
    /// The turn passed while the process stood still: ask again.
    Missed,
    /// The runtime that was to answer was shut down, or is not driven: ask again.
    Abandoned,
    Rejected {
        which: usize,
        retry_after: std::time::Duration,
        told: Instant,
    },
    Failed(Failure),
}

impl State {
    fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Answered(_))
    }
}

impl Waiter {
    pub(crate) fn new(core: Arc<Core>, scopes: Scopes, max_wait_us: f64) -> Arc<Self> {
        Arc::new(Self {
            core,
            scopes,
            max_wait_us,
            state: Mutex::new(State {
                stage: Stage::Asked,
                mark: None,
                waker: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Stages are replaced as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn scopes(&self) -> &[Scope] {
        self.scopes.as_slice()
    }

    pub(crate) fn max_wait_us(&self) -> f64 {
        self.max_wait_us
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !matches!(self.lock().stage, Stage::Gone)
    }

    pub(crate) fn is_reserved(&self) -> bool {
        matches!(self.lock().stage, Stage::Reserved(..))
    }

    /// To be polled again, though nothing is decided.
    pub(crate) fn nudge(&self) -> Wake {
        Wake(self.lock().waker.take())
    }

    /// Who was asked.
    pub(crate) fn set_mark(&self, mark: Option<Mark>) {
        self.lock().mark = mark;
    }

    pub(crate) fn place(&self) -> Whereabouts {
        let state = self.lock();
        match &state.stage {
            Stage::Asked => Whereabouts::Asked(state.mark),
            Stage::Reserved(line, turn) => Whereabouts::Reserved(line.clone(), *turn),
            Stage::Answered(_) | Stage::Gone => Whereabouts::Answered,
        }
    }

    /// Redis has answered. What it granted to somebody who has gone away goes back, at once or
    /// when its turn comes.
    pub(crate) fn answer(self: &Arc<Self>, answer: Result<Decision, Failure>) {
        self.decide(answer, DecidedBy::Redis);
    }

    pub(crate) fn decide(self: &Arc<Self>, answer: Result<Decision, Failure>, origin: DecidedBy) {
        let outcome = match answer {
            Ok(Decision::Wait {
                which,
                wait,
                reservation,
            }) => {
                let scope = &self.scopes()[which];
                let turn = QueuedReservation {
                    due: Instant::now() + wait,
                    reservation,
                };
                self.core.queues.add(&self.core, self, scope, origin, turn);
                return;
            }
            Ok(Decision::Now { tightest, level }) => {
                let told = Instant::now();
                if !self.deliver(Outcome::Now {
                    tightest,
                    level,
                    origin,
                    told,
                }) {
                    self.give_back_all(origin, told);
                }
                return;
            }
            Ok(Decision::Rejected { which, retry_after }) => Outcome::Rejected {
                which,
                retry_after,
                told: Instant::now(),
            },
            Err(failure) => Outcome::Failed(failure),
        };
        self.deliver(outcome);
    }

    fn give_back_all(&self, origin: DecidedBy, told: Instant) {
        for scope in self.scopes() {
            self.core.give_back_late(scope, origin, told);
        }
    }

    /// False where nobody listens any more.
    fn deliver(&self, outcome: Outcome) -> bool {
        self.enter(Stage::Answered(outcome))
            .map(Wake::wake)
            .is_some()
    }

    /// None where nobody listens any more.
    fn enter(&self, stage: Stage) -> Option<Wake> {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Gone) {
            return None;
        }
        let before = std::mem::replace(&mut state.stage, stage);
        let wake = Wake(state.waker.take());
        drop(state);
        drop(before);
        Some(wake)
    }

    /// A turn is promised; none where nobody listens any more. The caller is woken, because it
    /// may hold something that it should not hold in its sleep.
    pub(crate) fn reserve(&self, line: &Arc<WaitQueue>, turn: Instant) -> Option<Wake> {
        self.enter(Stage::Reserved(line.clone(), turn))
    }

    /// Which of the scopes is reserved, for when at the latest, and where.
    pub(crate) fn reservation(&self) -> Option<(usize, Instant, DecidedBy)> {
        match &self.lock().stage {
            Stage::Reserved(line, turn) => Some((self.position(line)?, *turn, line.origin())),
            _ => None,
        }
    }

    fn position(&self, line: &WaitQueue) -> Option<usize> {
        match self.scopes() {
            [_] => Some(0),
            scopes => scopes
                .iter()
                .position(|scope| line.serves(scope, &self.core.salt)),
        }
    }

    /// The turn on `line` has come; none where nobody listens any more.
    pub(crate) fn serve(&self, line: &WaitQueue, turn: Instant) -> Option<Wake> {
        let which = self.position(line)?;
        self.enter(Stage::Answered(Outcome::Due {
            which,
            due: turn,
            origin: line.origin(),
        }))
    }

    /// Nobody will answer; none where nobody listens any more.
    pub(crate) fn abandon(&self) -> Option<Wake> {
        self.enter(Stage::Answered(Outcome::Abandoned))
    }

    /// The turn has passed; none where nobody listens any more.
    pub(crate) fn miss(&self) -> Option<Wake> {
        self.enter(Stage::Answered(Outcome::Missed))
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        // Dropped after the lock: a waker may run anything where it is cloned or dropped.
        let mut waker;
        let mut state = self.lock();
        let known = state.waker.as_ref();
        if !state.is_answered() && known.is_none_or(|known| !known.will_wake(cx.waker())) {
            drop(state);
            waker = Some(cx.waker().clone());
            state = self.lock();
            if !state.is_answered() {
                std::mem::swap(&mut state.waker, &mut waker);
            }
        }
        if state.is_answered()
            && let Stage::Answered(outcome) = std::mem::replace(&mut state.stage, Stage::Gone)
        {
            return Poll::Ready(outcome);
        }
        Poll::Pending
    }

    /// Whether it was told of a turn that has passed, of tokens that nobody has used since, or of
    /// a refusal that no longer holds.
    pub(crate) fn has_missed(&self) -> bool {
        match &self.lock().stage {
            Stage::Answered(Outcome::Now { told: turn, .. } | Outcome::Due { due: turn, .. }) => {
                turn.elapsed() > TOLERANCE
            }
            Stage::Answered(Outcome::Rejected {
                retry_after, told, ..
            }) => told.elapsed() > TOLERANCE.max(*retry_after),
            Stage::Answered(Outcome::Missed) => true,
            _ => false,
        }
    }

    /// The caller goes away.
    pub(crate) fn cancel(&self) {
        let (stage, waker) = {
            let mut state = self.lock();
            let stage = std::mem::replace(&mut state.stage, Stage::Gone);
            (stage, state.waker.take())
        };
        // Here, not under the lock of a line that drops the last reference to this.
        drop(waker);
        match stage {
            // Whoever answers sees that nobody listens.
            Stage::Asked | Stage::Gone => {}
            Stage::Reserved(line, _) => line.cancel(&self.core),
            Stage::Answered(Outcome::Now { origin, told, .. }) => self.give_back_all(origin, told),
            Stage::Answered(Outcome::Due {
                which,
                due: turn,
                origin,
            }) => {
                let scope = &self.scopes()[which];
                self.core.give_back_late(scope, origin, turn);
            }
            Stage::Answered(_) => {}
        }
    }
}
