//! A bucket that is known to be spent, to be read without a lock.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::{
    bucket::Terms,
    clock::{Anchor, Clock, ceil},
    scope::Lookup,
};

/// Longer identities are looked up under the lock.
const LONGEST_ID: usize = 40;

const ID_WORDS: usize = LONGEST_ID / 8;

/// The last bucket of a shard that refused somebody while others waited for the shard's lock.
///
/// A spent bucket is asked for the most of all, and refusing changes nothing: those who ask for it
/// need not wait for each other. It is written under the shard's lock only, which whoever changes
/// the bucket holds as well.
///
/// A seqlock, after Boehm, "Can seqlocks get along with programming language memory models?"
/// (2012): the version is odd while the rest is written.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Spent {
    version: AtomicU64,
    /// Of the identity; zero: none.
    hash: AtomicU64,
    id: [AtomicU64; ID_WORDS],
    length: AtomicU64,
    level: AtomicU64,
    at: AtomicU64,
    cap: AtomicU64,
    per_us: AtomicU64,
    until: AtomicU64,
    raw: AtomicU64,
    us: AtomicU64,
}

/// What refuses, until `until`: the level at that time, and its refill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    pub(crate) level: f64,
    pub(crate) at: f64,
    pub(crate) until: f64,
}

impl Spent {
    /// When to come back, in microseconds, if the bucket refuses `cost` for certain.
    #[inline]
    pub(crate) fn refuses(
        &self,
        (hash, id): (u64, &Lookup<'_>),
        terms: Terms,
        cost: f64,
        max_wait: f64,
        clock: &Clock,
    ) -> Option<f64> {
        if self.hash.load(Ordering::Relaxed) != hash {
            return None;
        }
        self.reads((hash, id), terms, cost, max_wait, clock)
    }

    #[inline(never)]
    fn reads(
        &self,
        (hash, id): (u64, &Lookup<'_>),
        terms: Terms,
        cost: f64,
        max_wait: f64,
        clock: &Clock,
    ) -> Option<f64> {
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let number = |number: &AtomicU64| f64::from_bits(word(number));
        let version = self.version.load(Ordering::Acquire);
        let mut bytes = [0; LONGEST_ID];
        for (bytes, of) in bytes.chunks_exact_mut(8).zip(&self.id) {
            bytes.copy_from_slice(&word(of).to_le_bytes());
        }
        let length = word(&self.length) as usize;
        let same = word(&self.hash) == hash
            && number(&self.cap) == terms.cap
            && number(&self.per_us) == terms.per_us;
        let (level, at) = (number(&self.level), number(&self.at));
        let until = number(&self.until);
        let anchor = Anchor::new(word(&self.raw), number(&self.us));
        fence(Ordering::Acquire);
        if version % 2 == 1 || self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        if !same || !bytes.get(..length).is_some_and(|bytes| id.is(bytes)) {
            return None;
        }
        let now = clock.now_near(anchor)?;
        let level = terms.cap.min(level + (now - at).max(0.0) * terms.per_us);
        let wait = ceil((cost - level) / terms.per_us);
        (now < until && level < cost && wait > max_wait).then(|| (wait - max_wait).max(1.0))
    }

    /// Whether this is the bucket; to be asked under the shard's lock.
    #[inline]
    pub(crate) fn is(&self, hash: u64) -> bool {
        self.hash.load(Ordering::Relaxed) == hash
    }

    /// Under the shard's lock.
    pub(crate) fn set(&self, (hash, id): (u64, &[u8]), terms: Terms, level: Level, anchor: Anchor) {
        if id.len() > LONGEST_ID {
            return;
        }
        let mut bytes = [0; LONGEST_ID];
        bytes[..id.len()].copy_from_slice(id);
        self.write(|| {
            for (word, bytes) in self.id.iter().zip(bytes.chunks_exact(8)) {
                let mut of = [0; 8];
                of.copy_from_slice(bytes);
                word.store(u64::from_le_bytes(of), Ordering::Relaxed);
            }
            let (raw, us) = anchor.parts();
            for (word, value) in [
                (&self.hash, hash),
                (&self.length, id.len() as u64),
                (&self.level, level.level.to_bits()),
                (&self.at, level.at.to_bits()),
                (&self.until, level.until.to_bits()),
                (&self.cap, terms.cap.to_bits()),
                (&self.per_us, terms.per_us.to_bits()),
                (&self.raw, raw),
                (&self.us, us.to_bits()),
            ] {
                word.store(value, Ordering::Relaxed);
            }
        });
    }

    /// The bucket has changed; under the shard's lock.
    #[inline]
    pub(crate) fn forget(&self, hash: u64) {
        if self.is(hash) {
            self.write(|| self.hash.store(0, Ordering::Relaxed));
        }
    }

    fn write(&self, f: impl FnOnce()) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        f();
        self.version.store(version + 2, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{quota::Quota, scope::Scope};

    const SCOPE: Scope = Quota::per_second(10.0).scope("s");
    const SALT: [u8; 32] = [0; 32];

    fn set(spent: &Spent, scope: &Scope, terms: Terms, level: f64, until: f64) {
        let at = 0.0;
        let level = Level { level, at, until };
        let id = scope.id(&SALT);
        spent.set((7, id.as_bytes()), terms, level, Anchor::default());
    }

    #[tokio::test(start_paused = true)]
    async fn it_refuses_as_the_law_does() {
        let (spent, clock, terms) = (Spent::default(), Clock::new(), Terms::new(10.0, 10.0));
        let refuses = |hash, scope: &Scope, terms, max_wait| {
            spent.refuses(
                (hash, &scope.id(&SALT).lookup()),
                terms,
                1.0,
                max_wait,
                &clock,
            )
        };
        let scope = SCOPE.key("k");
        assert_eq!(refuses(0, &scope, terms, 0.0), None);
        set(&spent, &scope, terms, -1.0, 1e6);
        assert_eq!(refuses(7, &scope, terms, 0.0), Some(200_000.0));
        assert_eq!(refuses(7, &scope, terms, 150_000.0), Some(50_000.0));
        assert_eq!(refuses(7, &scope, terms, 200_000.0), None);
        assert_eq!(refuses(8, &scope, terms, 0.0), None);
        assert_eq!(refuses(7, &SCOPE.key("l"), terms, 0.0), None);
        assert_eq!(refuses(7, &SCOPE, terms, 0.0), None);
        assert_eq!(refuses(7, &scope, Terms::new(11.0, 10.0), 0.0), None);
        tokio::time::advance(Duration::from_millis(150)).await;
        assert_eq!(refuses(7, &scope, terms, 0.0), Some(50_000.0));
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(refuses(7, &scope, terms, 0.0), None);
        let slow = Terms::new(1.0, 1e-6);
        set(&spent, &scope, slow, -1.0, 100_000.0);
        assert_eq!(refuses(7, &scope, slow, 0.0), None, "no longer trusted");
        set(&spent, &scope, slow, -1.0, 1e12);
        assert!(refuses(7, &scope, slow, 0.0).is_some());
        spent.forget(8);
        assert!(refuses(7, &scope, slow, 0.0).is_some());
        spent.forget(7);
        assert_eq!(refuses(7, &scope, slow, 0.0), None);
        set(&spent, &SCOPE.key("x".repeat(60)), terms, -1.0, 1e12);
        assert_eq!(refuses(7, &SCOPE.key("x".repeat(60)), terms, 0.0), None);
    }

    /// Two buckets that refuse for times of their own: nobody is told a mixture.
    #[test]
    fn nobody_reads_what_is_half_written() {
        let (spent, clock) = (Spent::default(), Clock::new());
        let of = |n: u32| {
            let scope = SCOPE.key(format_args!("{n}").to_string().repeat(20));
            (scope, Terms::new(1.0 + f64::from(n), 1e-6))
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        let read = || {
            let mut refused = 0;
            while !done.load(Ordering::Relaxed) {
                for n in 0..2 {
                    let (scope, terms) = of(n);
                    let cost = terms.cap;
                    let id = scope.id(&SALT);
                    if let Some(wait) = spent.refuses((7, &id.lookup()), terms, cost, 0.0, &clock) {
                        // It lacks twice its capacity, but for what has refilled.
                        let most = 2.0 * terms.cap / terms.per_us;
                        assert!((0.999 * most..=most).contains(&wait), "{wait} {most}");
                        refused += 1;
                    }
                }
            }
            refused
        };
        let refused: u32 = std::thread::scope(|threads| {
            let readers: Vec<_> = (0..2).map(|_| threads.spawn(read)).collect();
            for step in 0..200_000 {
                let (scope, terms) = of(step % 2);
                set(&spent, &scope, terms, -terms.cap, f64::INFINITY);
                if step % 1_000 == 0 {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
            let refused = readers
                .into_iter()
                .map(|reader| reader.join().expect("no panic"));
            refused.sum()
        });
        println!("{refused} refused");
    }
}
