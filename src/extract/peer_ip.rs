//! [`peer_ip`]: the address at the other end of the connection.

use std::net::IpAddr;
#[cfg(any(feature = "axum", feature = "tonic"))]
use std::net::SocketAddr;

use http::Request;

use super::{
    address::{AddressText, IPV6_PREFIX, group},
    key::KeyExtractor,
};
use crate::scope::Scope;

/// The address at the other end of the connection, for servers of your own: insert it into the
/// extensions of each request, so that [`peer_ip`] and [`client_ip`](super::client_ip()) find it.
///
/// It takes precedence over the addresses of axum and tonic, so that it can hold the address of a
/// PROXY protocol header. For a unix socket, use the loopback address to represent the proxy at
/// the other end.
///
/// # Examples
///
/// ```
/// use tower_throttle::extract::{Peer, peer_ip};
///
/// let mut request = http::Request::new(());
/// assert_eq!(peer_ip().find(&request), None);
/// request.extensions_mut().insert(Peer([192, 0, 2, 7].into()));
/// assert_eq!(peer_ip().find(&request), Some([192, 0, 2, 7].into()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// The address at the other end of the connection: a [`Peer`], axum's `ConnectInfo` (feature
/// `axum`) or tonic's `TcpConnectInfo` (feature `tonic`).
///
/// Behind a proxy this is the address of the proxy; use [`client_ip`](super::client_ip()) there.
///
/// An IPv6 address is cut to its first 64 bits, because a customer of a provider has at least 2^64
/// addresses. An address that embeds an IPv4 address becomes that address: see
/// [`client_ip`](super::client_ip()#addresses-that-embed-another).
///
/// A request has no key if the server does not record the address. With axum, enable the feature
/// `axum` and serve with `into_make_service_with_connect_info::<SocketAddr>()`; with tonic, enable
/// the feature `tonic`. If the first 100 requests have no key, [`Scope::by`] logs one warning
/// (feature `tracing`).
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, extract::peer_ip};
///
/// const PEER: Scope = Quota::per_second(5.0).scope("peer");
/// const UNKNOWN: Scope = Quota::per_second(5.0).scope("unknown-peer");
///
/// let limiter = Limiter::in_memory();
/// let layer = RateLimitLayer::new(&limiter, PEER.by(peer_ip()).or(UNKNOWN));
/// let same = RateLimitLayer::new(&limiter, |req: &http::Request<String>| {
///     peer_ip().find(req).map_or(UNKNOWN, |ip| PEER.key(ip))
/// });
/// ```
#[must_use]
pub fn peer_ip() -> PeerIp {
    PeerIp(())
}

/// Finds the address at the other end of the connection; made by [`peer_ip()`].
///
/// # Examples
///
/// See [`peer_ip()`].
#[derive(Clone, Copy, Debug)]
pub struct PeerIp(());

impl PeerIp {
    /// The key of a request: an IPv4 address, or the first 64 bits of an IPv6 address. `None` if
    /// the peer is not known.
    ///
    /// A closure that uses `?` on it does not limit requests of unknown peers; [`Scope::by`]
    /// requires an alternative for them.
    ///
    /// ```
    /// # use tower_throttle::extract::peer_ip;
    /// assert_eq!(peer_ip().find(&http::Request::new(())), None);
    /// ```
    #[must_use]
    pub fn find<B>(&self, req: &Request<B>) -> Option<IpAddr> {
        peer(req).map(|ip| group(ip, IPV6_PREFIX))
    }
}

impl<B> KeyExtractor<Request<B>> for PeerIp {
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        Some(base.key_bytes(AddressText::new(self.find(req)?).as_bytes()))
    }
}

/// The whole address. An IPv4-mapped address becomes an IPv4 address.
pub(super) fn peer<B>(req: &Request<B>) -> Option<IpAddr> {
    if let Some(Peer(ip)) = req.extensions().get() {
        return Some(ip.to_canonical());
    }
    #[cfg(any(feature = "axum", feature = "tonic"))]
    if let Some(address) = address(req) {
        return Some(address.ip().to_canonical());
    }
    None
}

#[cfg(any(feature = "axum", feature = "tonic"))]
fn address<B>(req: &Request<B>) -> Option<SocketAddr> {
    #[cfg(feature = "axum")]
    {
        use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
        if let Some(ConnectInfo(address)) = req.extensions().get() {
            return Some(*address);
        }
        if let Some(MockConnectInfo(address)) = req.extensions().get() {
            return Some(*address);
        }
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
