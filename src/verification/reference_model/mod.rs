//! The specification of `acquire.lua`, in terms of the bucket model of `bucket/`: what Redis stores and
//! where, what a call consists of, and what it does.

mod call;
mod model;
mod storage;
mod stored;

pub(crate) use self::{
    call::{Call, Step},
    model::{Outcome, ReferenceModel, Written},
    storage::{Located, Storage},
    stored::Stored,
};
