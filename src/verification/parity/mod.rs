//! The twins side by side: `bucket.rs` here and `acquire.lua` in a real `redis-server`, through the
//! same random calls. Both must agree to the last bit.

mod named;
mod sequences;
#[path = "../../../tests/support/mod.rs"]
pub(crate) mod support;
