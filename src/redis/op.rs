//! One operation of `acquire.lua` on one bucket: its encoding, how it is merged with the one before
//! it, and what becomes of it if it is not delivered.
//!
//! A request for tokens is none of these: it may name several buckets, and it is merged by its
//! cost and wait.

use tokio::{sync::oneshot, time::Instant};

use crate::{
    bucket::Reservation,
    clock::{from_us, to_us},
    decision::Failure,
    redis::{lease::Leases, ledger::Ledger, level_cache::LevelCache},
    scope::Scope,
};

/// The codes of the operations in the script. Zero is a request for tokens.
mod code {
    pub(super) const GIVE_BACK: u8 = 1;
    pub(super) const CHARGE: u8 = 2;
    pub(super) const RESET: u8 = 3;
    pub(super) const LOOK: u8 = 4;
    pub(super) const CAP_LEVEL: u8 = 5;
    pub(super) const EMPTY_OR_STOP: u8 = 6;
    pub(super) const WRITE_BACK: u8 = 7;
    pub(super) const LEASE: u8 = 8;
    pub(super) const PAUSE: u8 = 9;
    pub(super) const UNDO: u8 = 10;
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    /// Returns tokens that were granted and not used.
    GiveBack { tokens: f64 },
    /// Charges tokens that were used without having been granted.
    Charge { tokens: f64 },
    /// Makes the bucket full and ends its pause.
    Reset,
    /// Changes nothing; every call replies with the level of its buckets.
    Look,
    /// Leaves at most this many tokens.
    CapLevel { tokens: f64 },
    /// Empties a full bucket; if it is not full, the rest of the call is skipped.
    EmptyOrStop,
    /// Charges what local shares granted during an outage, however deep the debt becomes. Part of
    /// it may be reserved: the last reservation is due after `wait_us` microseconds, and the
    /// largest costs `largest_cost` tokens.
    WriteBack {
        tokens: f64,
        wait_us: f64,
        largest_cost: f64,
    },
    /// Takes up to this many tokens ahead of requests, from the upper half of the bucket, unless
    /// reservations are outstanding.
    Lease { tokens: f64 },
    /// Grants nothing for this many microseconds.
    Pause { us: f64 },
    /// Cancels a reservation.
    Undo(Reservation),
}

impl Op {
    /// Charges tokens, or gives them back if `tokens` is negative.
    pub(crate) fn correction(tokens: f64) -> Self {
        match tokens > 0.0 {
            true => Self::Charge { tokens },
            false => Self::GiveBack { tokens: -tokens },
        }
    }

    /// Appends the operation to the argument of a call. Buckets count from zero here, and from one
    /// in the script.
    pub(crate) fn encode(&self, bucket: usize, argument: &mut Vec<u8>) {
        let mut put = |code: u8, numbers: &[f64]| {
            for number in [f64::from(code), (bucket + 1) as f64].iter().chain(numbers) {
                argument.extend_from_slice(&number.to_le_bytes());
            }
        };
        match *self {
            Self::GiveBack { tokens } => put(code::GIVE_BACK, &[tokens]),
            Self::Charge { tokens } => put(code::CHARGE, &[tokens]),
            Self::Reset => put(code::RESET, &[]),
            Self::Look => put(code::LOOK, &[]),
            Self::CapLevel { tokens } => put(code::CAP_LEVEL, &[tokens]),
            Self::EmptyOrStop => put(code::EMPTY_OR_STOP, &[]),
            Self::WriteBack {
                tokens,
                wait_us,
                largest_cost,
            } => put(code::WRITE_BACK, &[tokens, wait_us, largest_cost]),
            Self::Lease { tokens } => put(code::LEASE, &[tokens]),
            Self::Pause { us } => put(code::PAUSE, &[us]),
            Self::Undo(Reservation {
                from,
                until,
                tokens,
            }) => put(code::UNDO, &[tokens, until, from]),
        }
    }

    /// Reads the rest of an operation that begins with `code`: its bucket, and itself.
    #[cfg(test)]
    pub(crate) fn decode(code: f64, mut next: impl FnMut() -> f64) -> (usize, Self) {
        let bucket = next() as usize - 1;
        let op = match code as u8 {
            code::GIVE_BACK => Self::GiveBack { tokens: next() },
            code::CHARGE => Self::Charge { tokens: next() },
            code::RESET => Self::Reset,
            code::LOOK => Self::Look,
            code::CAP_LEVEL => Self::CapLevel { tokens: next() },
            code::EMPTY_OR_STOP => Self::EmptyOrStop,
            code::WRITE_BACK => Self::WriteBack {
                tokens: next(),
                wait_us: next(),
                largest_cost: next(),
            },
            code::LEASE => Self::Lease { tokens: next() },
            code::PAUSE => Self::Pause { us: next() },
            code::UNDO => {
                let (tokens, until, from) = (next(), next(), next());
                Self::Undo(Reservation {
                    from,
                    until,
                    tokens,
                })
            }
            code => panic!("no operation {code}"),
        };
        (bucket, op)
    }

