use super::*;

const TIMEOUT: Duration = Duration::from_millis(100);

/// After many calls that took this long.
fn depth(took: Duration) -> Depth {
    let mut depth = Depth::default();
    for _ in 0..2 * MOST_FAR {
        depth.answered(took, TIMEOUT);
    }
    depth
}

#[test]
fn near_redis_only_full_calls_are_sent_in_addition() {
    let near = depth(FAR);
    assert_eq!(near.enough(0, Load::Usual), 1);
    for in_flight in 1..MOST_NEAR {
        assert_eq!(near.enough(in_flight, Load::Usual), NEVER);
        assert_eq!(near.enough(in_flight, Load::Crowded), MOST_BUCKETS);
    }
    assert_eq!(near.enough(MOST_NEAR, Load::Crowded), NEVER);
}

#[test]
fn far_from_redis_calls_grow_with_those_in_flight() {
    let far = depth(FAR + Duration::from_nanos(1));
    let enough = |in_flight| far.enough(in_flight, Load::Usual);
    let first: Vec<_> = (0..10).map(enough).collect();
    assert_eq!(first, [1, 1, 2, 3, 4, 5, 6, 7, 8, 8]);
    assert_eq!(enough(MOST_FAR - 1), WORTH_A_CALL);
    assert_eq!(enough(MOST_FAR), NEVER);
    assert_eq!(far.enough(MOST_FAR, Load::Crowded), NEVER);
}

#[test]
fn fastest_reply_tells_how_far_redis_is() {
    let mut depth = depth(10 * FAR);
    depth.answered(FAR, TIMEOUT);
    depth.answered(10 * FAR, TIMEOUT);
    assert_eq!(depth.enough(2, Load::Usual), NEVER);
}

#[test]
fn each_reply_allows_one_call_more() {
    let mut depth = Depth::default();
    for allowed in 1..MOST_FAR {
        assert_eq!(depth.enough(0, Load::Crowded), 1);
        assert_ne!(depth.enough(allowed - 1, Load::Crowded), NEVER);
        assert_eq!(depth.enough(allowed, Load::Crowded), NEVER);
        depth.answered(10 * FAR, TIMEOUT);
    }
}

#[test]
fn late_replies_halve_the_calls_down_to_one() {
    let mut depth = depth(10 * FAR);
    let late = 10 * FAR + TIMEOUT / 4;
    depth.answered(late, TIMEOUT);
    assert_ne!(depth.enough(MOST_FAR - 1, Load::Usual), NEVER);
    for allowed in [16, 8, 4, 2, 1, 1] {
        depth.answered(late + Duration::from_nanos(1), TIMEOUT);
        assert_ne!(depth.enough(allowed - 1, Load::Usual), NEVER);
        assert_eq!(depth.enough(allowed, Load::Usual), NEVER);
    }
}

#[test]
fn after_a_failure_calls_are_sent_one_at_a_time() {
    let mut depth = depth(FAR);
    depth.failed();
    assert_eq!(depth.enough(0, Load::Crowded), 1);
    assert_eq!(depth.enough(1, Load::Crowded), NEVER);
    // The next server may be far.
    depth.answered(2 * FAR, TIMEOUT);
    assert_eq!(depth.enough(1, Load::Usual), 1);
}

#[test]
fn near_redis_a_few_calls_are_sent_at_once_while_there_is_little_to_do() {
    let near = depth(FAR);
    let enough: Vec<_> = (0..=LIGHT)
        .map(|in_flight| near.enough(in_flight, Load::Light))
        .collect();
    assert_eq!(enough, [1, 1, 1, 1, NEVER]);
    assert_eq!(Load::of(LIGHT, false), Load::Light);
    assert_eq!(Load::of(LIGHT + 1, false), Load::Usual);
    assert_eq!(Load::of(1, true), Load::Crowded);
}
