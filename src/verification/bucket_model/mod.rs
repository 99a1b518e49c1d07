//! The law by search: random sequences of everything that can happen to a bucket, and in each of
//! them every window of what was used.
//!
//! `THROTTLE_SEED` repeats a run, `THROTTLE_SEQUENCES` sets its length, and `THROTTLE_FULL=1`
//! asks for the long one.

mod case;
mod named;
mod random;
mod record;
mod script_operations;
mod search;
mod simulator;
mod unit;

pub(crate) use self::random::seeded;
#[cfg(feature = "redis")]
pub(crate) use self::random::{Rng, seed, sequences};
