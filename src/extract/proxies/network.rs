//! [`Network`]: addresses with the same leading bits.

#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub(super) const LOOPBACK: &[Network] = &[
    Network::v4(Ipv4Addr::new(127, 0, 0, 0), 8),
    Network::v6(Ipv6Addr::LOCALHOST, 128),
];

/// RFC 1918 and RFC 4193.
pub(super) const PRIVATE: &[Network] = &[
    Network::v4(Ipv4Addr::new(10, 0, 0, 0), 8),
    Network::v4(Ipv4Addr::new(172, 16, 0, 0), 12),
    Network::v4(Ipv4Addr::new(192, 168, 0, 0), 16),
    Network::v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
];

/// An IPv4-mapped IPv6 network is stored as the IPv4 network, because addresses are compared in
/// their canonical form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network(IpNet);

impl Network {
    const fn v4(address: Ipv4Addr, prefix: u8) -> Self {
        Self(IpNet::V4(Ipv4Net::new_assert(address, prefix)))
    }

    const fn v6(address: Ipv6Addr, prefix: u8) -> Self {
        Self(IpNet::V6(Ipv6Net::new_assert(address, prefix)))
    }

    /// Whether `ip`, which must be in its canonical form, is in this network.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }

    pub(super) fn is_everything(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        parse(text).ok_or_else(|| ParseNetworkError(text.to_owned()))
    }
}

/// Not `IpNet::from_str`, which reads `010.0.0.0/8` as `10.0.0.0/8`: other programs read a number
/// with a leading zero as octal.
fn parse(text: &str) -> Option<Network> {
    let Some((address, prefix)) = text.split_once('/') else {
        return Some(Network(text.parse::<IpAddr>().ok()?.to_canonical().into()));
    };
    let address: IpAddr = address.parse().ok()?;
    // `u8::from_str` accepts a plus sign.
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let network = IpNet::new(address, prefix.parse().ok()?).ok()?;
    Some(match address.to_canonical() {
        IpAddr::V4(mapped) if address.is_ipv6() && network.prefix_len() >= 96 => {
            Network::v4(mapped, network.prefix_len() - 96)
        }
        _ => Network(network),
    })
}

/// The error for a text that is neither a network nor an address; its message quotes the text.
///
/// # Examples
///
/// ```
/// use tower_throttle::extract::TrustedProxies;
///
/// let error = TrustedProxies::none().networks(["10.0.0.0/33"]).unwrap_err();
/// assert!(error.to_string().contains("10.0.0.0/33"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseNetworkError(String);

impl fmt::Display for ParseNetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a network: use an address and a prefix length, such as \
             \"10.0.0.0/8\" or \"2001:db8::/32\", or one address",
            self.0
        )
    }
}

impl Error for ParseNetworkError {}
