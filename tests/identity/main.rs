//! Clients cannot forge their identity.
#![cfg(feature = "http")]

mod chains;
mod combined;
#[cfg(all(feature = "axum", feature = "tonic"))]
mod sockets;
mod tables;
#[cfg(all(feature = "axum", feature = "tonic"))]
mod untrusted;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use tower_throttle::{
    Limiter, Quota, Scope, ScopeExtractor,
    extract::{
        By, ClientIp, Header, Or, Peer, TrustedProxies, When, client_ip, header, method, peer_ip,
        when,
    },
};

const XFF: &str = "x-forwarded-for";

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn request<'a>(peer: IpAddr, name: &str, lines: impl IntoIterator<Item = &'a [u8]>) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(Peer(peer));
    for line in lines {
        let name: HeaderName = name.parse().expect(name);
        let line = HeaderValue::from_bytes(line).expect("a value");
        request.headers_mut().append(name, line);
    }
    request
}

/// The address that `client` finds for the sender of these lines, behind the proxy 10.0.0.1.
fn seen(client: &ClientIp, name: &str, lines: &[&[u8]]) -> String {
    let request = request(ip("10.0.0.1"), name, lines.iter().copied());
    client.find(&request).expect("a peer").to_string()
}
