//! Searches over the bucket model, the reference model and its parity with the script in a real
//! Redis, and the simulation of outages.

pub(crate) mod bucket_model;
#[cfg(feature = "redis")]
pub(crate) mod parity;
#[cfg(feature = "redis")]
pub(crate) mod reference_model;
#[cfg(feature = "redis")]
mod simulation;
