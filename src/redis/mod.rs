//! Buckets in Redis, shared by all processes: one script, one task that batches, one connection
//! under a supervisor.

pub(crate) mod batch;
pub(crate) mod bucket_state;
pub(crate) mod class;
pub(crate) mod connection;
pub(crate) mod heartbeat;
pub(crate) mod lease;
pub(crate) mod ledger;
pub(crate) mod level_cache;
pub(crate) mod op;
pub(crate) mod script;

#[cfg(feature = "redis")]
pub(crate) use self::connection::driver::RedisTransport;
pub(crate) use self::{
    batch::{batcher::Batcher, connection::Connection, queue::Mark, request::Requester},
    connection::{
        config::ConnectionConfig,
        redis_connection::{Mode, RedisConnection},
        transport::Transport,
    },
    lease::{AHEAD, Leases},
    ledger::Ledger,
    level_cache::LevelCache,
    op::Op,
};
