//! [`group`]: the addresses that count as one client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[cfg(test)]
mod tests;

/// Providers assign IPv6 prefixes of at most this many bits to a customer, who chooses the other
/// bits freely.
pub(super) const IPV6_PREFIX: u8 = 64;

/// The key of an address: the IPv4 address that it embeds, otherwise the first bits of an IPv6
/// address.
///
/// Do not use it to decide whether a proxy is trusted: any client can use many of these forms, and
/// a trusted proxy can report any client.
pub(super) fn group(ip: IpAddr, ipv6_prefix: u8) -> IpAddr {
    let IpAddr::V6(ip) = ip else { return ip };
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        // IPv4-mapped (RFC 4291, section 2.5.5.2): an IPv4 peer of a dual-stack socket.
        [0, 0, 0, 0, 0, 0xffff, a, b]
        // IPv4-translated (RFC 2765, section 2.1).
        | [0, 0, 0, 0, 0xffff, 0, a, b]
        // IPv4-compatible (RFC 4291, section 2.5.5.1), without `::` and `::1`.
        | [0, 0, 0, 0, 0, 0, a @ 0x100..=0xffff, b]
        // The well-known prefix of translators (RFC 6052, section 2.1), and a /96 of the prefix
        // for local use (RFC 8215).
        | [0x64, 0xff9b, 0, 0, 0, 0, a, b]
        | [0x64, 0xff9b, 1, _, 0, 0, a, b]
        // 6to4 (RFC 3056, section 2): a site behind one IPv4 address.
        | [0x2002, a, b, ..] => v4(a, b).into(),
        // Teredo (RFC 4380, section 4): the client's address with inverted bits.
        [0x2001, 0, .., a, b] => v4(!a, !b).into(),
        // The operator divides the prefix for local use, so the position of the IPv4 address is
        // unknown. There is one IPv6 address for each.
        [0x64, 0xff9b, 1, ..] => ip.into(),
        // Includes ISATAP (RFC 5214): the client chooses its last 64 bits.
        _ => {
            let rest = u128::MAX.checked_shr(ipv6_prefix.into()).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & !rest).into()
        }
    }
}
