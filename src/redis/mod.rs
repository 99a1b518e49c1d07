//! Buckets in Redis, shared by all processes: one script, one task that batches, one connection
//! under a supervisor.

mod batch;
mod batcher;
#[cfg(test)]
mod batcher_tests;
mod bounds;
mod command;
mod failure;
mod link;
#[cfg(test)]
mod parity;
mod script;

pub(crate) use self::{
    batcher::Batcher,
    command::Asker,
    link::{Link, LinkConfig},
};
