//! What a batcher, its workers and their calls share.

use std::sync::Arc;

use super::connection::Connection;
use crate::{
    redis::{lease::Leases, ledger::Ledger, level_cache::LevelCache},
    scope::Keyspace,
    telemetry::Meter,
};

pub(super) struct Context<C: Connection> {
    pub(super) connection: C,
    pub(super) keyspace: Keyspace,
    pub(super) levels: Arc<LevelCache>,
    pub(super) leases: Arc<Leases>,
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) meter: Meter,
}
