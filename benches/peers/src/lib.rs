//! Measures tower-throttle and other rate limiters on the same workloads in the same run.
//!
//! Run it with `scripts/bench`. README.md describes what is measured and how.

pub mod case;
pub mod chart;
pub mod delay;
pub mod helper;
pub mod http_client;
pub mod load;
pub mod machine;
pub mod metric;
pub mod open;
pub mod outage;
pub mod plan;
pub mod report;
pub mod rows;
pub mod sample;
pub mod server;
pub mod subjects;
