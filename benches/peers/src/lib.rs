//! Measures tower-throttle beside other rate limiters, on the same work in the same run.
//!
//! `scripts/bench` is the way to run it; README.md says what is measured and how.
#![cfg_attr(
    not(feature = "peers"),
    allow(dead_code, unused_mut, reason = "only the peers need them")
)]

pub mod case;
pub mod load;
pub mod plan;
pub mod report;
pub mod rows;
pub mod server;
pub mod subjects;
