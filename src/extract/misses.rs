//! [`Misses`]: detects an extractor that never finds anything.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

#[cfg(test)]
mod tests;

/// Counts the requests in which an extractor finds nothing, until it finds something.
///
/// All clones share the count, because a layer is cloned for each route and connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Misses(Arc<AtomicU32>);

/// The count after a find, or after the limit was reached.
const STOPPED: u32 = u32::MAX;

impl Misses {
    /// After this many misses without a find, the extractor is reported.
    pub(crate) const LIMIT: u32 = 100;

    /// Records whether a request was a miss. Returns `true` once: for the last of the first
    /// [`LIMIT`](Self::LIMIT) requests, if all of them were misses.
    #[inline]
    pub(crate) fn reach_limit(&self, miss: bool) -> bool {
        // The usual case only reads, so that the cache line stays shared between cores.
        if self.0.load(Ordering::Relaxed) == STOPPED {
            return false;
        }
        self.count(miss)
    }

    #[cold]
    fn count(&self, miss: bool) -> bool {
        let counted =
            self.0.fetch_update(
                Ordering::Relaxed,
                Ordering::Relaxed,
                |misses| match misses {
                    STOPPED => None,
                    _ if !miss || misses + 1 >= Self::LIMIT => Some(STOPPED),
                    _ => Some(misses + 1),
                },
            );
        miss && counted.is_ok_and(|misses| misses + 1 == Self::LIMIT)
    }
}
