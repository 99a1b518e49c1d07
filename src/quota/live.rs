//! [`LiveQuota`]: a quota that can be changed while it is used.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use super::Quota;

/// A [`Quota`] that can be changed while it is used; every clone changes the same one.
///
/// What is in a bucket stays in it: after a change it refills by the new rate, up to the new
/// capacity, and what it holds above that is lost. Turns that were promised stay promised; who
/// comes after them waits by the new numbers.
///
/// Only this process is told. A bucket in Redis has no quota of its own: each process asks by the
/// numbers that it knows. So change it in all of them, from the configuration that they share;
/// for as long as they differ, the bucket refills by the rate of whoever asks, and is cut to the
/// smaller capacity whenever somebody asks who knows that one.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, LiveQuota, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let quota = LiveQuota::new(Quota::per_hour(10.0));
/// let api = quota.scope("api");
/// let limiter = Limiter::in_memory();
/// limiter.try_acquire(api.current().cost(4.0)).await.unwrap();
///
/// quota.set(Quota::per_hour(100.0));
/// let level = limiter.bucket(&api.current()).level().await.unwrap();
/// assert_eq!(level.floor(), 6.0); // kept; from here on it fills up to 100
/// # }
/// ```
#[derive(Clone)]
pub struct LiveQuota {
    cell: Arc<Cell>,
}

/// The numbers of a quota, read together without writing anything: a lock, even one that many may
/// read under, would be written by every request of every thread.
struct Cell {
    /// Odd while the numbers are being changed.
    version: AtomicU64,
    numbers: [AtomicU64; 4],
    /// Held by who changes them.
    changes: Mutex<()>,
}

impl LiveQuota {
    /// What holds until it is changed.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// let quota = LiveQuota::new(Quota::per_second(5.0));
    /// assert_eq!(quota.get(), Quota::per_second(5.0));
    /// ```
    pub fn new(quota: Quota) -> Self {
        let cell = Cell {
            version: AtomicU64::new(0),
            numbers: bits(quota).map(AtomicU64::new),
            changes: Mutex::new(()),
        };
        Self {
            cell: Arc::new(cell),
        }
    }

    /// Changes it, for all who ask from now on.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// let quota = LiveQuota::new(Quota::per_second(5.0));
    /// quota.clone().set("10/s burst 20".parse().unwrap());
    /// assert_eq!(quota.get().capacity(), 20.0);
    /// ```
    pub fn set(&self, quota: Quota) {
        self.cell.set(quota);
    }

    /// What holds now.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// assert_eq!(LiveQuota::new(Quota::per_second(5.0)).get().rate(), 5.0);
    /// ```
    pub fn get(&self) -> Quota {
        self.cell.get()
    }
}

impl From<Quota> for LiveQuota {
    fn from(quota: Quota) -> Self {
        Self::new(quota)
    }
}

impl fmt::Debug for LiveQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveQuota({})", self.get())
    }
}

impl Cell {
    fn get(&self) -> Quota {
        let before = self.version.load(Ordering::Acquire);
        let quota = self.read();
        // What was read above is of this version, if it is still the same below.
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
            return quota;
        }
        // It is being changed: whoever does that holds this for four writes.
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.read()
    }

    fn set(&self, quota: Quota) {
        let _change = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (number, bits) in self.numbers.iter().zip(bits(quota)) {
            number.store(bits, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    fn read(&self) -> Quota {
        let [capacity, per_us, tokens, period_ns] =
            std::array::from_fn(|index| self.numbers[index].load(Ordering::Relaxed));
        Quota {
            capacity: f64::from_bits(capacity),
            per_us: f64::from_bits(per_us),
            tokens: f64::from_bits(tokens),
            period_ns,
        }
    }
}

fn bits(quota: Quota) -> [u64; 4] {
    [
        quota.capacity.to_bits(),
        quota.per_us.to_bits(),
        quota.tokens.to_bits(),
        quota.period_ns,
    ]
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread};

    use super::*;

    /// Both numbers are of the same change, always.
    #[test]
    fn nobody_reads_half_a_change() {
        let of = |n: u32| Quota::per_second(f64::from(n)).burst(f64::from(10 * n));
        let quota = LiveQuota::new(of(1));
        let over = AtomicBool::new(false);
        thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    let mut last = 0.0;
                    while !over.load(Ordering::Relaxed) {
                        let read = quota.get();
                        assert_eq!(read.capacity(), 10.0 * read.rate());
                        assert!(read.rate() >= last, "back to an older one");
                        last = read.rate();
                    }
                });
            }
            for n in 1..100_000 {
                quota.set(of(n));
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(quota.get(), of(99_999));
    }
}
