//! [`Limiter`]: chooses the store, and owns permits, turns and refunds.

mod acquire;
mod bound;
mod builder;
mod core;
mod handle;
mod permit;
mod remote;
mod shares;
#[cfg(all(test, feature = "redis"))]
mod simulation;
mod steps;
mod turns;
mod waiter;

pub use self::{
    acquire::Acquire,
    builder::LimiterBuilder,
    handle::{Level, Limiter},
    permit::{Permit, PermitHandle},
};
pub(crate) use self::{acquire::Progress, turns::TOLERANCE};
