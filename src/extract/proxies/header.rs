//! The header that carries the address of a client: [`ClientHeader`].
//!
//! Entries are read from the last to the first. The bytes that a proxy appended are read before
//! those that a client sent, and bytes to the left of an entry do not change how it is read.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header::FORWARDED};

use super::{address, forwarded};

pub(super) const CLOUDFRONT: &str = "cloudfront-viewer-address";
pub(super) const CLOUDFLARE: &str = "cf-connecting-ip";
pub(super) const FLY: &str = "fly-client-ip";
pub(super) const AZURE_FRONT_DOOR: &str = "x-azure-socketip";

#[derive(Clone, Debug)]
pub(super) enum ClientHeader {
    /// A list to which each proxy appends an address.
    List(HeaderName),
    /// `Forwarded` (RFC 7239), to which each proxy appends an element.
    Forwarded,
    /// One address.
    Single(HeaderName),
}

/// # Panics
///
/// Panics if `name` is not a header name in lowercase, or is `forwarded`.
pub(super) fn header_name(name: &str) -> HeaderName {
    let header = HeaderName::from_lowercase(name.as_bytes());
    assert!(
        header.as_ref().is_ok_and(|header| header != FORWARDED),
        "\"{name}\" is not a valid header name for a client address: use lower case, such as \
         \"x-real-ip\"; for \"forwarded\" use `TrustedProxies::forwarded`"
    );
    header.unwrap_or(FORWARDED)
}

/// The entries of a list; `None` for an entry that is not an address.
pub(super) fn list(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(name).into_iter().rev();
    lines.flat_map(|line| {
        let entries = line.as_bytes().rsplit(|byte| *byte == b',');
        entries.map(address::with_optional_port)
    })
}

/// The `for` of each element of `Forwarded`; `None` for an element without an address.
pub(super) fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(FORWARDED).into_iter().rev();
    lines.flat_map(|line| {
        let nodes = forwarded::nodes(line.as_bytes());
        nodes.map(|node| address::with_optional_port(node?))
    })
}

/// The address in a header that must occur once, in the form in which its sender writes it.
pub(super) fn single(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut lines = headers.get_all(name).into_iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    let line = line.as_bytes();
    match name.as_str() {
        CLOUDFRONT => address::with_port(line),
        CLOUDFLARE | FLY | AZURE_FRONT_DOOR => address::bare(line),
        _ => address::with_optional_port(line),
    }
}
