//! One acquisition, from its first poll to a permit or a rejection: [`Acquire`].
//!
//! ```text
//! poll             Core::decide_locally decides, or else:
//! └ poll_undecided     carries out one `Next` after the other
//!   ├ Ask          attempt.rs   requests the scopes that are left from memory or Redis
//!   ├ FallBack     attempt.rs   Redis is unavailable: the fallback policy decides
//!   ├ Wait         answer.rs    waits for the answer, for a reservation, or for a timer
//!   ├ Resume       answer.rs    several scopes: aligns what was obtained, then requests the rest
//!   └ Admit, Reject             the result
//! ```
//!
//! `obtained.rs` has the rules for several scopes, `watchdog.rs` the caller's own timer.

mod answer;
mod attempt;
mod obtained;
mod watchdog;

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::time::Instant;

use self::{
    obtained::{Obtained, TakenScope},
    watchdog::Watchdog,
};
use super::{
    charge::{Charged, Origins},
    core::Core,
    permit::Permit,
    queue::Waiter,
};
use crate::{
    clock::LONGEST_WAIT,
    decision::{DecidedBy, Failure, FailureKind},
    rejected::Rejected,
    scope::Scopes,
    telemetry::Outcome,
};

/// The most scopes of one acquisition, so that the script never blocks Redis for long.
const MAX_SCOPES: usize = 128;

/// The most requests of one poll that end without an answer; after that, none is expected. On a
/// runtime that is being shut down, each task that a poll starts ends at once. Other causes, such
/// as an answer that is too old, do not occur that often in one poll, even on a slow machine.
const MAX_RETRIES: u32 = 3;

const POLLED_AGAIN: &str = "`Acquire` was polled after it had resolved";

/// Takes tokens; made by [`Limiter::try_acquire`](crate::Limiter::try_acquire) and
/// [`Limiter::acquire`](crate::Limiter::acquire). Nothing happens before it is polled.
///
/// # Errors
///
/// Returns [`Rejected`] if the tokens are not granted, with the reason and when to retry.
///
/// # Cancel safety
///
/// If it is dropped before it resolves, it gives back the tokens that it was granted. Before the
/// request is sent, nothing is taken. While the request is in flight, tokens are given back when
/// the answer arrives. While it waits for its reservation, the waiters behind it in this process
/// move up, and the last of their reservations is undone. If no other process has a later
/// reservation, the bucket is then as if the undone one had never been made. Otherwise a new
/// request may take its place, or its tokens return to the bucket when it is due. A bucket stores
/// 64 cancelled reservations that are not adjacent to each other; the tokens of further ones
/// return by the refill only.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let api = Quota::per_second(10.0).scope("api");
/// let permit = limiter.acquire(api, Duration::from_secs(1)).await.unwrap();
/// # drop(permit);
/// # }
/// ```
#[must_use = "an acquisition takes nothing unless it is awaited"]
pub struct Acquire {
    /// `None` after it was admitted.
    core: Option<Arc<Core>>,
    scopes: Scopes,
    max_wait: Duration,
    /// The end of `max_wait`. Set by the first poll.
    deadline: Option<Instant>,
    /// What was taken or reserved so far, if not all scopes were granted at once.
    obtained: Option<Box<Obtained>>,
    state: AcquireState,
    /// Created when it is first needed.
    watchdog: Option<Box<Watchdog>>,
    /// The index, below 128, of the last scope whose reservation it has waited for.
    waited_for: Option<u32>,
    /// When the first of the tokens was due, unless that is now.
    due: Option<Instant>,
    /// Whether a request was made again after the deadline, because its answer was too old.
    has_asked_late: bool,
    /// For a layer in shadow mode: a rejection is counted as such.
    shadow: bool,
}

/// ```text
/// Start => Undecided              no local decision
/// Undecided => Waiting            a backend is asked
/// Waiting => Reserving            answered, or one of several scopes is reserved
/// Reserving => Waiting            the scopes that are left are requested
/// Start, Undecided, Waiting, Reserving => Done    admitted or rejected
/// ```
enum AcquireState {
    Start,
    /// `Core::decide_locally` was tried for the one scope.
    Undecided,
    /// For the answer about the scopes that were left, or for the reservation of one of them.
    Waiting(Arc<Waiter>),
    /// What is reserved is not due yet, and the scopes that are left, if any, are requested later.
    Reserving,
    Done,
}

