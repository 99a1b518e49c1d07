//! What a refusal becomes, and what happens around an inner call.

mod fail;
#[cfg(feature = "http")]
mod grpc;
#[cfg(feature = "http")]
mod headers;
mod hooks;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod policy;
#[cfg(feature = "http")]
mod problem;
mod respond;

pub use self::{
    fail::Fail,
    hooks::{OnResponse, Settle},
    respond::Respond,
};
#[cfg(feature = "http")]
pub use self::{
    headers::{EXPOSE_HEADERS, HeaderStyle},
    hooks::ExposePermit,
    http::{HttpReply, status},
    problem::{EmptyBody, ProblemJson, problem_json},
};
use crate::{Permit, Rejected};

/// Turns a refusal into a response or an error, and may act around each inner call.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Rejected, reply::Reply};
///
/// /// Sheds to a default response and leaves errors alone.
/// #[derive(Clone)]
/// struct Shed;
///
/// impl<Req, Res: Default, E> Reply<Req, Res, E> for Shed {
///     type Error = E;
///
///     fn inner_error(&self, error: E) -> E {
///         error
///     }
///
///     fn limited(&self, _: Rejected, _: Req) -> Result<Res, E> {
///         Ok(Res::default())
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
    /// The error of the service under the limit.
    type Error;

    /// What an error of the inner service becomes.
    fn inner_error(&self, error: E) -> Self::Error;

    /// What a refusal of `req` becomes.
    ///
    /// # Errors
    ///
    /// Where a refusal is an error rather than a response.
    fn limited(&self, rejected: Rejected, req: Req) -> Result<Res, Self::Error>;

    /// Whether [`before`](Self::before) or [`after`](Self::after) do anything. Where they do not,
    /// a permit that is there at once need not be kept for them.
    fn uses_permit(&self) -> bool {
        true
    }

    /// Runs before the inner call.
    fn before(&self, permit: &mut Permit, req: &mut Req) {
        let _ = (permit, req);
    }

    /// Runs on the response of the inner call.
    fn after(&self, permit: &mut Permit, res: &mut Res) {
        let _ = (permit, res);
    }

    /// Runs in the place of [`after`](Self::after) where the layer only watches
    /// ([`shadow`](crate::RateLimitLayer::shadow)), if a permit was there in time: it may settle,
    /// and change nothing.
    fn after_in_shadow(&self, permit: &Permit, res: &Res) {
        let _ = (permit, res);
    }
}
