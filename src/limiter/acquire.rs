//! The future that takes tokens: [`Acquire`].

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    backend::{Mode, RedisBackend},
    bound::Bound,
    charge::{Charged, Origins},
    core::Core,
    permit::Permit,
    steps::{Step, Steps},
    wait_queue::TOLERANCE,
    waiter::{Outcome, Waiter},
};
use crate::{
    clock::{LONGEST_WAIT, to_us},
    decision::{DecidedBy, Decision, Failure, FailureKind},
    error::Rejected,
    scope::{Scope, Scopes},
    telemetry::Outcome as End,
};

/// Scopes of one acquisition: Redis is never held up by a long script.
const MAX_SCOPES: usize = 128;

/// Answers to ask again, within one poll, after which nobody is there to answer.
const MAX_MISSED: u32 = 3;

const POLLED_AGAIN: &str = "`Acquire` was polled after it had resolved";

/// Takes tokens; made by [`Limiter::try_acquire`](crate::Limiter::try_acquire) and
/// [`Limiter::acquire`](crate::Limiter::acquire). Nothing happens before it is polled.
///
/// # Errors
///
/// [`Rejected`], which says why and when to come back.
///
/// # Cancel safety
///
/// Dropped at any point before it resolves, it gives back what it was granted: nothing before it
/// is sent; in flight, as soon as the answer comes. While it waits for its reservation, the waiters
/// behind it in this process move up, and the last of their reservations is cancelled. If no other
/// process has a later one, the bucket is then as if that reservation had never been made. Otherwise
/// a newcomer may take its place, or its tokens are free when it is due. A bucket remembers 64
/// cancelled reservations that are not adjacent to each other; the tokens of further ones are
/// replaced by the refill only.
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
    /// None once it has resolved.
    core: Option<Arc<Core>>,
    scopes: Scopes,
    max_wait: Duration,
    /// When the wait is over; set by the first poll.
    deadline: Option<Instant>,
    /// Where there have been any.
    steps: Option<Box<Steps>>,
    state: State,
    /// Where it has been needed.
    bound: Option<Box<Bound>>,
    /// The scope whose turn it has slept for.
    slept_for: Option<u32>,
    /// When the first of the tokens was to be used, unless that is now.
    due: Option<Instant>,
    /// An answer that came to no use was asked for again.
    asked_again: bool,
    /// It is asked for a layer that refuses nobody.
    shadow: bool,
}

enum State {
    Start,
    /// Waiting for these scopes, which are those not taken yet, in their order.
    Waiting(Arc<Waiter>),
    /// Some scopes are reserved, and the rest is to be asked for later, if there is any.
    Reserving,
    Done,
}

/// How far an acquisition is, for those who must not hold anything while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not decided yet.
    Asking,
    /// Its turn comes later.
    Reserved,
}

impl Acquire {
    #[inline]
    pub(crate) fn new(core: Arc<Core>, scopes: Scopes, max_wait: Duration) -> Self {
        Self {
            core: Some(core),
            scopes: match scopes.as_slice().len() {
                // To merge compares each with each; more than `MOST_SCOPES` are rejected by `ask`.
                2..=MAX_SCOPES => scopes.merged(),
                _ => scopes,
            },
            max_wait: max_wait.min(LONGEST_WAIT),
            deadline: None,
            steps: None,
            state: State::Start,
            bound: None,
            slept_for: None,
            due: None,
            asked_again: false,
            shadow: false,
        }
    }

    /// A refusal is only counted, as what a layer in the shadow would have done.
    pub(crate) fn in_shadow(mut self) -> Self {
        self.shadow = true;
        self
    }

    fn core(&self) -> &Arc<Core> {
        self.core.as_ref().expect(POLLED_AGAIN)
    }

    fn taken(&self) -> &[Step] {
        self.steps.as_ref().map_or(&[], |steps| &steps.taken)
    }

    fn dual(&self) -> &[usize] {
        self.steps.as_ref().map_or(&[], |steps| &steps.beside)
    }

    fn is_reserving(&self) -> bool {
        self.steps
            .as_ref()
            .is_some_and(|steps| steps.is_reserving())
    }

