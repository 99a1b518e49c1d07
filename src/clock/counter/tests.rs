use std::{sync::Arc, thread, time::Duration};

use quanta::Mock;
use tokio::time::advance;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A simulated counter, which does not go on by itself.
fn simulated() -> (Counter, Arc<Mock>) {
    let (clock, count) = quanta::Clock::mock();
    count.increment(1_000 * SECOND);
    (Counter::new(clock), count)
}

fn tokio_us(counter: &Counter) -> f64 {
    to_us(counter.start.elapsed())
}

/// How far a reading is from tokio's time. A nanosecond is no difference.
fn difference(counter: &Counter) -> f64 {
    let difference = (counter.now_us() - tokio_us(counter)).abs();
    if difference < 1e-3 { 0.0 } else { difference }
}

/// Whether each of many readings is tokio's time, as time goes on by both clocks.
async fn is_that_of_tokio(counter: &Counter, count: &Mock) -> bool {
    for _ in 0..1_000 {
        count.increment(3_000);
        advance(Duration::from_micros(3)).await;
        if difference(counter) > 0.0 {
            return false;
        }
    }
    true
}

#[tokio::test(start_paused = true)]
async fn drift_is_corrected() {
    let (counter, count) = simulated();
    let mut most = 0.0_f64;
    // 50 millionths, for an hour.
    for _ in 0..36_000 {
        advance(Duration::from_millis(100)).await;
        count.increment(100_005_000);
        most = most.max(difference(&counter));
    }
    // That of one interval.
    assert!((40.0..=60.0).contains(&most), "{most} us");
    assert!(!counter.is_wrong.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_counter_that_goes_on_during_a_suspend_is_given_up() {
    let (counter, count) = simulated();
    assert!(is_that_of_tokio(&counter, &count).await);
    count.increment(3_600 * SECOND);
    assert!(is_that_of_tokio(&counter, &count).await);
    assert!(counter.is_wrong.load(Relaxed));
}

/// Tokio's clock goes on during a suspend on some systems.
#[tokio::test(start_paused = true)]
async fn a_counter_that_stops_during_a_suspend_is_given_up() {
    let (counter, count) = simulated();
    assert!(is_that_of_tokio(&counter, &count).await);
    advance(3_600 * SECOND).await;
    for _ in 0..256 {
        counter.now_us();
    }
    assert!(is_that_of_tokio(&counter, &count).await);
    assert!(counter.is_wrong.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_counter_that_goes_back_is_given_up_at_once() {
    let (counter, count) = simulated();
    assert!(is_that_of_tokio(&counter, &count).await);
    count.decrement(900 * SECOND);
    assert!(is_that_of_tokio(&counter, &count).await);
    assert!(counter.is_wrong.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_small_jump_is_found_after_256_readings() {
    for jumps_ahead in [true, false] {
        let (counter, count) = simulated();
        counter.now_us();
        advance(Duration::from_millis(500)).await;
        count.increment(Duration::from_millis(match jumps_ahead {
            true => 900,
            false => 100,
        }));
        assert!(difference(&counter) > 0.0);
        for _ in 0..256 {
            counter.now_us();
        }
        assert_eq!(difference(&counter), 0.0);
        assert!(counter.is_wrong.load(Relaxed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_counter_that_stands_still_is_given_up_after_256_readings() {
    let (counter, count) = simulated();
    assert!(is_that_of_tokio(&counter, &count).await);
    advance(Duration::from_millis(1)).await;
    for _ in 0..256 {
        counter.now_us();
        advance(Duration::from_millis(1)).await;
    }
    for _ in 0..1_000 {
        assert_eq!(difference(&counter), 0.0);
        advance(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_counter_at_another_speed_is_given_up() {
    for percent in [50, 99, 101, 200, 1_000] {
        let (counter, count) = simulated();
        for _ in 0..1_000 {
            advance(Duration::from_millis(10)).await;
            count.increment(100_000 * percent);
            counter.now_us();
        }
        assert!(counter.is_wrong.load(Relaxed), "{percent} %");
        assert_eq!(difference(&counter), 0.0);
    }
}

/// The real counter of this machine, which several threads read and correct.
#[test]
fn threads_read_tokios_time() {
    let counter = &Counter::new(quanta::Clock::new());
    // A thread may be interrupted between its readings, so that only those around them count.
    let check = || {
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            let before = tokio_us(counter);
            let now = counter.now_us();
            let after = tokio_us(counter);
            let range = before - TOLERANCE..=after + TOLERANCE;
            assert!(range.contains(&now), "{now} is not within {range:?}");
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(check);
        }
    });
    assert!(!counter.is_wrong.load(Relaxed));
}
