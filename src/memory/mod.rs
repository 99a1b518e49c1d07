//! Buckets in the memory of this process: for a limiter without Redis, and for the local shares of
//! one with Redis.

mod overflow;
mod packed;
mod share;
mod store;
mod take_all;

#[cfg(test)]
mod tests;

pub(crate) use self::{share::ShareBounds, store::MemoryStore, take_all::Request};