    pub(crate) fn progress(&self) -> Progress {
        match &self.state {
            _ if self.is_reserving() => Progress::Reserved,
            State::Waiting(waiter) if waiter.is_reserved() => Progress::Reserved,
            _ => Progress::Asking,
        }
    }

    /// Whether it was answered something that is too old by now, because nobody polled this.
    pub(crate) fn has_missed(&self) -> bool {
        matches!(&self.state, State::Waiting(waiter) if waiter.has_missed())
            || self.steps.as_ref().is_some_and(|steps| steps.has_missed())
    }

    /// When the first of the tokens was to be used, once they are granted: now, or a little ago.
    pub(crate) fn due(&self) -> Instant {
        self.due.unwrap_or_else(Instant::now)
    }

    /// Whether what is too old is asked for again: until the deadline, and once without regard
    /// to it, so that a process that always comes too late is answered all the same.
    fn asks_again(&mut self) -> bool {
        let in_time = self.deadline.is_some_and(|end| Instant::now() < end);
        in_time || !std::mem::replace(&mut self.asked_again, true)
    }

    /// Decides at once, where that takes neither Redis nor a wait; else nothing has happened.
    pub(crate) fn decide_now(&mut self) -> Option<Result<Permit, Rejected>> {
        let waits = self.core().redis.is_some() || !self.max_wait.is_zero();
        if waits && !self.scopes.as_slice().is_empty() {
            return None;
        }
        match self.ask() {
            Poll::Ready(result) => {
                self.state = State::Done;
                self.count_rejection(&result);
                Some(result)
            }
            Poll::Pending => None,
        }
    }

