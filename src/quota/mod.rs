//! How much, how fast: [`Quota`], its text form, and the error of a text that is none.

mod live;
mod parse;

use std::{
    fmt,
    hash::{Hash, Hasher},
    time::Duration,
};

pub use self::{live::LiveQuota, parse::ParseQuotaError};

use crate::bucket::BucketParams;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// 2^53: up to here a double counts single tokens.
const MOST: f64 = (1u64 << 53) as f64;

/// A limit: a bucket of [`capacity`](Self::capacity) tokens that refills at
/// [`rate`](Self::rate) tokens per second.
///
/// Over any window of `w` seconds a bucket admits at most `capacity + rate * w` tokens (the
/// token bucket of ITU-T I.371 and RFC 2697, with a real-valued level). Fifty per second means
/// fifty in a second. The burst defaults to one period's worth of tokens, and to one token where
/// that is less: the default cost of a request is one token, so a smaller bucket would pass none.
/// Where costs are parts of a token, such as prices, choose a unit of which the smallest burst is at
/// least one.
///
/// A capacity over 2^53 tokens (9,007,199,254,740,992) is cut to that, because from there on a
/// double does not count single tokens. So `Quota::per_second(u64::MAX as f64)` limits nothing in
/// practice; to have no limit, leave the scope out.
///
/// Every constructor is `const`, so that a limit that makes no sense is a compile error where
/// it is written as a constant.
///
/// # Examples
///
/// ```
/// use tower_throttle::Quota;
///
/// const API: Quota = Quota::per_minute(60.0).burst(20.0);
/// assert_eq!(API.capacity(), 20.0);
/// assert_eq!(API.rate(), 1.0);
/// assert_eq!(API.to_string(), "60/min burst 20");
/// assert_eq!("60 per minute burst 20".parse::<Quota>().unwrap(), API);
/// ```
///
/// ```compile_fail
/// # use tower_throttle::Quota;
/// const NONE: Quota = Quota::per_second(0.0); // "write a rate above zero"
/// ```
///
/// ```compile_fail
/// # use tower_throttle::Quota;
/// const SMALL: Quota = Quota::per_second(5.0).burst(0.5); // "at least 1"
/// ```
#[derive(Clone, Copy)]
pub struct Quota {
    capacity: f64,
    /// Tokens per microsecond, which each decision needs: a division takes as long as all the rest
    /// of its arithmetic.
    per_us: f64,
    tokens: f64,
    period_ns: u64,
}

impl Quota {
    /// `tokens` every second.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(50.0).rate(), 50.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is zero, negative, NaN or infinite; in a `const`, a compile error.
    #[track_caller]
    pub const fn per_second(tokens: f64) -> Self {
        Self::every(NANOS_PER_SEC, tokens)
    }

    /// `tokens` every minute.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_minute(90.0).rate(), 1.5);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`per_second`](Self::per_second).
    #[track_caller]
    pub const fn per_minute(tokens: f64) -> Self {
        Self::every(60 * NANOS_PER_SEC, tokens)
    }

    /// `tokens` every hour.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_hour(7_200.0).rate(), 2.0);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`per_second`](Self::per_second).
    #[track_caller]
    pub const fn per_hour(tokens: f64) -> Self {
        Self::every(3_600 * NANOS_PER_SEC, tokens)
    }

    /// `tokens` every 24 hours.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_day(86_400.0).rate(), 1.0);
    /// ```
    ///
    /// # Panics
    ///
    /// As [`per_second`](Self::per_second).
    #[track_caller]
    pub const fn per_day(tokens: f64) -> Self {
        Self::every(86_400 * NANOS_PER_SEC, tokens)
    }

    /// `tokens` every `period`, whatever its length.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per(Duration::from_millis(500), 5.0).rate(), 10.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is zero, negative, NaN or infinite, if `period` is zero or longer than 584
    /// years; in a `const`, a compile error.
    #[track_caller]
    pub const fn per(period: Duration, tokens: f64) -> Self {
        let nanos = period.as_nanos();
        assert!(
            nanos > 0,
            "the period of a quota is zero: write a longer one"
        );
        assert!(
            nanos <= u64::MAX as u128,
            "the period of a quota is over 584 years: write a shorter one"
        );
        Self::every(nanos as u64, tokens)
    }

    /// The same rate with room for `tokens` at once, at least one.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(10.0).burst(50.0).capacity(), 50.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is below one, NaN or infinite; in a `const`, a compile error.
    #[track_caller]
    pub const fn burst(self, tokens: f64) -> Self {
        assert!(
            tokens >= 1.0 && tokens.is_finite(),
            "the burst of a quota is not a number from 1: write how many tokens may go at once, at \
             least 1, which is the cost of a request unless another is set"
        );
        Self {
            capacity: tokens.min(MOST),
            ..self
        }
    }

