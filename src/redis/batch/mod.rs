//! Concurrent requests go to Redis as one call: the queue, the task that empties it, and the
//! merging, encoding and answering of one call.

pub(crate) mod batcher;
mod bucket;
mod build;
mod call;
mod command;
pub(crate) mod connection;
mod context;
mod depth;
mod in_flight;
mod leases;
mod merged_take;
mod pipeline;
pub(crate) mod queue;
pub(crate) mod queue_time;
pub(crate) mod request;
#[cfg(test)]
pub(crate) mod tests;
mod worker;
