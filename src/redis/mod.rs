//! Buckets in Redis, shared by all processes: one script, one task that batches, one connection
//! under a supervisor.

mod batch;
mod bounds;
mod failure;
mod link;
mod script;

pub(crate) use self::{
    batch::{Asker, Batcher},
    link::{Link, LinkConfig},
};
