//! `X-Forwarded-For`, `Forwarded` and the headers of one address; networks in configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderValue, Request};
use tower_throttle::extract::{ClientIp, Peer, TrustedProxies, client_ip};

use crate::{header_value, numbers_from};

/// A trusted proxy.
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// An address that is not trusted.
const UNTRUSTED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

/// Each line of the input is one line of the header.
///
/// - The result is the peer or an address from the header.
/// - The header of a peer that is not trusted is ignored.
/// - No input changes what is read of an entry that a trusted proxy appends to it.
pub fn addresses(data: &[u8]) {
    let data = &data[..data.len().min(2_048)];
    let lines: Vec<HeaderValue> = data
        .split(|byte| *byte == b'\n')
        .map(header_value)
        .collect();
    for (name, proxies) in readers() {
        let headers = headers(name, &lines);
        let from = client(&proxies, PROXY, headers.clone());
        assert!(
            from == bucket_of(PROXY) || named(&lines).any(|address| from == bucket_of(address)),
            "{name}: {from} is not in {lines:?}"
        );
        assert_eq!(client(&proxies, UNTRUSTED, headers), UNTRUSTED, "{name}");
    }
    appended(data, &lines);
    if let Ok(text) = str::from_utf8(data) {
        networks(text);
    }
}

/// The header that each reader uses.
fn readers() -> Vec<(&'static str, ClientIp)> {
    let list = TrustedProxies::private;
    let readers = [
        ("x-forwarded-for", list()),
        ("x-forwarded-for", list().hops(1)),
        ("x-forwarded-for", list().hops(3)),
        ("forwarded", list().forwarded()),
        ("forwarded", list().forwarded().hops(1)),
        ("forwarded", list().forwarded().hops(3)),
        ("x-real-ip", list().single_header("x-real-ip")),
        ("cloudfront-viewer-address", list().cloudfront()),
        ("cf-connecting-ip", list().cloudflare()),
    ];
    readers.map(|(name, proxies)| (name, whole(proxies))).into()
}

/// Reads all bits of an IPv6 address.
fn whole(proxies: TrustedProxies) -> ClientIp {
    client_ip(proxies).ipv6_prefix(128)
}

fn headers(name: &'static str, lines: &[HeaderValue]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(name, line.clone());
    }
    headers
}

fn client(reader: &ClientIp, peer: IpAddr, headers: HeaderMap) -> IpAddr {
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    request.extensions_mut().insert(Peer(peer));
    reader.find(&request).expect("a peer")
}

/// The address by which a client at `address` is counted: one that embeds IPv4 is that.
fn bucket_of(address: IpAddr) -> IpAddr {
    client(&whole(TrustedProxies::none()), address, HeaderMap::new())
}

/// Every address that stands anywhere in these lines, behind a character that is in none.
fn named(lines: &[HeaderValue]) -> impl Iterator<Item = IpAddr> {
    let in_address = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
    lines
        .iter()
        .flat_map(move |line| line.as_bytes().split(move |byte| !in_address(byte)))
        .flat_map(|run| (2..=run.len().min(45)).filter_map(|end| str::from_utf8(&run[..end]).ok()))
        .filter_map(|text| text.parse().ok())
}

/// The proxy at the other end of the connection appends the address of its client.
fn appended(data: &[u8], lines: &[HeaderValue]) {
    let mut numbers = numbers_from(data);
    let v4 = IpAddr::V4(Ipv4Addr::from_bits(numbers.u32(..)));
    let v6 = IpAddr::V6(Ipv6Addr::from_bits(numbers.u128(..)));
    let port = numbers.u16(..);
    // A proxy may also repeat what the client wrote, in quotes.
    let last = lines.last().expect("at least one line");
    let host = quoted(&String::from_utf8_lossy(last.as_bytes()));
    let entries = [
        ("x-forwarded-for", v4, format!("{v4}")),
        ("x-forwarded-for", v4, format!("{v4}:{port}")),
        ("x-forwarded-for", v6, format!("{v6}")),
        ("x-forwarded-for", v6, format!("[{v6}]")),
        ("x-forwarded-for", v6, format!("[{v6}]:{port}")),
        ("forwarded", v4, format!("for={v4}")),
        ("forwarded", v4, format!("by=_a;For=\"{v4}:{port}\"")),
        ("forwarded", v6, format!("for=\"[{v6}]\";proto=https")),
        (
            "forwarded",
            v6,
            format!("host={host};for=\"[{v6}]:{port}\""),
        ),
        ("forwarded", v4, format!("for={v4};host={host}")),
    ];
    for (name, address, entry) in entries {
        let proxies = TrustedProxies::private().hops(1);
        let reader = whole(match name {
            "forwarded" => proxies.forwarded(),
            _ => proxies,
        });
        let (last, before) = lines.split_last().expect("at least one line");
        let joined = [last.as_bytes(), b", ", entry.as_bytes()].concat();
        let joined = [before, &[header_value(&joined)]].concat();
        let separate = [lines, &[header_value(entry.as_bytes())]].concat();
        for lines in [joined, separate] {
            let from = client(&reader, PROXY, headers(name, &lines));
            assert_eq!(from, bucket_of(address), "{name}: {lines:?}");
        }
    }
}

/// A quoted string (RFC 9110, section 5.6.4).
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A network contains the address by which it is written.
fn networks(text: &str) {
    let parsed = text.parse::<TrustedProxies>();
    if let Err(error) = &parsed {
        assert!(error.to_string().contains("is not a network"));
    }
    let (written, bits) = text.split_once('/').unwrap_or((text, "128"));
    let Ok(address) = written.parse::<IpAddr>() else {
        return;
    };
    if let Ok(proxies) = parsed {
        let lines = [header_value(UNTRUSTED.to_string().as_bytes())];
        let headers = headers("x-forwarded-for", &lines);
        let from = client(&whole(proxies.hops(1)), address.to_canonical(), headers);
        // An IPv6 network of which IPv4 addresses are only a part contains none of them.
        if address.is_ipv4() || address.to_canonical().is_ipv6() || bits == "128" {
            assert_eq!(from, UNTRUSTED, "{text:?} does not contain {address}");
        }
    } else {
        assert!(text.contains('/'), "{address} is an address");
    }
}
