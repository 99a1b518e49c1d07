//! Helpers that observe a limiter.

#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_throttle::{FailureKind, Health, Limiter, Quota, Scope};

/// Never empty in a test.
pub const PLENTY: Scope = Quota::per_day(1.0).burst(1e6).scope("plenty");

/// The reason why memory decides, if it does.
pub fn reason(limiter: &Limiter) -> Option<FailureKind> {
    match limiter.health() {
        Health::Degraded { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Waits until the condition holds.
///
/// # Panics
///
/// If it takes fifteen seconds.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !is_so().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = timeout(Duration::from_secs(15), holds).await.is_ok();
    assert!(in_time, "not within fifteen seconds: {what}");
}

/// Acquires until Redis decides again, and returns how long that took.
///
/// # Panics
///
/// If an acquisition is rejected meanwhile, or if it takes ten seconds.
pub async fn until_recovered(limiter: &Limiter) -> Duration {
    let start = Instant::now();
    let recovered = async {
        while limiter
            .try_acquire(PLENTY)
            .await
            .expect("plenty")
            .is_degraded()
        {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let recovered = timeout(Duration::from_secs(10), recovered).await;
    assert!(
        recovered.is_ok(),
        "not recovered after ten seconds: {:?}",
        limiter.health()
    );
    start.elapsed()
}

/// Waits until Redis has this level: write-backs and heartbeats run in the background.
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

/// The number of acquisitions of this scope that succeed before one fails, at most a million.
pub async fn spend(limiter: &Limiter, scope: &Scope) -> u32 {
    let mut admitted = 0;
    while admitted < 1_000_000 && limiter.try_acquire(scope).await.is_ok() {
        admitted += 1;
    }
    admitted
}