    /// Starts, or asks for what is left. Ready when it is decided without waiting.
    fn ask(&mut self) -> Poll<Result<Permit, Rejected>> {
        if let [scope, ..] = self.scopes.as_slice()
            && self.scopes.as_slice().len() > MAX_SCOPES
        {
            // Nothing was taken yet. The scopes are not listed: a reply would write all of them.
            return Poll::Ready(Err(Rejected::exceeds_capacity(scope)));
        }
        let impossible = self.scopes.iter().find(|scope| {
            !self
                .core()
                .params(scope, DecidedBy::Memory)
                .can_grant(scope.tokens())
        });
        if let Some(scope) = impossible {
            let refused = Rejected::exceeds_capacity(scope);
            return self.reject(refused);
        }
        let left = self.left();
        if left.as_slice().is_empty() {
            if self.is_reserving() {
                self.state = State::Reserving;
                return Poll::Pending;
            }
            // Nothing, or all that was to be taken in several steps.
            let home = self.core().primary();
            return Poll::Ready(Ok(self.permit(None, home)));
        }
        if let Some(steps) = &mut self.steps {
            steps.asks();
        }
        let max_wait = match self.deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => self.max_wait,
        };
        // Kept alive beside `self`, which the steps change.
        let core = self.core().clone();
        let Some(remote) = &core.redis else {
            return self.ask_memory(left, max_wait, DecidedBy::Memory);
        };
        let mode = remote.mode();
        if !matches!(mode, Mode::Unavailable(_)) {
            // Before memory has its say, which may be that nobody is to ask Redis for long.
            for (scope, until) in core.shares.pending.take_pauses() {
                remote.pause(&scope, until);
            }
        }
        match mode {
            Mode::Passing => {}
            Mode::Unavailable(failure) => return self.fall_back(&failure),
            Mode::Recovering => {
                let first = self.to_take_beside();
                if !first.as_slice().is_empty() {
                    return self.ask_memory(first, max_wait, DecidedBy::DualAdmission);
                }
            }
        }
        self.ask_redis(remote, left, max_wait)
    }

    fn ask_redis(
        &mut self,
        remote: &RedisBackend,
        left: Scopes,
        max_wait: Duration,
    ) -> Poll<Result<Permit, Rejected>> {
        let max_wait_us = to_us(max_wait);
        for scope in &left {
            if let Some(retry_after) = remote.rejects(scope, max_wait_us) {
                let refused = Rejected::limited(scope, retry_after, max_wait_us, false);
                return self.reject(refused);
            }
        }
        let waiter = self.waiter(left, max_wait_us);
        waiter.set_mark(remote.take(waiter.clone()));
        self.state = State::Waiting(waiter);
        Poll::Pending
    }

    fn ask_memory(
        &mut self,
        left: Scopes,
        max_wait: Duration,
        origin: DecidedBy,
    ) -> Poll<Result<Permit, Rejected>> {
        let max_wait_us = to_us(max_wait);
        let slice = left.as_slice();
        match self.core().take_from_memory(slice, max_wait_us, origin) {
            Decision::Now { tightest, level } => {
                if origin == DecidedBy::DualAdmission {
                    let beside: Vec<_> = slice.iter().map(|scope| self.index_of(scope)).collect();
                    self.steps.get_or_insert_default().beside.extend(beside);
                    return self.ask();
                }
                self.granted(slice, (tightest, level), origin, Instant::now())
            }
            Decision::Rejected { which, retry_after } => {
                let degraded = origin != DecidedBy::Memory;
                let refused = Rejected::limited(&slice[which], retry_after, max_wait_us, degraded);
                self.reject(refused)
            }
            wait @ Decision::Wait {
                which, reservation, ..
            } => {
                crate::runtime::require_or(|| {
                    if let Some(reservation) = reservation {
                        self.core().undo(&slice[which], reservation, origin);
                    }
                });
                let waiter = self.waiter(left, max_wait_us);
                waiter.decide(Ok(wait), origin);
                self.state = State::Waiting(waiter);
                Poll::Pending
            }
        }
    }

    /// Redis could not be asked: the policies decide.
    fn fall_back(&mut self, failure: &Failure) -> Poll<Result<Permit, Rejected>> {
        let core = self.core().clone();
        core.observer.fell_back(failure.kind);
        let beside = self
            .steps
            .as_mut()
            .map(|steps| std::mem::take(&mut steps.beside));
        for index in beside.into_iter().flatten() {
            // Unless Redis has charged it, in an earlier step, memory is asked anew: it granted
            // this without regard to what Redis had promised beside it.
            if self.taken().iter().all(|taken| taken.index != index) {
                let scope = &self.scopes.as_slice()[index];
                core.give_back(scope, scope.tokens(), DecidedBy::DualAdmission);
            }
        }
        let left = self.left();
        let closed = left.iter().find(|scope| core.shares.fails_closed(scope));
        if let Some(scope) = closed {
            let refused = Rejected::unavailable(scope, Some(failure.source.clone()));
            return self.reject(refused);
        }
        for scope in left.iter().filter(|scope| !core.shares.has_share(scope)) {
            let index = self.index_of(scope);
            let steps = self.steps.get_or_insert_default();
            steps.take(index, DecidedBy::Unmetered, Instant::now());
        }
        let left = self.left();
        if left.as_slice().is_empty() {
            if self.is_reserving() {
                return self.proceed();
            }
            return Poll::Ready(Ok(self.permit(None, DecidedBy::LocalShare)));
        }
        let max_wait = self.deadline.map_or(self.max_wait, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        self.ask_memory(left, max_wait, DecidedBy::LocalShare)
    }

    /// The scopes of which memory must admit first, as long as others may have spent what Redis
    /// does not know of.
    fn to_take_beside(&self) -> Scopes {
        let left = self.left();
        let first: Vec<_> = left
            .iter()
            .filter(|scope| {
                self.core().shares.has_share(scope) && !self.dual().contains(&self.index_of(scope))
            })
            .cloned()
            .collect();
        first.into()
    }

    fn waiter(&self, left: Scopes, max_wait_us: f64) -> Arc<Waiter> {
        Waiter::new(self.core().clone(), left, max_wait_us)
    }

    /// The scopes that are still to be taken from.
    fn left(&self) -> Scopes {
        let free = |scope: &Scope| scope.tokens() == 0.0;
        if self.steps.is_none() && !self.scopes.iter().any(free) {
            return self.scopes.clone();
        }
        let taken = |index| self.steps.as_ref().is_some_and(|steps| steps.has(index));
        let left: Vec<_> = self
            .scopes
            .iter()
            .enumerate()
            .filter(|(index, scope)| !taken(*index) && !free(scope))
            .map(|(_, scope)| scope.clone())
            .collect();
        left.into()
    }

    fn index_of(&self, scope: &Scope) -> usize {
        self.scopes
            .iter()
            .position(|other| other.same_bucket(scope))
            .unwrap_or_default()
    }

    /// All were taken, the last of them from `origin`.
    fn permit(&mut self, tightest: Option<(usize, f64)>, origin: DecidedBy) -> Permit {
        let taken = self.taken();
        // Whoever waits for a turn finds the bucket empty behind it.
        let slept_for = self.slept_for.map(|index| index as usize);
        let waited = slept_for.or(taken.first().map(|step| step.index));
        let tightest = waited.map(|index| (index, 0.0)).or(tightest);
        let origins = if taken.iter().all(|step| step.origin == origin) {
            Origins::All(origin)
        } else {
            let mut each = vec![origin; self.scopes.as_slice().len()];
            for step in taken {
                each[step.index] = step.origin;
            }
            Origins::Each(each.into())
        };
        if let Some(steps) = self.steps.take()
            && let Some(oldest) = steps.oldest()
        {
            self.due = Some(self.due.map_or(oldest, |due| due.min(oldest)));
        }
        self.state = State::Done;
        self.count_admission(&origins);
        let scopes = std::mem::take(&mut self.scopes);
        let core = self.core.take().expect(POLLED_AGAIN);
        Permit::new(Charged::new(core, scopes, origins), tightest)
    }

    fn count_admission(&self, origins: &Origins) {
        let meter = self.core().observer.meter;
        for (index, scope) in self.scopes.iter().enumerate() {
            meter.admitted(scope, origins.get(index).into());
        }
        if let Some(index) = self.slept_for
            && let Some(deadline) = self.deadline
            && let Some(scope) = self.scopes.as_slice().get(index as usize)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            meter.waited(scope, self.max_wait.saturating_sub(left));
        }
    }

    fn count_rejection(&self, result: &Result<Permit, Rejected>) {
        if let (Err(rejected), Some(core)) = (result, &self.core) {
            core.observer
                .refused(rejected, core.primary().into(), self.shadow);
        }
    }

    #[cold]
    fn count_cancellation(&self) {
        let core = self.core();
        for scope in &self.scopes {
            let home = core.primary().into();
            core.observer
                .meter
                .ended(scope.name(), End::Cancelled, home);
        }
    }

    fn reject(&mut self, refused: Rejected) -> Poll<Result<Permit, Rejected>> {
        self.give_back();
        Poll::Ready(Err(refused.with_scopes(&self.scopes)))
    }

    /// Gives back what was taken in earlier steps.
    #[inline]
    fn give_back(&mut self) {
        if let Some(steps) = self.steps.take() {
            steps.give_back_all(self.core(), &self.scopes);
        }
    }

    /// Whether scopes that were taken in earlier steps are held back by now; they are to be taken
    /// again, and what they took pays for the hold.
    fn forfeits_paused(&mut self) -> bool {
        let (Some(core), Some(steps)) = (&self.core, &mut self.steps) else {
            return false;
        };
        let scopes = self.scopes.as_slice();
        let before = steps.taken.len();
        steps.taken.retain(|step| {
            let id = scopes[step.index].id(&core.salt);
            core.paused_until(&id.lookup(), step.origin).is_none()
        });
        steps.taken.len() < before
    }

    /// Whether tokens that were taken in earlier steps are too old by now; they are to be taken
    /// again.
    fn drops_old(&mut self) -> bool {
        if !self
            .taken()
            .iter()
            .any(|step| step.due.elapsed() > TOLERANCE)
            || !self.asks_again()
        {
            return false;
        }
        match (&self.core, &mut self.steps) {
            (Some(core), Some(steps)) => steps.drop_old(core, &self.scopes),
            _ => false,
        }
    }

    /// These were taken at once, at `told`.
    fn granted(
        &mut self,
        scopes: &[Scope],
        (tightest, level): (usize, f64),
        origin: DecidedBy,
        told: Instant,
    ) -> Poll<Result<Permit, Rejected>> {
        let tightest = self.index_of(&scopes[tightest]);
        if self.taken().is_empty() && !self.is_reserving() {
            self.due = Some(told);
            return Poll::Ready(Ok(self.permit(Some((tightest, level)), origin)));
        }
        for scope in scopes {
            let index = self.index_of(scope);
            let steps = self.steps.get_or_insert_default();
            steps.take(index, origin, told);
        }
        self.proceed()
    }

    /// What was taken or reserved has changed.
    fn proceed(&mut self) -> Poll<Result<Permit, Rejected>> {
        let core = self.core().clone();
        let Some(steps) = &mut self.steps else {
            return self.ask();
        };
        let Some(time) = steps.latest() else {
            return self.ask();
        };
        let early = steps.align(&core, &self.scopes, time);
        let left = self.left();
        if !self.is_reserving() {
            if left.as_slice().is_empty() && !(self.forfeits_paused() | self.drops_old()) {
                let origin = self
                    .taken()
                    .last()
                    .map_or(core.primary(), |step| step.origin);
                return Poll::Ready(Ok(self.permit(None, origin)));
            }
            return self.ask();
        }
        self.state = State::Reserving;
        match &mut self.steps {
            Some(steps) if !left.as_slice().is_empty() => {
                match steps.wait_for(&core, &left, time, early) {
                    Some(()) => Poll::Pending,
                    None => self.ask(),
                }
            }
            _ => Poll::Pending,
        }
    }

    /// No task can be started any more: memory decides, if need be without a wait.
    #[cold]
    fn end(&mut self, fell_back: &mut bool) -> Poll<Result<Permit, Rejected>> {
        let source = "the runtime that polls is being shut down";
        let failure = Failure::new(FailureKind::Disconnected, source);
        if self.core().redis.is_some() && !std::mem::replace(fell_back, true) {
            return self.fall_back(&failure);
        }
        let refused = Rejected::unavailable(&self.scopes.as_slice()[0], Some(failure.source));
        self.reject(refused)
    }

    /// What the waiter was told, as the next step.
    fn on_answer(&mut self, waiter: &Waiter, outcome: Outcome) -> Poll<Result<Permit, Rejected>> {
        match outcome {
            Outcome::Now {
                tightest,
                level,
                origin,
                told,
            } => {
                if told.elapsed() > TOLERANCE && self.asks_again() {
                    // Nobody polled this in time.
                    for scope in waiter.scopes() {
                        self.core().give_back_late(scope, origin, told);
                    }
                    return self.proceed();
                }
                if let Some(steps) = &mut self.steps {
                    steps.answered(told);
                }
                self.granted(waiter.scopes(), (tightest, level), origin, told)
            }
            Outcome::Due {
                which,
                due: turn,
                origin,
            } => {
                let scope = &waiter.scopes()[which];
                if turn.elapsed() > TOLERANCE {
                    // Nobody polled this in time; going now would crowd those whose turn it is.
                    self.core().give_back_late(scope, origin, turn);
                    return self.proceed();
                }
                let index = self.index_of(scope);
                if origin == DecidedBy::DualAdmission {
                    self.steps.get_or_insert_default().beside.push(index);
                    return self.ask();
                }
                // One of at most 128.
                self.slept_for = Some(index as u32);
                if self.scopes.as_slice().len() == 1 {
                    self.due = Some(turn);
                    return Poll::Ready(Ok(self.permit(None, origin)));
                }
                let steps = self.steps.get_or_insert_default();
                steps.take(index, origin, turn);
                self.proceed()
            }
            Outcome::Missed | Outcome::Abandoned => self.proceed(),
            Outcome::Rejected {
                told, retry_after, ..
            } if told.elapsed() > retry_after.max(TOLERANCE) && self.asks_again() => self.proceed(),
            Outcome::Rejected {
                which, retry_after, ..
            } => {
                let scope = &waiter.scopes()[which];
                let refused = Rejected::limited(scope, retry_after, waiter.max_wait_us(), false);
                self.reject(refused)
            }
            Outcome::Failed(failure) => self.fall_back(&failure),
        }
    }
}

