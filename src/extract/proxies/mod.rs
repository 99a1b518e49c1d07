//! [`TrustedProxies`]: whose word counts about where a request came from.

mod network;
mod walk;

use std::{net::IpAddr, num::NonZeroUsize, str::FromStr, sync::Arc};

use http::{HeaderMap, HeaderName, header::FORWARDED};

use self::network::Network;
pub use self::network::ParseNetworkError;

/// Which proxies are believed, and which one header they tell the client's address in.
///
/// None is, unless said. Name the addresses of your proxies as narrowly as you can: a client whose
/// own address is among them can name any address.
///
/// Every trusted proxy must append the address it saw to the header, or set it, as nginx does with
/// `$proxy_add_x_forwarded_for`. All lines of the header count as one list, which is read from its
/// end: the last entry is what the peer saw. An entry that is no address (an empty one, `unknown`,
/// the `_hidden` names of RFC 7239) ends the reading, and the last trusted proxy's own address
/// stands for the client. Entries may have a port, and IPv6 addresses may be in brackets, which they
/// need before a port.
///
/// The default fits AWS's Application Load Balancer, with client ports or without, and nginx with
/// `$proxy_add_x_forwarded_for`. Other senders have a header of their own:
///
/// | sender | method |
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
/// // Anything in a private network, by X-Forwarded-For.
/// let inside = TrustedProxies::private();
/// // Two networks, by the Forwarded header of RFC 7239.
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
    source: Source,
    hops: Option<NonZeroUsize>,
}

/// Where the proxies tell what they saw.
#[derive(Clone, Debug)]
enum Source {
    List(HeaderName),
    Forwarded,
    Single(HeaderName),
}

impl Default for TrustedProxies {
    fn default() -> Self {
        Self::none()
    }
}

