//! The specification of `acquire.lua`: what Redis stores, what a call says, and what the call does,
//! told with the bucket model of `bucket/`.

mod call;
mod model;
mod stored;

pub(crate) use self::{
    call::{Call, Step},
    model::{Outcome, ReferenceModel, Written},
    stored::Stored,
};
