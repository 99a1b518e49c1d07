//! Measures tower-throttle and other rate limiters on the same workloads in the same run.
//!
//! Run it with `scripts/bench`. README.md describes what is measured and how.
#![cfg_attr(
    not(feature = "peers"),
    allow(dead_code, unused_mut, reason = "used by the peers only")
)]

pub mod case;
pub mod chart;
pub mod load;
pub mod outage;
pub mod plan;
pub mod report;
pub mod rows;
pub mod server;
pub mod subjects;
