//! Buckets shared by unseen keys.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::packed::PackedBucket;
use crate::{
    scope::{BucketId, Lookup},
    sharded::Sharded,
};

/// Overflow buckets for each name. To empty them takes as many times the requests that it takes to
/// empty one, since a caller cannot choose among them.
pub(super) const PER_NAME: u64 = 1_024;

/// Once there are this many overflow buckets, further names have none of their own: they share
/// `PER_NAME` more.
const MAX_NAMED: usize = 63 * 1_024;

/// The first byte of their identities, which no other identity begins with.
const MARK: u8 = 0xFD;

/// Whether this is the identity of an overflow bucket.
pub(super) fn is_overflow(id: &[u8]) -> bool {
    id.first() == Some(&MARK)
}

/// The overflow buckets in a map of buckets. A seeded hash assigns each key one of those of its
/// name.
#[derive(Default)]
pub(super) struct Overflow {
    /// How many there are.
    pub(super) count: AtomicUsize,
    /// How many requests they decided.
    pub(super) requests: AtomicU64,
}

impl Overflow {
    /// The overflow bucket for a key with this hash, or the `nth` after it.
    pub(super) fn id_for(
        &self,
        buckets: &Sharded<PackedBucket>,
        id: &BucketId,
        hash: u64,
        nth: u64,
    ) -> Box<[u8]> {
        // Bits that choose neither the shard nor the slot in its table.
        let number = ((hash >> 20).wrapping_add(nth) % PER_NAME) as u16;
        let mut overflow = vec![MARK];
        overflow.extend(number.to_be_bytes());
        let unnamed = overflow.len();
        overflow.extend_from_slice(id.name());
        if self.count.load(Ordering::Relaxed) >= MAX_NAMED
            && buckets.find(&Lookup::of(&overflow), |_| ()).is_none()
        {
            overflow.truncate(unnamed);
        }
        overflow.into()
    }
}
