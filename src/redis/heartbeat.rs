//! The words of `heartbeat.lua`.

use std::time::Duration;

use tokio::time::timeout;

use super::{connect::Session, failure::timed_out, script::HEARTBEAT};
use crate::{
    decision::{Failure, FailureKind},
    members::Beat,
    scope::Keyspace,
};

/// More do not share one Redis: each beats once a second.
const MOST_LIMITERS: f64 = 100_000.0;

/// Up to here a double counts each; thousands of beats a second take a hundred thousand years.
const MOST_BEATS: f64 = (1u64 << 53) as f64;

/// The state of a Redis: where the identity differs, or fewer beats were counted, it has lost
/// what was written since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Epoch {
    pub(super) id: [u8; 8],
    beats: f64,
}

impl Epoch {
    // Names that no scope can have, because `#` is escaped, with one hash tag for both.
    pub(super) fn key(keyspace: &Keyspace) -> Vec<u8> {
        keyspace.own("{#}epoch")
    }

    fn members_key(keyspace: &Keyspace) -> Vec<u8> {
        keyspace.own("{#}limiters")
    }
}

/// One beat, or a goodbye.
pub(super) struct Heartbeat<'a> {
    pub(super) keyspace: &'a Keyspace,
    pub(super) limiter: &'a str,
    /// As this limiter knows it.
    pub(super) epoch: Option<Epoch>,
    pub(super) leaves: bool,
    /// Who was heard within this time counts as alive.
    pub(super) alive_within: Duration,
    /// For the identity of an epoch that may have to begin.
    pub(super) random: u64,
}

impl Heartbeat<'_> {
    /// What Redis says; none to a goodbye.
    pub(super) async fn send(
        &self,
        session: &dyn Session,
        within: Duration,
    ) -> Result<Option<(Epoch, Beat)>, Failure> {
        let keys = [Epoch::members_key(self.keyspace), Epoch::key(self.keyspace)];
        let known = self.epoch.as_ref().map_or(&[][..], |epoch| &epoch.id);
        let beats = self.epoch.map_or(0.0, |epoch| epoch.beats);
        let alive_within = self.alive_within.as_millis().to_string();
        let arguments: [&[u8]; 6] = [
            self.limiter.as_bytes(),
            if self.leaves { b"1" } else { b"0" },
            known,
            &beats.to_le_bytes(),
            &self.random.to_le_bytes(),
            alive_within.as_bytes(),
        ];
        let run = session.run(&HEARTBEAT, &keys, &arguments);
        let reply = timeout(within, run)
            .await
            .unwrap_or_else(|_| Err(timed_out()))?;
        Self::read(&reply)
    }

    fn read(reply: &[u8]) -> Result<Option<(Epoch, Beat)>, Failure> {
        if reply.is_empty() {
            return Ok(None);
        }
        Self::counts(reply).map(Some).ok_or_else(|| Failure {
            single: true,
            advice: Some("this server does not count limiters as Redis does: see the error"),
            ..Failure::new(
                FailureKind::Misconfigured,
                "the reply to a heartbeat makes no sense",
            )
        })
    }

    fn counts(reply: &[u8]) -> Option<(Epoch, Beat)> {
        let (id, numbers) = reply.split_first_chunk::<8>()?;
        let number = |index: usize, least: f64, most: f64| {
            let bytes = numbers.get(8 * index..8 * index + 8)?.try_into().ok()?;
            let number = f64::from_le_bytes(bytes);
            (least..=most).contains(&number).then_some(number)
        };
        let epoch = Epoch {
            id: *id,
            beats: number(0, 0.0, MOST_BEATS)?,
        };
        let beat = Beat {
            // This one has just beaten.
            alive: number(1, 1.0, MOST_LIMITERS)? as u32,
            lapsed: number(2, 0.0, MOST_LIMITERS)? as u32,
        };
        Some((epoch, beat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(numbers: [f64; 3]) -> Result<Option<(Epoch, Beat)>, Failure> {
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
        let reply: Vec<u8> = b"identity".iter().copied().chain(numbers).collect();
        Heartbeat::read(&reply)
    }

    #[test]
    fn counts_that_make_no_sense_are_no_answer() {
        let told = read([7.0, 3.0, 1.0]).expect("sense").expect("told");
        assert_eq!(told.1.alive + told.1.lapsed, 4);
        for numbers in [
            [7.0, 4_294_967_295.0, 0.0],
            [7.0, 1.0, 4_294_967_295.0],
            [7.0, 4_294_967_295.0, 4_294_967_295.0],
            [7.0, f64::NAN, 0.0],
            [7.0, 1.0, f64::NAN],
            [7.0, f64::INFINITY, 0.0],
            [7.0, 0.0, 1.0],
            [7.0, 1.0, -1.0],
            [f64::NAN, 1.0, 0.0],
            [-1.0, 1.0, 0.0],
            [f64::INFINITY, 1.0, 0.0],
        ] {
            let failure = read(numbers).expect_err("no sense");
            assert!(failure.single && failure.advice.is_some(), "{numbers:?}");
        }
        assert!(Heartbeat::read(b"").expect("a goodbye").is_none());
        Heartbeat::read(b"no").expect_err("cut short");
    }
}
