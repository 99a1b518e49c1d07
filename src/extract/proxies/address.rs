//! The forms in which proxies write an address. Each function returns the address in its canonical
//! form: IPv4 for an IPv4-mapped IPv6 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address without a port.
pub(super) fn bare(text: &[u8]) -> Option<IpAddr> {
    let ip: IpAddr = trimmed(text)?.parse().ok()?;
    Some(ip.to_canonical())
}

/// An address and a port, without brackets around an IPv6 address. The port is required, because
/// otherwise `2001:db8::a:b:c:d:443` would have two meanings.
pub(super) fn with_port(text: &[u8]) -> Option<IpAddr> {
    let (ip, port) = trimmed(text)?.rsplit_once(':')?;
    is_number(port).then(|| bare(ip.as_bytes()))?
}

/// An address with or without a port. An IPv6 address may be in brackets, and must be in front of a
/// port.
pub(super) fn with_optional_port(text: &[u8]) -> Option<IpAddr> {
    let text = trimmed(text)?;
    if let Some(text) = text.strip_prefix('[') {
        let (ip, rest) = text.split_once(']')?;
        let ip: Ipv6Addr = ip.parse().ok()?;
        let port = rest.is_empty() || is_port(rest.strip_prefix(':')?);
        return port.then(|| ip.to_canonical());
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let (ip, port) = text.split_once(':')?;
    let ip: Ipv4Addr = ip.parse().ok()?;
    is_port(port).then_some(IpAddr::V4(ip))
}

fn trimmed(text: &[u8]) -> Option<&str> {
    Some(str::from_utf8(text).ok()?.trim_matches([' ', '\t']))
}

/// A number, or an obfuscated port (RFC 7239, section 6.3).
fn is_port(port: &str) -> bool {
    let obfuscated = port.strip_prefix('_').is_some_and(|name| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !name.is_empty() && name.bytes().all(plain)
    });
    obfuscated || is_number(port)
}

fn is_number(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}
