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
