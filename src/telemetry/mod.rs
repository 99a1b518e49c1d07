//! What operators see of a limiter: its health, log lines and metrics.

#[cfg(feature = "metrics")]
mod handles;
mod health;
#[cfg_attr(
    not(feature = "metrics"),
    allow(dead_code, reason = "nothing is counted without the feature")
)]
mod labels;
mod log;
mod meter;
#[cfg(feature = "metrics")]
mod names;
mod observer;
#[cfg(feature = "metrics")]
mod recorder;

pub use self::health::Health;
pub(crate) use self::{
    labels::{Cost, Outcome},
    meter::Meter,
    observer::{HealthChange, Observer},
};