/// What to do next.
enum Next {
    /// Ask a backend for the scopes that are left.
    Ask,
    /// Let the fallback policy decide about the scopes that are left.
    FallBack(Failure),
    /// What was taken or reserved has changed.
    Resume,
    /// As `Resume`, after a request that ended without an answer.
    Retry,
    /// Wait for what `state` names.
    Wait,
    /// With the index and the level of the tightest scope, and the backend that took those scopes
    /// that are not in `obtained`.
    Admit(Option<(usize, f64)>, DecidedBy),
    Reject(Rejected),
}

impl Acquire {
    #[inline]
    pub(crate) fn new(core: Arc<Core>, scopes: Scopes, max_wait: Duration) -> Self {
        Self {
            core: Some(core),
            scopes: match scopes.as_slice().len() {
                // Merging compares each with each. More scopes are rejected by `ask`.
                2..=MAX_SCOPES => scopes.merged(),
                _ => scopes,
            },
            max_wait: max_wait.min(LONGEST_WAIT),
            deadline: None,
            obtained: None,
            state: AcquireState::Start,
            watchdog: None,
            waited_for: None,
            due: None,
            has_asked_late: false,
            shadow: false,
        }
    }

    /// An acquisition for which the caller has tried `Core::decide_locally`, if it is of one scope.
    pub(crate) fn undecided(core: Arc<Core>, scopes: Scopes, max_wait: Duration) -> Self {
        let is_single = scopes.as_slice().len() == 1;
        let mut this = Self::new(core, scopes, max_wait);
        if is_single {
            this.state = AcquireState::Undecided;
        }
        this
    }

    pub(crate) fn in_shadow(mut self) -> Self {
        self.shadow = true;
        self
    }

