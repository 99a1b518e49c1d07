//! [`Limiter`]: chooses the store, and owns permits, turns and refunds.

mod acquire;
mod backend;
mod bound;
mod bucket;
mod builder;
mod charge;
mod core;
mod handle;
mod local_share;
mod pending;
mod permit;
mod steps;
mod wait_queue;
mod waiter;

pub use self::{
    acquire::Acquire,
    bucket::{BucketHandle, Unavailable},
    builder::LimiterBuilder,
    handle::Limiter,
    permit::{Permit, PermitHandle},
};
pub(crate) use self::{acquire::Progress, wait_queue::TOLERANCE};
