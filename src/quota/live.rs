//! [`LiveQuota`]: a quota that can be changed while it is used.

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;

use super::Quota;

/// A [`Quota`] that can be changed while it is used; all clones share one value.
///
/// A change keeps what is in a bucket: from then on it refills at the new rate, up to the new
/// capacity, and tokens above that are lost. Reservations stay as they are; later requests wait by
/// the new quota.
///
/// A change applies to this process only, because a bucket in Redis has no quota of its own: each
/// process sends its quota with each request. Change it in all processes, from the configuration
/// that they share. While the quotas differ, the bucket refills at the rate of the process that
/// sends a request, and each request from a process with the smaller capacity cuts the level to
/// that capacity.
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
/// assert_eq!(level.floor(), 6.0); // kept; from here on it refills up to 100
/// # }
/// ```
#[derive(Clone)]
pub struct LiveQuota {
    /// Not a lock: even a read lock is written by each request of each thread.
    current: Arc<ArcSwap<Quota>>,
}

impl LiveQuota {
    /// A quota that applies until it is changed.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// let quota = LiveQuota::new(Quota::per_second(5.0));
    /// assert_eq!(quota.get(), Quota::per_second(5.0));
    /// ```
    pub fn new(quota: Quota) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(quota)),
        }
    }

    /// Changes the quota for all later requests.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// let quota = LiveQuota::new(Quota::per_second(5.0));
    /// quota.clone().set("10/s burst 20".parse().unwrap());
    /// assert_eq!(quota.get().capacity(), 20.0);
    /// ```
    pub fn set(&self, quota: Quota) {
        self.current.store(Arc::new(quota));
    }

    /// The current quota.
    ///
    /// ```
    /// # use tower_throttle::{LiveQuota, Quota};
    /// assert_eq!(LiveQuota::new(Quota::per_second(5.0)).get().rate(), 5.0);
    /// ```
    pub fn get(&self) -> Quota {
        **self.current.load()
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
