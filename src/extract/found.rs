//! [`Found`]: whether an extractor has ever found anything.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Counts the requests in which an extractor finds nothing, until it finds something once.
///
/// Shared by all clones, as a layer is cloned for each route and connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found(Arc<AtomicU32>);

/// Nothing is counted any more.
const SETTLED: u32 = u32::MAX;

impl Found {
    /// So many requests without a find are taken for "never".
    pub(crate) const ENOUGH: u32 = 100;

    /// Notes whether something was found in a request; true once, with the last of the first
    /// [`ENOUGH`](Self::ENOUGH) requests, where none of them had anything.
    #[inline]
    pub(crate) fn is_never_after(&self, found: bool) -> bool {
        // The common case only reads, so that the line is not taken from other cores.
        if self.0.load(Ordering::Relaxed) == SETTLED {
            return false;
        }
        self.count(found)
    }

    #[cold]
    fn count(&self, found: bool) -> bool {
        let counted =
            self.0.fetch_update(
                Ordering::Relaxed,
                Ordering::Relaxed,
                |misses| match misses {
                    SETTLED => None,
                    _ if found || misses + 1 >= Self::ENOUGH => Some(SETTLED),
                    _ => Some(misses + 1),
                },
            );
        !found && counted.is_ok_and(|misses| misses + 1 == Self::ENOUGH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_is_reported_once_and_not_after_a_find() {
        let found = Found::default();
        let reports = (0..1_000).filter(|_| found.clone().is_never_after(false));
        assert_eq!(reports.collect::<Vec<_>>(), [99]);

        let found = Found::default();
        let at = |nth: &i32| found.is_never_after(*nth == 98);
        assert_eq!((0..1_000).filter(at).count(), 0);
    }
}
