//! [`SeqLock`]: a record that is read without a lock.

use super::atomic::{AtomicU64, Ordering::*, fence};

/// At most `N` words, or none. At most one thread at a time may write; any number may read.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct SeqLock<const N: usize> {
    /// Changes with each write. Odd while there is no record.
    version: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> SeqLock<N> {
    pub(super) fn new() -> Self {
        Self {
            version: AtomicU64::new(1),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Runs `f` with a function that returns the words of the record. Returns `None` if there is no
    /// record, if it has changed meanwhile, or if `f` returns `None`.
    #[inline]
    pub(super) fn read<T>(&self, f: impl FnOnce(&dyn Fn(usize) -> u64) -> Option<T>) -> Option<T> {
        // Acquires what `write` has released: the words are those of this version or later.
        let version = self.version.load(Acquire);
        if !version.is_multiple_of(2) {
            return None;
        }
        let result = f(&|n| self.words[n].load(Relaxed));
        // If a word was of a later version, the fence in `write` is seen by this one, and so is the
        // change of the version before it.
        fence(Acquire);
        let is_unchanged = self.version.load(Relaxed) == version;
        result.filter(|_| is_unchanged)
    }

    pub(super) fn write(&self, words: impl Iterator<Item = u64>) {
        self.clear();
        fence(Release);
        for (word, new) in self.words.iter().zip(words) {
            word.store(new, Relaxed);
        }
        let version = self.version.load(Relaxed);
        self.version.store(version + 1, Release);
    }

    #[inline]
    pub(super) fn clear(&self) {
        // Nobody else writes, so that it need not be one operation.
        let version = self.version.load(Relaxed);
        if version.is_multiple_of(2) {
            self.version.store(version + 1, Relaxed);
        }
    }
}
