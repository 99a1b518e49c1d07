//! [`ShadowDecision`]: the decision of a layer in shadow mode, which no request waits for.

use std::time::Duration;

use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    decision::Failure,
    limiter::{Limiter, Permit},
    scope::Scopes,
    task::supervised,
};

/// A decision that does not delay its request.
#[derive(Default)]
pub(super) enum ShadowDecision {
    /// Rejected, or nothing uses the permit.
    #[default]
    None,
    Granted(Box<Permit>),
    /// A task decides, whether or not the receiver is dropped.
    Pending(oneshot::Receiver<Permit>),
}

impl ShadowDecision {
    /// Decides now, or starts a task that decides. Keeps the permit if `uses_permit`.
    pub(super) fn start(
        limiter: &Limiter,
        scopes: Scopes,
        max_wait: Duration,
        uses_permit: bool,
    ) -> Self {
        if let [scope] = scopes.as_slice()
            && let Some(decision) = limiter.decide_locally(scope, max_wait, true)
        {
            return match decision {
                Ok(level) if uses_permit => Self::Granted(Box::new(limiter.permit(scope, level))),
                _ => Self::None,
            };
        }
        let mut acquire = limiter.acquire_undecided(scopes, max_wait).in_shadow();
        match acquire.decide_now() {
            Some(Ok(permit)) if uses_permit => return Self::Granted(Box::new(permit)),
            Some(_) => return Self::None,
            None => {}
        }
        // Without a runtime, no task can call Redis.
        let Ok(runtime) = Handle::try_current() else {
            return Self::None;
        };
        let (sender, receiver) = oneshot::channel();
        // Its lifetime is bounded like that of any acquisition: by the queue, by `redis_timeout`
        // and by `max_wait`.
        let task = async move {
            if let Ok(permit) = acquire.await {
                let _ = sender.send(permit);
            }
        };
        let limiter = limiter.clone();
        let panicked = move |failure: &Failure| limiter.task_panicked(failure);
        runtime.spawn(supervised("acquires in shadow", task, panicked));
        match uses_permit {
            true => Self::Pending(receiver),
            false => Self::None,
        }
    }

    /// The permit, if it was granted by now.
    pub(super) fn permit(self) -> Option<Permit> {
        match self {
            Self::None => None,
            Self::Granted(permit) => Some(*permit),
            Self::Pending(mut receiver) => receiver.try_recv().ok(),
        }
    }
}
