//! The reference model and `acquire.lua` in a real `redis-server` execute the same calls. Both must
//! agree to the last bit.

mod named;
mod sequences;
#[path = "../../../tests/support/mod.rs"]
pub(crate) mod support;