impl Future for Acquire {
    type Output = Result<Permit, Rejected>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // Written where it is returned: a permit is large, and each move of it would tell.
        if let (State::Start, Some(core), [scope]) =
            (&this.state, &this.core, this.scopes.as_slice())
            && let Some(decision) = core.decide_locally(scope, this.max_wait.is_zero())
        {
            this.state = State::Done;
            core.count_local_decision(scope, decision, this.shadow);
            match decision {
                Ok(level) => {
                    if let Some(core) = this.core.take() {
                        return Poll::Ready(Ok(Permit::at_once(
                            core,
                            std::mem::take(&mut this.scopes),
                            level,
                        )));
                    }
                }
                Err(retry_after) => {
                    return Poll::Ready(Err(Rejected::limited(scope, retry_after, 0.0, false)));
                }
            }
        }
        this.poll_waiting(cx)
    }
}

impl Acquire {
    #[inline(never)]
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit, Rejected>> {
        // Where its runtime is being shut down, each task that this poll starts ends at once. An
        // answer that comes too late on a slow machine is not as frequent within one poll.
        let (mut missed, mut fell_back) = (0, false);
        let mut next = match &self.state {
            State::Start => {
                if !self.max_wait.is_zero() {
                    self.deadline = Instant::now().checked_add(self.max_wait);
                }
                self.ask()
            }
            State::Waiting(_) | State::Reserving => Poll::Pending,
            State::Done => panic!("{POLLED_AGAIN}"),
        };
        loop {
            if let Poll::Ready(result) = &next {
                self.state = State::Done;
                self.count_rejection(result);
                return next;
            }
            if let Some(none) = self.poll_reserved(cx) {
                if let State::Reserving = self.state {
                    missed += u32::from(none);
                    next = match missed < MAX_MISSED {
                        true => self.proceed(),
                        false => self.end(&mut fell_back),
                    };
                }
                continue;
            }
            let waiter = match &self.state {
                State::Waiting(waiter) => waiter.clone(),
                State::Reserving => {
                    let steps = self.steps.as_mut();
                    if steps.is_none_or(|steps| steps.poll_look(cx).is_pending()) {
                        return Poll::Pending;
                    }
                    next = self.proceed();
                    continue;
                }
                State::Start | State::Done => return Poll::Pending,
            };
            let outcome = match waiter.poll(cx) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => {
                    let several = self.scopes.as_slice().len() > 1;
                    match several.then(|| waiter.reservation()).flatten() {
                        Some((_, due, DecidedBy::DualAdmission)) => {
                            // Redis is asked after it.
                            if let (Some(core), Some(steps)) = (&self.core, &mut self.steps) {
                                steps.align(core, &self.scopes, due);
                            }
                        }
                        Some((which, due, _)) => {
                            next = self.reserve(waiter, which, due);
                            continue;
                        }
                        None => {}
                    }
                    let core = self.core.as_ref().expect(POLLED_AGAIN);
                    ready!(Bound::poll(&mut self.bound, core, &waiter, cx))
                }
            };
            // From here on the waiter holds nothing.
            self.state = State::Reserving;
            missed += u32::from(matches!(outcome, Outcome::Missed | Outcome::Abandoned));
            next = match missed < MAX_MISSED {
                true => self.on_answer(&waiter, outcome),
                false => self.end(&mut fell_back),
            };
        }
    }

    /// One of several scopes is reserved.
    fn reserve(
        &mut self,
        waiter: Arc<Waiter>,
        which: usize,
        due: Instant,
    ) -> Poll<Result<Permit, Rejected>> {
        let index = self.index_of(&waiter.scopes()[which]);
        let steps = self.steps.get_or_insert_default();
        steps.answered(Instant::now());
        steps.reserve(index, waiter, due);
        self.proceed()
    }

    /// Some where the time of a reservation has come: whether none could be used.
    fn poll_reserved(&mut self, cx: &mut Context<'_>) -> Option<bool> {
        let (Some(core), Some(steps)) = (&self.core, &mut self.steps) else {
            return None;
        };
        let before = steps.taken.len();
        if !steps.poll_reserved(core, cx) {
            return None;
        }
        let last = steps.taken.get(before..).and_then(<[_]>::last);
        if let Some(last) = last {
            // One of at most 128.
            self.slept_for = Some(last.index as u32);
        }
        Some(last.is_none())
    }
}

impl Drop for Acquire {
    #[inline]
    fn drop(&mut self) {
        if let State::Waiting(waiter) = &self.state {
            waiter.cancel();
        }
        if let State::Waiting(_) | State::Reserving = &self.state {
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
