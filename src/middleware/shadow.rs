//! [`Watched`]: what a layer decides that only watches.

use std::time::Duration;

use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    Scopes,
    decision::Failure,
    limiter::{Limiter, Permit},
    task::supervised,
};

/// A decision beside a request that does not wait for it.
pub(super) enum Watched {
    /// Refused, or of no use to anybody.
    Nothing,
    Granted(Box<Permit>),
    /// Told when it is decided; the decision does not depend on who listens.
    Pending(oneshot::Receiver<Permit>),
}

impl Watched {
    /// Decides now, or starts to; `kept` where the permit is of use.
    pub(super) fn decide(
        limiter: &Limiter,
        scopes: Scopes,
        max_wait: Duration,
        kept: bool,
    ) -> Self {
        if let [scope] = scopes.as_slice()
            && let Some(decision) = limiter.decide_locally(scope, max_wait, true)
        {
            return match decision {
                Ok(level) if kept => Self::Granted(Box::new(limiter.permit(scope, level))),
                _ => Self::Nothing,
            };
        }
        let mut acquire = limiter.acquire_undecided(scopes, max_wait).in_shadow();
        match acquire.decide_now() {
            Some(Ok(permit)) if kept => return Self::Granted(Box::new(permit)),
            Some(_) => return Self::Nothing,
            None => {}
        }
        // Without a runtime there is nobody to ask Redis, and nothing to count.
        let Ok(runtime) = Handle::try_current() else {
            return Self::Nothing;
        };
        let (tell, hear) = oneshot::channel();
        // Bounded as any acquisition: by the queue, by `redis_timeout` and by `max_wait`.
        let task = async move {
            if let Ok(permit) = acquire.await {
                let _ = tell.send(permit);
            }
        };
        let limiter = limiter.clone();
        let panicked = move |failure: &Failure| limiter.task_panicked(failure);
        runtime.spawn(supervised("acquires in shadow", task, panicked));
        match kept {
            true => Self::Pending(hear),
            false => Self::Nothing,
        }
    }

    /// The permit, if there is one by now.
    pub(super) fn permit(self) -> Option<Permit> {
        match self {
            Self::Nothing => None,
            Self::Granted(permit) => Some(*permit),
            Self::Pending(mut hear) => hear.try_recv().ok(),
        }
    }
}
