//! What a test asks a limiter again and again.

#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_throttle::{FailureKind, Health, Limiter, Quota, Scope};

/// Never empty in a test.
pub const PLENTY: Scope = Quota::per_day(1.0).burst(1e6).scope("plenty");

/// Why memory decides, if it does.
pub fn reason(limiter: &Limiter) -> Option<FailureKind> {
    match limiter.health() {
        Health::Degraded { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Acquires until Redis decides again; how long that took.
///
/// # Panics
///
/// If an acquisition is refused meanwhile, or if it takes ten seconds.
pub async fn until_back(limiter: &Limiter) -> Duration {
    let start = Instant::now();
    let back = async {
        while limiter
            .try_acquire(PLENTY)
            .await
            .expect("plenty")
            .is_degraded()
        {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let back = timeout(Duration::from_secs(10), back).await;
    assert!(back.is_ok(), "ten seconds away: {:?}", limiter.health());
    start.elapsed()
}

/// Waits until this is the level in Redis: payments and beats come in the background.
///
/// # Panics
///
/// If it takes ten seconds.
pub async fn until_level(limiter: &Limiter, scope: &Scope, expected: f64) {
    let mut level = f64::NAN;
    let settles = async {
        while level.is_nan() || (level - expected).abs() > 0.01 {
            if let Ok(reported) = limiter.bucket(scope).level().await {
                level = reported;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let settled = timeout(Duration::from_secs(10), settles).await;
    assert!(settled.is_ok(), "{level} instead of {expected}");
}

/// How many acquisitions of this scope succeed until one does not, a million at most.
pub async fn spend(limiter: &Limiter, scope: &Scope) -> u32 {
    let mut admitted = 0;
    while admitted < 1_000_000 && limiter.try_acquire(scope).await.is_ok() {
        admitted += 1;
    }
    admitted
}