    /// Decides if that takes neither a call to Redis nor a wait. Otherwise it changes nothing.
    pub(crate) fn decide_now(&mut self) -> Option<Result<Permit, Rejected>> {
        let waits = self.core().redis.is_some() || !self.max_wait.is_zero();
        if waits && !self.scopes.as_slice().is_empty() {
            return None;
        }
        match self.poll_undecided(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// Whether it waits for a reservation. Its caller must then not keep a resource that others
    /// could use.
    pub(crate) fn is_reserved(&self) -> bool {
        matches!(&self.state, AcquireState::Waiting(waiter) if waiter.reservation().is_some())
            || self.is_reserving()
    }

    /// Whether its answer is too old to be used, because it was not polled in time.
    pub(crate) fn has_missed(&self) -> bool {
        matches!(&self.state, AcquireState::Waiting(waiter) if waiter.has_missed())
            || self.obtained.as_deref().is_some_and(Obtained::has_missed)
    }

    /// When the first of the tokens was due, after they were granted: now, or a little ago.
    pub(crate) fn due(&self) -> Instant {
        self.due.unwrap_or_else(Instant::now)
    }

    fn core(&self) -> &Arc<Core> {
        self.core.as_ref().expect(POLLED_AGAIN)
    }

    fn taken(&self) -> &[TakenScope] {
        let obtained = self.obtained.as_ref();
        obtained.map_or(&[], |obtained| &obtained.taken)
    }

    fn is_reserving(&self) -> bool {
        self.obtained.as_deref().is_some_and(Obtained::is_reserving)
    }
}

impl Future for Acquire {
    type Output = Result<Permit, Rejected>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // The result is written where it is returned: a permit is large, and moving it costs time.
        if let (AcquireState::Start, Some(core), [scope]) =
            (&this.state, &this.core, this.scopes.as_slice())
        {
            let decision = core.decide_locally(scope, this.max_wait, this.shadow);
            this.state = match decision {
                Some(_) => AcquireState::Done,
                None => AcquireState::Undecided,
            };
            match decision {
                Some(Ok(level)) => {
                    if let Some(core) = this.core.take() {
                        let scopes = mem::take(&mut this.scopes);
                        return Poll::Ready(Ok(Permit::at_once(core, scopes, level)));
                    }
                }
                Some(Err(retry_after)) => {
                    return Poll::Ready(Err(Rejected::limited(scope, retry_after, 0.0, false)));
                }
                None => {}
            }
        }
        this.poll_undecided(cx)
    }
}

impl Acquire {
    #[inline(never)]
    fn poll_undecided(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit, Rejected>> {
        let (mut retries, mut has_fallen_back) = (0, false);
        let mut next = match &self.state {
            AcquireState::Start | AcquireState::Undecided => {
                if !self.max_wait.is_zero() {
                    self.deadline = Instant::now().checked_add(self.max_wait);
                }
                Next::Ask
            }
            AcquireState::Waiting(_) | AcquireState::Reserving => Next::Wait,
            AcquireState::Done => panic!("{POLLED_AGAIN}"),
        };
        loop {
            next = match next {
                Next::Ask => self.ask(),
                Next::FallBack(failure) => self.fall_back(&failure),
                Next::Resume => self.resume(),
                Next::Retry => {
                    retries += 1;
                    match retries < MAX_RETRIES {
                        true => Next::Resume,
                        false => self.give_up(&mut has_fallen_back),
                    }
                }
                Next::Wait => ready!(self.poll_wait(cx)),
                Next::Admit(tightest, decided_by) => {
                    return Poll::Ready(Ok(self.admit(tightest, decided_by)));
                }
                Next::Reject(rejected) => return Poll::Ready(Err(self.reject(rejected))),
            };
        }
    }

    /// No task can be started any more: decides from memory, if possible without a wait.
    #[cold]
    fn give_up(&self, has_fallen_back: &mut bool) -> Next {
        let source = "the runtime that polls is being shut down";
        let failure = Failure::new(FailureKind::Disconnected, source);
        if self.core().redis.is_some() && !mem::replace(has_fallen_back, true) {
            return Next::FallBack(failure);
        }
        let scope = &self.scopes.as_slice()[0];
        Next::Reject(Rejected::unavailable(scope, Some(failure.source)))
    }

    fn admit(&mut self, tightest: Option<(usize, f64)>, decided_by: DecidedBy) -> Permit {
        let taken = self.taken();
        // A bucket that was waited for is empty.
        let waited_for = self.waited_for.map(|index| index as usize);
        let waited_for = waited_for.or(taken.first().map(|taken| taken.index));
        let tightest = waited_for.map(|index| (index, 0.0)).or(tightest);
        let origins = if taken.iter().all(|taken| taken.decided_by == decided_by) {
            Origins::All(decided_by)
        } else {
            let mut each = vec![decided_by; self.scopes.as_slice().len()];
            for taken in taken {
                each[taken.index] = taken.decided_by;
            }
            Origins::Each(each.into())
        };
        if let Some(obtained) = self.obtained.take()
            && let Some(oldest) = obtained.oldest()
        {
            self.due = Some(self.due.map_or(oldest, |due| due.min(oldest)));
        }
        self.state = AcquireState::Done;
        self.count_admission(&origins);
        let scopes = mem::take(&mut self.scopes);
        let core = self.core.take().expect(POLLED_AGAIN);
        Permit::new(Charged::new(core, scopes, origins), tightest)
    }

    fn reject(&mut self, rejected: Rejected) -> Rejected {
        self.give_back();
        self.state = AcquireState::Done;
        let core = self.core();
        let primary = core.primary().into();
        // More scopes than these are not listed: a response would contain all of them.
        let rejected = match self.scopes.as_slice().len() {
            ..=MAX_SCOPES => rejected.with_scopes(&self.scopes),
            _ => rejected,
        };
        core.observer.rejected(&rejected, primary, self.shadow);
        rejected
    }

    #[inline]
    fn give_back(&mut self) {
        if let Some(obtained) = self.obtained.take() {
            obtained.give_back_all(self.core(), &self.scopes);
        }
    }

    fn count_admission(&self, origins: &Origins) {
        let meter = self.core().observer.meter;
        for (index, scope) in self.scopes.iter().enumerate() {
            meter.admitted(scope, origins.get(index).into());
        }
        if let Some(index) = self.waited_for
            && let Some(deadline) = self.deadline
            && let Some(scope) = self.scopes.as_slice().get(index as usize)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            meter.waited(scope, self.max_wait.saturating_sub(left));
        }
    }

    #[cold]
    fn count_cancellation(&self) {
        let core = self.core();
        for scope in &self.scopes {
            let primary = core.primary().into();
            let meter = &core.observer.meter;
            meter.ended(scope.name(), Outcome::Cancelled, primary);
        }
    }
}

impl Drop for Acquire {
    #[inline]
    fn drop(&mut self) {
        if let AcquireState::Waiting(waiter) = &self.state {
            waiter.cancel();
        }
        if let AcquireState::Waiting(_) | AcquireState::Reserving = &self.state {
            self.count_cancellation();
        }
        self.give_back();
    }
}

impl fmt::Debug for Acquire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquire")
            .field("scopes", &self.scopes)
            .field("max_wait", &self.max_wait)
            .finish_non_exhaustive()
    }
}
