//! One connection to Redis for each limiter: its state, the task that supervises it, and what
//! happens before a recovered Redis is used.
//!
//! From the callers down to the socket: [`redis_connection`] is the handle; [`state`] holds the
//! stage that [`breaker`] decides; [`supervisor`] connects, with the steps of [`recovery`], and
//! sends heartbeats ([`presence`]); [`calls`] runs scripts over a [`transport`].

mod breaker;
mod calls;
#[cfg(feature = "redis")]
mod classify;
pub(crate) mod config;
mod corrections;
mod deregister;
#[cfg(feature = "redis")]
pub(crate) mod driver;
pub(crate) mod failure;
#[cfg(all(test, feature = "redis"))]
mod panics;
mod presence;
mod recovery;
pub(crate) mod redis_connection;
mod state;
mod supervisor;
#[cfg(feature = "tls")]
mod tls;
pub(crate) mod transport;