    /// Most tokens that may go at once.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(10.0).capacity(), 10.0);
    /// ```
    pub const fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Tokens per second.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_minute(6.0).rate(), 0.1);
    /// ```
    pub const fn rate(&self) -> f64 {
        rate(self.tokens, self.period_ns)
    }

    /// The parameters of its buckets.
    #[inline]
    pub(crate) const fn params(&self) -> BucketParams {
        BucketParams {
            capacity: self.capacity,
            per_us: self.per_us,
        }
    }

    #[track_caller]
    const fn every(period_ns: u64, tokens: f64) -> Self {
        assert!(
            tokens > 0.0 && tokens.is_finite(),
            "the rate of a quota is not a number above zero: write a rate above zero, or leave \
             the limit out"
        );
        let rate = rate(tokens, period_ns);
        assert!(
            fits(rate),
            "the rate of a quota does not fit a double: write one between 1e-300 and 1e300 a second"
        );
        Self {
            capacity: default_burst(tokens),
            // A bucket is full after a microsecond anyway, and no wait makes this infinite.
            per_us: (rate / 1e6).min(MOST),
            tokens,
            period_ns,
        }
    }
}

const fn rate(tokens: f64, period_ns: u64) -> f64 {
    tokens / (period_ns as f64 / NANOS_PER_SEC as f64)
}

/// Whether this many tokens per second are still a number per microsecond.
const fn fits(rate: f64) -> bool {
    rate >= 1e-300 && rate.is_finite()
}

const fn default_burst(tokens: f64) -> f64 {
    tokens.clamp(1.0, MOST)
}

/// Two quotas are equal when they hold the same limit, however it was written.
impl PartialEq for Quota {
    fn eq(&self, other: &Self) -> bool {
        self.capacity == other.capacity && self.rate() == other.rate()
    }
}

impl Eq for Quota {}

impl Hash for Quota {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.capacity.to_bits().hash(state);
        self.rate().to_bits().hash(state);
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::{parse::UNITS, *};
    use proptest::prelude::*;

