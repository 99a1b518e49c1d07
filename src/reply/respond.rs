//! [`Respond`]: a refusal is a response.

use super::Reply;
use crate::Rejected;

/// A refusal becomes what a closure makes of it; made by
/// [`RateLimitLayer::respond`](crate::RateLimitLayer::respond). Errors of the inner service are
/// untouched.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected};
///
/// let scope = Quota::per_second(5.0).scope("api");
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), scope)
///     .respond(|_: &Rejected| "come back later");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Respond<F> {
    respond: F,
}

impl<F> Respond<F> {
    pub(crate) fn new(respond: F) -> Self {
        Self { respond }
    }
}

impl<Req, Res, E, F> Reply<Req, Res, E> for Respond<F>
where
    F: Fn(&Rejected) -> Res,
{
    type Error = E;

    fn inner_error(&self, error: E) -> E {
        error
    }

    fn uses_permit(&self) -> bool {
        false
    }

    fn limited(&self, rejected: Rejected, _: Req) -> Result<Res, E> {
        Ok((self.respond)(&rejected))
    }
}
