use std::time::Duration;

use super::*;
use crate::{quota::Quota, scope::Scope};

#[test]
fn any_name_makes_valid_json() {
    for name in ["plain", "\"\\\u{0}\u{1f}\n\t", "für 50%", "\u{2028}😀"] {
        let scope = Scope::new(name, Quota::per_second(1.0));
        let wait = Duration::from_millis(1_500);
        let rejected = Rejected::limited(&scope, wait, 0.0, false);
        let json: serde_json::Value = serde_json::from_str(&problem_json(&rejected)).expect("JSON");
        assert_eq!(json["status"], 429);
        assert_eq!(json["violated-policies"][0], *policy_name(name));
        assert_eq!(json["detail"], rejected.to_string());
    }
}
