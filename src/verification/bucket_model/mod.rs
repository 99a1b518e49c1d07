//! Searches over the bucket model: random sequences of everything that can happen to a bucket. In
//! each sequence, every window of the tokens used is checked.
//!
//! `THROTTLE_SEED` repeats a run, `THROTTLE_SEQUENCES` sets its length, and `THROTTLE_FULL=1`
//! selects the long one.

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
