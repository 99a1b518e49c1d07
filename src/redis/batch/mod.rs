//! Concurrent requests go to Redis as one call: the queue, the task that empties it, and the
//! merging, encoding and answering of one call.

pub(crate) mod call;
pub(crate) mod command;
pub(crate) mod queue_time;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod worker;
