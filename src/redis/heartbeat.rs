//! The argument and reply of `heartbeat.lua`.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    decision::{Failure, FailureKind},
    peers::HeartbeatReply,
    redis::{
        connection::{failure::timed_out, transport::Session},
        script::HEARTBEAT,
    },
    scope::Keyspace,
};

/// One Redis is shared by fewer limiters: each sends a heartbeat a second.
const MOST_LIMITERS: f64 = 100_000.0;

/// Above any server's clock, in milliseconds since 1970: about 3,000 years.
const LATEST: f64 = 1e14;

/// Up to here a double counts exactly: at a thousand heartbeats a second, for 280,000 years.
const MOST_HEARTBEATS: f64 = (1u64 << 53) as f64;

/// The identity of Redis's data. With another one, or with fewer heartbeats counted, Redis has lost
/// what was written since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Epoch {
    pub(crate) id: [u8; 8],
    heartbeats: f64,
}

impl Epoch {
    fn limiters_key(keyspace: &Keyspace) -> Vec<u8> {
        keyspace.own("{#}limiters")
    }

    fn pauses_key(keyspace: &Keyspace) -> Vec<u8> {
        keyspace.own("{#}pauses")
    }

    fn instance_key(keyspace: &Keyspace, instance: &str) -> Vec<u8> {
        keyspace.own(&format!("{{#}}instance:{instance}"))
    }
}

/// How long a limiter has been counted. Decides whether a share is reserved for it when it falls
/// silent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Age {
    /// None of its heartbeats has been answered.
    First,
    /// It may be a process that runs only for a moment.
    New,
    Established,
}

/// Redis's answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    /// To the last heartbeat of a limiter; also if Redis does not allow heartbeats to this client.
    None,
    /// Redis executed the heartbeat after its sender had given it up, and ignored it.
    Late,
    Counted {
        epoch: Epoch,
        peers: HeartbeatReply,
        /// Whether any limiter pauses buckets.
        pauses: bool,
    },
}

/// One heartbeat.
pub(crate) struct Heartbeat<'a> {
    pub(crate) keyspace: &'a Keyspace,
    pub(crate) limiter: &'a str,
    /// The name under which this limiter replaces an earlier one.
    pub(crate) instance: Option<&'a str>,
    pub(crate) age: Age,
    /// The last one that this limiter used.
    pub(crate) epoch: Option<Epoch>,
    /// Deregisters this limiter; the other fields are not used.
    pub(crate) is_last: bool,
    /// Limiters whose last heartbeat is no older count as alive.
    pub(crate) alive_within: Duration,
    /// How long a limiter that is not alive counts as missing.
    pub(crate) reserve_for: Duration,
    /// The identity of the epoch, if a new one begins.
    pub(crate) random: u64,
    /// By the server's clock, in milliseconds. Executed later, the heartbeat is ignored.
    pub(crate) good_until: Option<f64>,
    /// Whether this limiter pauses buckets.
    pub(crate) pauses: bool,
    /// Hashes of buckets that are deleted if all buckets in them are full.
    pub(crate) hashes: Vec<Vec<u8>>,
}

impl<'a> Heartbeat<'a> {
    /// Deregisters the limiter.
    pub(crate) fn last(keyspace: &'a Keyspace, limiter: &'a str) -> Self {
        Self {
            keyspace,
            limiter,
            instance: None,
            age: Age::Established,
            epoch: None,
            is_last: true,
            alive_within: Duration::ZERO,
            reserve_for: Duration::ZERO,
            random: 0,
            good_until: None,
            pauses: false,
            hashes: Vec::new(),
        }
    }

    /// Redis's answer, and its time in milliseconds, if the reply has one.
    pub(crate) async fn send(
        &self,
        session: &dyn Session,
        within: Duration,
    ) -> Result<(Answer, Option<f64>), Failure> {
        let mut keys = vec![
            Epoch::limiters_key(self.keyspace),
            self.keyspace.directory(),
            Epoch::pauses_key(self.keyspace),
        ];
        keys.extend(
            self.instance
                .map(|name| Epoch::instance_key(self.keyspace, name)),
        );
        keys.extend_from_slice(&self.hashes);
        let hashes = self.hashes.len().to_string();
        let known = self.epoch.as_ref().map_or(&[][..], |epoch| &epoch.id);
        let heartbeats = self.epoch.map_or(0.0, |epoch| epoch.heartbeats);
        let alive_within = self.alive_within.as_millis().to_string();
        let reserve_for = self.reserve_for.as_millis().to_string();
        let good_until = self
            .good_until
            .map_or_else(String::new, |until| format!("{until:.0}"));
        let arguments: [&[u8]; 11] = [
            self.limiter.as_bytes(),
            if self.is_last { b"1" } else { b"0" },
            known,
            &heartbeats.to_le_bytes(),
            &self.random.to_le_bytes(),
            alive_within.as_bytes(),
            reserve_for.as_bytes(),
            match self.age {
                Age::First => b"first",
                Age::New => b"new",
                Age::Established => b"established",
            },
            good_until.as_bytes(),
            if self.pauses { b"1" } else { b"0" },
            hashes.as_bytes(),
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
            advice: Some("the server does not run heartbeat.lua as Redis does: see the error"),
            ..Failure::new(
                FailureKind::Misconfigured,
                "the reply to a heartbeat is malformed",
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
            heartbeats: number(numbers, 0, 0.0, MOST_HEARTBEATS)?,
        };
        let peers = HeartbeatReply {
            // At least this limiter.
            alive: number(numbers, 1, 1.0, MOST_LIMITERS)? as u32,
            missing: number(numbers, 2, 0.0, MOST_LIMITERS)? as u32,
        };
        let pauses = number(numbers, 3, 0.0, 1.0)? > 0.0;
        let time = number(numbers, 4, 0.0, LATEST)?;
        let answer = Answer::Counted {
            epoch,
            peers,
            pauses,
        };
        Some((answer, Some(time)))
    }
}

#[cfg(test)]
mod tests;
