//! [`Network`]: addresses that begin alike.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

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

/// An address and how many of its leading bits count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    const fn v4(address: Ipv4Addr, bits: u32) -> Self {
        Self {
            address: IpAddr::V4(address),
            bits,
        }
    }

    const fn v6(address: Ipv6Addr, bits: u32) -> Self {
        Self {
            address: IpAddr::V6(address),
            bits,
        }
    }

    /// Whether `ip`, in its shortest form, is among them.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        let differing = match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= self.bits
    }

    pub(super) fn is_everything(&self) -> bool {
        self.bits == 0
    }
}

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, ParseNetworkError> {
        let parse = || {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits)),
                None => (text, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let width = if address.is_ipv4() { 32 } else { 128 };
            let bits = match bits {
                // No sign, which `parse` would take.
                Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                    bits.parse().ok()?
                }
                Some(_) => return None,
                None => width,
            };
            if bits > width {
                return None;
            }
            // IPv4 in its IPv6 form is looked for in its shorter one.
            match (address, address.to_canonical()) {
                (IpAddr::V6(_), IpAddr::V4(address)) if bits >= 96 => {
                    Some(Self::v4(address, bits - 96))
                }
                _ => Some(Self { address, bits }),
            }
        };
        parse().ok_or_else(|| ParseNetworkError(text.to_owned()))
    }
}

/// What was given as a network is none; it says what.
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
            "{:?} is not a network: write an address and how many leading bits count, such as \
             \"10.0.0.0/8\" or \"2001:db8::/32\", or one address",
            self.0
        )
    }
}

impl Error for ParseNetworkError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_network() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            // Bits after those that count do not matter.
            ("10.1.2.3/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("192.0.2.6/31", "192.0.2.7", "192.0.2.5"),
            ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::1", "::1", "::"),
            ("::ffff:10.0.0.0/104", "10.2.3.4", "11.2.3.4"),
            ("::/0", "2001:db8::1", "10.0.0.0"),
        ] {
            let parsed: Network = network.parse().expect(network);
            assert!(parsed.contains(inside.parse().expect(inside)), "{network}");
            assert!(
                !parsed.contains(outside.parse().expect(outside)),
                "{network}"
            );
        }
    }

    #[test]
    fn what_is_no_network() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10/8",
            "::/129",
            "::1/8/8",
            "localhost",
            "10.0.0.0/8 ",
            "010.0.0.0/8",
            "10.0.0.0/99999999999",
        ] {
            let error = text.parse::<Network>().expect_err(text);
            assert!(error.to_string().starts_with(&format!("{text:?} is not")));
        }
    }
}
