use super::*;

#[test]
fn network_contains_the_addresses_with_its_prefix() {
    for (network, inside, outside) in [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
        // Bits after the prefix are ignored.
        ("10.1.2.3/8", "10.255.0.1", "11.0.0.0"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
        ("192.0.2.6/31", "192.0.2.7", "192.0.2.5"),
        ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
        ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ("::1", "::1", "::"),
        ("::ffff:10.0.0.0/104", "10.2.3.4", "11.2.3.4"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.6"),
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
fn malformed_networks_are_rejected() {
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
