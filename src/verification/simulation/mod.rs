//! Simulates outages: several real limiters and one simulated Redis in paused time, with planned
//! faults. Of each run, every window of admitted tokens is compared with its bound.
//!
//! `THROTTLE_SEED` repeats a run, `THROTTLE_SEQUENCES` sets how many are run, and
//! `THROTTLE_FULL=1` runs the long search.

mod faults;
mod heartbeats;
mod invariants;
mod load;
mod named;
mod plan;
mod random;
mod run;
mod search;
mod server;
mod shrink;
mod store;
mod windows;
