//! [`peer_ip`]: who is at the other end of the connection.

#[cfg(any(feature = "axum", feature = "tonic"))]
use std::net::SocketAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Request;

/// One customer of a provider has at least so many leading bits of an IPv6 address for itself, and
/// chooses the rest as it likes.
pub(super) const IPV6_PREFIX: u8 = 64;

/// The address at the other end of the connection, for servers of your own: put it into the
/// extensions of each request, and [`peer_ip`] and [`client_ip`](super::client_ip()) find it.
///
/// It goes before what axum and tonic tell, so that it can carry what a PROXY protocol header
/// said. Over a unix socket, the loopback address can stand for the proxy at its other end.
///
/// # Examples
///
/// ```
/// use tower_throttle::extract::{Peer, peer_ip};
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(Peer([192, 0, 2, 7].into()));
/// assert_eq!(peer_ip(&request), Some([192, 0, 2, 7].into()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// The address at the other end of the connection, as a [`Peer`], axum's `ConnectInfo` (feature
/// `axum`) or tonic's `TcpConnectInfo` (feature `tonic`) tells it; behind a proxy, the proxy's:
/// [`client_ip`](super::client_ip()) looks behind those that are trusted.
///
/// Of an IPv6 address only the first 64 bits remain, because whoever has one has 2^64 of them.
/// One that embeds an IPv4 address becomes that address: see
/// [`client_ip`](super::client_ip()#addresses-that-embed-another).
///
/// None where the server does not record it: under axum, enable the feature `axum` and serve with
/// `into_make_service_with_connect_info::<SocketAddr>()`; under tonic, enable the feature `tonic`. A
/// closure that uses `?` on it then limits nobody; [`Scope::by`](crate::Scope::by) requires an
/// alternative for such requests, and logs one warning when none of the first 100 has an address.
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
/// let layer = RateLimitLayer::new(&limiter, PEER.by(peer_ip::<String>).or(UNKNOWN));
/// let same = RateLimitLayer::new(&limiter, |req: &http::Request<String>| {
///     peer_ip(req).map_or(UNKNOWN, |ip| PEER.key(ip))
/// });
/// ```
pub fn peer_ip<B>(req: &Request<B>) -> Option<IpAddr> {
    peer(req).map(|ip| group(ip, IPV6_PREFIX))
}

/// The whole address, in its shortest form.
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

/// What stands for an address as a key: the IPv4 address that it embeds, else, of an IPv6 address,
/// its first bits.
///
/// Only for keys. Whether a proxy is trusted is decided by the address as it is, because many of
/// these forms can be claimed from outside, and a trusted proxy can name any client.
pub(super) fn group(ip: IpAddr, ipv6_prefix: u8) -> IpAddr {
    let IpAddr::V6(ip) = ip else { return ip };
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        // IPv4-mapped (RFC 4291, section 2.5.5.2): an IPv4 peer of a socket of both families.
        [0, 0, 0, 0, 0, 0xffff, a, b]
        // IPv4-translated (RFC 2765, section 2.1).
        | [0, 0, 0, 0, 0xffff, 0, a, b]
        // IPv4-compatible (RFC 4291, section 2.5.5.1), without `::` and `::1`.
        | [0, 0, 0, 0, 0, 0, a @ 0x100..=0xffff, b]
        // A translator's well-known prefix (RFC 6052, section 2.1), and a /96 of the one for local
        // use (RFC 8215).
        | [0x64, 0xff9b, 0, 0, 0, 0, a, b]
        | [0x64, 0xff9b, 1, _, 0, 0, a, b]
        // 6to4 (RFC 3056, section 2): all of a site behind one IPv4 address.
        | [0x2002, a, b, ..] => v4(a, b).into(),
        // Teredo (RFC 4380, section 4): the client's address, each bit inverted.
        [0x2001, 0, .., a, b] => v4(!a, !b).into(),
        // The prefix for local use is cut by its operator, so where the IPv4 address stands is not
        // known; but there is one address for each.
        [0x64, 0xff9b, 1, ..] => ip.into(),
        // Not so with ISATAP (RFC 5214), whose last 64 bits anybody may choose.
        _ => {
            let rest = u128::MAX.checked_shr(ipv6_prefix.into()).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & !rest).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_grouped_and_ipv4_is_not() {
        let group = |ip: &str, prefix| group(ip.parse().expect("an address"), prefix).to_string();
        assert_eq!(group("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::");
        assert_eq!(group("2001:db8:1:2:3:4:5:6", 56), "2001:db8:1::");
        assert_eq!(group("2001:db8:1:2:3:4:5:6", 48), "2001:db8:1::");
        assert_eq!(group("2001:db8::6", 128), "2001:db8::6");
        assert_eq!(group("192.0.2.7", 64), "192.0.2.7");
        assert_eq!(group("::ffff:192.0.2.7", 64), "192.0.2.7");
    }

    #[test]
    fn nobody_said() {
        assert_eq!(peer_ip(&Request::new(())), None);
    }
}
