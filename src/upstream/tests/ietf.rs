use std::time::Duration;

use super::{Advice, Upstream, read};

#[test]
fn all_three_forms_of_the_draft_are_read() {
    let ietf = Upstream::ietf();
    for fields in [
        &[("ratelimit", r#""burst";r=0;t=30"#)][..],
        &[("ratelimit", "limit=100, remaining=0, reset=30")],
        &[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")],
    ] {
        let advice = read(&ietf, 200, fields);
        assert_eq!(advice.pause, Some(Duration::from_secs(30)), "{fields:?}");
        assert_eq!(advice.remaining, [(String::new(), 0.0)]);
    }
    // Of several policies the named ones count, in any number of lines.
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

/// The examples of draft 08 have tokens, which look like a dictionary of draft 07.
#[test]
fn names_of_policies_may_be_tokens() {
    let ietf = Upstream::ietf();
    for name in ["default", "Default", "*a", "remaining", "limit", "reset"] {
        let field = format!("{name};r=0;t=30");
        let advice = read(&ietf, 200, &[("ratelimit", &field)]);
        assert_eq!(advice.pause, Some(Duration::from_secs(30)), "{field}");
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
