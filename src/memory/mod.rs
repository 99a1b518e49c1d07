//! Buckets in this process: the whole limit without Redis, a share of it while Redis is away.

mod packed;
mod store;

pub(crate) use self::store::{MemoryStore, Request, ShareBounds};
