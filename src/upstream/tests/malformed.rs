use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::{NOW, Upstream};

fn profiles() -> Vec<Upstream> {
    vec![
        Upstream::retry_after(),
        Upstream::openai(),
        Upstream::anthropic().field("input-tokens", "a"),
        Upstream::github(),
        Upstream::ietf().field("tokens", "a"),
        Upstream::grpc(),
    ]
}

const NAMES: [&str; 19] = [
    "date",
    "age",
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "x-ratelimit-reset-tokens",
    "x-rate-limit-reset-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "ratelimit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "grpc-status",
    "grpc-retry-pushback-ms",
    "grpc-status-details-bin",
];

/// Arbitrary bytes, or almost a valid value.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        "[0-9]{0,25}(\\.[0-9]{0,20})?(ms|s|m|h)?".prop_map(String::into_bytes),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,9})?(Z|[+-][0-9]{2}:[0-9]{2})?"
            .prop_map(String::into_bytes),
        "\"[a-z]{0,6}\";r=[0-9]{1,16};t=-?[0-9]{1,16}".prop_map(String::into_bytes),
        "[A-Za-z0-9+/]{0,60}={0,2}".prop_map(String::into_bytes),
        "(8|14|0)".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(crate::verification::bucket_model::seeded())]

    #[test]
    fn any_answer_yields_a_pause_within_the_cap_and_finite_levels(
        fields in prop::collection::vec((0..NAMES.len(), value()), 0..8),
        status in prop::sample::select(vec![200u16, 403, 429, 503, 529]),
        cap in 0u64..100_000,
        part in 0.0f64..1.0,
    ) {
        let cap = Duration::from_millis(cap);
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(HeaderName::from_static(NAMES[*name]), value);
            }
        }
        let status = StatusCode::from_u16(status).expect("a status");
        for upstream in profiles() {
            let upstream = upstream.cap(cap);
            let advice = upstream.read(status, &headers, NOW);
            let pause = advice.pause.unwrap_or_default();
            prop_assert!(pause <= cap);
            let jittered = upstream.jittered(pause, part);
            prop_assert!(pause <= jittered && jittered <= cap, "{pause:?} {jittered:?} {cap:?}");
            for (_, remaining) in &advice.remaining {
                prop_assert!(remaining.is_finite() && *remaining >= 0.0);
            }
        }
    }
}
