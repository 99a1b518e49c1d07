//! [`peer_ip`]: who is at the other end of the connection.

use std::net::{IpAddr, SocketAddr};

use http::Request;

/// The address at the other end of the connection, as axum's `ConnectInfo` (feature `axum`) or
/// tonic's `TcpConnectInfo` (feature `tonic`) tells it; behind a proxy, the proxy's.
///
/// None where the server was not told to note it: under axum, serve with
/// `into_make_service_with_connect_info::<SocketAddr>()`. A closure that uses `?` on it then
/// limits nobody; give such requests a shared scope instead where that matters.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::peer_ip};
///
/// const PEER: Scope = Quota::per_second(5.0).scope("peer");
/// const UNKNOWN: Scope = Quota::per_second(5.0).scope("unknown-peer");
///
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), |req: &http::Request<()>| {
///     peer_ip(req).map_or(UNKNOWN, |ip| PEER.key(ip))
/// });
/// ```
pub fn peer_ip<B>(req: &Request<B>) -> Option<IpAddr> {
    peer_address(req).map(|address| address.ip().to_canonical())
}

fn peer_address<B>(req: &Request<B>) -> Option<SocketAddr> {
    #[cfg(feature = "axum")]
    if let Some(info) = req
        .extensions()
        .get::<axum::extract::ConnectInfo<SocketAddr>>()
    {
        return Some(info.0);
    }
    #[cfg(feature = "tonic")]
    if let Some(info) = req
        .extensions()
        .get::<tonic::transport::server::TcpConnectInfo>()
    {
        return info.remote_addr();
    }
    None
}
