//! What each upstream's fields are read as, and that nothing malformed is more than nothing.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    parse,
    profile::{Advice, Upstream},
};
use crate::quota::Quota;

/// 24 November 2026, 17:00:00 UTC.
const NOW: f64 = 1_795_539_600.0;

fn read(upstream: &Upstream, status: u16, fields: &[(&str, &str)]) -> Advice {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    upstream.read(
        StatusCode::from_u16(status).expect("a status"),
        &headers,
        NOW,
    )
}

fn hold(upstream: &Upstream, status: u16, fields: &[(&str, &str)]) -> Option<f64> {
    let hold = read(upstream, status, fields).hold;
    hold.map(|hold| (hold.as_secs_f64() * 1e3).round() / 1e3)
}

#[test]
fn times_are_read_in_every_form() {
    for (text, seconds) in [
        ("6m0s", Some(360.0)),
        ("12ms", Some(0.012)),
        ("1h2m3.5s", Some(3_723.5)),
        ("7.66s", Some(7.66)),
        ("250µs", Some(0.00025)),
        ("0s", Some(0.0)),
        ("", None),
        ("s", None),
        ("5", None),
        ("-5s", None),
        ("1d", None),
        ("1.2.3s", None),
        ("١s", None),
    ] {
        let read = parse::go_duration(text);
        assert_eq!(read.is_some(), seconds.is_some(), "{text}");
        assert!(
            (read.unwrap_or(0.0) - seconds.unwrap_or(0.0)).abs() < 1e-9,
            "{text}"
        );
    }
    for (text, seconds) in [
        ("2026-11-24T17:00:00Z", Some(NOW)),
        ("2026-11-24T17:00:00.25Z", Some(NOW + 0.25)),
        ("2026-11-24T18:30:00+01:30", Some(NOW)),
        ("2026-11-24t12:00:00-05:00", Some(NOW)),
        ("1970-01-01T00:00:00Z", Some(0.0)),
        ("2024-02-29T00:00:00Z", Some(1_709_164_800.0)),
        ("2026-11-24T17:00:00", None),
        ("2026-13-24T17:00:00Z", None),
        ("2026-11-24T17:00:00.Z", None),
        ("2026-11-24T17:00:00+0130", None),
        ("2026-11-24T24:00:00Z", None),
        ("２026-11-24T17:00:00Z", None),
        ("", None),
    ] {
        assert_eq!(parse::rfc_3339(text), seconds, "{text}");
    }
    for (text, seconds) in [
        ("2", Some(2.0)),
        ("2.0", Some(2.0)),
        ("1e9", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        (".", None),
    ] {
        assert_eq!(parse::seconds(text), seconds, "{text}");
    }
    assert_eq!(parse::http_date("Tue, 24 Nov 2026 17:00:00 GMT"), Some(NOW));
}

#[test]
fn retry_after_is_read_in_the_order_of_preference() {
    let any = Upstream::retry_after();
    assert_eq!(hold(&any, 429, &[("retry-after", "2")]), Some(2.0));
    assert_eq!(hold(&any, 503, &[("retry-after", "2.5")]), Some(2.5));
    assert_eq!(
        hold(
            &any,
            429,
            &[("retry-after-ms", "120"), ("retry-after", "9")]
        ),
        Some(0.12)
    );
    assert_eq!(
        hold(&any, 429, &[("retry-after-ms", "-"), ("retry-after", "9")]),
        Some(9.0)
    );
    let date = ("retry-after", "Tue, 24 Nov 2026 17:00:07 GMT");
    assert_eq!(hold(&any, 429, &[date]), Some(7.0));
    // Our clock is an hour off; the upstream's own says what it means.
    let own = ("date", "Tue, 24 Nov 2026 17:00:04 GMT");
    assert_eq!(hold(&any, 429, &[date, own]), Some(3.0));
    assert_eq!(
        hold(&any, 429, &[("retry-after", "86400")]),
        Some(60.0),
        "capped"
    );
    assert_eq!(hold(&any, 200, &[("retry-after", "2")]), None);
    assert_eq!(hold(&any, 403, &[("retry-after", "2")]), None);
    assert!(read(&any, 429, &[("retry-after", "soon")]).spent);
    assert_eq!(read(&any, 503, &[]), Advice::default());
    // No other profile's fields.
    assert_eq!(
        read(&any, 200, &[("x-ratelimit-remaining", "0")]),
        Advice::default()
    );
}

#[test]
fn openai_and_anthropic_are_read() {
    let openai = Upstream::openai();
    let fields = [
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-reset-tokens", "1m30s"),
    ];
    let advice = read(&openai, 200, &fields);
    assert_eq!(advice.hold, None);
    let remaining = [("requests".to_owned(), 59.0), ("tokens".to_owned(), 0.0)];
    assert_eq!(advice.remaining, remaining);
    let patient = openai.clone().cap(Duration::from_secs(3_600));
    assert_eq!(hold(&patient, 429, &fields), Some(90.0));
    let azure = [
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "-1"),
    ];
    assert!(read(&openai, 429, &azure).spent);

    let anthropic = Upstream::anthropic().field("input-tokens", "itpm");
    let fields = [
        ("anthropic-ratelimit-requests-remaining", "3"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2026-11-24T17:00:09Z",
        ),
        ("anthropic-ratelimit-output-tokens-remaining", "0"),
        (
            "anthropic-ratelimit-output-tokens-reset",
            "2026-11-24T17:00:50Z",
        ),
    ];
    assert_eq!(
        hold(&anthropic, 429, &fields),
        Some(9.0),
        "only what it has a place for"
    );
    let passed = [
        fields[1],
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2026-11-24T16:59:59Z",
        ),
    ];
    assert!(read(&anthropic, 429, &passed).spent);
    assert_eq!(hold(&anthropic, 529, &[("retry-after", "4")]), Some(4.0));
    assert_eq!(hold(&openai, 529, &[("retry-after", "4")]), None);
}

