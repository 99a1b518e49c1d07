//! What is queued for Redis.

use tokio::time::Instant;

use super::request::{PendingRequest, Requester};
use crate::{
    decision::Failure,
    redis::{lease::LeaseRequest, ledger::Ledger, op::QueuedOp},
    scope::Scope,
};

/// What is rarer than requests is boxed, so that the queue stays small.
pub(crate) enum Command<R: Requester> {
    Take {
        request: PendingRequest<R>,
        queued_at: Instant,
    },
    Op(Box<QueuedOp>),
    /// Half of a lease is used: the next call requests more.
    Lease(Box<(Scope, LeaseRequest)>),
}

impl<R: Requester> Command<R> {
    pub(crate) fn scopes(&self) -> &[Scope] {
        match self {
            Self::Take { request, .. } => request.scopes(),
            Self::Op(queued) => std::slice::from_ref(&queued.scope),
            Self::Lease(lease) => std::slice::from_ref(&lease.0),
        }
    }

    /// Whether it stays queued for a later worker. Others are made again if they are still wanted.
    pub(crate) fn is_kept(&self) -> bool {
        match self {
            Self::Op(queued) => queued.op.is_kept(),
            Self::Take { .. } | Self::Lease(_) => false,
        }
    }

    /// Never sent: because of `failure`, or because the worker ended.
    pub(crate) fn undelivered(self, failure: Option<&Failure>, ledger: &dyn Ledger) {
        match self {
            Self::Take { request, .. } => request.undelivered(failure),
            Self::Op(queued) => queued.undelivered(false, failure, ledger),
            Self::Lease(_) => {}
        }
    }
}
