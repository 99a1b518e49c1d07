use std::time::Duration;

use super::{Advice, Upstream, pause_of, read};

#[test]
fn retry_after_headers_have_an_order_of_preference() {
    let any = Upstream::retry_after();
    assert_eq!(pause_of(&any, 429, &[("retry-after", "2")]), Some(2.0));
    assert_eq!(pause_of(&any, 503, &[("retry-after", "2.5")]), Some(2.5));
    assert_eq!(
        pause_of(
            &any,
            429,
            &[("retry-after-ms", "120"), ("retry-after", "9")]
        ),
        Some(0.12)
    );
    assert_eq!(
        pause_of(&any, 429, &[("retry-after-ms", "-"), ("retry-after", "9")]),
        Some(9.0)
    );
    let date = ("retry-after", "Tue, 24 Nov 2026 17:00:07 GMT");
    assert_eq!(pause_of(&any, 429, &[date]), Some(7.0));
    // Times are compared with the clock of the upstream.
    let own = ("date", "Tue, 24 Nov 2026 17:00:04 GMT");
    assert_eq!(pause_of(&any, 429, &[date, own]), Some(3.0));
    assert_eq!(
        pause_of(&any, 429, &[("retry-after", "86400")]),
        Some(60.0),
        "capped"
    );
    assert_eq!(pause_of(&any, 200, &[("retry-after", "2")]), None);
    assert_eq!(pause_of(&any, 403, &[("retry-after", "2")]), None);
    assert!(read(&any, 429, &[("retry-after", "soon")]).is_exhausted);
    assert_eq!(read(&any, 503, &[]), Advice::default());
    // Headers of other profiles are ignored.
    assert_eq!(
        read(&any, 200, &[("x-ratelimit-remaining", "0")]),
        Advice::default()
    );
}

#[test]
fn budgets_of_openai_and_anthropic_are_read() {
    let openai = Upstream::openai();
    let fields = [
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-reset-tokens", "1m30s"),
    ];
    let advice = read(&openai, 200, &fields);
    assert_eq!(advice.pause, None);
    let remaining = [("requests".to_owned(), 59.0), ("tokens".to_owned(), 0.0)];
    assert_eq!(advice.remaining, remaining);
    let patient = openai.clone().cap(Duration::from_secs(3_600));
    assert_eq!(pause_of(&patient, 429, &fields), Some(90.0));
    let azure = [
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "-1"),
    ];
    assert!(read(&openai, 429, &azure).is_exhausted);

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
        pause_of(&anthropic, 429, &fields),
        Some(9.0),
        "fields without a scope are ignored"
    );
    let passed = [
        fields[1],
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2026-11-24T16:59:59Z",
        ),
    ];
    assert!(read(&anthropic, 429, &passed).is_exhausted);
    assert_eq!(
        pause_of(&anthropic, 529, &[("retry-after", "4")]),
        Some(4.0)
    );
    assert_eq!(pause_of(&openai, 529, &[("retry-after", "4")]), None);
}

#[test]
fn headers_of_azure_are_read() {
    let openai = Upstream::openai();
    // The order of preference of Azure's clients.
    let all = [
        ("retry-after-ms", "120"),
        ("x-ms-retry-after-ms", "230"),
        ("retry-after", "9"),
    ];
    for upstream in [&openai, &Upstream::retry_after()] {
        assert_eq!(pause_of(upstream, 429, &all), Some(0.12));
        assert_eq!(pause_of(upstream, 429, &all[1..]), Some(0.23));
        assert_eq!(
            pause_of(upstream, 429, &[("x-ms-retry-after-ms", "-"), all[2]]),
            Some(9.0)
        );
        assert_eq!(pause_of(upstream, 200, &all), None);
    }
    // The rejected budget has only a reset, in one of two spellings.
    for name in ["x-ratelimit-reset-tokens", "x-rate-limit-reset-tokens"] {
        let fields = [("x-ratelimit-remaining-requests", "79"), (name, "55")];
        assert_eq!(pause_of(&openai, 429, &fields), Some(55.0), "{name}");
        let advice = read(&openai, 200, &fields);
        assert_eq!(advice.pause, None, "{name}");
        assert_eq!(advice.remaining, [("requests".to_owned(), 79.0)], "{name}");
    }
    // The reset of a budget of which something remains is ignored.
    let fields = [
        ("x-ratelimit-remaining-requests", "79"),
        ("x-ratelimit-reset-requests", "50"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "7"),
    ];
    assert_eq!(pause_of(&openai, 429, &fields), Some(7.0));
    // Azure writes -1 for unknown.
    let unknown = [
        ("x-ratelimit-limit-tokens", "-1"),
        ("x-ratelimit-remaining-tokens", "-1"),
        ("x-ratelimit-reset-tokens", "0"),
    ];
    assert!(read(&openai, 429, &unknown).is_exhausted);
    assert_eq!(read(&openai, 200, &unknown), Advice::default());
}

#[test]
fn github_pauses_until_the_reset_and_403_may_be_about_permissions() {
    let github = Upstream::github();
    let reset = ("x-ratelimit-reset", "1795539630");
    let none_left = ("x-ratelimit-remaining", "0");
    assert_eq!(pause_of(&github, 403, &[none_left, reset]), Some(30.0));
    assert_eq!(pause_of(&github, 200, &[none_left, reset]), Some(30.0));
    assert_eq!(
        pause_of(&github, 200, &[("x-ratelimit-remaining", "4"), reset]),
        None
    );
    assert_eq!(
        pause_of(&github, 403, &[("x-ratelimit-remaining", "4"), reset]),
        None
    );
    assert!(!read(&github, 403, &[]).is_exhausted);
    assert_eq!(pause_of(&github, 403, &[("retry-after", "5")]), Some(5.0));
    assert_eq!(pause_of(&github, 429, &[]), Some(60.0));
}
