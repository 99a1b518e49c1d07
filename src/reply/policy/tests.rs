use std::time::Duration;

use super::*;

#[test]
fn numbers_are_whole_and_bounded() {
    let numbers = |quota: Quota| {
        let policy = Policy::new("p", quota);
        (policy.capacity(), policy.window())
    };
    assert_eq!(numbers(Quota::per_minute(60.0).burst(20.0)), (20, 20));
    assert_eq!(numbers(Quota::per_second(1_000.0).burst(1.0)), (1, 1));
    assert_eq!(numbers(Quota::per_second(0.5)), (1, 2));
    for tokens in [1.0, 3.0, 7.0, 11.0, 59.0, 61.0] {
        let (q, w) = numbers(Quota::per_minute(tokens));
        assert_eq!((q, w), (tokens as u64, 60), "{tokens} a minute");
        assert_eq!(numbers(Quota::per_day(tokens)).1, 86_400, "{tokens} a day");
    }
    let tiny = Quota::per(Duration::from_secs(86_400 * 365), 1e-9).burst(1e18);
    assert_eq!(numbers(tiny), (MAX, MAX));
    let left = Policy::new("p", tiny).left(f64::NEG_INFINITY);
    assert_eq!((left.tokens, left.seconds), (0, MAX));
    let left = Policy::new("p", tiny).left_until(1e300, u64::MAX);
    assert_eq!((left.tokens, left.seconds), (MAX, MAX));
}

#[test]
fn names_are_printable_ascii() {
    assert_eq!(policy_name("a \"b\\c\" ~"), "a \"b\\c\" ~");
    assert_eq!(policy_name("für\n50%"), "f%C3%BCr%0A50%25");
}
