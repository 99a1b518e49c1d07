//! The work whose instructions are counted, on one thread.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tower_throttle::{Limiter, Quota};

/// Refills too slowly to matter, and is not spent here.
const WIDE: Quota = Quota::per_day(1.0).burst(1e9);
/// Spent by one request.
const NARROW: Quota = Quota::per_day(1.0);

/// Keys of a full batch.
const BATCH: u32 = 128;
/// Different keys, where there are not always new ones.
const KEYS: u32 = 8 * BATCH;
/// Enough keys for new ones in each batch, however many there are: preparing them is not work.
const NEW_KEYS: u32 = 250 * BATCH;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A decision in memory that admits, always for the same scope.
    Admitted,
    /// As [`Admitted`](Self::Admitted), but it rejects.
    Rejected,
    /// A decision in memory that admits, each for the next key.
    Keyed,
    /// A call to Redis for 128 keys.
    Batches,
    /// As [`Batches`](Self::Batches), with keys that have no bucket yet.
    NewKeys,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admitted => "admitted",
            Self::Rejected => "rejected",
            Self::Keyed => "keyed",
            Self::Batches => "batches",
            Self::NewKeys => "new-keys",
        })
    }
}

/// The work, how much of it, and the Redis that it needs.
pub fn parse(arguments: &[String]) -> (Work, u32, Option<&str>) {
    const ALL: [Work; 5] = [
        Work::Admitted,
        Work::Rejected,
        Work::Keyed,
        Work::Batches,
        Work::NewKeys,
    ];
    let named = |name: &String| ALL.into_iter().find(|work| work.to_string() == *name);
    match arguments {
        [name, units, url @ ..] if named(name).is_some() && url.len() < 2 => (
            named(name).expect("checked"),
            units.parse().expect("a number"),
            url.first().map(String::as_str),
        ),
        _ => panic!("usage: instructions [WORK UNITS [URL]]"),
    }
}

/// Runs a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

impl Work {
    pub fn run(self, units: u32, url: Option<&str>) {
        block_on(async {
            match (self, url) {
                (Self::Batches | Self::NewKeys, Some(url)) => self.run_on(units, url).await,
                (Self::Batches | Self::NewKeys, None) => panic!("this work needs a Redis"),
                _ => self.run_in_memory(units).await,
            }
        });
    }

    async fn run_in_memory(self, decisions: u32) {
        let limiter = Limiter::in_memory();
        let quota = if self == Self::Rejected { NARROW } else { WIDE };
        let scope = quota.scope("bench");
        let names = names(KEYS);
        for name in &*names {
            let decided = limiter.try_acquire(scope.key(name)).await;
            assert!(decided.is_ok(), "{decided:?}");
        }
        let _ = limiter.try_acquire(&scope).await;
        for decision in 0..decisions {
            let decided = match self {
                Self::Keyed => {
                    let name = &names[(decision % KEYS) as usize];
                    limiter.try_acquire(scope.key(name)).await
                }
                _ => limiter.try_acquire(&scope).await,
            };
            assert_eq!(decided.is_err(), self == Self::Rejected);
        }
    }

    /// Each of 128 tasks makes its next request when the last one is decided, so that the requests
    /// of all of them are one call.
    pub async fn run_on(self, batches: u32, url: &str) {
        let limiter = Limiter::builder()
            .redis(url)
            .redis_timeout(Duration::from_secs(10))
            .build()
            .expect("a URL");
        // Connected, and the script is loaded.
        let warm_up = limiter.bucket(&WIDE.scope("warm-up")).level().await;
        assert!(warm_up.is_ok(), "{warm_up:?}");
        let keys = if self == Self::NewKeys {
            NEW_KEYS
        } else {
            KEYS
        };
        assert!(self != Self::NewKeys || batches * BATCH <= keys);
        let (scope, names) = (WIDE.scope("bench"), names(keys));
        let mut tasks = JoinSet::new();
        for task in 0..BATCH {
            let (limiter, scope, names) = (limiter.clone(), scope.clone(), names.clone());
            tasks.spawn(async move {
                for batch in 0..batches {
                    let name = &names[((batch * BATCH + task) % keys) as usize];
                    let decided = limiter.try_acquire(scope.key(name)).await;
                    assert!(decided.is_ok(), "{decided:?}");
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(limiter.fallbacks(), 0, "decided in memory");
        limiter.deregister().await;
    }
}

fn names(count: u32) -> Arc<[String]> {
    (0..count).map(|key| format!("user:{key:010}")).collect()
}
