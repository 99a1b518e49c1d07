//! What is queued for Redis, who is told, what carries it, and who keeps the books.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

use crate::redis::lease::LeaseRequest;
use crate::{
    bucket::{BucketParams, Reservation},
    decision::{Decision, Failure, FailureKind},
    peers::RatePart,
    scope::Scope,
};

/// Carries a call to Redis.
pub(crate) trait Connection: Send + Sync + 'static {
    /// How long a call may take; how long a demand may queue follows from it.
    fn call_timeout(&self) -> Duration;

    /// By which part of its rate a bucket refills for all processes that reach Redis, and until
    /// when.
    fn part(&self) -> RatePart;

    /// Whether Redis alone decides, and all that are alive reach it: then tokens may be taken
    /// ahead.
    fn is_steady(&self) -> bool;

    /// A background task has failed: Redis is left alone until it is connected anew.
    fn fail(&self, _failure: &Failure) {}

    /// Gives the connection up, because the runtime that drives it is not driven, or is shut
    /// down: the next call connects on its own runtime.
    fn abandon(&self);

    /// The limiter is gone, and all is sent.
    fn close(&self);

    /// Runs the script, within the deadline of the limiter, at most once.
    fn call(
        &self,
        keys: Vec<Vec<u8>>,
        argument: Vec<u8>,
        deadline: &mut Deadline,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send;
}

/// A timer for one call after another. Set for later, as each call does, it costs nothing; a new
/// one each time would wake the runtime's driver, and cancelled wake it again.
pub(crate) struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    pub(crate) fn new() -> Self {
        Self(Box::pin(sleep(Duration::ZERO)))
    }

    pub(crate) fn set(&mut self, deadline: Instant) {
        self.0.as_mut().reset(deadline);
    }

    pub(crate) async fn passed(&mut self) {
        self.0.as_mut().await;
    }
}

/// Keeps what memory granted, and what could not be told to Redis.
pub(crate) trait Ledger: Send + Sync + 'static {
    /// Redis was not told of a correction: tokens charged, or, below zero, given back.
    fn correct(&self, scope: &Scope, tokens: f64);
    /// Redis was not told that nobody is to be granted anything before this time.
    fn pause(&self, scope: &Scope, until: Instant);
    /// Redis was not told that the caller of a reservation has gone away.
    fn undo(&self, gone: Box<(Scope, Reservation)>);
    /// All such reservations; from here on they are no longer in the books.
    fn cancelled(&self) -> Vec<(Scope, Reservation)>;
    /// Forgets some of what has refilled; in some turns, all of it.
    fn sweep_step(&self, turn: usize);
    /// Whether anything is to be charged to Redis.
    fn has_debt(&self) -> bool;
    /// What is to be charged; from here on it is no longer in the books.
    fn drain(&self) -> Vec<Debt>;
}

/// What one bucket is to be charged, or, below zero, to be given back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Debt {
    pub(crate) id: Box<[u8]>,
    /// The whole quota, not a share.
    pub(crate) params: BucketParams,
    pub(crate) tokens: f64,
    /// Until the last turn that was promised of them, in microseconds.
    pub(crate) wait_us: f64,
    /// The largest cost of those who were promised one.
    pub(crate) big: f64,
}

/// Somebody who wants a decision.
pub(crate) trait Requester: Send + 'static {
    /// Different buckets, at least one, all or none of which to take from.
    fn scopes(&self) -> &[Scope];
    fn max_wait_us(&self) -> f64;
    /// False once the answer would be thrown away.
    fn is_wanted(&self) -> bool;
    fn answer(self, answer: Result<Decision, Failure>);
    /// Not decided, because the runtime of the batching task was shut down or is not driven: asks
    /// again, if anybody still waits.
    fn retry(self);
}

/// An asker that is answered in any case.
pub(crate) struct PendingRequest<A: Requester>(pub(crate) Option<A>);

impl<A: Requester> PendingRequest<A> {
    pub(crate) fn scopes(&self) -> &[Scope] {
        self.0.as_ref().map_or(&[], Requester::scopes)
    }

    pub(crate) fn max_wait_us(&self) -> f64 {
        self.0.as_ref().map_or(0.0, Requester::max_wait_us)
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(Requester::is_wanted)
    }

    pub(crate) fn answer(mut self, answer: Result<Decision, Failure>) {
        if let Some(asker) = self.0.take() {
            asker.answer(answer);
        }
    }

    /// The batching task ends before it has decided.
    pub(crate) fn abandon(mut self) {
        // One that panicked would panic again.
        if !std::thread::panicking()
            && let Some(asker) = self.0.take()
        {
            asker.retry();
        }
    }
}

impl<A: Requester> Drop for PendingRequest<A> {
    fn drop(&mut self) {
        if let Some(asker) = self.0.take() {
            asker.answer(Err(abandoned()));
        }
    }
}

/// Nobody answers any more.
pub(crate) fn abandoned() -> Failure {
    Failure::new(
        FailureKind::Disconnected,
        "the task that speaks to Redis has ended",
    )
}

/// Those that are rare keep their scopes in a box, so that the queue stays small.
pub(crate) enum Command<A: Requester> {
    /// And since when it is queued.
    Take(PendingRequest<A>, Instant),
    GiveBack(Box<Scope>, f64),
    Charge(Box<Scope>, f64),
    /// Until when nobody is granted anything.
    Pause(Box<Scope>, Instant),
    /// The caller of a reservation has gone away.
    Undo(Box<(Scope, Reservation)>),
    /// No more than so many tokens.
    CapLevel(Box<Scope>, f64),
    Reset(Box<Scope>, oneshot::Sender<Result<f64, Failure>>),
    Look(Box<Scope>, oneshot::Sender<Result<f64, Failure>>),
    /// More than half of a lease is used.
    Lease(Box<Scope>, Box<LeaseRequest>),
}

impl<A: Requester> Command<A> {
    /// Whether it is of use even later, to a worker that is still to come.
    pub(crate) fn is_kept(&self) -> bool {
        matches!(
            self,
            Self::GiveBack(..) | Self::Charge(..) | Self::Pause(..) | Self::Undo(..)
        )
    }

    /// Whoever waits for it asks again.
    pub(crate) fn abandon(self) {
        if let Self::Take(asker, _) = self {
            asker.abandon();
        }
    }

    pub(crate) fn scopes(&self) -> &[Scope] {
        match self {
            Self::Take(asker, _) => asker.scopes(),
            Self::GiveBack(scope, _)
            | Self::Charge(scope, _)
            | Self::Pause(scope, _)
            | Self::CapLevel(scope, _)
            | Self::Reset(scope, _)
            | Self::Look(scope, _)
            | Self::Lease(scope, _) => std::slice::from_ref(scope),
            Self::Undo(gone) => std::slice::from_ref(&gone.0),
        }
    }
}
