use super::*;

#[test]
fn ceil_equals_f64_ceil() {
    for x in [
        0.0,
        1e-300,
        0.5,
        1.0,
        1.5,
        -0.5,
        -1.5,
        1e9 + 0.25,
        4_503_599_627_370_495.5,
        4_503_599_627_370_496.0,
        1e300,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ] {
        assert_eq!(ceil(x), x.ceil(), "{x}");
    }
    assert!(ceil(f64::NAN).is_nan());
}

#[test]
fn from_us_rounds_up_to_the_nanosecond() {
    for (us, ns) in [
        (0.0, 0),
        (-1.0, 0),
        (f64::NAN, 0),
        (f64::NEG_INFINITY, 0),
        (1e-300, 1),
        (0.001, 1),
        (0.0011, 2),
        (1.0, 1_000),
        (86_400e6, 86_400_000_000_000),
        (f64::INFINITY, LONGEST_WAIT.as_nanos()),
        (1e300, LONGEST_WAIT.as_nanos()),
    ] {
        assert_eq!(from_us(us).as_nanos(), ns, "{us}");
    }
}

mod both {
    //! The same tests on both clocks. On the counter, tokio's time and a simulated counter advance
    //! together.

    use std::sync::Arc;

    use quanta::Mock;

    use super::*;

    struct Time {
        clock: Clock,
        counter: Option<Arc<Mock>>,
    }

    impl Time {
        fn of_tokio() -> Self {
            Self {
                clock: Clock::of_tokio(),
                counter: None,
            }
        }

        fn of_counter() -> Self {
            let (clock, counter) = quanta::Clock::mock();
            counter.increment(Duration::from_secs(1_000));
            Self {
                clock: Clock::of_counter(Box::leak(Box::new(Counter::new(clock)))),
                counter: Some(counter),
            }
        }

        /// Tokio's clock is exact.
        fn is(&self, us: f64, exact: f64) -> bool {
            match self.counter {
                Some(_) => (us - exact).abs() <= 1e-15 * exact,
                None => us == exact,
            }
        }

        async fn advance(&self, by: Duration) {
            if let Some(counter) = &self.counter {
                counter.increment(by);
            }
            tokio::time::advance(by).await;
        }
    }

    macro_rules! on_both_clocks {
        ($($test:ident)*) => {
            mod on_tokio {
                $(#[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test(super::Time::of_tokio()).await;
                })*
            }
            mod on_counter {
                $(#[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$test(super::Time::of_counter()).await;
                })*
            }
        };
    }

    on_both_clocks! {
        time_is_that_of_tokio
        instants_are_converted_and_back
        instants_before_the_start_are_the_start
        a_year_passes_at_once
    }

    async fn time_is_that_of_tokio(time: Time) {
        assert_eq!(time.clock.now_us(), 0.0);
        for ns in [1_u64, 1_000, 999_999, 10_000_000, 1_000_000_000] {
            // Further than any number of readings that a comparison waits for.
            for _ in 0..300 {
                time.advance(Duration::from_nanos(ns)).await;
                let now = time.clock.now_us();
                let exact = time.clock.us_at(Instant::now());
                assert!(time.is(now, exact), "{now} and {exact}: steps of {ns} ns");
            }
        }
    }

    async fn instants_are_converted_and_back(time: Time) {
        time.advance(Duration::from_micros(1_234_567)).await;
        let now = Instant::now();
        assert_eq!(time.clock.us_at(now), 1_234_567.0);
        assert!(time.is(time.clock.now_us(), 1_234_567.0));
        assert_eq!(time.clock.at_us(1_234_567.0), now);
        let later = now + Duration::from_secs(7);
        assert_eq!(time.clock.at_us(time.clock.us_at(later)), later);
    }

    async fn instants_before_the_start_are_the_start(time: Time) {
        let before = Instant::now() - Duration::from_secs(1);
        assert_eq!(time.clock.us_at(before), 0.0);
    }

    async fn a_year_passes_at_once(time: Time) {
        let year = Duration::from_secs(365 * 86_400);
        time.advance(year).await;
        assert!(time.is(time.clock.now_us(), 365.0 * 86_400e6));
        time.advance(Duration::from_micros(1)).await;
        assert!(time.is(time.clock.now_us(), 365.0 * 86_400e6 + 1.0));
    }
}

/// What tells that time may be paused is whether `tokio::time::pause` exists, not whether time is
/// paused.
#[tokio::test]
async fn time_that_is_paused_later_is_exact() {
    const { assert!(CAN_BE_PAUSED) };
    let clock = Clock::new();
    tokio::time::pause();
    let paused_at = clock.now_us();
    tokio::time::advance(Duration::from_micros(5)).await;
    for _ in 0..1_000 {
        // Rounded to the nanosecond.
        assert!((clock.now_us() - paused_at - 5.0).abs() < 1e-3);
    }
}

#[test]
fn a_function_of_another_type_is_not_that_of_tokio() {
    assert!(!is_of_tokio(super::pause));
    assert!(is_of_tokio(tokio::time::pause));
}
