//! A client that sends arbitrary headers, through proxies that each append what they saw.

use std::hash::{BuildHasher, RandomState};

use proptest::test_runner::RngSeed;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Form {
    List,
    Forwarded,
}

/// How a proxy writes what it saw.
#[derive(Clone, Copy, Debug)]
struct Style {
    /// In a line of its own, not at the end of the last line.
    fresh_line: bool,
    port: bool,
    brackets: bool,
    mapped: bool,
    spaces: bool,
    host: bool,
}

fn written(ip: IpAddr, form: Form, style: Style) -> String {
    let ip = match ip {
        IpAddr::V4(ip) if style.mapped => ip.to_ipv6_mapped().into(),
        ip => ip,
    };
    let node = match (ip, style.port) {
        (IpAddr::V4(ip), true) => format!("{ip}:4711"),
        (IpAddr::V4(ip), false) => ip.to_string(),
        (IpAddr::V6(ip), true) => format!("[{ip}]:4711"),
        (IpAddr::V6(ip), false) if style.brackets => format!("[{ip}]"),
        (IpAddr::V6(ip), false) => ip.to_string(),
    };
    match form {
        Form::List => node,
        // The client chooses the host, and the proxy quotes it.
        Form::Forwarded if style.host => {
            format!("for=\"{node}\";host=\"a\\\\\\\", for=192.0.2.66;\\\"b\"")
        }
        Form::Forwarded => format!("proto=https;For=\"{node}\""),
    }
}

fn append(lines: &mut Vec<Vec<u8>>, entry: &str, style: Style) {
    match lines.last_mut() {
        Some(last) if !style.fresh_line => {
            last.push(b',');
            if style.spaces {
                last.extend(b" \t");
            }
            last.extend(entry.as_bytes());
        }
        _ => lines.push(entry.into()),
    }
}

fn style() -> impl Strategy<Value = Style> {
    any::<[bool; 6]>().prop_map(|[fresh_line, port, brackets, mapped, spaces, host]| Style {
        fresh_line,
        port,
        brackets,
        mapped,
        spaces,
        host,
    })
}

/// Neither in a private network nor an address of a hostile line.
fn outsider() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 2]>().prop_map(|[a, b]| Ipv4Addr::new(198, 18, a, b).into()),
        any::<[u16; 6]>().prop_map(|[a, b, c, d, e, f]| {
            Ipv6Addr::new(0x2001, 0xdb8, a, b, c, d, e, f).into()
        }),
    ]
}

fn insider() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 3]>().prop_map(|[a, b, c]| Ipv4Addr::new(10, a, b, c).into()),
        any::<[u8; 2]>().prop_map(|[a, b]| Ipv4Addr::new(192, 168, a, b).into()),
        any::<[u16; 7]>().prop_map(|[a, b, c, d, e, f, g]| {
            Ipv6Addr::new(0xfd00, a, b, c, d, e, f, g).into()
        }),
    ]
}

/// What a hostile client sends: meaningful pieces, or any bytes that a header accepts.
fn hostile() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![
        proptest::sample::select(vec![
            "192.0.2.66",
            "10.0.0.1",
            "10.0.0.2:80",
            "::1",
            "[fd00::1]:1",
            "::ffff:10.0.0.3",
            ",",
            ", ",
            ";",
            "\"",
            "\\",
            "\\\"",
            "for=",
            "For=\"",
            "by=",
            "unknown",
            "_x",
            " ",
            "\t",
            "=",
            "[",
            "]",
            ":",
            "for=10.0.0.1",
            "for=\"[fd00::1]\"",
            ",for=192.0.2.66",
        ])
        .prop_map(|piece| piece.as_bytes().to_vec()),
        proptest::collection::vec(prop_oneof![Just(9u8), 32u8..127, 128u8..], 0..6),
    ];
    let line = proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    proptest::collection::vec(line, 0..4)
}

fn grouped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

fn find(client: &ClientIp, peer: IpAddr, form: Form, lines: &[Vec<u8>]) -> Option<IpAddr> {
    let name = match form {
        Form::List => XFF,
        Form::Forwarded => "forwarded",
    };
    client.find(&request(peer, name, lines.iter().map(Vec::as_slice)))
}

