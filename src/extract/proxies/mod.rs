//! Which proxies may report the address of a client, and where they report it.

mod address;
mod forwarded;
mod header;
mod network;
mod trusted;

pub use self::{network::ParseNetworkError, trusted::TrustedProxies};
