//! Asking a backend for the scopes that are left.

use std::time::Duration;

use tokio::time::Instant;

use super::{Acquire, AcquireState, MAX_SCOPES, Next, Obtained};
use crate::{
    clock::to_us,
    decision::{DecidedBy, Decision, Failure},
    limiter::{
        backend::{Mode, RedisBackend},
        queue::{Backends, Waiter},
    },
    rejected::Rejected,
    runtime,
    scope::{Scope, Scopes},
};

impl Acquire {
    pub(super) fn ask(&mut self) -> Next {
        let scopes = self.scopes.as_slice();
        if let [scope, ..] = scopes
            && scopes.len() > MAX_SCOPES
        {
            let rejected = Rejected::too_many_scopes(scope, scopes.len(), MAX_SCOPES);
            return Next::Reject(rejected);
        }
        let can_grant = |scope: &&Scope| {
            let params = self.core().params(scope, DecidedBy::Memory);
            params.can_grant(scope.tokens())
        };
        if let Some(scope) = self.scopes.iter().find(|scope| !can_grant(scope)) {
            return Next::Reject(Rejected::exceeds_capacity(scope));
        }
        let left = self.left();
        if left.as_slice().is_empty() {
            if self.is_reserving() {
                self.state = AcquireState::Reserving;
                return Next::Wait;
            }
            return Next::Admit(None, self.core().primary());
        }
        if let Some(obtained) = &mut self.obtained {
            obtained.start_asking();
        }
        let mode = self.core().redis.as_ref().map(RedisBackend::mode);
        match mode {
            None => self.ask_memory(left, DecidedBy::Memory),
            Some(Mode::Unavailable(failure)) => Next::FallBack(failure),
            Some(Mode::Passing) => self.ask_redis(left, self.has_asked_level_cache()),
            Some(Mode::Recovering) => {
                let first = self.left_to_memory(&left);
                match first.as_slice().is_empty() {
                    true => self.ask_redis(left, false),
                    false => self.ask_memory(first, DecidedBy::DualAdmission),
                }
            }
        }
    }

    /// Whether `Core::decide_locally` has just found that Redis is not known to reject this.
    fn has_asked_level_cache(&self) -> bool {
        matches!(self.state, AcquireState::Undecided) && self.max_wait.is_zero()
    }

    fn ask_redis(&mut self, left: Scopes, not_known_to_reject: bool) -> Next {
        let max_wait_us = to_us(self.wait_left());
        let core = self.core();
        let Some(redis) = &core.redis else {
            return self.ask_memory(left, DecidedBy::Memory);
        };
        if !not_known_to_reject {
            for scope in &left {
                if let Some(retry_after) = redis.rejects(scope, max_wait_us) {
                    return Next::Reject(Rejected::limited(scope, retry_after, max_wait_us, false));
                }
            }
        }
        let waiter = Waiter::new(core.clone(), left, max_wait_us);
        waiter.set_mark(redis.take(waiter.clone()));
        self.state = AcquireState::Waiting(waiter);
        Next::Wait
    }

    fn ask_memory(&mut self, left: Scopes, decided_by: DecidedBy) -> Next {
        let max_wait_us = to_us(self.wait_left());
        let scopes = left.as_slice();
        match self
            .core()
            .take_from_memory(scopes, max_wait_us, decided_by)
        {
            Decision::Now { .. } if decided_by == DecidedBy::DualAdmission => {
                let indices: Vec<_> = scopes.iter().map(|scope| self.index_of(scope)).collect();
                self.obtained().dual.extend(indices);
                Next::Ask
            }
            Decision::Now { tightest, level } => {
                self.granted(scopes, (tightest, level), decided_by, Instant::now())
            }
            Decision::Rejected { which, retry_after } => {
                let is_degraded = decided_by != DecidedBy::Memory;
                let scope = &scopes[which];
                let rejected = Rejected::limited(scope, retry_after, max_wait_us, is_degraded);
                Next::Reject(rejected)
            }
            wait @ Decision::Wait {
                which, reservation, ..
            } => {
                runtime::require_or(|| {
                    if let Some(reservation) = reservation {
                        self.core().undo(&scopes[which], reservation, decided_by);
                    }
                });
                let waiter = Waiter::new(self.core().clone(), left, max_wait_us);
                waiter.decide(Ok(wait), decided_by, Instant::now());
                self.state = AcquireState::Waiting(waiter);
                Next::Wait
            }
        }
    }

    /// Redis is unavailable: the fallback policy of each scope decides.
    pub(super) fn fall_back(&mut self, failure: &Failure) -> Next {
        let core = self.core().clone();
        core.observer.fell_back(failure.kind);
        let dual = self.obtained.as_mut();
        let dual = dual.map(|obtained| std::mem::take(&mut obtained.dual));
        for index in dual.into_iter().flatten() {
            // Memory granted this without regard to the reservations of Redis, so the scope is
            // requested again, unless Redis has taken it as well.
            if self.taken().iter().all(|taken| taken.index != index) {
                let scope = &self.scopes.as_slice()[index];
                core.give_back(scope, scope.tokens(), DecidedBy::DualAdmission);
            }
        }
        let left = self.left();
        let closed = left.iter().find(|scope| core.shares.fails_closed(scope));
        if let Some(scope) = closed {
            return Next::Reject(Rejected::unavailable(scope, Some(failure.source.clone())));
        }
        for scope in left.iter().filter(|scope| !core.shares.has_share(scope)) {
            let index = self.index_of(scope);
            let now = Instant::now();
            self.obtained().take(index, DecidedBy::Unmetered, now);
        }
        let left = self.left();
        match left.as_slice().is_empty() {
            false => self.ask_memory(left, DecidedBy::LocalShare),
            true if self.is_reserving() => Next::Resume,
            true => Next::Admit(None, DecidedBy::LocalShare),
        }
    }

    pub(super) fn obtained(&mut self) -> &mut Obtained {
        self.obtained.get_or_insert_default()
    }

    fn wait_left(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.deadline.map_or(self.max_wait, left)
    }

    /// The scopes that are neither taken nor reserved, and cost anything.
    pub(super) fn left(&self) -> Scopes {
        let is_free = |scope: &Scope| scope.tokens() == 0.0;
        if self.obtained.is_none() && !self.scopes.iter().any(is_free) {
            return self.scopes.clone();
        }
        let obtained = self.obtained.as_ref();
        let has = |index| obtained.is_some_and(|obtained| obtained.has(index));
        let left: Vec<_> = self
            .scopes
            .iter()
            .enumerate()
            .filter(|(index, scope)| !has(*index) && !is_free(scope))
            .map(|(_, scope)| scope.clone())
            .collect();
        left.into()
    }

    /// Those of which memory must admit before Redis is asked, because peers may have spent what
    /// Redis does not know of.
    fn left_to_memory(&self, left: &Scopes) -> Scopes {
        let obtained = self.obtained.as_ref();
        let dual = obtained.map_or(&[][..], |obtained| &obtained.dual);
        let needs_memory = |scope: &&Scope| {
            self.core().shares.has_share(scope) && !dual.contains(&self.index_of(scope))
        };
        let first: Vec<_> = left.iter().filter(needs_memory).cloned().collect();
        first.into()
    }

    pub(super) fn index_of(&self, scope: &Scope) -> usize {
        let mut scopes = self.scopes.iter();
        let index = scopes.position(|other| other.same_bucket(scope));
        index.unwrap_or_default()
    }
}