    fn read(text: &str) -> Quota {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn reads_what_people_write() {
        assert_eq!(read("100/min"), Quota::per_minute(100.0));
        assert_eq!(read("10/s burst 50"), Quota::per_second(10.0).burst(50.0));
        assert_eq!(
            read("500/7days"),
            Quota::per(Duration::from_secs(7 * 86_400), 500.0)
        );
        assert_eq!(
            read("  1_000 PER 5 Minutes  Burst 2.5 "),
            Quota::per(Duration::from_secs(300), 1000.0).burst(2.5)
        );
        assert_eq!(read("1/250ms").rate(), 4.0);
        assert_eq!(read("0.5/h").rate(), 0.5 / 3_600.0);
    }

    /// A request costs one token unless said: less than that would pass none, ever.
    #[test]
    fn the_default_burst_is_at_least_one_token() {
        for (quota, text) in [
            (Quota::per_second(0.5), "0.5/s"),
            (Quota::per_second(0.2), "0.2/s"),
            (Quota::per_minute(1e-9), "0.000000001/min"),
            (Quota::per(Duration::from_millis(100), 0.999), "0.999/100ms"),
        ] {
            assert_eq!(quota.capacity(), 1.0, "{text}");
            assert_eq!(quota.to_string(), text);
            assert_eq!(read(text), quota);
            assert_eq!(read(&format!("{text} burst 1")), quota);
        }
        assert_eq!(Quota::per_second(1.5).capacity(), 1.5);
    }

    #[test]
    fn a_burst_below_one_token_is_an_error() {
        for burst in [0.999, 0.5, 1e-300] {
            let made = std::panic::catch_unwind(|| Quota::per_second(5.0).burst(burst));
            assert!(made.is_err(), "{burst}");
            let text = format!("5/s burst {burst}");
            let error = text.parse::<Quota>().expect_err("no request passes");
            assert_eq!((error.part(), error.span().start), (&text[10..], 10));
            assert!(error.to_string().contains("at least 1"), "{error}");
        }
        assert_eq!(Quota::per_second(0.1).burst(1.0).capacity(), 1.0);
    }

    /// Up to 2^53 a double counts single tokens.
    #[test]
    fn the_largest_burst_counts_single_tokens() {
        const MOST: f64 = 9_007_199_254_740_992.0;
        for tokens in [1.2e12, 1e15, MOST, 1e18, u64::MAX as f64, 1e300, f64::MAX] {
            for quota in [
                Quota::per_second(tokens),
                Quota::per_day(tokens),
                Quota::per_second(1.0).burst(tokens),
            ] {
                assert_eq!(quota.capacity(), tokens.min(MOST), "{quota}");
                assert_ne!(quota.capacity() - 1.0, quota.capacity(), "{quota}");
                // However long it refills, or is held back.
                let longest = crate::clock::to_us(Duration::MAX);
                assert!((quota.per_us * longest).is_finite(), "{quota}");
                assert_eq!(read(&quota.to_string()), quota);
            }
        }
    }

    /// Of such a rate nothing would be left in a microsecond, and the script takes a rate of zero
    /// for damage.
    #[test]
    fn the_smallest_rate_refills() {
        assert!(Quota::per_second(1e-300).per_us.is_normal());
        for tokens in [1e-302, 1e-318, f64::MIN_POSITIVE] {
            assert!(std::panic::catch_unwind(|| Quota::per_second(tokens)).is_err());
            assert!(format!("{tokens}/s").parse::<Quota>().is_err());
        }
    }

    #[test]
    fn panics_name_the_place_where_the_quota_is_written() {
        use std::panic::{self, catch_unwind};
        thread_local! {
            static PLACES: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let before = panic::take_hook();
        panic::set_hook(Box::new(|info| {
            let place = info.location().expect("a place");
            let place = format!("{}:{}", place.file(), place.line());
            PLACES.with_borrow_mut(|places| places.push(place));
        }));
        let line = line!();
        let made = [
            catch_unwind(|| Quota::per_second(0.0)),
            catch_unwind(|| Quota::per_minute(-1.0)),
            catch_unwind(|| Quota::per_hour(f64::NAN)),
            catch_unwind(|| Quota::per_day(f64::INFINITY)),
            catch_unwind(|| Quota::per(Duration::ZERO, 1.0)),
            catch_unwind(|| Quota::per(Duration::MAX, 1.0)),
            catch_unwind(|| Quota::per_second(1e-320)),
            catch_unwind(|| Quota::per_second(1.0).burst(0.0)),
            catch_unwind(|| Quota::per_second(1.0).burst(0.5)),
        ];
        panic::set_hook(before);
        assert!(made.iter().all(Result::is_err));
        let expected = (2..11).map(|at| format!("{}:{}", file!(), line + at));
        assert_eq!(PLACES.take(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn errors_point_at_the_part() {
        for (text, part, at) in [
            ("", "", 0),
            ("abc/s", "abc", 0),
            ("0/s", "0", 0),
            ("-1/s", "-1", 0),
            ("nan/s", "nan", 0),
            ("inf/s", "inf", 0),
            ("1e400/s", "1e400", 0),
            ("5", "", 1),
            ("5 each s", "each", 2),
            ("5/", "", 2),
            ("5/0s", "0", 2),
            ("5/99999999999999999999days", "99999999999999999999", 2),
            ("5/parsec", "parsec", 2),
            ("5/s bursts 3", "bursts", 4),
            ("5/s burst", "", 9),
            ("5/s burst 0", "0", 10),
            ("5/s burst 3 more", "more", 12),
        ] {
            let error = text.parse::<Quota>().expect_err(text);
            assert_eq!(
                (error.part(), error.span().start),
                (part, at),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn bad_numbers_panic_where_they_are_written() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(std::panic::catch_unwind(|| Quota::per_second(bad)).is_err());
            assert!(std::panic::catch_unwind(|| Quota::per_second(1.0).burst(bad)).is_err());
        }
        assert!(std::panic::catch_unwind(|| Quota::per(Duration::ZERO, 1.0)).is_err());
        assert!(std::panic::catch_unwind(|| Quota::per(Duration::MAX, 1.0)).is_err());
    }

    proptest! {
        #![proptest_config(crate::verification::bucket_model::seeded())]

        #[test]
        fn prints_what_it_reads(
            tokens in prop_oneof![1e-9..1e20f64, (1u32..1000).prop_map(f64::from)],
            burst in proptest::option::of(1.0..1e20f64),
            count in 1u64..5_000,
            unit in 0usize..UNITS.len(),
        ) {
            let quota = Quota::per(Duration::from_nanos(count * UNITS[unit].1), tokens);
            let quota = burst.map_or(quota, |burst| quota.burst(burst));
            prop_assert_eq!(read(&quota.to_string()), quota, "{}", quota);
        }

        #[test]
        fn never_panics(text in "\\PC{0,24}|[0-9a-z/ .e+-]{0,24}") {
            if let Err(error) = text.parse::<Quota>() {
                prop_assert!(error.span().end <= text.len());
                let _ = (error.part(), error.to_string());
            }
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn is_text_in_configuration() {
        let quota = Quota::per_minute(60.0).burst(20.0);
        let json = serde_json::to_string(&quota).expect("a string");
        assert_eq!(json, r#""60/min burst 20""#);
        assert_eq!(
            serde_json::from_str::<Quota>(&json).expect("reads back"),
            quota
        );
        let error = serde_json::from_str::<Quota>(r#""60/s burst 0.5""#).expect_err("too little");
        assert!(error.to_string().contains("at least 1"), "{error}");
        let error = serde_json::from_str::<Quota>(r#""60/eon""#).expect_err("no unit");
        assert!(error.to_string().contains("eon"), "{error}");
    }
}
