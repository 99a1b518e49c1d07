//! What happens around an inner call: [`Settle`], [`OnResponse`], [`ExposePermit`].

use super::Reply;
#[cfg(feature = "http")]
use crate::PermitHandle;
use crate::{Permit, Rejected};

/// Corrects the cost once the response is known; made by
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
pub struct Settle<O, F> {
    reply: O,
    actual: F,
}

impl<O, F> Settle<O, F> {
    pub(crate) fn new(reply: O, actual: F) -> Self {
        Self { reply, actual }
    }
}

/// Runs a hook on each response; made by
/// [`RateLimitLayer::on_response`](crate::RateLimitLayer::on_response).
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Permit, Quota, RateLimitLayer};
///
/// let scope = Quota::per_second(5.0).scope("api");
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), scope)
///     .on_response(|_: &mut Permit, text: &mut String| text.push('!'));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OnResponse<O, F> {
    reply: O,
    hook: F,
}

impl<O, F> OnResponse<O, F> {
    pub(crate) fn new(reply: O, hook: F) -> Self {
        Self { reply, hook }
    }
}

/// Puts a [`PermitHandle`](crate::PermitHandle) into the request's extensions; made by
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
pub struct ExposePermit<O> {
    reply: O,
}

#[cfg(feature = "http")]
impl<O> ExposePermit<O> {
    pub(crate) fn new(reply: O) -> Self {
        Self { reply }
    }
}

/// Everything but the hook is the inner reply's.
macro_rules! reply_through {
    () => {
        type Error = O::Error;

        fn inner_error(&self, error: E) -> Self::Error {
            self.reply.inner_error(error)
        }
    };
}

impl<Req, Res, E, O, F> Reply<Req, Res, E> for Settle<O, F>
where
    O: Reply<Req, Res, E>,
    F: Fn(&Res) -> Option<f64>,
{
    reply_through!();

    fn limited(&self, rejected: Rejected, req: Req) -> Result<Res, Self::Error> {
        self.reply.limited(rejected, req)
    }

    fn before(&self, permit: &mut Permit, req: &mut Req) {
        self.reply.before(permit, req);
    }

    fn after(&self, permit: &mut Permit, res: &mut Res) {
        if let Some(actual) = (self.actual)(res) {
            permit.settle(actual);
        }
        self.reply.after(permit, res);
    }

    fn after_in_shadow(&self, permit: &Permit, res: &Res) {
        if let Some(actual) = (self.actual)(res) {
            permit.settle(actual);
        }
        self.reply.after_in_shadow(permit, res);
    }
}

impl<Req, Res, E, O, F> Reply<Req, Res, E> for OnResponse<O, F>
where
    O: Reply<Req, Res, E>,
    F: Fn(&mut Permit, &mut Res),
{
    reply_through!();

    fn limited(&self, rejected: Rejected, req: Req) -> Result<Res, Self::Error> {
        self.reply.limited(rejected, req)
    }

    fn before(&self, permit: &mut Permit, req: &mut Req) {
        self.reply.before(permit, req);
    }

    fn after(&self, permit: &mut Permit, res: &mut Res) {
        self.reply.after(permit, res);
        (self.hook)(permit, res);
    }

    fn after_in_shadow(&self, permit: &Permit, res: &Res) {
        self.reply.after_in_shadow(permit, res);
    }
}

#[cfg(feature = "http")]
impl<B, Res, E, O> Reply<http::Request<B>, Res, E> for ExposePermit<O>
where
    O: Reply<http::Request<B>, Res, E>,
{
    reply_through!();

    fn limited(&self, rejected: Rejected, req: http::Request<B>) -> Result<Res, Self::Error> {
        self.reply.limited(rejected, req)
    }

    fn before(&self, permit: &mut Permit, req: &mut http::Request<B>) {
        self.reply.before(permit, req);
        let extensions = req.extensions_mut();
        // What settles nothing must not stand before what another layer has put there.
        if !permit.scopes().is_empty() || extensions.get::<PermitHandle>().is_none() {
            extensions.insert(permit.handle());
        }
    }

    fn after(&self, permit: &mut Permit, res: &mut Res) {
        self.reply.after(permit, res);
    }

    fn after_in_shadow(&self, permit: &Permit, res: &Res) {
        self.reply.after_in_shadow(permit, res);
    }
}
