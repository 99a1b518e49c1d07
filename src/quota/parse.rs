//! A quota as text: what is printed, what is read, and what is wrong with what cannot be.

use std::{error::Error, fmt, ops::Range, str::FromStr};

use super::quota::{NANOS_PER_SEC, Quota, default_burst};

/// Units from large to small: what is printed, its length in nanoseconds, what is read.
pub(super) const UNITS: [(&str, u64, &[&str]); 7] = [
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
        if self.capacity != default_burst(self.tokens) {
            write!(f, " burst {}", self.capacity)?;
        }
        Ok(())
    }
}

/// Reads `TOKENS (/ | per) [COUNT] UNIT [burst TOKENS]`, with units from `ns` to `days`, and a burst
/// of at least 1.
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
        let quota = Quota::checked(period_ns.into(), tokens.0)
            .map_err(|problem| self.error(tokens.1, problem))?;
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
        let problem = "write how many tokens may go at once, at least 1";
        let (capacity, span) = self.number(problem)?;
        if capacity < 1.0 {
            return Err(self.error(span, problem));
        }
        self.skip_spaces();
        if self.at < self.text.len() {
            return Err(self.error(self.at..self.text.len(), "a quota ends after its burst"));
        }
        Ok(quota.burst(capacity))
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
