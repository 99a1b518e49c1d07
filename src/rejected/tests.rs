use super::*;

#[test]
fn level_of_a_rejection_follows_from_its_wait() {
    let scope = Quota::per_second(2.0).burst(6.0).scope("s").cost(4.5);
    let level = |retry_after, max_wait_us, degraded| {
        Rejected::limited(&scope, retry_after, max_wait_us, degraded).level()
    };
    let second = Duration::from_secs(1);
    assert_eq!(level(second, 0.0, false), Some(2.5));
    assert_eq!(level(second, 1e6, false), Some(0.5));
    assert_eq!(level(5 * second, 0.0, false), Some(-5.5));
    // Less than one token is missing.
    assert_eq!(level(Duration::ZERO, 0.0, false), Some(4.0));
    assert_eq!(level(second, 0.0, true), None, "unknown for a local share");
    assert_eq!(Rejected::exceeds_capacity(&scope).level(), None);
    assert_eq!(Rejected::too_many_scopes(&scope, 129, 128).level(), None);
}
