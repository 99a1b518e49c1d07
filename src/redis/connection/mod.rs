//! One connection to Redis for each limiter: its state, the task that supervises it, and what
//! happens before a recovered Redis is used.

pub(crate) mod breaker;
pub(crate) mod deregister;
pub(crate) mod driver;
pub(crate) mod failure;
#[cfg(test)]
mod panics;
pub(crate) mod recovery;
pub(crate) mod redis_connection;
pub(crate) mod state;
pub(crate) mod supervisor;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod transport;
