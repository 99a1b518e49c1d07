use super::*;
use crate::{quota::Quota, scope::BucketId};

const PARAMS: BucketParams = BucketParams {
    capacity: 10.0,
    per_us: 0.5,
};
const HASH: u64 = 17;

fn id(name: &str, key: Option<&str>) -> BucketId {
    let scope = crate::scope::Scope::new(name, Quota::per_second(1.0));
    match key {
        Some(key) => scope.key(key).id(&[0; 32]),
        None => scope.id(&[0; 32]),
    }
}

/// Has 3 tokens at 1,000 us, and is known until 1,100 us.
fn recorded(id: &BucketId) -> LastRejection {
    let last = LastRejection::new();
    let state = Exhausted {
        level: 3.0,
        at: 1_000.0,
        params: PARAMS,
        until: 1_100.0,
    };
    last.set(HASH, &id.lookup(), state);
    last
}

#[test]
fn the_bucket_rejects_until_it_has_refilled() {
    let id = id("name", Some("key"));
    let rejects = |cost, now| recorded(&id).rejects(HASH, &id.lookup(), PARAMS, cost, || now);
    assert_eq!(rejects(5.0, 1_000.0), Some(4.0));
    assert_eq!(rejects(5.0, 1_003.0), Some(1.0));
    assert_eq!(rejects(5.0, 1_003.9), Some(1.0));
    assert_eq!(rejects(5.0, 1_004.0), None);
    assert_eq!(rejects(3.0, 1_000.0), None);
    // Another thread may have read the clock later.
    assert_eq!(rejects(5.0, 990.0), Some(4.0));
}

#[test]
fn a_clock_that_was_set_back_is_not_decided_upon() {
    let id = id("name", Some("key"));
    let last = LastRejection::new();
    let state = Exhausted {
        level: 3.0,
        at: 5e6,
        params: PARAMS,
        until: f64::INFINITY,
    };
    last.set(HASH, &id.lookup(), state);
    let rejects = |now| last.rejects(HASH, &id.lookup(), PARAMS, 5.0, || now);
    assert!(rejects(4e6).is_some());
    assert!(rejects(4e6 - 1.0).is_none());
}

#[test]
fn a_state_is_known_until_its_end() {
    let id = id("name", Some("key"));
    let slow = BucketParams {
        per_us: 1e-9,
        ..PARAMS
    };
    let last = LastRejection::new();
    let state = Exhausted {
        level: 3.0,
        at: 1_000.0,
        params: slow,
        until: 1_100.0,
    };
    last.set(HASH, &id.lookup(), state);
    let rejects = |now| {
        last.rejects(HASH, &id.lookup(), slow, 5.0, || now)
            .is_some()
    };
    assert!(rejects(1_099.0));
    assert!(!rejects(1_100.0));
}

#[test]
fn only_the_same_bucket_and_quota_are_rejected() {
    let own = id("name", Some("key"));
    let last = recorded(&own);
    let rejects = |hash, id: &BucketId, params| {
        let rejects = last.rejects(hash, &id.lookup(), params, 5.0, || 1_000.0);
        rejects.is_some()
    };
    assert!(rejects(HASH, &own, PARAMS));
    assert!(!rejects(HASH + 1, &own, PARAMS));
    let (larger, faster) = (
        BucketParams {
            capacity: 11.0,
            ..PARAMS
        },
        BucketParams {
            per_us: 0.6,
            ..PARAMS
        },
    );
    assert!(!rejects(HASH, &own, larger));
    assert!(!rejects(HASH, &own, faster));
}

/// Hashes may be equal.
#[test]
fn identities_are_compared_in_full() {
    let long = "long".repeat(10);
    let longer = format!("{long}x");
    let key = |text| Some(text);
    let all = [
        id("name", None),
        id("name", key("")),
        id("name", key("\0")),
        id("name", key("key")),
        id("name", key("kez")),
        id("namek", key("ey")),
        id("n", key("amekey")),
        id("namekey", None),
        id("12345678", key("12345678")),
        id("1234567812345678", None),
        id("12345678", key("12345679")),
        id("12345678", key("123456781")),
        id(&long, key("a")),
        id(&longer, key("a")),
        id(&long, key("b")),
        id("name", key(&"x".repeat(65))),
        id("name", key(&"y".repeat(65))),
    ];
    for (n, own) in all.iter().enumerate() {
        let last = recorded(own);
        for (other_n, other) in all.iter().enumerate() {
            let rejects = last.rejects(HASH, &other.lookup(), PARAMS, 5.0, || 1_000.0);
            assert_eq!(rejects.is_some(), n == other_n, "{n}, {other_n}");
        }
    }
}

#[test]
fn an_identity_for_which_there_is_no_room_is_not_recorded() {
    let long = id(&"x".repeat(60), Some(&"y".repeat(60)));
    let last = recorded(&long);
    assert_eq!(
        last.rejects(HASH, &long.lookup(), PARAMS, 5.0, || 1_000.0),
        None
    );
}

#[test]
fn a_record_is_cleared_by_its_hash() {
    let id = id("name", None);
    let last = recorded(&id);
    let rejects = || last.rejects(HASH, &id.lookup(), PARAMS, 5.0, || 1_000.0);
    last.clear_if(HASH + 1);
    assert!(rejects().is_some());
    last.clear_if(HASH);
    assert!(rejects().is_none());
    last.clear();
    assert!(rejects().is_none());
}
