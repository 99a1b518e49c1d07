//! [`HeldPermit`]: a permit that waits for the inner service.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    limiter::{Permit, TOLERANCE},
    scope::Scopes,
};

/// How long a permit is held for an inner service that is not ready. After that its tokens are
/// given back and requested again within the same deadline: tokens that are used late come on top
/// of those of the requests that are due then.
pub(super) const HOLD: Duration = Duration::from_millis(10);

/// A permit that is not used yet. Dropping it gives its tokens back.
#[derive(Debug)]
pub(super) struct HeldPermit {
    permit: Option<Permit>,
    /// When its tokens were due.
    due: Instant,
}

impl HeldPermit {
    pub(super) fn new(permit: Permit, due: Instant) -> Self {
        Self {
            permit: Some(permit),
            due,
        }
    }

    /// Whether its tokens were due too long ago to be used.
    pub(super) fn is_old(&self) -> bool {
        self.due.elapsed() > TOLERANCE
    }

    /// The scopes to acquire again if the permit is given back.
    pub(super) fn scopes(&self) -> Scopes {
        self.permit
            .as_ref()
            .map(|permit| permit.scopes().to_vec().into())
            .unwrap_or_default()
    }

    /// Takes the permit, because the inner service is called now.
    pub(super) fn spend(mut self) -> Option<Permit> {
        self.permit.take()
    }
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.give_back_late(self.due);
        }
    }
}
