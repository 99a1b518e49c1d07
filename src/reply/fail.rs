//! [`Fail`]: a refusal is an error.

use std::error::Error;

use super::Reply;
use crate::Rejected;

/// A refusal becomes a boxed error that holds the [`Rejected`]; errors of the inner service stay
/// downcastable in the same box. This is what a layer does unless told otherwise.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Rejected, reply::{Fail, Reply}};
///
/// let error = Reply::<(), (), std::fmt::Error>::inner_error(&Fail::default(), std::fmt::Error);
/// assert!(error.downcast_ref::<std::fmt::Error>().is_some());
/// assert!(Rejected::find(&*error).is_none());
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Fail;

impl<Req, Res, E> Reply<Req, Res, E> for Fail
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Error = Box<dyn Error + Send + Sync>;

    fn inner_error(&self, error: E) -> Self::Error {
        error.into()
    }

    fn uses_permit(&self) -> bool {
        false
    }

    fn limited(&self, rejected: Rejected, _: Req) -> Result<Res, Self::Error> {
        Err(rejected.into())
    }
}