    /// Whether the reply has an answer for it, as for a request.
    #[cfg(test)]
    pub(crate) fn has_answer(&self) -> bool {
        matches!(self, Self::Lease { .. })
    }

    /// Whether it joins an earlier one even if requests lie between. Returned tokens are free
    /// already. Callers who give back a missed reservation and then request another would
    /// otherwise separate all requests.
    pub(crate) fn overtakes_requests(&self) -> bool {
        matches!(self, Self::GiveBack { .. })
    }

    /// Adds `next`, which follows on the same bucket, to this one, if both can be done as one.
    pub(crate) fn merge(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::GiveBack { tokens: sum }, Self::GiveBack { tokens })
            | (Self::Charge { tokens: sum }, Self::Charge { tokens }) => {
                *sum += tokens;
                true
            }
            _ => false,
        }
    }

    /// Whether it is still of use when a later worker delivers it. The next response of the
    /// upstream service has a newer cap.
    pub(crate) fn is_kept(&self) -> bool {
        !matches!(self, Self::CapLevel { .. })
    }

    /// Applies to the caches of this process what is known of the effect before it is delivered.
    pub(crate) fn anticipate(
        &self,
        scope: &Scope,
        secret: &[u8; 32],
        levels: &LevelCache,
        leases: &Leases,
    ) {
        let id = || scope.id(secret);
        match *self {
            Self::GiveBack { tokens } | Self::Undo(Reservation { tokens, .. }) => {
                levels.raise(&id(), scope.params(), tokens);
            }
            Self::Reset => levels.fill(&id(), scope.params()),
            Self::Pause { us } => {
                let id = id();
                levels.pause(&id, scope.params(), us);
                leases.forget(&id);
            }
            Self::CapLevel { .. } => leases.forget(&id()),
            Self::Charge { .. }
            | Self::Look
            | Self::EmptyOrStop
            | Self::WriteBack { .. }
            | Self::Lease { .. } => {}
        }
    }
}

/// Receives the level of the bucket after an operation.
pub(crate) type LevelReply = oneshot::Sender<Result<f64, Failure>>;

/// An operation on its way to Redis.
#[derive(Debug)]
pub(crate) struct QueuedOp {
    pub(crate) scope: Scope,
    pub(crate) op: Op,
    /// When a pause ends. It counts from when it was queued.
    pause_ends: Option<Instant>,
    reply: Option<LevelReply>,
}

impl QueuedOp {
    pub(crate) fn new(scope: Scope, op: Op, reply: Option<LevelReply>) -> Self {
        let pause_ends = match op {
            Op::Pause { us } => Some(Instant::now() + from_us(us)),
            _ => None,
        };
        Self {
            scope,
            op,
            pause_ends,
            reply,
        }
    }

    /// The operation as it is to be sent now: of a pause only the rest is left.
    pub(crate) fn to_send(&self) -> Op {
        match self.pause_ends {
            Some(ends) => Op::Pause {
                us: to_us(ends.saturating_duration_since(Instant::now())),
            },
            None => self.op,
        }
    }

    /// Adds `next`, which follows on the same bucket, if both can be done as one.
    pub(crate) fn merge(&mut self, next: &Self) -> bool {
        next.reply.is_none() && self.op.merge(&next.op)
    }

    /// Reports the level of the bucket after the call.
    pub(crate) fn answer(self, level: f64) {
        if let Some(reply) = self.reply {
            let _ = reply.send(Ok(level));
        }
    }

    /// Records in the ledger what was not delivered: because of `failure`, or because the worker
    /// ended; then a caller that waits for the reply queues the operation again.
    ///
    /// If the script may have been executed, charges and pauses are repeated, which at worst
    /// charges twice; tokens are not returned again.
    pub(crate) fn undelivered(
        self,
        maybe_executed: bool,
        failure: Option<&Failure>,
        ledger: &dyn Ledger,
    ) {
        let scope = self.scope;
        match self.op {
            Op::Charge { tokens } => ledger.correct(&scope, tokens),
            Op::Pause { .. } => {
                if let Some(ends) = self.pause_ends {
                    ledger.pause(&scope, ends);
                }
            }
            Op::GiveBack { tokens } if !maybe_executed => ledger.correct(&scope, -tokens),
            Op::Undo(reservation) if !maybe_executed => ledger.undo(scope, reservation),
            // The next response of the upstream service has a newer cap.
            Op::GiveBack { .. } | Op::Undo(_) | Op::CapLevel { .. } | Op::Reset | Op::Look => {}
            // Not queued: the supervisor repeats a write-back, and leases have their own requests.
            Op::EmptyOrStop | Op::WriteBack { .. } | Op::Lease { .. } => {}
        }
        if let (Some(reply), Some(failure)) = (self.reply, failure) {
            let _ = reply.send(Err(failure.clone()));
        }
    }
}
