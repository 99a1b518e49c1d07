//! The words of `heartbeat.lua`.

use std::time::Duration;

use tokio::time::timeout;

use super::{connect::Session, failure::timed_out, script::HEARTBEAT};
use crate::{decision::Failure, members::Beat, scope::Keyspace};

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
        Ok(Self::read(&reply))
    }

    fn read(reply: &[u8]) -> Option<(Epoch, Beat)> {
        let (id, numbers) = reply.split_first_chunk::<8>()?;
        let number = |index: usize| {
            let bytes = numbers.get(8 * index..8 * index + 8)?.try_into().ok()?;
            Some(f64::from_le_bytes(bytes))
        };
        let epoch = Epoch {
            id: *id,
            beats: number(0)?,
        };
        let beat = Beat {
            alive: number(1)? as u32,
            lapsed: number(2)? as u32,
        };
        Some((epoch, beat))
    }
}
