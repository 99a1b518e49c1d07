//! [`TrustedProxies`]: whose reports of a client's address are trusted.

use std::{net::IpAddr, num::NonZeroUsize, str::FromStr, sync::Arc};

use http::{HeaderMap, HeaderName};

use super::{
    header::{self, ClientHeader, header_name},
    network::{self, Network, ParseNetworkError},
};

/// The proxies that are trusted to report the address of a client, and the header that they report
/// it in.
///
/// Defaults to no proxy. Name as few addresses as possible: a client whose own address is trusted
/// can report any address.
///
/// Each trusted proxy must append the address of its peer to the header, or set the header, as nginx
/// does with `$proxy_add_x_forwarded_for`. All lines of the header are one list, which is read from
/// its end: the last entry is written by the peer of this server. Reading stops at the first entry
/// that is not the address of a trusted proxy; this is the client. If that entry is not an address
/// (it is empty, `unknown`, or an obfuscated `_name` of RFC 7239), the proxy that wrote it counts as
/// the client. An entry may have a port. An IPv6 address may be in brackets, and must be in front of
/// a port.
///
/// The default header, `X-Forwarded-For`, fits AWS's Application Load Balancer, with or without
/// client ports, and nginx with `$proxy_add_x_forwarded_for`. For other proxies there are methods:
///
/// | proxy | method |
/// |---|---|
/// | Amazon CloudFront | [`cloudfront`](Self::cloudfront) |
/// | Azure Front Door | [`azure_front_door`](Self::azure_front_door) |
/// | Cloudflare | [`cloudflare`](Self::cloudflare) |
/// | Fly.io | [`fly`](Self::fly) |
/// | Google's load balancer | [`hops(2)`](Self::hops) |
/// | nginx with `X-Real-IP $remote_addr` | [`single_header("x-real-ip")`](Self::single_header) |
///
/// # Examples
///
/// ```
/// use tower_throttle::extract::TrustedProxies;
///
/// // All addresses in private networks, by X-Forwarded-For.
/// let inside = TrustedProxies::private();
/// // Two networks, by Forwarded.
/// let named = TrustedProxies::none()
///     .networks(["203.0.113.0/24", "2001:db8:7::/48"])?
///     .forwarded();
/// // From configuration.
/// let configured: TrustedProxies = "loopback, 203.0.113.7".parse()?;
/// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TrustedProxies {
    networks: Arc<[Network]>,
    header: ClientHeader,
    hops: Option<NonZeroUsize>,
}

impl Default for TrustedProxies {
    fn default() -> Self {
        Self::none()
    }
}

impl TrustedProxies {
    /// No proxy: the client is the peer of the connection.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::none());
    /// ```
    pub fn none() -> Self {
        Self {
            networks: Arc::new([]),
            header: ClientHeader::List(HeaderName::from_static("x-forwarded-for")),
            hops: None,
        }
    }

    /// Proxies on the same machine: `127.0.0.0/8` and `::1`.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::loopback());
    /// ```
    pub fn loopback() -> Self {
        Self::none().with(network::LOOPBACK)
    }

    /// Proxies on the same machine or in a private network (RFC 1918, RFC 4193). Use it only if no
    /// client is in these networks.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::private());
    /// ```
    pub fn private() -> Self {
        Self::loopback().with(network::PRIVATE)
    }

    /// Adds the proxies in networks such as `10.0.0.0/8`, or at single addresses.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::loopback().networks(["10.0.0.0/8", "2001:db8::1"])?;
    /// assert!(TrustedProxies::none().networks(["10.0.0.0/33"]).is_err());
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ParseNetworkError`] with the first text that is neither a network nor an address.
    pub fn networks<'a>(
        self,
        networks: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, ParseNetworkError> {
        let networks: Vec<Network> = networks
            .into_iter()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(self.with(&networks))
    }

    fn with(mut self, more: &[Network]) -> Self {
        self.networks = self.networks.iter().chain(more).copied().collect();
        self
    }

    /// The proxies append to `Forwarded` (RFC 7239) instead of `X-Forwarded-For`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().forwarded();
    /// ```
    pub fn forwarded(mut self) -> Self {
        self.header = ClientHeader::Forwarded;
        self
    }

    /// The proxies append to the header `name`, a list of addresses. Defaults to `x-forwarded-for`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().list_header("x-original-forwarded-for");
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `name` is not a header name in lowercase, or is `forwarded`.
    pub fn list_header(mut self, name: &str) -> Self {
        self.header = ClientHeader::List(header_name(name));
        self
    }