impl TrustedProxies {
    /// Nobody: the client is whoever is at the other end of the connection.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::none());
    /// ```
    pub fn none() -> Self {
        Self {
            networks: Arc::new([]),
            source: Source::List(HeaderName::from_static("x-forwarded-for")),
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

    /// Proxies on the same machine or in a private network (RFC 1918, RFC 4193). Only where no
    /// clients are in there as well.
    ///
    /// ```
    /// # use tower_throttle::extract::{TrustedProxies, client_ip};
    /// let client = client_ip(TrustedProxies::private());
    /// ```
    pub fn private() -> Self {
        Self::loopback().with(network::PRIVATE)
    }

    /// Also those in these networks, such as `10.0.0.0/8`, or at these addresses.
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
    /// [`ParseNetworkError`] if one of them is none; it says which.
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

    /// They tell by `Forwarded` (RFC 7239) instead of `X-Forwarded-For`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().forwarded();
    /// ```
    pub fn forwarded(mut self) -> Self {
        self.source = Source::Forwarded;
        self
    }

    /// They tell by the header `name`, a list to which each appends; `x-forwarded-for` unless said.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().list_header("x-original-forwarded-for");
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is not the name of a header in lower case, or is `forwarded`.
    pub fn list_header(mut self, name: &str) -> Self {
        self.source = Source::List(header_name(name));
        self
    }

    /// They tell by the header `name`, which holds one address, such as `true-client-ip` or
    /// `x-real-ip`. It may have a port; IPv6 with a port must be in brackets.
    ///
    /// The headers of [`cloudfront`](Self::cloudfront), [`cloudflare`](Self::cloudflare),
    /// [`fly`](Self::fly) and [`azure_front_door`](Self::azure_front_door) are read in the form
    /// that their sender writes, and in no other.
    ///
    /// The peer is all that is looked at: whoever it is, it must *set* the header, so that nothing
    /// remains of what the client has sent. Two of them, or anything but an address, are not
    /// believed; then the peer's own address stands.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::loopback().single_header("x-real-ip");
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is not the name of a header in lower case, or is `forwarded`.
    pub fn single_header(mut self, name: &str) -> Self {
        self.source = Source::Single(header_name(name));
        self
    }

    /// The proxies are Amazon CloudFront. The client's address is read from
    /// `cloudfront-viewer-address`: an address and a port, without brackets around IPv6, such as `2001:db8:3b20:38::17e:7:46532`.
    ///
    /// CloudFront sends it where the origin request policy asks for it. Also trust what stands
    /// between CloudFront and this server, such as a load balancer, and let nobody else reach that.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().cloudfront();
    /// ```
    pub fn cloudfront(self) -> Self {
        self.single_header(walk::CLOUDFRONT)
    }

    /// The proxies are Cloudflare. The client's address is read from `cf-connecting-ip`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::none()
    ///     .networks(["173.245.48.0/20", "2606:4700::/32"])? // and the others of cloudflare.com/ips
    ///     .cloudflare();
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    pub fn cloudflare(self) -> Self {
        self.single_header(walk::CLOUDFLARE)
    }

    /// The proxies are those of Fly.io. The client's address is read from `fly-client-ip`.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::private().fly();
    /// ```
    pub fn fly(self) -> Self {
        self.single_header(walk::FLY)
    }

    /// The proxies are Azure Front Door. The client's address is read from `x-azure-socketip`, and not
    /// from `x-azure-clientip`, which repeats what the client has written into `X-Forwarded-For`. All
    /// customers of Front Door share its addresses: reject requests whose `x-azure-fdid` is not yours.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let proxies = TrustedProxies::none().networks(["147.243.0.0/16"])?.azure_front_door();
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    pub fn azure_front_door(self) -> Self {
        self.single_header(walk::AZURE_FRONT_DOOR)
    }

    /// There are always so many proxies, the peer among them: the client is the entry at that
    /// place from the end of the list, and only the peer's address is checked.
    ///
    /// For load balancers whose addresses are not known beforehand. Every way to the server must
    /// lead through all of them: who reaches an inner one directly can name any address. Google's
    /// load balancer counts as two, because it appends its own address, too.
    ///
    /// ```
    /// # use tower_throttle::extract::TrustedProxies;
    /// let google = TrustedProxies::none()
    ///     .networks(["35.191.0.0/16", "130.211.0.0/22"])?
    ///     .hops(2);
    /// // A platform whose router cannot be told by its address, and cannot be passed by.
    /// let platform = TrustedProxies::none().networks(["0.0.0.0/0", "::/0"])?.hops(1);
    /// # Ok::<_, tower_throttle::extract::ParseNetworkError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If `hops` is zero.
    pub fn hops(mut self, hops: usize) -> Self {
        let hops = NonZeroUsize::new(hops);
        assert!(
            hops.is_some(),
            "the number of proxies is zero: trust none by `TrustedProxies::none()`"
        );
        self.hops = hops;
        self
    }

    pub(super) fn assert_bounded(&self) {
        let list = !matches!(self.source, Source::Single(_));
        let boundless = self.networks.iter().any(Network::is_everything);
        assert!(
            !(list && boundless && self.hops.is_none()),
            "every address is trusted, so that a client could name any: say by `hops` how many \
             proxies there are"
        );
    }

    /// Who sent what `peer` has passed on.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        match &self.source {
            Source::List(name) => self.walk(peer, walk::list(headers, name)),
            Source::Forwarded => self.walk(peer, walk::forwarded(headers)),
            Source::Single(name) => walk::single(headers, name).unwrap_or(peer),
        }
    }

    /// From the entry that the peer has appended to that of the outermost trusted proxy.
    fn walk(&self, peer: IpAddr, entries: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
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

/// Networks and addresses, apart by commas or spaces; also `loopback` and `private`.
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

fn header_name(name: &str) -> HeaderName {
    let header = HeaderName::from_lowercase(name.as_bytes());
    assert!(
        header.as_ref().is_ok_and(|header| header != FORWARDED),
        "\"{name}\" is not the name of such a header: write it in lower case, such as \
         \"x-real-ip\"; for \"forwarded\" there is `TrustedProxies::forwarded`"
    );
    header.unwrap_or(FORWARDED)
}