#[test]
fn github_is_a_window_and_403_may_be_about_rights() {
    let github = Upstream::github();
    let reset = ("x-ratelimit-reset", "1795539630");
    let none_left = ("x-ratelimit-remaining", "0");
    assert_eq!(hold(&github, 403, &[none_left, reset]), Some(30.0));
    assert_eq!(hold(&github, 200, &[none_left, reset]), Some(30.0));
    assert_eq!(
        hold(&github, 200, &[("x-ratelimit-remaining", "4"), reset]),
        None
    );
    assert_eq!(
        hold(&github, 403, &[("x-ratelimit-remaining", "4"), reset]),
        None
    );
    assert!(!read(&github, 403, &[]).spent);
    assert_eq!(hold(&github, 403, &[("retry-after", "5")]), Some(5.0));
    assert_eq!(hold(&github, 429, &[]), Some(60.0));
}

#[test]
fn the_draft_is_read_in_its_three_shapes() {
    let ietf = Upstream::ietf();
    for fields in [
        &[("ratelimit", r#""burst";r=0;t=30"#)][..],
        &[("ratelimit", "limit=100, remaining=0, reset=30")],
        &[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")],
    ] {
        let advice = read(&ietf, 200, fields);
        assert_eq!(advice.hold, Some(Duration::from_secs(30)), "{fields:?}");
        assert_eq!(advice.remaining, [(String::new(), 0.0)]);
    }
    // Several: those that are named, in any number of lines.
    let named = ietf.clone().field("tokens", "tpm");
    let fields = [
        ("ratelimit", r#""burst";r=5;t=30"#),
        ("ratelimit", r#""tokens";r=7;t=9"#),
    ];
    assert_eq!(
        read(&named, 200, &fields).remaining,
        [("tokens".to_owned(), 7.0)]
    );
    assert_eq!(read(&ietf, 200, &fields), Advice::default());
    for malformed in [
        "\"burst\";r=-1",
        "\"burst\";r=1.5",
        "\"burst\"",
        "((",
        "5;r=5",
    ] {
        assert_eq!(
            read(&ietf, 200, &[("ratelimit", malformed)]),
            Advice::default()
        );
    }
}

#[test]
fn grpc_is_read_only_where_it_is_about_a_limit() {
    let upstream = Upstream::grpc();
    let of = |code, details, pushback: Option<&str>| {
        let status = tonic::Status::with_error_details(code, "no", details);
        let mut response = status.into_http::<()>();
        if let Some(pushback) = pushback {
            let value = pushback.parse().expect("a value");
            response
                .headers_mut()
                .insert("grpc-retry-pushback-ms", value);
        }
        upstream.read(response.status(), response.headers(), NOW)
    };
    let exhausted = tonic::Code::ResourceExhausted;
    let delay = ErrorDetails::with_retry_info(Some(Duration::from_millis(2_500)));
    let advice = of(exhausted, delay.clone(), None);
    assert_eq!(advice.hold, Some(Duration::from_millis(2_500)));
    assert_eq!(of(tonic::Code::Internal, delay, None), Advice::default());
    let mut quota = ErrorDetails::new();
    quota.add_quota_failure_violation("rpm", "too many");
    assert!(of(exhausted, quota, None).spent);
    assert_eq!(of(exhausted, ErrorDetails::new(), None), Advice::default());
    let pushed = of(tonic::Code::Unavailable, ErrorDetails::new(), Some("750"));
    assert_eq!(pushed.hold, Some(Duration::from_millis(750)));
    assert!(of(exhausted, ErrorDetails::new(), Some("-1")).spent);
}

#[test]
fn fields_speak_of_scopes_by_position_or_name() {
    let quota = Quota::per_second(1.0);
    let scopes = [
        quota.scope("tenant"),
        quota.scope("rpm"),
        quota.scope("tpm"),
    ];
    let by_position = Upstream::openai();
    assert_eq!(by_position.scopes(&scopes), [0, 1]);
    assert_eq!(by_position.scope_of("tokens", &scopes[..1]), None);
    let by_name = Upstream::openai()
        .field("requests", "rpm")
        .field("tokens", "tpm");
    assert_eq!(by_name.scopes(&scopes), [1, 2]);
    assert_eq!(by_name.scope_of("tokens", &scopes[..2]), None);
}

/// The examples of draft 08 have tokens, which look like the dictionary of draft 07.
#[test]
fn policies_of_the_draft_may_be_tokens() {
    let ietf = Upstream::ietf();
    for name in ["default", "Default", "*a", "remaining", "limit", "reset"] {
        let field = format!("{name};r=0;t=30");
        let advice = read(&ietf, 200, &[("ratelimit", &field)]);
        assert_eq!(advice.hold, Some(Duration::from_secs(30)), "{field}");
        assert_eq!(advice.remaining, [(String::new(), 0.0)], "{field}");
    }
    let partitioned = [("ratelimit", "peruser;r=5;t=30;pk=:dXNlcg==:")];
    let remaining = read(&ietf, 200, &partitioned).remaining;
    assert_eq!(remaining, [(String::new(), 5.0)]);
    let named = ietf.clone().field("tokens", "tpm").field("daily", "day");
    for fields in [
        &[(
            "ratelimit",
            "daily;r=7;t=86400, burst;r=5;t=30, tokens;r=9;t=9",
        )][..],
        &[
            ("ratelimit", "daily;r=7;t=86400"),
            ("ratelimit", "burst;r=5, \"tokens\";r=9;t=9"),
        ],
    ] {
        let remaining = read(&named, 200, fields).remaining;
        let expected = [("daily".to_owned(), 7.0), ("tokens".to_owned(), 9.0)];
        assert_eq!(remaining, expected, "{fields:?}");
    }
    // Names are case-sensitive.
    assert!(
        read(&named, 200, &[("ratelimit", "Tokens;r=9, b;r=1")])
            .remaining
            .is_empty()
    );
    for none in [
        "default",
        "limit=100",
        "remaining=1.5",
        "remaining",
        "remaining=0;r=1, ((",
    ] {
        let advice = read(&ietf, 200, &[("ratelimit", none)]);
        assert_eq!(advice, Advice::default(), "{none}");
    }
}

/// 1,795,539,600 is no number of seconds to wait, and 30 is no time of day.
#[test]
fn a_reset_is_told_from_a_time_by_its_size() {
    let (ietf, github, openai) = (Upstream::ietf(), Upstream::github(), Upstream::openai());
    for (reset, seconds) in [
        ("30", Some(30.0)),
        // GitLab, GitHub; OpenRouter; and finer ones.
        ("1795539630", Some(30.0)),
        ("1795539630000", Some(30.0)),
        ("1795539630250", Some(30.25)),
        ("1795539630000000", Some(30.0)),
        // It has passed.
        ("1795539600", None),
        ("1795539599", None),
        ("1795539599000", None),
        ("1000000000", None),
        ("0", None),
    ] {
        let fields = [("ratelimit-remaining", "0"), ("ratelimit-reset", reset)];
        assert_eq!(hold(&ietf, 429, &fields), seconds, "{reset}");
        let fields = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)];
        assert_eq!(hold(&github, 403, &fields), seconds, "{reset}");
        let fields = [
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", reset),
        ];
        assert_eq!(hold(&openai, 429, &fields), seconds, "{reset}");
        let fields = [("retry-after", reset)];
        assert_eq!(hold(&openai, 429, &fields), seconds, "{reset}");
        assert_eq!(
            read(&openai, 429, &fields).spent,
            seconds.is_none(),
            "{reset}"
        );
    }
    // Thirty years, capped.
    let far = [("retry-after", "999999999")];
    assert_eq!(hold(&openai, 429, &far), Some(60.0));
    // As text it has one meaning anyway, whoever sends it.
    for reset in [
        "30s",
        "2026-11-24T17:00:30Z",
        "Tue, 24 Nov 2026 17:00:30 GMT",
    ] {
        let fields = [
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", reset),
        ];
        assert_eq!(hold(&openai, 429, &fields), Some(30.0), "{reset}");
    }
    let micros = HeaderValue::from_bytes("250000µs".as_bytes()).expect("a value");
    let headers = [(HeaderName::from_static("retry-after"), micros)];
    let headers = headers.into_iter().collect();
    let advice = openai.read(StatusCode::TOO_MANY_REQUESTS, &headers, NOW);
    assert_eq!(advice.hold, Some(Duration::from_millis(250)));
}

/// RFC 9111, sections 4.2.3 and 5.1: a cache keeps the `Date` of the origin, and tells in `Age` how
/// long ago that was.
#[test]
fn a_cached_answer_is_as_old_as_it_says() {
    let any = Upstream::retry_after();
    let retry_after = ("retry-after", "Tue, 24 Nov 2026 17:00:30 GMT");
    let date = ("date", "Tue, 24 Nov 2026 17:00:00 GMT");
    for (age, seconds) in [
        ("0", 30.0),
        ("20", 10.0),
        (" 20 ", 10.0),
        // A list, which it should not be: the first.
        ("20, 25", 10.0),
        ("20.5", 30.0),
        ("-20", 30.0),
        ("old", 30.0),
        ("", 30.0),
    ] {
        let fields = [retry_after, date, ("age", age)];
        assert_eq!(hold(&any, 503, &fields), Some(seconds), "{age:?}");
    }
    let fields = [retry_after, date, ("age", "20"), ("age", "25")];
    assert_eq!(hold(&any, 503, &fields), Some(10.0));
    // By our own clock it is now, however old the answer is.
    assert_eq!(hold(&any, 503, &[retry_after, ("age", "20")]), Some(30.0));
    for age in ["30", "31", "99999999999999999999"] {
        let fields = [retry_after, date, ("age", age)];
        assert!(read(&any, 429, &fields).spent, "{age}");
    }
    // From the receipt, as RFC 9110, section 10.2.3, has it.
    assert_eq!(
        hold(&any, 429, &[("retry-after", "30"), date, ("age", "20")]),
        Some(30.0)
    );

    let github = Upstream::github();
    let reset = [
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1795539630"),
    ];
    let fields = [reset[0], reset[1], date, ("age", "20")];
    assert_eq!(hold(&github, 200, &fields), Some(10.0));
    // A budget of a window that has ended since says nothing of this one.
    let ietf = Upstream::ietf();
    let field = ("ratelimit", "default;r=0;t=30");
    assert_eq!(hold(&ietf, 200, &[field, date, ("age", "20")]), Some(10.0));
    assert_eq!(
        read(&ietf, 200, &[field, date, ("age", "30")]),
        Advice::default()
    );
    let fields = [reset[0], reset[1], date, ("age", "31")];
    assert_eq!(read(&github, 200, &fields), Advice::default());
}

#[test]
fn azure_is_read() {
    let openai = Upstream::openai();
    // In the order of Azure's own clients.
    let all = [
        ("retry-after-ms", "120"),
        ("x-ms-retry-after-ms", "230"),
        ("retry-after", "9"),
    ];
    for upstream in [&openai, &Upstream::retry_after()] {
        assert_eq!(hold(upstream, 429, &all), Some(0.12));
        assert_eq!(hold(upstream, 429, &all[1..]), Some(0.23));
        assert_eq!(
            hold(upstream, 429, &[("x-ms-retry-after-ms", "-"), all[2]]),
            Some(9.0)
        );
        assert_eq!(hold(upstream, 200, &all), None);
    }
    // What was refused has no budget of its own, and may be spelled in another way.
    for name in ["x-ratelimit-reset-tokens", "x-rate-limit-reset-tokens"] {
        let fields = [("x-ratelimit-remaining-requests", "79"), (name, "55")];
        assert_eq!(hold(&openai, 429, &fields), Some(55.0), "{name}");
        let advice = read(&openai, 200, &fields);
        assert_eq!(advice.hold, None, "{name}");
        assert_eq!(advice.remaining, [("requests".to_owned(), 79.0)], "{name}");
    }
    // The reset of a budget of which something remains is not what is waited for.
    let fields = [
        ("x-ratelimit-remaining-requests", "79"),
        ("x-ratelimit-reset-requests", "50"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "7"),
    ];
    assert_eq!(hold(&openai, 429, &fields), Some(7.0));
    // Unknown, in their words.
    let unknown = [
        ("x-ratelimit-limit-tokens", "-1"),
        ("x-ratelimit-remaining-tokens", "-1"),
        ("x-ratelimit-reset-tokens", "0"),
    ];
    assert!(read(&openai, 429, &unknown).spent);
    assert_eq!(read(&openai, 200, &unknown), Advice::default());
}

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

/// Anything at all, or something near to what is right.
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
    fn nothing_that_an_upstream_sends_does_harm(
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
            let hold = advice.hold.unwrap_or_default();
            prop_assert!(hold <= cap);
            let jittered = upstream.jittered(hold, part);
            prop_assert!(hold <= jittered && jittered <= cap, "{hold:?} {jittered:?} {cap:?}");
            for (_, remaining) in &advice.remaining {
                prop_assert!(remaining.is_finite() && *remaining >= 0.0);
            }
        }
    }

    #[test]
    fn times_are_none_or_finite(text in "\\PC{0,80}") {
        for seconds in [
            parse::seconds(&text),
            parse::go_duration(&text),
            parse::http_date(&text),
            parse::rfc_3339(&text),
        ] {
            prop_assert!(seconds.is_none_or(f64::is_finite));
        }
    }
}
