//! Hooks around the call of the inner service: [`Hook`], [`Settle`] and [`ExposePermit`].
//!
//! ```
//! use tower_throttle::{Limiter, Permit, Quota, RateLimitLayer, hook::Hook};
//!
//! /// Marks requests that were admitted in degraded mode.
//! #[derive(Clone)]
//! struct MarkDegraded;
//!
//! impl<Res> Hook<String, Res> for MarkDegraded {
//!     fn on_request(&self, permit: &mut Permit, req: &mut String) {
//!         if permit.is_degraded() {
//!             req.push_str(" (degraded)");
//!         }
//!     }
//! }
//!
//! let scope = Quota::per_second(5.0).scope("api");
//! let layer = RateLimitLayer::new(&Limiter::in_memory(), scope).hook(MarkDegraded);
//! ```

use crate::limiter::Permit;
#[cfg(feature = "http")]
use crate::limiter::PermitHandle;

#[cfg(all(test, feature = "http"))]
mod tests;

/// Runs before and after the inner service is called for an admitted request.
///
/// Every method defaults to nothing. A closure `|permit: &mut Permit, res: &mut Res|` is a hook
/// that runs [on each response](Self::on_response), `()` does nothing, and a pair runs its first
/// hook, then its second one.
///
/// # Examples
///
/// See the [module](self).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a hook for a `{Req}` that is answered with a `{Res}`",
    note = "`on_response` takes a closure `|permit: &mut Permit, res: &mut {Res}|`, `settle` a \
            closure `|res: &{Res}|` that returns an `Option<f64>`; `expose_permit` needs an \
            `http::Request`"
)]
pub trait Hook<Req, Res> {
    /// Whether this hook uses the permit. If neither the hooks nor the
    /// [reply](crate::reply::Reply::uses_permit) do, they are not called. Defaults to `true`.
    fn uses_permit(&self) -> bool {
        true
    }

    /// Runs before the inner service is called. In [shadow mode](crate::RateLimitLayer::shadow)
    /// the permit has no scopes.
    fn on_request(&self, permit: &mut Permit, req: &mut Req) {
        let _ = (permit, req);
    }

    /// Runs on the response of the inner service. Is not called if the inner service fails.
    fn on_response(&self, permit: &mut Permit, res: &mut Res) {
        let _ = (permit, res);
    }

    /// Runs instead of [`on_response`](Self::on_response) in
    /// [shadow mode](crate::RateLimitLayer::shadow), if the request would have been admitted and
    /// this was decided by the time of the response. It may settle the permit, and cannot change
    /// the response.
    fn on_shadow_response(&self, permit: &Permit, res: &Res) {
        let _ = (permit, res);
    }
}

/// Does nothing.
impl<Req, Res> Hook<Req, Res> for () {
    fn uses_permit(&self) -> bool {
        false
    }
}

/// Runs the first, then the second.
impl<Req, Res, A, B> Hook<Req, Res> for (A, B)
where
    A: Hook<Req, Res>,
    B: Hook<Req, Res>,
{
    fn uses_permit(&self) -> bool {
        self.0.uses_permit() || self.1.uses_permit()
    }

    fn on_request(&self, permit: &mut Permit, req: &mut Req) {
        self.0.on_request(permit, req);
        self.1.on_request(permit, req);
    }

    fn on_response(&self, permit: &mut Permit, res: &mut Res) {
        self.0.on_response(permit, res);
        self.1.on_response(permit, res);
    }

    fn on_shadow_response(&self, permit: &Permit, res: &Res) {
        self.0.on_shadow_response(permit, res);
        self.1.on_shadow_response(permit, res);
    }
}

#[diagnostic::do_not_recommend]
impl<Req, Res, F> Hook<Req, Res> for F
where
    F: Fn(&mut Permit, &mut Res),
{
    fn on_response(&self, permit: &mut Permit, res: &mut Res) {
        self(permit, res);
    }
}

/// Corrects the cost when the response is known; made by
/// [`RateLimitLayer::settle`](crate::RateLimitLayer::settle).
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer};
///
/// let scope = Quota::per_minute(1_000.0).scope("bytes").cost(100.0);
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), scope)
///     .settle(|body: &Vec<u8>| Some(body.len() as f64));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Settle<F> {
    actual: F,
}

impl<F> Settle<F> {
    pub(crate) fn new(actual: F) -> Self {
        Self { actual }
    }
}

impl<Req, Res, F> Hook<Req, Res> for Settle<F>
where
    F: Fn(&Res) -> Option<f64>,
{
    fn on_response(&self, permit: &mut Permit, res: &mut Res) {
        Hook::<Req, Res>::on_shadow_response(self, permit, res);
    }

    fn on_shadow_response(&self, permit: &Permit, res: &Res) {
        if let Some(actual) = (self.actual)(res) {
            permit.settle(actual);
        }
    }
}

/// Inserts a [`PermitHandle`] into the extensions of each request; made by
/// [`RateLimitLayer::expose_permit`](crate::RateLimitLayer::expose_permit).
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer};
///
/// let scope = Quota::per_second(5.0).scope("api");
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), scope)
///     .respond_http()
///     .expose_permit();
/// ```
#[cfg(feature = "http")]
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ExposePermit;

#[cfg(feature = "http")]
impl<B, Res> Hook<http::Request<B>, Res> for ExposePermit {
    fn on_request(&self, permit: &mut Permit, req: &mut http::Request<B>) {
        let extensions = req.extensions_mut();
        // A permit without scopes settles nothing, so it must not replace that of another layer.
        if !permit.scopes().is_empty() || extensions.get::<PermitHandle>().is_none() {
            extensions.insert(permit.handle());
        }
    }
}
