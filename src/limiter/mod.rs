//! [`Limiter`]: chooses the backend; owns permits, wait queues and corrections.

mod acquire;
mod backend;
mod bucket;
mod builder;
mod charge;
mod core;
mod corrections;
mod handle;
mod local_share;
mod memory_backend;
mod pending;
mod permit;
mod queue;

pub(crate) use self::queue::TOLERANCE;
pub use self::{
    acquire::Acquire,
    bucket::{BucketHandle, Unavailable},
    builder::LimiterBuilder,
    handle::Limiter,
    permit::{Permit, PermitHandle},
};
