//! How much, how fast: [`Quota`], its text form, and the error of a text that is none.

use std::{
    error::Error,
    fmt,
    hash::{Hash, Hasher},
    ops::Range,
    str::FromStr,
    time::Duration,
};

use crate::scope::Scope;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Units from large to small: what is printed, its length in nanoseconds, what is read.
const UNITS: [(&str, u64, &[&str]); 7] = [
    ("day", 86_400 * NANOS_PER_SEC, &["d", "day", "days"]),
    (
        "h",
        3_600 * NANOS_PER_SEC,
        &["h", "hr", "hrs", "hour", "hours"],
    ),
    (
        "min",
        60 * NANOS_PER_SEC,
        &["m", "min", "mins", "minute", "minutes"],
    ),
    (
        "s",
        NANOS_PER_SEC,
        &["s", "sec", "secs", "second", "seconds"],
    ),
    (
        "ms",
        1_000_000,
        &["ms", "milli", "millis", "millisecond", "milliseconds"],
    ),
    (
        "us",
        1_000,
        &["us", "µs", "micros", "microsecond", "microseconds"],
    ),
    ("ns", 1, &["ns", "nanos", "nanosecond", "nanoseconds"]),
];

/// A limit: a bucket of [`capacity`](Self::capacity) tokens that refills at
/// [`rate`](Self::rate) tokens per second.
///
/// Over any window of `w` seconds a bucket admits at most `capacity + rate * w` tokens (the
/// token bucket of ITU-T I.371 and RFC 2697, with a real-valued level). Fifty per second means
/// fifty in a second. The burst defaults to one period's worth of tokens.
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
#[derive(Clone, Copy)]
pub struct Quota {
    capacity: f64,
    rate: f64,
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

    /// The same rate with room for `tokens` at once.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(10.0).burst(50.0).capacity(), 50.0);
    /// ```
    ///
    /// # Panics
    ///
    /// If `tokens` is zero, negative, NaN or infinite; in a `const`, a compile error.
    pub const fn burst(self, tokens: f64) -> Self {
        assert!(
            tokens > 0.0 && tokens.is_finite(),
            "the burst of a quota is not a number above zero: write how many tokens may go at \
             once, at least the cost of one request"
        );
        Self {
            capacity: tokens,
            ..self
        }
    }

    /// Names this limit: a [`Scope`] with one bucket, until it is given a key.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const SITE: Scope = Quota::per_second(500.0).scope("site");
    /// assert_eq!(SITE.name(), "site");
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is empty; in a `const`, a compile error.
    pub const fn scope(self, name: &'static str) -> Scope {
        Scope::fixed(name, self)
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
        self.rate
    }

    const fn every(period_ns: u64, tokens: f64) -> Self {
        assert!(
            tokens > 0.0 && tokens.is_finite(),
            "the rate of a quota is not a number above zero: write a rate above zero, or leave \
             the limit out"
        );
        let rate = tokens / (period_ns as f64 / NANOS_PER_SEC as f64);
        assert!(
            rate > 0.0 && rate.is_finite(),
            "the rate of a quota does not fit a double: write one between 1e-300 and 1e300"
        );
        Self {
            capacity: tokens,
            rate,
            tokens,
            period_ns,
        }
    }
}

/// Two quotas are equal when they hold the same limit, however it was written.
impl PartialEq for Quota {
    fn eq(&self, other: &Self) -> bool {
        self.capacity == other.capacity && self.rate == other.rate
    }
}

impl Eq for Quota {}

impl Hash for Quota {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.capacity.to_bits().hash(state);
        self.rate.to_bits().hash(state);
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({self})")
    }
}

/// `100/min`, `10/s burst 50`, `500/7day`: what [`FromStr`] reads back as an equal quota.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit, _) = UNITS
            .iter()
            .find(|(_, unit, _)| self.period_ns.is_multiple_of(*unit))
            .unwrap_or(&UNITS[UNITS.len() - 1]);
        write!(f, "{}/", self.tokens)?;
        if self.period_ns != *unit {
            write!(f, "{}", self.period_ns / unit)?;
        }
        f.write_str(name)?;
        if self.capacity != self.tokens {
            write!(f, " burst {}", self.capacity)?;
        }
        Ok(())
    }
}

/// Reads `TOKENS (/ | per) [COUNT] UNIT [burst TOKENS]`, with units from `ns` to `days`.
///
/// # Errors
///
/// [`ParseQuotaError`], which names the part that does not fit and what to write instead.
impl FromStr for Quota {
    type Err = ParseQuotaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Parser { text, at: 0 }.quota()
    }
}

/// Why a text is not a [`Quota`]: which part of it, and what to write instead.
///
/// # Examples
///
/// ```
/// use tower_throttle::Quota;
///
/// let error = "10/fortnight".parse::<Quota>().unwrap_err();
/// assert_eq!(error.part(), "fortnight");
/// assert_eq!(error.span(), 3..12);
/// assert!(error.to_string().contains("s, min, h or day"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseQuotaError {
    text: String,
    span: Range<usize>,
    problem: &'static str,
}

