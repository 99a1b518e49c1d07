//! [`group`]: the addresses that count as one client, and [`AddressText`], their key.

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

/// The bytes of the text that `Display` writes of an address, in a tenth of its time.
pub(super) struct AddressText {
    length: usize,
    bytes: [u8; LONGEST],
}

/// Eight groups of four digits, and the colons between them.
const LONGEST: usize = 39;

impl AddressText {
    pub(super) fn new(ip: IpAddr) -> Self {
        let mut text = Self {
            length: 0,
            bytes: [0; LONGEST],
        };
        match ip {
            IpAddr::V4(ip) => text.push_v4(ip),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(mapped) => {
                    b"::ffff:".iter().for_each(|byte| text.push(*byte));
                    text.push_v4(mapped);
                }
                None => text.push_v6(ip.segments()),
            },
        }
        text
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn push_v4(&mut self, ip: Ipv4Addr) {
        for (n, octet) in ip.octets().into_iter().enumerate() {
            if n > 0 {
                self.push(b'.');
            }
            if octet >= 100 {
                self.push(b'0' + octet / 100);
            }
            if octet >= 10 {
                self.push(b'0' + octet / 10 % 10);
            }
            self.push(b'0' + octet % 10);
        }
    }

    fn push_v6(&mut self, segments: [u16; 8]) {
        // The first of the longest runs of zeros becomes `::` (RFC 5952, section 4.2).
        let (mut run, mut longest) = (0..0, 0..0);
        for (n, segment) in segments.into_iter().enumerate() {
            run = if segment == 0 {
                run.start..n + 1
            } else {
                n + 1..n + 1
            };
            if run.len() > longest.len() {
                longest = run.clone();
            }
        }
        // But not a single zero.
        if longest.len() == 1 {
            longest = 8..8;
        }
        for (n, segment) in segments.into_iter().enumerate() {
            if longest.contains(&n) {
                if n == longest.start {
                    self.push(b':');
                }
                if n == 7 {
                    self.push(b':');
                }
                continue;
            }
            if n > 0 {
                self.push(b':');
            }
            let digits = (16 - segment.leading_zeros()).div_ceil(4).max(1);
            for digit in (0..digits).rev() {
                let digit = segment >> (4 * digit) & 15;
                self.push(b"0123456789abcdef"[usize::from(digit)]);
            }
        }
    }
}
