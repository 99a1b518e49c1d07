use super::*;
use crate::quota::Quota;

fn text(name: &str, quota: Quota) -> String {
    PolicyText::with(&Policy::new(name, quota), |text| {
        text.policy().to_str().expect("ASCII").to_owned()
    })
}

#[test]
fn text_follows_name_and_quota() {
    for _ in 0..2 {
        assert_eq!(text("a", Quota::per_second(5.0)), r#""a";q=5;w=1"#);
        assert_eq!(text("b", Quota::per_second(5.0)), r#""b";q=5;w=1"#);
        assert_eq!(text("a", Quota::per_second(7.0)), r#""a";q=7;w=1"#);
        assert_eq!(text("a", Quota::per_minute(7.0)), r#""a";q=7;w=60"#);
        assert_eq!(text("%\"", Quota::per_minute(7.0)), r#""%25\"";q=7;w=60"#);
    }
    let left = Left {
        tokens: 3,
        seconds: 12,
    };
    let policy = Policy::new("%\"", Quota::per_second(1.0));
    let field = PolicyText::with(&policy, |text| text.left(left));
    assert_eq!(field, r#""%25\"";r=3;t=12"#);
}

#[test]
fn a_thread_keeps_few_texts() {
    for n in 0..3 * MOST_KEPT {
        let name = n.to_string();
        assert_eq!(
            text(&name, Quota::per_second(5.0)),
            format!(r#""{n}";q=5;w=1"#)
        );
        assert!(KEPT.with_borrow(Vec::len) <= MOST_KEPT);
    }
}
