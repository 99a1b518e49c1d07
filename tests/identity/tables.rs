//! Header values and the clients they name.

use super::*;

/// Single lines, with proxies in private networks.
const ADDRESSES: &[(&str, &str)] = &[
    ("203.0.113.7", "203.0.113.7"),
    ("203.0.113.7:443", "203.0.113.7"),
    ("203.0.113.7:0", "203.0.113.7"),
    ("203.0.113.7:_hidden", "203.0.113.7"),
    (" \t203.0.113.7\t ", "203.0.113.7"),
    ("::ffff:203.0.113.7", "203.0.113.7"),
    ("[::ffff:203.0.113.7]:443", "203.0.113.7"),
    ("::ffff:cb00:7107", "203.0.113.7"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
    ("[2001:db8:1:2:3:4:5:6]", "2001:db8:1:2::"),
    ("[2001:DB8:1:2:3:4:5:6]:443", "2001:db8:1:2::"),
    // Not addresses: the proxy is the client.
    ("", "10.0.0.1"),
    (" ", "10.0.0.1"),
    ("unknown", "10.0.0.1"),
    ("_hidden", "10.0.0.1"),
    ("unix:", "10.0.0.1"),
    ("localhost", "10.0.0.1"),
    ("203.0.113.7 198.51.100.1", "10.0.0.1"),
    ("203.0.113.7;198.51.100.1", "10.0.0.1"),
    ("203.0.113.07", "10.0.0.1"),
    ("0xcb.0.113.7", "10.0.0.1"),
    ("3405803783", "10.0.0.1"),
    ("203.0.113", "10.0.0.1"),
    ("203.0.113.7.", "10.0.0.1"),
    ("203.0.113.7:", "10.0.0.1"),
    ("203.0.113.7:+1", "10.0.0.1"),
    ("203.0.113.7:65536", "10.0.0.1"),
    ("203.0.113.7:_", "10.0.0.1"),
    ("203.0.113.7:_a b", "10.0.0.1"),
    ("203.0.113.7/32", "10.0.0.1"),
    ("[203.0.113.7]", "10.0.0.1"),
    ("[2001:db8::1", "10.0.0.1"),
    ("2001:db8::1]", "10.0.0.1"),
    ("[2001:db8::1]443", "10.0.0.1"),
    ("[2001:db8::1]:", "10.0.0.1"),
    ("[2001:db8::1%eth0]", "10.0.0.1"),
    ("fe80::1%1", "10.0.0.1"),
];

#[test]
fn forms_of_an_address() {
    let listed = client_ip(TrustedProxies::private());
    let single = client_ip(TrustedProxies::private().single_header("x-real-ip"));
    let forwarded = client_ip(TrustedProxies::private().forwarded());
    for (text, expected) in ADDRESSES {
        assert_eq!(
            seen(&listed, XFF, &[text.as_bytes()]),
            *expected,
            "{text:?}"
        );
        let forged = format!("198.51.100.66, {text}");
        assert_eq!(
            seen(&listed, XFF, &[forged.as_bytes()]),
            *expected,
            "{forged:?}"
        );
        let lines = [b"198.51.100.66".as_slice(), text.as_bytes()];
        assert_eq!(seen(&listed, XFF, &lines), *expected, "{text:?}");
        assert_eq!(
            seen(&single, "x-real-ip", &[text.as_bytes()]),
            *expected,
            "{text:?}"
        );
        let quoted = format!("for=198.51.100.66, proto=http; For=\"{text}\";by=10.0.0.1");
        let expected = if text.trim() != *text {
            "either"
        } else {
            *expected
        };
        let seen = seen(&forwarded, "forwarded", &[quoted.as_bytes()]);
        assert!(expected == "either" || seen == expected, "{quoted}: {seen}");
    }
}

#[test]
fn lists() {
    let client = client_ip(TrustedProxies::private());
    for (lines, expected) in [
        // From the end, over trusted proxies, across lines.
        (&["198.51.100.66, 203.0.113.7, 10.0.0.2"][..], "203.0.113.7"),
        (&["198.51.100.66", "203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (&["198.51.100.66, 203.0.113.7", "10.0.0.2"], "203.0.113.7"),
        (&["198.51.100.66", "203.0.113.7", "10.0.0.2"], "203.0.113.7"),
        (&["203.0.113.7,192.168.3.4 , 172.31.0.1,::1"], "203.0.113.7"),
        // An inner proxy in its IPv6 form, with a port.
        (&["203.0.113.7, [::ffff:10.0.0.2]:80"], "203.0.113.7"),
        // The last trusted hop is the client if nothing before it can be parsed.
        (&["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
        (&["203.0.113.7, , 10.0.0.2"], "10.0.0.2"),
        (&["203.0.113.7", "", "10.0.0.2"], "10.0.0.2"),
        (&["203.0.113.7,"], "10.0.0.1"),
        (&["203.0.113.7", ""], "10.0.0.1"),
        (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (&[], "10.0.0.1"),
    ] {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        assert_eq!(seen(&client, XFF, &lines), expected, "{lines:?}");
    }
    // Anything may precede the address that the proxy has seen.
    let long = [vec![b'1'; 10_000], b",203.0.113.7".to_vec()].concat();
    assert_eq!(seen(&client, XFF, &[&long]), "203.0.113.7");
    let longer = [vec![b','; 10_000], b"203.0.113.7".to_vec()].concat();
    assert_eq!(seen(&client, XFF, &[&longer]), "203.0.113.7");
    assert_eq!(seen(&client, XFF, &[&[b'1'; 10_000]]), "10.0.0.1");
    assert_eq!(
        seen(&client, XFF, &[b"\xff\xfe, 203.0.113.7"]),
        "203.0.113.7"
    );
    assert_eq!(seen(&client, XFF, &[b"203.0.113.7\xff"]), "10.0.0.1");
    assert_eq!(
        seen(&client, XFF, &[b"\xff", b"203.0.113.7"]),
        "203.0.113.7"
    );
}

#[test]
fn forwarded() {
    let client = client_ip(TrustedProxies::private().forwarded());
    for (lines, expected) in [
        (&["for=203.0.113.7"][..], "203.0.113.7"),
        (&["For = 203.0.113.7 ; proto = https"], "203.0.113.7"),
        (
            &["proto=https;by=_me;;for=\"203.0.113.7:443\";"],
            "203.0.113.7",
        ),
        (&["for=\"[2001:db8:1:2:3::4]:443\""], "2001:db8:1:2::"),
        (
            &["for=\"[2001:db8:1:2:3::4]\", for=10.0.0.2"],
            "2001:db8:1:2::",
        ),
        (
            &["for=198.51.100.66", "for=203.0.113.7", "for=10.0.0.2"],
            "203.0.113.7",
        ),
        // A quote that the client left open hides nothing after it.
        (&["for=\"198.51.100.66, for=203.0.113.7"], "203.0.113.7"),
        (&["for=198.51.100.66\", for=\"203.0.113.7\""], "203.0.113.7"),
        (&["for=\"", "for=\"203.0.113.7\""], "203.0.113.7"),
        (
            &["\\\", for=203.0.113.7;host=\"a\\\", for=198.51.100.66\""],
            "203.0.113.7",
        ),
        // Commas and semicolons within quotes separate nothing.
        (
            &["for=203.0.113.7;host=\"a, for=198.51.100.66\""],
            "203.0.113.7",
        ),
        (
            &["host=\"a;for=198.51.100.66\";for=203.0.113.7"],
            "203.0.113.7",
        ),
        // Not addresses.
        (&["for=unknown"], "10.0.0.1"),
        (&["for=_hidden, for=10.0.0.2"], "10.0.0.2"),
        (&["for=203.0.113.7, by=10.0.0.2"], "10.0.0.1"),
        (&["for=203.0.113.7;for=198.51.100.66"], "10.0.0.1"),
        (&["for=203.0.113.7;host=\"a"], "10.0.0.1"),
        (&["for=\"203.0.113.7"], "10.0.0.1"),
        (&["for=203.0.113.7\""], "10.0.0.1"),
        (&["for=\"203.0.113\\.7\""], "10.0.0.1"),
        (&["for"], "10.0.0.1"),
        (&["for="], "10.0.0.1"),
        (&["=203.0.113.7"], "10.0.0.1"),
        (&["203.0.113.7"], "10.0.0.1"),
        (&[""], "10.0.0.1"),
        (&[], "10.0.0.1"),
    ] {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        assert_eq!(seen(&client, "forwarded", &lines), expected, "{lines:?}");
    }
    // Only the configured header is read.
    assert_eq!(seen(&client, XFF, &[b"203.0.113.7"]), "10.0.0.1");
    let other = client_ip(TrustedProxies::private());
    assert_eq!(seen(&other, "forwarded", &[b"for=203.0.113.7"]), "10.0.0.1");
}

#[test]
fn header_with_one_value() {
    let name = "cf-connecting-ip";
    let client = client_ip(TrustedProxies::private().single_header(name));
    let one = |text: &str| seen(&client, name, &[text.as_bytes()]);
    assert_eq!(one("203.0.113.7"), "203.0.113.7");
    // It is not parsed as a list.
    assert_eq!(one("10.0.0.9"), "10.0.0.9");
    assert_eq!(one("198.51.100.66, 203.0.113.7"), "10.0.0.1");
    let two: &[&[u8]] = &[b"198.51.100.66", b"203.0.113.7"];
    assert_eq!(seen(&client, name, two), "10.0.0.1");
    assert_eq!(seen(&client, name, &[]), "10.0.0.1");
    let untrusted = request(ip("192.0.2.1"), name, [b"203.0.113.7".as_slice()]);
    assert_eq!(client.find(&untrusted), Some(ip("192.0.2.1")));
}

/// CloudFront writes an address and a port, without brackets around IPv6.
#[test]
fn address_with_an_appended_port() {
    let name = "cloudfront-viewer-address";
    for client in [
        client_ip(TrustedProxies::private().cloudfront()),
        client_ip(TrustedProxies::private().single_header(name)),
    ] {
        for (value, expected) in [
            ("198.51.100.10:46532", "198.51.100.10"),
            ("2001:db8:3b20:38::17e:7:46532", "2001:db8:3b20:38::"),
            ("2001:db8:3b20:38::17e:7:80", "2001:db8:3b20:38::"),
            ("2001:db8:3b20:38:0:0:17e:7:80", "2001:db8:3b20:38::"),
            // Parsed as a bare address, these are in another /64, which the client chooses.
            ("2001:db8::a:b:c:d:443", "2001:db8::"),
            ("2001:db8::1:a:b:c:d:443", "2001:db8:0:1::"),
            ("2001:db8:1:2:::443", "2001:db8:1:2::"),
            ("::ffff:203.0.113.7:443", "203.0.113.7"),
            ("::1:443", "::"),
            (" \t198.51.100.10:46532 ", "198.51.100.10"),
            // Not a form that CloudFront writes: the proxy is the client.
            ("198.51.100.10", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "10.0.0.1"),
            ("[2001:db8::1]:443", "10.0.0.1"),
            ("198.51.100.10:", "10.0.0.1"),
            ("198.51.100.10:65536", "10.0.0.1"),
            ("198.51.100.10:+1", "10.0.0.1"),
            ("198.51.100.10:_port", "10.0.0.1"),
            ("198.51.100.10:80:80", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6:7:443", "10.0.0.1"),
            (":443", "10.0.0.1"),
            ("198.51.100.10:80, 203.0.113.7:80", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(
                seen(&client, name, &[value.as_bytes()]),
                expected,
                "{value}"
            );
        }
        let two: &[&[u8]] = &[b"198.51.100.66:1", b"203.0.113.7:1"];
        assert_eq!(seen(&client, name, two), "10.0.0.1");
        // Only the configured header is read, and only from a trusted peer.
        assert_eq!(seen(&client, XFF, &[b"203.0.113.7"]), "10.0.0.1");
        let untrusted = request(ip("192.0.2.1"), name, [b"203.0.113.7:1".as_slice()]);
        assert_eq!(client.find(&untrusted), Some(ip("192.0.2.1")));
    }
}

/// These proxies write one address and nothing else.
#[test]
fn bare_address() {
    let private = TrustedProxies::private;
    for (name, proxies) in [
        ("cf-connecting-ip", private().cloudflare()),
        ("fly-client-ip", private().fly()),
        ("x-azure-socketip", private().azure_front_door()),
    ] {
        for proxies in [proxies, private().single_header(name)] {
            let client = client_ip(proxies);
            for (value, expected) in [
                ("203.0.113.7", "203.0.113.7"),
                ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
                ("2001:db8:1:2::5:6", "2001:db8:1:2::"),
                ("::ffff:203.0.113.7", "203.0.113.7"),
                ("203.0.113.7:443", "10.0.0.1"),
                ("[2001:db8:1:2::5]", "10.0.0.1"),
                ("[2001:db8:1:2::5]:443", "10.0.0.1"),
                ("198.51.100.66, 203.0.113.7", "10.0.0.1"),
                ("unknown", "10.0.0.1"),
            ] {
                let seen = seen(&client, name, &[value.as_bytes()]);
                assert_eq!(seen, expected, "{name}: {value}");
            }
        }
    }
    // Front Door copies the client's own header to another field.
    let azure = client_ip(private().azure_front_door());
    assert_eq!(
        seen(&azure, "x-azure-clientip", &[b"203.0.113.7"]),
        "10.0.0.1"
    );
}

#[test]
fn fixed_number_of_hops() {
    let google = TrustedProxies::none().networks(["10.0.0.0/8"]).unwrap();
    let client = client_ip(google.hops(2));
    let line = |text: &str| seen(&client, XFF, &[text.as_bytes()]);
    assert_eq!(line("198.51.100.66, 203.0.113.7, 192.0.2.9"), "203.0.113.7");
    // A trusted network at that hop does not matter.
    assert_eq!(line("198.51.100.66, 10.0.0.9, 192.0.2.9"), "10.0.0.9");
    assert_eq!(line("192.0.2.9"), "192.0.2.9");
    assert_eq!(line("203.0.113.7, unknown, 192.0.2.9"), "192.0.2.9");
    assert_eq!(line("203.0.113.7, unknown"), "10.0.0.1");
    // Only the peer's address is checked.
    let lines = [b"203.0.113.7, 192.0.2.9".as_slice()];
    let untrusted = request(ip("192.0.2.1"), XFF, lines);
    assert_eq!(client.find(&untrusted), Some(ip("192.0.2.1")));
    let far = client_ip(TrustedProxies::private().hops(usize::MAX));
    assert_eq!(seen(&far, XFF, &[b"203.0.113.7"]), "203.0.113.7");
}

#[test]
fn no_proxy_is_trusted_by_default() {
    let client = client_ip(TrustedProxies::none());
    for peer in ["10.0.0.1", "127.0.0.1", "::1", "192.0.2.1"] {
        let request = request(ip(peer), XFF, [b"203.0.113.7".as_slice()]);
        assert_eq!(client.find(&request), peer_ip().find(&request), "{peer}");
    }
    // A peer on a socket of both families has an IPv4-mapped address.
    let private = client_ip(TrustedProxies::private());
    let mapped = request(ip("::ffff:10.0.0.1"), XFF, [b"203.0.113.7".as_slice()]);
    assert_eq!(private.find(&mapped), Some(ip("203.0.113.7")));
    assert_eq!(peer_ip().find(&mapped), Some(ip("10.0.0.1")));
    // Headers without a peer are no key.
    let mut alone = Request::new(());
    alone
        .headers_mut()
        .insert(XFF, HeaderValue::from_static("203.0.113.7"));
    assert_eq!(private.find(&alone), None);
    let other = Quota::per_second(1.0).scope("other");
    let by = Quota::per_second(1.0).scope("client").by(private).or(other);
    let scopes = by.extract(&alone);
    assert_eq!(scopes.iter().next().unwrap().name(), "other");
}

/// 203.0.113.7 as a node without IPv4 sees it.
const EMBEDDED: &[(&str, &str)] = &[
    // IPv4-mapped and IPv4-compatible (RFC 4291, 2.5.5), IPv4-translated (RFC 2765, 2.1).
    ("::ffff:203.0.113.7", "203.0.113.7"),
    ("::203.0.113.7", "203.0.113.7"),
    ("::ffff:0:203.0.113.7", "203.0.113.7"),
    // NAT64 (RFC 6052), and in the local-use prefix (RFC 8215) with a /96 of the operator's choice.
    ("64:ff9b::203.0.113.7", "203.0.113.7"),
    ("64:ff9b:1::203.0.113.7", "203.0.113.7"),
    ("64:ff9b:1:fffe::203.0.113.7", "203.0.113.7"),
    // With a shorter prefix the address is in other bits: the full address is used.
    ("64:ff9b:1:cb00:71:700::", "64:ff9b:1:cb00:71:700::"),
    ("64:ff9b:1:aacb:0:7107::", "64:ff9b:1:aacb:0:7107::"),
    ("64:ff9b:1:aaaa:cb:71:700:0", "64:ff9b:1:aaaa:cb:71:700:0"),
    // 6to4 (RFC 3056): any host of any subnet of that site.
    ("2002:cb00:7107::1", "203.0.113.7"),
    ("2002:cb00:7107:ffff:1:2:3:4", "203.0.113.7"),
    // Teredo (RFC 4380): the address of the client, not of the server; its bits are inverted.
    ("2001:0:4136:e378:8000:63bf:34ff:8ef8", "203.0.113.7"),
    ("2001::34ff:8ef8", "203.0.113.7"),
    // ISATAP (RFC 5214): the client chooses these 64 bits.
    ("2001:db8:1:2:0:5efe:203.0.113.7", "2001:db8:1:2::"),
    ("2001:db8:1:2:200:5efe:203.0.113.7", "2001:db8:1:2::"),
    // A translator's own prefix (RFC 6052, 2.2) looks like any other prefix.
    ("2001:db8:64::203.0.113.7", "2001:db8:64::"),
    // Close to the prefixes above.
    ("::", "::"),
    ("::1", "::"),
    ("::0.255.255.255", "::"),
    ("::1:203.0.113.7", "::"),
    ("::fffe:203.0.113.7", "::"),
    ("::ffff:1:203.0.113.7", "::"),
    ("0:0:0:1::203.0.113.7", "0:0:0:1::"),
    ("64:ff9a::203.0.113.7", "64:ff9a::"),
    ("64:ff9b::1:203.0.113.7", "64:ff9b::"),
    ("64:ff9b:2::203.0.113.7", "64:ff9b:2::"),
    ("2001:1:4136:e378:8000:63bf:34ff:8ef8", "2001:1:4136:e378::"),
    ("2003:cb00:7107::1", "2003:cb00:7107::"),
    (
        "3ffe:831f:4136:e378:8000:63bf:34ff:8ef8",
        "3ffe:831f:4136:e378::",
    ),
];

#[test]
fn embedded_ipv4_address_is_the_client() {
    for (address, expected) in EMBEDDED {
        let expected = ip(expected).to_string();
        let peer = request(ip(address), XFF, []);
        assert_eq!(
            peer_ip().find(&peer).unwrap().to_string(),
            expected,
            "{address}"
        );
        let none = client_ip(TrustedProxies::none());
        assert_eq!(none.find(&peer).unwrap().to_string(), expected, "{address}");
        for (name, proxies, line) in [
            (XFF, TrustedProxies::private(), (*address).to_owned()),
            (XFF, TrustedProxies::private(), format!("[{address}]:443")),
            (
                "x-real-ip",
                TrustedProxies::private().single_header("x-real-ip"),
                (*address).to_owned(),
            ),
            (
                "forwarded",
                TrustedProxies::private().forwarded(),
                format!("for=\"[{address}]\""),
            ),
        ] {
            // The loopback address belongs to a proxy, which is the client, as it is alone.
            let seen = seen(&client_ip(proxies), name, &[line.as_bytes()]);
            assert_eq!(seen, expected, "{name}: {line}");
        }
        // The configured prefix length does not matter.
        if expected == "203.0.113.7" {
            for bits in [32, 48, 128] {
                let client = client_ip(TrustedProxies::none()).ipv6_prefix(bits);
                assert_eq!(client.find(&peer), Some(ip("203.0.113.7")), "{address}");
            }
        }
    }
}

/// Which addresses are one client and which are trusted are separate questions. Only the
/// IPv4-mapped form, in which a socket of both families shows an IPv4 peer, is trusted as that
/// peer.
#[test]
fn embedded_ipv4_address_is_not_trusted() {
    let proxies = TrustedProxies::private()
        .networks(["192.0.2.0/24"])
        .unwrap();
    let client = client_ip(proxies);
    for (claimed, forms) in [
        (
            "10.0.0.1",
            [
                "::10.0.0.1",
                "::ffff:0:10.0.0.1",
                "64:ff9b::10.0.0.1",
                "64:ff9b:1::10.0.0.1",
                "2002:a00:1::1",
                "2001:0:a00:1:8000:63bf:f5ff:fffe",
                "2001:db8::5efe:10.0.0.1",
            ],
        ),
        (
            "192.0.2.1",
            [
                "::192.0.2.1",
                "::ffff:0:192.0.2.1",
                "64:ff9b::192.0.2.1",
                "64:ff9b:1::192.0.2.1",
                "2002:c000:201::1",
                "2001:0:c000:201:8000:63bf:3fff:fdfe",
                "2001:db8::5efe:192.0.2.1",
            ],
        ),
    ] {
        for form in forms {
            let lied = request(ip(form), XFF, [b"203.0.113.7".as_slice()]);
            assert_eq!(client.find(&lied), peer_ip().find(&lied), "{form}");
            // Nor is it walked over in a list.
            let line = format!("203.0.113.7, {form}");
            let expected = peer_ip().find(&lied).unwrap().to_string();
            assert_eq!(seen(&client, XFF, &[line.as_bytes()]), expected, "{form}");
        }
        let mapped = format!("::ffff:{claimed}");
        let trusted = request(ip(&mapped), XFF, [b"203.0.113.7".as_slice()]);
        assert_eq!(client.find(&trusted), Some(ip("203.0.113.7")), "{mapped}");
    }
    // Operators of the translator can configure its prefix.
    let behind = TrustedProxies::none().networks(["64:ff9b::10.0.0.0/104"]);
    let behind = client_ip(behind.unwrap());
    let trusted = request(ip("64:ff9b::10.0.0.1"), XFF, [b"203.0.113.7".as_slice()]);
    assert_eq!(behind.find(&trusted), Some(ip("203.0.113.7")));
}

#[test]
fn ipv6_prefixes() {
    let request = request(ip("2001:db8:1:2ff:3::4"), XFF, []);
    for (bits, expected) in [
        (48, "2001:db8:1::"),
        (56, "2001:db8:1:200::"),
        (64, "2001:db8:1:2ff::"),
        (128, "2001:db8:1:2ff:3::4"),
    ] {
        let client = client_ip(TrustedProxies::none()).ipv6_prefix(bits);
        assert_eq!(client.find(&request), Some(ip(expected)));
    }
}

#[test]
fn invalid_configuration_panics() {
    let panics = |f: fn()| std::panic::catch_unwind(f).is_err();
    assert!(panics(|| {
        let all = TrustedProxies::none().networks(["0.0.0.0/0"]).unwrap();
        let _ = client_ip(all);
    }));
    assert!(panics(|| {
        let all = TrustedProxies::none().networks(["::/0"]).unwrap();
        let _ = client_ip(all.forwarded());
    }));
    assert!(panics(|| drop(TrustedProxies::none().hops(0))));
    assert!(panics(|| drop(
        TrustedProxies::none().list_header("forwarded")
    )));
    assert!(panics(|| drop(
        TrustedProxies::none().single_header("X-Real-IP")
    )));
    assert!(panics(|| {
        let _ = client_ip(TrustedProxies::none()).ipv6_prefix(31);
    }));
    let both = TrustedProxies::none()
        .networks(["0.0.0.0/0", "::/0"])
        .unwrap();
    let client = client_ip(both.clone().hops(1));
    assert_eq!(
        seen(&client, XFF, &[b"1.1.1.1, 203.0.113.7"]),
        "203.0.113.7"
    );
    let _ = client_ip(both.single_header("x-real-ip"));

    let configured: TrustedProxies = "loopback, 10.0.0.0/8 2001:db8::/32,".parse().unwrap();
    assert_eq!(
        seen(&client_ip(configured), XFF, &[b"203.0.113.7"]),
        "203.0.113.7"
    );
    let error = "private, 10.0.0.0/33"
        .parse::<TrustedProxies>()
        .unwrap_err();
    assert!(
        error.to_string().starts_with("\"10.0.0.0/33\" is not"),
        "{error}"
    );
}
