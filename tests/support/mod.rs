//! A real `redis-server` and a faulty network, both owned by the test that starts them.
//!
//! Every integration test compiles this module and uses a part of it. Processes and sockets live in
//! real time: a test that pauses tokio's clock must not use them.

#![allow(dead_code, unreachable_pub, unused_imports)]

mod bucket;
mod faults;
pub mod gates;
mod process;
mod proxy;
mod redis_server;
mod rights;

pub use self::{
    bucket::{DIRECTORY, MARK},
    faults::Full,
    proxy::{Mode, Proxy},
    redis_server::RedisServer,
    rights::{DECIDES, SENDS_HEARTBEATS},
};
