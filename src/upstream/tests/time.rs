use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::{Advice, NOW, Upstream, pause_of, read};
use crate::upstream::time;

#[test]
fn times_are_read_in_all_forms() {
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
        let read = time::go_duration(text);
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
        assert_eq!(time::rfc_3339(text), seconds, "{text}");
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
        assert_eq!(time::seconds(text), seconds, "{text}");
    }
    assert_eq!(time::http_date("Tue, 24 Nov 2026 17:00:00 GMT"), Some(NOW));
}

/// 1,795,539,600 is a time since 1970; 30 is a number of seconds to wait.
#[test]
fn durations_and_times_are_distinguished_by_size() {
    let (ietf, github, openai) = (Upstream::ietf(), Upstream::github(), Upstream::openai());
    for (reset, seconds) in [
        ("30", Some(30.0)),
        // Seconds (GitLab, GitHub), milliseconds (OpenRouter), and smaller units.
        ("1795539630", Some(30.0)),
        ("1795539630000", Some(30.0)),
        ("1795539630250", Some(30.25)),
        ("1795539630000000", Some(30.0)),
        // Passed.
        ("1795539600", None),
        ("1795539599", None),
        ("1795539599000", None),
        ("1000000000", None),
        ("0", None),
    ] {
        let fields = [("ratelimit-remaining", "0"), ("ratelimit-reset", reset)];
        assert_eq!(pause_of(&ietf, 429, &fields), seconds, "{reset}");
        let fields = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset)];
        assert_eq!(pause_of(&github, 403, &fields), seconds, "{reset}");
        let fields = [
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", reset),
        ];
        assert_eq!(pause_of(&openai, 429, &fields), seconds, "{reset}");
        let fields = [("retry-after", reset)];
        assert_eq!(pause_of(&openai, 429, &fields), seconds, "{reset}");
        assert_eq!(
            read(&openai, 429, &fields).is_exhausted,
            seconds.is_none(),
            "{reset}"
        );
    }
    // Thirty years, cut to the cap.
    let far = [("retry-after", "999999999")];
    assert_eq!(pause_of(&openai, 429, &far), Some(60.0));
    // The other forms have one meaning, whatever the upstream.
    for reset in [
        "30s",
        "2026-11-24T17:00:30Z",
        "Tue, 24 Nov 2026 17:00:30 GMT",
    ] {
        let fields = [
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", reset),
        ];
        assert_eq!(pause_of(&openai, 429, &fields), Some(30.0), "{reset}");
    }
    let micros = HeaderValue::from_bytes("250000µs".as_bytes()).expect("a value");
    let headers = [(HeaderName::from_static("retry-after"), micros)];
    let headers = headers.into_iter().collect();
    let advice = openai.read(StatusCode::TOO_MANY_REQUESTS, &headers, NOW);
    assert_eq!(advice.pause, Some(Duration::from_millis(250)));
}

/// RFC 9111, sections 4.2.3 and 5.1: a cache keeps the `Date` of the origin and adds `Age`.
#[test]
fn age_of_a_cached_answer_is_counted() {
    let any = Upstream::retry_after();
    let retry_after = ("retry-after", "Tue, 24 Nov 2026 17:00:30 GMT");
    let date = ("date", "Tue, 24 Nov 2026 17:00:00 GMT");
    for (age, seconds) in [
        ("0", 30.0),
        ("20", 10.0),
        (" 20 ", 10.0),
        // Of a list, which is malformed, the first counts.
        ("20, 25", 10.0),
        ("20.5", 30.0),
        ("-20", 30.0),
        ("old", 30.0),
        ("", 30.0),
    ] {
        let fields = [retry_after, date, ("age", age)];
        assert_eq!(pause_of(&any, 503, &fields), Some(seconds), "{age:?}");
    }
    let fields = [retry_after, date, ("age", "20"), ("age", "25")];
    assert_eq!(pause_of(&any, 503, &fields), Some(10.0));
    // Without `Date`, the local clock counts, whatever the age.
    assert_eq!(
        pause_of(&any, 503, &[retry_after, ("age", "20")]),
        Some(30.0)
    );
    for age in ["30", "31", "99999999999999999999"] {
        let fields = [retry_after, date, ("age", age)];
        assert!(read(&any, 429, &fields).is_exhausted, "{age}");
    }
    // A number of seconds counts from the receipt (RFC 9110, section 10.2.3).
    assert_eq!(
        pause_of(&any, 429, &[("retry-after", "30"), date, ("age", "20")]),
        Some(30.0)
    );

    let github = Upstream::github();
    let reset = [
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1795539630"),
    ];
    let fields = [reset[0], reset[1], date, ("age", "20")];
    assert_eq!(pause_of(&github, 200, &fields), Some(10.0));
    // The budget of a window that has ended does not apply to the current one.
    let ietf = Upstream::ietf();
    let field = ("ratelimit", "default;r=0;t=30");
    assert_eq!(
        pause_of(&ietf, 200, &[field, date, ("age", "20")]),
        Some(10.0)
    );
    assert_eq!(
        read(&ietf, 200, &[field, date, ("age", "30")]),
        Advice::default()
    );
    let fields = [reset[0], reset[1], date, ("age", "31")];
    assert_eq!(read(&github, 200, &fields), Advice::default());
}

proptest! {
    #![proptest_config(crate::verification::bucket_model::seeded())]

    #[test]
    fn parsed_times_are_finite(text in "\\PC{0,80}") {
        for seconds in [
            time::seconds(&text),
            time::go_duration(&text),
            time::http_date(&text),
            time::rfc_3339(&text),
        ] {
            prop_assert!(seconds.is_none_or(f64::is_finite));
        }
    }
}
