use super::*;

#[test]
fn ipv6_is_grouped_and_ipv4_is_not() {
    let group = |ip: &str, prefix| group(ip.parse().expect("an address"), prefix).to_string();
    assert_eq!(group("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::");
    assert_eq!(group("2001:db8:1:2:3:4:5:6", 56), "2001:db8:1::");
    assert_eq!(group("2001:db8:1:2:3:4:5:6", 48), "2001:db8:1::");
    assert_eq!(group("2001:db8::6", 128), "2001:db8::6");
    assert_eq!(group("192.0.2.7", 64), "192.0.2.7");
    assert_eq!(group("::ffff:192.0.2.7", 64), "192.0.2.7");
}

#[test]
fn text_of_an_address_is_that_of_display() {
    let same = |ip: IpAddr| {
        let text = AddressText::new(ip);
        assert_eq!(str::from_utf8(text.as_bytes()), Ok(&*ip.to_string()));
    };
    for octets in [[0, 0, 0, 0], [1, 10, 100, 255], [9, 99, 199, 200], [255; 4]] {
        same(octets.into());
        same(Ipv4Addr::from(octets).to_ipv6_mapped().into());
        same(Ipv4Addr::from(octets).to_ipv6_compatible().into());
    }
    // Every pattern of zeros, and groups of each length.
    for pattern in 0..=255u16 {
        for value in [1, 0x10, 0xabc, 0xffff] {
            let segment = |n: u16| value * (pattern >> n & 1);
            let segments = [0, 1, 2, 3, 4, 5, 6, 7].map(segment);
            same(segments.into());
        }
    }
}
