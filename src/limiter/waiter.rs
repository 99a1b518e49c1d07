//! The meeting point of a caller and whoever answers it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{
    core::Core,
    remote::Mark,
    turns::{Line, TOLERANCE, Turn},
};
use crate::{
    decision::{Decision, Failure, Origin},
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
pub(crate) enum Place {
    /// Sent to whoever is marked.
    Asked(Option<Mark>),
    /// In this line, towards a turn that is not later than this.
    Asleep(Arc<Line>, Instant),
    Told,
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
    Asleep(Arc<Line>, Instant),
    Told(Outcome),
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
        origin: Origin,
        told: Instant,
    },
    Turn {
        which: usize,
        turn: Instant,
        origin: Origin,
    },
    /// The turn passed while the process stood still: ask again.
    Missed,
    /// The runtime that was to answer was shut down, or is not driven: ask again.
    Abandoned,
    Refused {
        which: usize,
        retry_after: std::time::Duration,
        told: Instant,
    },
    Failed(Failure),
}

impl State {
    fn is_told(&self) -> bool {
        matches!(self.stage, Stage::Told(_))
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

    pub(crate) fn is_asleep(&self) -> bool {
        matches!(self.lock().stage, Stage::Asleep(..))
    }

    /// To be polled again, though nothing is decided.
    pub(crate) fn nudge(&self) -> Wake {
        Wake(self.lock().waker.take())
    }

    /// Who was asked.
    pub(crate) fn set_mark(&self, mark: Option<Mark>) {
        self.lock().mark = mark;
    }

    pub(crate) fn place(&self) -> Place {
        let state = self.lock();
        match &state.stage {
            Stage::Asked => Place::Asked(state.mark),
            Stage::Asleep(line, turn) => Place::Asleep(line.clone(), *turn),
            Stage::Told(_) | Stage::Gone => Place::Told,
        }
    }

    /// Redis has answered. What it granted to somebody who has gone away goes back, at once or
    /// when its turn comes.
    pub(crate) fn answer(self: &Arc<Self>, answer: Result<Decision, Failure>) {
        self.decide(answer, Origin::Redis);
    }

    pub(crate) fn decide(self: &Arc<Self>, answer: Result<Decision, Failure>, origin: Origin) {
        let outcome = match answer {
            Ok(Decision::Wait {
                which,
                wait,
                reservation,
            }) => {
                let scope = &self.scopes()[which];
                let turn = Turn {
                    at: Instant::now() + wait,
                    reservation,
                };
                self.core.turns.add(&self.core, self, scope, origin, turn);
                return;
            }
            Ok(Decision::Now { tightest, level }) => {
                let told = Instant::now();
                if !self.tell(Outcome::Now {
                    tightest,
                    level,
                    origin,
                    told,
                }) {
                    self.give_back_all(origin, told);
                }
                return;
            }
            Ok(Decision::Refused { which, retry_after }) => Outcome::Refused {
                which,
                retry_after,
                told: Instant::now(),
            },
            Err(failure) => Outcome::Failed(failure),
        };
        self.tell(outcome);
    }

    fn give_back_all(&self, origin: Origin, told: Instant) {
        for scope in self.scopes() {
            self.core.give_back_late(scope, origin, told);
        }
    }

    /// False where nobody listens any more.
    fn tell(&self, outcome: Outcome) -> bool {
        self.enter(Stage::Told(outcome)).map(Wake::wake).is_some()
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
    pub(crate) fn fall_asleep(&self, line: &Arc<Line>, turn: Instant) -> Option<Wake> {
        self.enter(Stage::Asleep(line.clone(), turn))
    }

    /// Which of the scopes is reserved, for when at the latest, and where.
    pub(crate) fn reservation(&self) -> Option<(usize, Instant, Origin)> {
        match &self.lock().stage {
            Stage::Asleep(line, turn) => Some((self.position(line)?, *turn, line.origin())),
            _ => None,
        }
    }

    fn position(&self, line: &Line) -> Option<usize> {
        match self.scopes() {
            [_] => Some(0),
            scopes => scopes
                .iter()
                .position(|scope| line.serves(scope, &self.core.salt)),
        }
    }

    /// The turn on `line` has come; none where nobody listens any more.
    pub(crate) fn take_turn(&self, line: &Line, turn: Instant) -> Option<Wake> {
        let which = self.position(line)?;
        self.enter(Stage::Told(Outcome::Turn {
            which,
            turn,
            origin: line.origin(),
        }))
    }

    /// Nobody will answer; none where nobody listens any more.
    #[cfg(feature = "redis")]
    pub(crate) fn abandon(&self) -> Option<Wake> {
        self.enter(Stage::Told(Outcome::Abandoned))
    }

    /// The turn has passed; none where nobody listens any more.
    pub(crate) fn miss_turn(&self) -> Option<Wake> {
        self.enter(Stage::Told(Outcome::Missed))
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        // Dropped after the lock: a waker may run anything where it is cloned or dropped.
        let mut waker;
        let mut state = self.lock();
        let known = state.waker.as_ref();
        if !state.is_told() && known.is_none_or(|known| !known.will_wake(cx.waker())) {
            drop(state);
            waker = Some(cx.waker().clone());
            state = self.lock();
            if !state.is_told() {
                std::mem::swap(&mut state.waker, &mut waker);
            }
        }
        if state.is_told()
            && let Stage::Told(outcome) = std::mem::replace(&mut state.stage, Stage::Gone)
        {
            return Poll::Ready(outcome);
        }
        Poll::Pending
    }

    /// Whether it was told of a turn that has passed, of tokens that nobody has used since, or of
    /// a refusal that no longer holds.
    pub(crate) fn has_missed(&self) -> bool {
        match &self.lock().stage {
            Stage::Told(Outcome::Now { told: turn, .. } | Outcome::Turn { turn, .. }) => {
                turn.elapsed() > TOLERANCE
            }
            Stage::Told(Outcome::Refused {
                retry_after, told, ..
            }) => told.elapsed() > TOLERANCE.max(*retry_after),
            Stage::Told(Outcome::Missed) => true,
            _ => false,
        }
    }

    /// The caller goes away.
    pub(crate) fn leave(&self) {
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
            Stage::Asleep(line, _) => line.leave(&self.core),
            Stage::Told(Outcome::Now { origin, told, .. }) => self.give_back_all(origin, told),
            Stage::Told(Outcome::Turn {
                which,
                turn,
                origin,
            }) => {
                let scope = &self.scopes()[which];
                self.core.give_back_late(scope, origin, turn);
            }
            Stage::Told(_) => {}
        }
    }
}
