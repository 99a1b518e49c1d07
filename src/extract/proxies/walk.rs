//! What the proxies told, from the last to the first. Only bytes that a proxy appended are looked
//! at before those of a client; so nothing to the left changes how an entry is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderName, header::FORWARDED};

/// The entries of a list of addresses; `None` for one that is no address.
pub(super) fn list(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(name).into_iter().rev();
    lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',').map(address))
}

/// The `for` of each element of `Forwarded`; `None` where it is missing or no address.
pub(super) fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(FORWARDED).into_iter().rev();
    lines.flat_map(|line| Elements(Some(line.as_bytes())).map(|element| address(node(element)?)))
}

pub(super) const CLOUDFRONT: &str = "cloudfront-viewer-address";
pub(super) const CLOUDFLARE: &str = "cf-connecting-ip";
pub(super) const FLY: &str = "fly-client-ip";
pub(super) const AZURE_FRONT_DOOR: &str = "x-azure-socketip";

/// The address of a header that is there once, in the form in which its sender writes it.
pub(super) fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut lines = headers.get_all(name).into_iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    let line = line.as_bytes();
    match name.as_str() {
        CLOUDFRONT => address_and_port(line),
        CLOUDFLARE | FLY | AZURE_FRONT_DOOR => bare(line),
        _ => address(line),
    }
}

fn trimmed(text: &[u8]) -> Option<&str> {
    Some(str::from_utf8(text).ok()?.trim_matches([' ', '\t']))
}

fn bare(text: &[u8]) -> Option<IpAddr> {
    let ip: IpAddr = trimmed(text)?.parse().ok()?;
    Some(ip.to_canonical())
}

/// What is behind the last colon is the port, also after an IPv6 address, which has no brackets.
/// Where the port might be missing, `2001:db8::a:b:c:d:443` would have two meanings.
fn address_and_port(text: &[u8]) -> Option<IpAddr> {
    let (ip, port) = trimmed(text)?.rsplit_once(':')?;
    is_number(port).then(|| bare(ip.as_bytes()))?
}

/// An address, also with a port, in brackets if it is IPv6.
fn address(text: &[u8]) -> Option<IpAddr> {
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

/// A number, or a hidden one (RFC 7239, section 6.3).
fn is_port(port: &str) -> bool {
    let hidden = port.strip_prefix('_').is_some_and(|name| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !name.is_empty() && name.bytes().all(plain)
    });
    hidden || is_number(port)
}

fn is_number(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// The elements of a line of `Forwarded`, from the last to the first. Quotes are matched from the
/// end: one that a client has left open would else hide the comma that the proxy put behind it.
struct Elements<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.0?;
        let mut quoted = false;
        for at in (0..line.len()).rev() {
            match line[at] {
                b'"' if !(quoted && is_escaped(line, at)) => quoted = !quoted,
                b',' if !quoted => {
                    self.0 = Some(&line[..at]);
                    return Some(&line[at + 1..]);
                }
                _ => {}
            }
        }
        self.0 = None;
        Some(line)
    }
}

fn is_escaped(line: &[u8], at: usize) -> bool {
    let backslashes = line[..at].iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

/// The value of the one `for` in an element.
fn node(element: &[u8]) -> Option<&[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    let pairs = element.split(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
        *byte == b';' && !quoted
    });
    let mut node = None;
    for pair in pairs
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
    {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"for") && node.replace(unquoted(value)?).is_some() {
            return None;
        }
    }
    node.filter(|_| !quoted)
}

/// A value without its quotes; none where they do not match, or where there are escapes, which no
/// address needs.
fn unquoted(value: &[u8]) -> Option<&[u8]> {
    let inside = match value.strip_prefix(b"\"") {
        Some(rest) => rest.strip_suffix(b"\"")?,
        None => value,
    };
    let plain = !inside.iter().any(|byte| b"\"\\".contains(byte));
    plain.then_some(inside)
}