    /// The proxy sets the header `name`, which has one address, such as `true-client-ip` or
    /// `x-real-ip`. The address may have a port; an IPv6 address with a port must be in brackets.
    ///
    /// The headers of [`cloudfront`](Self::cloudfront), [`cloudflare`](Self::cloudflare),
    /// [`fly`](Self::fly) and [`azure_front_door`](Self::azure_front_door) are read only in the form
    /// that their sender writes.
    ///
    /// Only the peer of the connection is checked. It must *set* the header, so that nothing that
    /// the client sent remains. If the header occurs twice, or is not an address, the client is the
    /// peer.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::loopback().single_header("x-real-ip");
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `name` is not a header name in lowercase, or is `forwarded`.
    pub fn single_header(mut self, name: &str) -> Self {
        self.header = ClientHeader::Single(header_name(name));
        self
    }

    /// The proxies are Amazon CloudFront. The client is read from `cloudfront-viewer-address`: an
    /// address and a port, without brackets around IPv6, such as `2001:db8:3b20:38::17e:7:46532`.
    ///
    /// CloudFront sends this header if the origin request policy asks for it. Also trust what is
    /// between CloudFront and this server, such as a load balancer, and let no other client reach
    /// it.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().cloudfront();
    /// ```
    pub fn cloudfront(self) -> Self {
        self.single_header(header::CLOUDFRONT)
    }

    /// The proxies are Cloudflare. The client is read from `cf-connecting-ip`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::none()
    ///     .networks(["173.245.48.0/20", "2606:4700::/32"])? // and the others of cloudflare.com/ips
    ///     .cloudflare();
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    pub fn cloudflare(self) -> Self {
        self.single_header(header::CLOUDFLARE)
    }

    /// The proxies are those of Fly.io. The client is read from `fly-client-ip`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().fly();
    /// ```
    pub fn fly(self) -> Self {
        self.single_header(header::FLY)
    }

    /// The proxies are Azure Front Door. The client is read from `x-azure-socketip`, and not from
    /// `x-azure-clientip`, which repeats what the client sent in `X-Forwarded-For`. All customers of
    /// Front Door share its addresses: reject requests whose `x-azure-fdid` is not yours.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::none().networks(["147.243.0.0/16"])?.azure_front_door();
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    pub fn azure_front_door(self) -> Self {
        self.single_header(header::AZURE_FRONT_DOOR)
    }

    /// Each request passes exactly `hops` proxies, the peer included. The client is the entry at
    /// this position from the end of the list, and only the address of the peer is checked.
    ///
    /// This is for load balancers whose addresses are not known in advance. All requests must pass
    /// all of them: a client that reaches an inner one directly can report any address. Google's
    /// load balancer counts as two, because it also appends its own address.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let google = TrustedProxies::none()
    ///     .networks(["35.191.0.0/16", "130.211.0.0/22"])?
    ///     .hops(2);
    /// // A platform whose router has no fixed address, and cannot be bypassed.
    /// let platform = TrustedProxies::none().networks(["0.0.0.0/0", "::/0"])?.hops(1);
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `hops` is zero.
    pub fn hops(mut self, hops: usize) -> Self {
        let hops = NonZeroUsize::new(hops);
        assert!(
            hops.is_some(),
            "the number of hops must be above zero: use `TrustedProxies::none()` to trust no proxy"
        );
        self.hops = hops;
        self
    }

    pub(in crate::extract) fn assert_bounded(&self) {
        let list = !matches!(self.header, ClientHeader::Single(_));
        let boundless = self.networks.iter().any(Network::is_everything);
        assert!(
            !(list && boundless && self.hops.is_none()),
            "every address is trusted, so that a client can forge its address: set the number of \
             proxies with `hops`"
        );
    }

    /// The client of a request that is received from `peer`.
    pub(in crate::extract) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        match &self.header {
            ClientHeader::List(name) => self.outermost(peer, header::list(headers, name)),
            ClientHeader::Forwarded => self.outermost(peer, header::forwarded(headers)),
            ClientHeader::Single(name) => header::single(headers, name).unwrap_or(peer),
        }
    }

    /// The entry that the outermost trusted proxy appended, beginning with that of the peer.
    fn outermost(&self, peer: IpAddr, entries: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut last = peer;
        for (at, entry) in entries.enumerate() {
            let Some(entry) = entry else { break };
            last = entry;
            let outside = match self.hops {
                Some(hops) => at + 1 >= hops.get(),
                None => !self.trusts(entry),
            };
            if outside {
                break;
            }
        }
        last
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(ip))
    }
}

/// Networks and addresses, separated by commas or whitespace; also `loopback` and `private`.
impl FromStr for TrustedProxies {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let words = text.split([',', ' ', '\t', '\n']);
        words
            .filter(|word| !word.is_empty())
            .try_fold(Self::none(), |proxies, word| match word {
                "loopback" => Ok(proxies.with(network::LOOPBACK)),
                "private" => Ok(proxies.with(network::LOOPBACK).with(network::PRIVATE)),
                word => proxies.networks([word]),
            })
    }
}