impl ParseQuotaError {
    /// The offending part of the text; empty where something is missing.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!("x/s".parse::<Quota>().unwrap_err().part(), "x");
    /// ```
    pub fn part(&self) -> &str {
        &self.text[self.span.clone()]
    }

    /// Where the part stands in the text, in bytes.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!("5/s burst -1".parse::<Quota>().unwrap_err().span(), 10..12);
    /// ```
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

impl fmt::Display for ParseQuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not a quota: ", self.text.escape_debug())?;
        if self.span.is_empty() {
            write!(f, "at byte {}, ", self.span.start)?;
        } else {
            write!(
                f,
                "\"{}\" at byte {}: ",
                self.part().escape_debug(),
                self.span.start
            )?;
        }
        f.write_str(self.problem)
    }
}

impl Error for ParseQuotaError {}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn quota(mut self) -> Result<Quota, ParseQuotaError> {
        let tokens = self.number("write how many tokens, a number above zero, such as 100/min")?;
        self.separator()?;
        let period_ns = self.period()?;
        let rate = tokens.0 / (period_ns as f64 / NANOS_PER_SEC as f64);
        if !(rate > 0.0 && rate.is_finite()) {
            return Err(self.error(tokens.1, "this rate does not fit a double"));
        }
        let quota = Quota::every(period_ns, tokens.0);
        let burst = self.word();
        if burst.is_empty() {
            return match &self.text[self.at..] {
                "" => Ok(quota),
                _ => Err(self.error(
                    self.at..self.text.len(),
                    "write `burst` and a number, or end",
                )),
            };
        }
        if !self.text[burst.clone()].eq_ignore_ascii_case("burst") {
            return Err(self.error(burst, "write `burst` and a number here, or end"));
        }
        let capacity = self.number("write how many tokens may go at once, above zero")?;
        self.skip_spaces();
        if self.at < self.text.len() {
            return Err(self.error(self.at..self.text.len(), "a quota ends after its burst"));
        }
        Ok(quota.burst(capacity.0))
    }

    fn number(&mut self, problem: &'static str) -> Result<(f64, Range<usize>), ParseQuotaError> {
        self.skip_spaces();
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| c.is_whitespace() || c == '/')
            .unwrap_or(rest.len());
        let span = self.at..self.at + end;
        let digits = rest[..end].replace('_', "");
        // `f64` reads "inf" and "nan" too; neither is a quantity.
        match digits.parse::<f64>() {
            Ok(number) if number > 0.0 && number.is_finite() => {
                self.at = span.end;
                Ok((number, span))
            }
            _ => Err(self.error(span, problem)),
        }
    }

    fn separator(&mut self) -> Result<(), ParseQuotaError> {
        self.skip_spaces();
        if self.text[self.at..].starts_with('/') {
            self.at += 1;
            return Ok(());
        }
        let word = self.word();
        if self.text[word.clone()].eq_ignore_ascii_case("per") {
            return Ok(());
        }
        Err(self.error(
            word,
            "write `/` or `per` and a unit of time, such as 100/min",
        ))
    }

    fn period(&mut self) -> Result<u64, ParseQuotaError> {
        self.skip_spaces();
        let rest = &self.text[self.at..];
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let count_span = self.at..self.at + digits;
        let count: u64 = match &rest[..digits] {
            "" => 1,
            digits => digits.parse().unwrap_or(u64::MAX),
        };
        self.at += digits;
        let span = self.word();
        let name = self.text[span.clone()].to_ascii_lowercase();
        let Some((_, unit, _)) = UNITS
            .iter()
            .find(|(_, _, names)| names.contains(&name.as_str()))
        else {
            return Err(self.error(span, "write a unit of time here: s, min, h or day"));
        };
        match count.checked_mul(*unit) {
            Some(0) => Err(self.error(count_span, "a period of zero: write 1 or more")),
            Some(period) => Ok(period),
            None => Err(self.error(count_span, "a period over 584 years: write a shorter one")),
        }
    }

    /// The next word; empty at the end.
    fn word(&mut self) -> Range<usize> {
        self.skip_spaces();
        let rest = &self.text[self.at..];
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let span = self.at..self.at + end;
        self.at = span.end;
        span
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn error(&self, span: Range<usize>, problem: &'static str) -> ParseQuotaError {
        ParseQuotaError {
            text: self.text.to_owned(),
            span,
            problem,
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Quota {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Quota {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Quota;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quota such as \"10/s burst 50\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quota, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(read("0.5/h").capacity(), 0.5);
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
        #[test]
        fn prints_what_it_reads(
            tokens in prop_oneof![1e-9..1e12f64, (1u32..1000).prop_map(f64::from)],
            burst in proptest::option::of(1e-9..1e12f64),
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
        let error = serde_json::from_str::<Quota>(r#""60/eon""#).expect_err("no unit");
        assert!(error.to_string().contains("eon"), "{error}");
    }
}