/// `THROTTLE_SEED` repeats a run. No file is left in the source tree.
fn seeded(cases: u32) -> ProptestConfig {
    let seed = std::env::var("THROTTLE_SEED").ok();
    let seed = seed.map(|seed| seed.parse().expect("a whole number"));
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("THROTTLE_SEED={seed}");
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(seeded(4_096))]

    /// The client is the address that the outermost trusted proxy saw, whatever the client sent.
    #[test]
    fn clients_cannot_name_another_address(
        forwarded in any::<bool>(),
        mut lines in hostile(),
        real in outsider(),
        proxies in proptest::collection::vec((insider(), style()), 1..5),
    ) {
        let form = if forwarded { Form::Forwarded } else { Form::List };
        // From the outermost to the peer.
        let mut seen = real;
        for (address, style) in &proxies {
            append(&mut lines, &written(seen, form, *style), *style);
            seen = *address;
        }
        let trusted = TrustedProxies::private();
        let trusted = if forwarded { trusted.forwarded() } else { trusted };
        let by_networks = client_ip(trusted.clone());
        let by_hops = client_ip(trusted.hops(proxies.len()));
        for client in [by_networks, by_hops] {
            let found = find(&client, seen, form, &lines);
            prop_assert_eq!(found, Some(grouped(real)), "{:?}", client);
        }
    }

    /// What a proxy quotes of its client, as in RFC 7239, stays within its quotes.
    #[test]
    fn clients_cannot_leave_the_quotes(
        mut lines in hostile(),
        host in proptest::collection::vec(
            proptest::sample::select(vec![
                "\"", "\\", ",", ";", "=", " ", "for=192.0.2.66", "for=\"10.0.0.1\"", "host=a",
            ]),
            0..10,
        ),
        first in any::<bool>(),
        real in outsider(),
        style in style(),
    ) {
        let host = host.concat().replace('\\', "\\\\").replace('"', "\\\"");
        let node = format!("for=\"[{}]\"", match real {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        });
        let element = match first {
            true => format!("host=\"{host}\";{node}"),
            false => format!("{node};host=\"{host}\""),
        };
        append(&mut lines, &element, style);
        let client = client_ip(TrustedProxies::private().forwarded());
        let found = find(&client, ip("10.0.0.1"), Form::Forwarded, &lines);
        prop_assert_eq!(found, Some(grouped(real)), "{}", element);
    }

    /// A proxy that hides the address it saw is the client. Nothing before it is read.
    #[test]
    fn hidden_addresses_stay_hidden(
        forwarded in any::<bool>(),
        mut lines in hostile(),
        hides in insider(),
        hidden in proptest::sample::select(vec!["unknown", "_gazonk", "", "unix:"]),
        inner in proptest::collection::vec((insider(), style()), 0..3),
        style in style(),
    ) {
        let form = if forwarded { Form::Forwarded } else { Form::List };
        let entry = if forwarded { format!("for=\"{hidden}\"") } else { hidden.to_owned() };
        append(&mut lines, &entry, style);
        let mut seen = hides;
        for (address, style) in &inner {
            append(&mut lines, &written(seen, form, *style), *style);
            seen = *address;
        }
        let trusted = TrustedProxies::private();
        let trusted = if forwarded { trusted.forwarded() } else { trusted };
        let by_networks = client_ip(trusted.clone());
        let by_hops = client_ip(trusted.hops(inner.len() + 1));
        for client in [by_networks, by_hops] {
            prop_assert_eq!(find(&client, seen, form, &lines), Some(grouped(hides)));
        }
    }

    /// From a peer that is not trusted, no header is read.
    #[test]
    fn untrusted_peer_is_the_client(
        forwarded in any::<bool>(),
        hops in proptest::option::of(1usize..4),
        lines in hostile(),
        peer in outsider(),
    ) {
        let form = if forwarded { Form::Forwarded } else { Form::List };
        let mut trusted = TrustedProxies::private();
        if forwarded {
            trusted = trusted.forwarded();
        }
        if let Some(hops) = hops {
            trusted = trusted.hops(hops);
        }
        let client = client_ip(trusted);
        prop_assert_eq!(find(&client, peer, form, &lines), Some(grouped(peer)));
    }

    /// A header that the proxy sets has nothing of the client's. Two values are ignored.
    #[test]
    fn single_value_is_read_and_several_are_ignored(lines in hostile(), peer in insider()) {
        let client = client_ip(TrustedProxies::private().single_header("x-real-ip"));
        let mut lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        lines.push(b"192.0.2.9");
        let alone = lines.len() == 1;
        let found = client.find(&request(peer, "x-real-ip", lines));
        let expected = if alone { ip("192.0.2.9") } else { grouped(peer) };
        prop_assert_eq!(found, Some(expected));
    }
}
