//! One connection to Redis for each limiter: its state, the task that supervises it, and what
//! happens before a recovered Redis is used.

pub(crate) mod breaker;
#[cfg(feature = "redis")]
pub(crate) mod classify;
pub(crate) mod deregister;
#[cfg(feature = "redis")]
pub(crate) mod driver;
pub(crate) mod failure;
#[cfg(all(test, feature = "redis"))]
mod panics;
pub(crate) mod recovery;
pub(crate) mod redis_connection;
pub(crate) mod state;
pub(crate) mod supervisor;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod transport;
