//! [`Handlers`]: the reply of a layer and its hooks.

use crate::{hook::Hook, reply::Reply};

/// What runs around an inner call, and what a rejection or an error becomes.
#[derive(Clone)]
pub(super) struct Handlers<R, H> {
    pub(super) reply: R,
    pub(super) hooks: H,
}

impl<R, H> Handlers<R, H> {
    /// Whether the permit of an admitted request must be kept until its response.
    #[inline]
    pub(super) fn use_permit<Req, Res, E>(&self) -> bool
    where
        R: Reply<Req, Res, E>,
        H: Hook<Req, Res>,
    {
        self.hooks.uses_permit() || self.reply.uses_permit()
    }
}
