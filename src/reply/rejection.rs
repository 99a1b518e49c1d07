//! [`Reply`]: what a rejection becomes; [`Fail`] and closures.

use std::error::Error;

use crate::{limiter::Permit, rejected::Rejected};

/// Turns a rejection into a response or an error.
///
/// A closure `|rejected: &Rejected|` that returns a response is one, and leaves errors of the
/// inner service unchanged. [`HttpReply`](super::HttpReply) and [`Fail`] are the others of this
/// crate.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected, reply::Reply};
///
/// /// Answers with a default response and leaves errors unchanged.
/// #[derive(Clone)]
/// struct Shed;
///
/// impl<Req, Res: Default, E> Reply<Req, Res, E> for Shed {
///     type Error = E;
///
///     fn rejected(&self, _: Rejected, _: Req) -> Result<Res, E> {
///         Ok(Res::default())
///     }
///
///     fn inner_error(&self, error: E) -> E {
///         error
///     }
/// }
///
/// let scope = Quota::per_second(5.0).scope("api");
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), scope).reply(Shed);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer a `{Req}` with a `{Res}`",
    note = "`respond_http` answers `http::Request` with an `http::Response` whose body is \
            `Default`, and `From<String>` for `problem_json`; for other services use `respond(|rejected: &Rejected| …)`, or leave it \
            out to fail with an error that holds the `Rejected`",
    note = "without either, the error of the inner service must convert into \
            `Box<dyn Error + Send + Sync>`"
)]
pub trait Reply<Req, Res, E> {
    /// The error of the rate-limited service.
    type Error;

    /// What the rejection of `req` becomes.
    ///
    /// # Errors
    ///
    /// If a rejection is an error rather than a response.
    fn rejected(&self, rejected: Rejected, req: Req) -> Result<Res, Self::Error>;

    /// What an error of the inner service becomes.
    fn inner_error(&self, error: E) -> Self::Error;

    /// Whether [`admitted`](Self::admitted) is called. Defaults to `true`. `false` spares the permit
    /// of a request that no [hook](crate::hook::Hook) uses either.
    fn uses_permit(&self) -> bool {
        true
    }

    /// Adds to the response of the inner service, such as header fields, after all hooks have
    /// run. Defaults to nothing. Is not called in [shadow mode](crate::RateLimitLayer::shadow).
    fn admitted(&self, permit: &Permit, res: &mut Res) {
        let _ = (permit, res);
    }
}

/// A rejection becomes a boxed error that holds the [`Rejected`].
///
/// Errors of the inner service are boxed likewise and can be downcast. This is the default of a
/// [`RateLimitLayer`](crate::RateLimitLayer).
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

    fn rejected(&self, rejected: Rejected, _: Req) -> Result<Res, Self::Error> {
        Err(rejected.into())
    }

    fn inner_error(&self, error: E) -> Self::Error {
        error.into()
    }

    fn uses_permit(&self) -> bool {
        false
    }
}

#[diagnostic::do_not_recommend]
impl<Req, Res, E, F> Reply<Req, Res, E> for F
where
    F: Fn(&Rejected) -> Res,
{
    type Error = E;

    fn rejected(&self, rejected: Rejected, _: Req) -> Result<Res, E> {
        Ok(self(&rejected))
    }

    fn inner_error(&self, error: E) -> E {
        error
    }

    fn uses_permit(&self) -> bool {
        false
    }
}
