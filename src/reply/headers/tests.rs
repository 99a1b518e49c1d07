use super::*;
use crate::quota::Quota;

#[test]
fn existing_field_is_continued_as_a_list_or_replaced() {
    let policy = Policy::new("p", Quota::per_minute(60.0));
    let left = Some(Left {
        tokens: 5,
        seconds: 1,
    });
    for (existing, stays) in [
        ("\"a\";r=1;t=2", true),
        ("\"a=b\";r=1", true),
        ("a;r=1", true),
        ("limit=100, remaining=50, reset=5", false),
        ("limit=100", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(RATE_LIMIT, HeaderValue::from_static(existing));
        write_draft([policy].into_iter(), &policy, left, &mut headers);
        let lines: Vec<_> = headers.get_all(RATE_LIMIT).iter().collect();
        let ours = "\"p\";r=5;t=1";
        match stays {
            true => assert_eq!(lines, [existing, ours]),
            false => assert_eq!(lines, [ours]),
        }
        let field: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
        let list = sfv::Parser::new(&field.join(&b", "[..])).parse::<sfv::List>();
        assert_eq!(list.expect("a list").len(), lines.len());
    }
}

#[test]
fn legacy_fields_of_the_smaller_remaining_stay() {
    let policy = Policy::new("p", Quota::per_minute(60.0));
    let left = |tokens| Some(Left { tokens, seconds: 1 });
    for (existing, ours, remaining) in [
        (None, left(5), Some("5")),
        (Some("4"), left(5), Some("4")),
        (Some("6"), left(5), Some("5")),
        (Some("unknown"), left(5), Some("5")),
        (Some("4"), None, Some("4")),
        (None, None, None),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(existing) = existing {
            headers.insert(LIMIT, HeaderValue::from_static("10"));
            headers.insert(REMAINING, HeaderValue::from_static(existing));
        }
        write_legacy(&policy, ours, &mut headers);
        assert_eq!(
            headers.get(REMAINING).map(HeaderValue::as_bytes),
            remaining.map(str::as_bytes)
        );
        // All fields are of the same limit.
        let limit = if remaining.is_some() && remaining == existing {
            "10"
        } else {
            "60"
        };
        assert_eq!(headers[LIMIT], limit, "{existing:?}");
    }
}
