//! The words of `heartbeat.lua`.

use std::time::Duration;

use tokio::time::timeout;

use crate::redis::{
    connection::failure::timed_out, connection::transport::Session, script::HEARTBEAT,
};
use crate::{
    decision::{Failure, FailureKind},
    peers::HeartbeatReply,
    scope::Keyspace,
};

/// More do not share one Redis: each beats once a second.
const MOST_LIMITERS: f64 = 100_000.0;

/// No server's clock says more, in milliseconds since 1970: some 3,000 years.
const LATEST: f64 = 1e14;

/// Up to here a double counts each; thousands of beats a second take a hundred thousand years.
const MOST_BEATS: f64 = (1u64 << 53) as f64;

/// The state of a Redis: where the identity differs, or fewer beats were counted, it has lost
/// what was written since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Epoch {
    pub(crate) id: [u8; 8],
    beats: f64,
}

impl Epoch {
    // Names that no scope can have, because `{` is escaped, with one hash tag for both.
    pub(crate) fn key(keyspace: &Keyspace) -> Vec<u8> {
        keyspace.own("{#}epoch")
    }

    fn members_key(keyspace: &Keyspace) -> Vec<u8> {
        keyspace.own("{#}limiters")
    }

    fn instance_key(keyspace: &Keyspace, instance: &str) -> Vec<u8> {
        keyspace.own(&format!("{{#}}instance:{instance}"))
    }
}

/// For how long a limiter has been counted, which decides whether a share is reserved for it when
/// it falls silent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Age {
    /// None of its heartbeats was answered yet.
    First,
    /// It may be a process that ends in a moment.
    New,
    Lived,
}

/// What Redis answers to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    /// To the last heartbeat of a limiter; also where this client has no right to send any.
    None,
    /// It was executed after its sender had given it up, by the server's clock, and ignored.
    Late,
    Counted(Epoch, HeartbeatReply),
}

/// One beat, or a goodbye.
pub(crate) struct Heartbeat<'a> {
    pub(crate) keyspace: &'a Keyspace,
    pub(crate) limiter: &'a str,
    /// The name that it takes over from an earlier limiter.
    pub(crate) instance: Option<&'a str>,
    pub(crate) age: Age,
    /// As this limiter knows it.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) leaves: bool,
    /// Who was heard within this time counts as alive.
    pub(crate) alive_within: Duration,
    /// After its silence a limiter counts as lapsed for so long.
    pub(crate) reserve_for: Duration,
    /// For the identity of an epoch that may have to begin.
    pub(crate) random: u64,
    /// By the server's clock, in milliseconds: executed later, it is ignored.
    pub(crate) good_until: Option<f64>,
}

impl<'a> Heartbeat<'a> {
    /// Deregisters the limiter.
    pub(crate) fn last(keyspace: &'a Keyspace, limiter: &'a str) -> Self {
        Self {
            keyspace,
            limiter,
            instance: None,
            age: Age::Lived,
            epoch: None,
            leaves: true,
            alive_within: Duration::ZERO,
            reserve_for: Duration::ZERO,
            random: 0,
            good_until: None,
        }
    }

    /// What Redis answers, and its time in milliseconds, where it says that.
    pub(crate) async fn send(
        &self,
        session: &dyn Session,
        within: Duration,
    ) -> Result<(Answer, Option<f64>), Failure> {
        let mut keys = vec![Epoch::members_key(self.keyspace), Epoch::key(self.keyspace)];
        keys.extend(
            self.instance
                .map(|name| Epoch::instance_key(self.keyspace, name)),
        );
        let known = self.epoch.as_ref().map_or(&[][..], |epoch| &epoch.id);
        let beats = self.epoch.map_or(0.0, |epoch| epoch.beats);
        let alive_within = self.alive_within.as_millis().to_string();
        let reserve_for = self.reserve_for.as_millis().to_string();
        let good_until = self
            .good_until
            .map_or_else(String::new, |until| format!("{until:.0}"));
        let arguments: [&[u8]; 9] = [
            self.limiter.as_bytes(),
            if self.leaves { b"1" } else { b"0" },
            known,
            &beats.to_le_bytes(),
            &self.random.to_le_bytes(),
            alive_within.as_bytes(),
            reserve_for.as_bytes(),
            match self.age {
                Age::First => b"first",
                Age::New => b"new",
                Age::Lived => b"lived",
            },
            good_until.as_bytes(),
        ];
        let run = session.run(&HEARTBEAT, &keys, &arguments);
        let reply = timeout(within, run)
            .await
            .unwrap_or_else(|_| Err(timed_out()))?;
        Self::read(&reply)
    }

    fn read(reply: &[u8]) -> Result<(Answer, Option<f64>), Failure> {
        if reply.is_empty() {
            return Ok((Answer::None, None));
        }
        Self::answer(reply).ok_or_else(|| Failure {
            single: true,
            advice: Some("this server does not count limiters as Redis does: see the error"),
            ..Failure::new(
                FailureKind::Misconfigured,
                "the reply to a heartbeat makes no sense",
            )
        })
    }

    fn answer(reply: &[u8]) -> Option<(Answer, Option<f64>)> {
        let number = |bytes: &[u8], index: usize, least: f64, most: f64| {
            let bytes = bytes.get(8 * index..8 * index + 8)?.try_into().ok()?;
            let number = f64::from_le_bytes(bytes);
            (least..=most).contains(&number).then_some(number)
        };
        if reply.len() == 8 {
            return Some((Answer::Late, Some(number(reply, 0, 0.0, LATEST)?)));
        }
        let (id, numbers) = reply.split_first_chunk::<8>()?;
        let epoch = Epoch {
            id: *id,
            beats: number(numbers, 0, 0.0, MOST_BEATS)?,
        };
        let beat = HeartbeatReply {
            // This one has just been counted.
            alive: number(numbers, 1, 1.0, MOST_LIMITERS)? as u32,
            lapsed: number(numbers, 2, 0.0, MOST_LIMITERS)? as u32,
        };
        let time = number(numbers, 3, 0.0, LATEST)?;
        Some((Answer::Counted(epoch, beat), Some(time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(numbers: [f64; 3]) -> Result<(Answer, Option<f64>), Failure> {
        let numbers = numbers
            .iter()
            .chain(&[1.7e12])
            .flat_map(|number| number.to_le_bytes());
        let reply: Vec<u8> = b"identity".iter().copied().chain(numbers).collect();
        Heartbeat::read(&reply)
    }

    #[test]
    fn counts_that_make_no_sense_are_no_answer() {
        let (answer, time) = read([7.0, 3.0, 1.0]).expect("sense");
        let Answer::Counted(_, beat) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((beat.alive, beat.lapsed, time), (3, 1, Some(1.7e12)));
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
        let last = Heartbeat::read(b"").expect("the last");
        assert_eq!(last, (Answer::None, None));
        Heartbeat::read(b"no").expect_err("cut short");
    }
}
