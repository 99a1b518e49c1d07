//! Outages by simulation: several limiters and one scripted Redis in paused time, with scripted
//! faults, and in each run every window of what was admitted.
//!
//! `THROTTLE_SEED` repeats a run, `THROTTLE_SEQUENCES` sets how many are run, and
//! `THROTTLE_FULL=1` asks for the long search.

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
