//! [`client_ip`]: the address of the client behind trusted proxies.

use std::net::IpAddr;

use http::Request;

use super::{
    address::{AddressText, IPV6_PREFIX, group},
    key::KeyExtractor,
    peer_ip::peer,
    proxies::TrustedProxies,
};
use crate::scope::Scope;

/// The address of the client: that of the peer, or, if the peer is a trusted proxy, the one that
/// the outermost trusted proxy received the request from.
///
/// A client cannot choose the address by its headers. Only entries that trusted proxies have
/// appended are read. If an entry is not an address, reading stops, and the address of the last
/// trusted proxy is the key.
///
/// An IPv6 address is cut to its first 64 bits, because a customer of a provider has at least 2^64
/// addresses; see [`ipv6_prefix`](ClientIp::ipv6_prefix).
///
/// A request without a known peer has no key, whatever its headers contain:
/// [`or`](super::By::or) sets the limit for such requests. The peer is known if the feature of the
/// server (`axum` or `tonic`) is enabled, and with axum if the server uses
/// `into_make_service_with_connect_info::<SocketAddr>()`. If the first 100 requests have no key,
/// one warning is logged (feature `tracing`).
///
/// # Examples
///
/// ```
/// use tower_throttle::{
///     Quota, Scope,
///     extract::{Peer, TrustedProxies, client_ip},
/// };
///
/// const PER_CLIENT: Scope = Quota::per_second(5.0).scope("client");
/// const UNKNOWN: Scope = Quota::per_second(5.0).scope("unknown-client");
///
/// let client = client_ip(TrustedProxies::private());
/// let by = PER_CLIENT.by(client.clone()).or(UNKNOWN);
/// # let _ = by;
///
/// let mut request = http::Request::builder()
///     .header("x-forwarded-for", "10.9.9.9, 192.0.2.7, 10.0.0.2")
///     .body(())
///     .unwrap();
/// request.extensions_mut().insert(Peer([10, 0, 0, 1].into()));
/// assert_eq!(client.find(&request), Some([192, 0, 2, 7].into()));
/// ```
///
/// # Addresses that embed another
///
/// An IPv6 address that embeds an IPv4 address has the key of that IPv4 address, so that a client
/// has one bucket for IPv4 and IPv6, and clients behind one translator have different buckets:
///
/// | form | key |
/// |---|---|
/// | `::ffff:0:0/96`, IPv4-mapped (RFC 4291) | the IPv4 address |
/// | `::/96`, IPv4-compatible (RFC 4291), except `::/104` | the IPv4 address |
/// | `::ffff:0:0:0/96`, IPv4-translated (RFC 2765) | the IPv4 address |
/// | `64:ff9b::/96`, NAT64 and SIIT (RFC 6052) | the IPv4 address |
/// | `64:ff9b:1::/48`, the same with a local prefix (RFC 8215) | the IPv4 address where the local prefix is a /96; else the whole address, of which there is one for each IPv4 address |
/// | `2002::/16`, 6to4 (RFC 3056) | the IPv4 address of the site |
/// | `2001::/32`, Teredo (RFC 4380) | the IPv4 address of the client, as its server saw it |
/// | `…:0:5efe:a.b.c.d`, ISATAP (RFC 5214) | the first bits, as of any other: the client chooses the rest |
///
/// A translator with another prefix (RFC 6052, section 2.2) cannot be recognized: all clients
/// behind it share one bucket. Configure it with one of the prefixes above.
///
/// Whether a proxy is trusted depends on the address as it is. Of these forms only IPv4-mapped
/// addresses, which a dual-stack socket reports for IPv4 peers, match a trusted IPv4 network. Name
/// the others as IPv6 networks, such as `64:ff9b::10.0.0.0/104`.
///
/// # Panics
///
/// If `proxies` trusts every address and reads a list without a number of
/// [`hops`](TrustedProxies::hops): then a client could choose any address.
#[must_use]
pub fn client_ip(proxies: TrustedProxies) -> ClientIp {
    proxies.assert_bounded();
    ClientIp {
        proxies,
        ipv6_prefix: IPV6_PREFIX,
    }
}

/// Finds the address of the client; made by [`client_ip()`].
///
/// # Examples
///
/// See [`client_ip()`].
#[derive(Clone, Debug)]
pub struct ClientIp {
    proxies: TrustedProxies,
    ipv6_prefix: u8,
}

impl ClientIp {
    /// The number of leading bits of an IPv6 address that distinguish clients. Defaults to 64.
    /// Some providers assign 48 or 56 bits to a customer.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::none()).ipv6_prefix(56);
    /// ```
    ///
    /// # Panics
    ///
    /// If it is not between 32 and 128.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        assert!(
            (32..=128).contains(&bits),
            "an IPv6 prefix of {bits} bits is invalid: it must be 32 to 128 bits, \
             such as 56"
        );
        self.ipv6_prefix = bits;
        self
    }

    /// The key of a request: an IPv4 address, or the first bits of an IPv6 address. `None` if the
    /// peer is not known.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::none());
    /// assert_eq!(client.find(&http::Request::new(())), None);
    /// ```
    #[must_use]
    pub fn find<B>(&self, req: &Request<B>) -> Option<IpAddr> {
        let client = self.proxies.client(peer(req)?, req.headers());
        Some(group(client, self.ipv6_prefix))
    }
}

impl<B> KeyExtractor<Request<B>> for ClientIp {
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        Some(base.key_bytes(AddressText::new(self.find(req)?).as_bytes()))
    }
}
