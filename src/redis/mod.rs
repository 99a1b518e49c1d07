//! Buckets in Redis, shared by all processes: one script, one task that batches, one connection
//! under a supervisor.

mod batch;
mod batcher;
#[cfg(test)]
mod batcher_tests;
mod breaker;
mod command;
mod connect;
mod deregister;
mod driver;
mod failure;
mod heartbeat;
mod keeper;
mod known;
mod leases;
mod link;

#[cfg(test)]
mod panics;
#[cfg(test)]
mod parity;
mod patience;
mod recovery;
mod script;
mod shared;
#[cfg(feature = "tls")]
mod tls;
#[cfg(test)]
mod twin;

pub(crate) use self::{
    batcher::{Batcher, Mark},
    command::{Connection, Debt, Ledger, Requester},
    connect::Transport,
    driver::RedisTransport,
    known::LevelCache,
    leases::{AHEAD, Leases},
    link::{ConnectionConfig, Mode, RedisConnection},
};

/// For a scripted Redis.
#[cfg(test)]
pub(crate) mod scripted {
    pub(crate) use super::{
        connect::Session,
        parity::support::RedisServer,
        script::{ACQUIRE, HEARTBEAT, Script},
        twin::{Call, Command, ReferenceModel},
    };
}
