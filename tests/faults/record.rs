//! The records that a process under load reports, one a line.

use std::{fmt, str::FromStr, time::SystemTime};

/// Microseconds since 1970, on the clock that all processes of this machine share.
pub(crate) fn now_us() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970");
    since_1970.as_micros() as i64
}

/// The result of an acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Admitted,
    AdmittedByMemory,
    Rejected,
    RejectedByMemory,
    Unavailable,
    Impossible,
}

const LETTERS: [(Outcome, &str); 6] = [
    (Outcome::Admitted, "A"),
    (Outcome::AdmittedByMemory, "M"),
    (Outcome::Rejected, "R"),
    (Outcome::RejectedByMemory, "Q"),
    (Outcome::Unavailable, "U"),
    (Outcome::Impossible, "I"),
];

impl Outcome {
    pub(crate) fn is_admitted(self) -> bool {
        matches!(self, Self::Admitted | Self::AdmittedByMemory)
    }
}

/// One acquisition, or one transition of health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Acquired {
        /// Index in `child::SCOPES`.
        scope: usize,
        requested: i64,
        took: i64,
        outcome: Outcome,
    },
    Health {
        at: i64,
        degraded: bool,
    },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquired {
                scope,
                requested,
                took,
                outcome,
            } => {
                let letter = LETTERS.iter().find(|(other, _)| other == outcome);
                let letter = letter.map_or("?", |(_, letter)| letter);
                write!(f, "a {scope} {requested} {took} {letter}")
            }
            Self::Health { at, degraded } => write!(f, "h {at} {}", u8::from(*degraded)),
        }
    }
}

/// A line that is not a record, such as one that a killed process did not finish.
#[derive(Debug)]
pub(crate) struct NoRecord;

impl FromStr for Record {
    type Err = NoRecord;

    fn from_str(line: &str) -> Result<Self, NoRecord> {
        let words: Vec<_> = line.split(' ').collect();
        let number = |word: &str| word.parse::<i64>().map_err(|_| NoRecord);
        match words[..] {
            ["a", scope, requested, took, letter] => Ok(Self::Acquired {
                scope: scope.parse().map_err(|_| NoRecord)?,
                requested: number(requested)?,
                took: number(took)?,
                outcome: LETTERS
                    .iter()
                    .find(|(_, other)| *other == letter)
                    .map(|(outcome, _)| *outcome)
                    .ok_or(NoRecord)?,
            }),
            ["h", at, degraded] => Ok(Self::Health {
                at: number(at)?,
                degraded: degraded == "1",
            }),
            _ => Err(NoRecord),
        }
    }
}
