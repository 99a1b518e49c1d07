use proptest::prelude::*;

use super::*;
use crate::scope::Keyspace;

const SITE: Scope = Quota::per_second(1.0).scope("site");
const SALT: [u8; 32] = [7; 32];

#[test]
fn an_empty_name_panics_where_it_is_written() {
    let quota = Quota::per_second(1.0);
    assert!(std::panic::catch_unwind(|| quota.scope("")).is_err());
    assert!(std::panic::catch_unwind(|| Scope::new("", quota)).is_err());
}

#[test]
fn long_parts_are_hashed() {
    let long = Scope::new("n".repeat(10_000), SITE.quota());
    assert!(long.id(&SALT).as_bytes().len() < 40);
    let key = SITE.key("k".repeat(10_000));
    assert!(key.id(&SALT).as_bytes().len() < 40);
    assert!(!format!("{:?}", SITE.key("hunter2")).contains("hunter2"));
}

mod in_redis {
    use super::*;

    fn redis_key(prefix: &str, scope: &Scope) -> String {
        let id = scope.id(&SALT);
        let key = Keyspace::new(prefix, SALT).bucket(id.as_bytes());
        String::from_utf8(key).expect("ASCII")
    }

    #[test]
    fn names_are_readable_and_keys_are_hashed() {
        let default = |scope: &Scope| redis_key("throttle:v1", scope);
        let name = |name: &str| Scope::new(name, SITE.quota());
        assert_eq!(default(&SITE), "throttle:v1|site");
        assert_eq!(default(&name("a-b_c/d")), "throttle:v1|a-b_c/d");
        assert_eq!(
            default(&name("a:{b}\0%#|")),
            "throttle:v1|a%3a%7bb%7d%00%25%23%7c"
        );
        for key in ["", "a", "192.0.2.1", "hunter2", &"k".repeat(65)] {
            let stored = default(&SITE.key(key));
            let hash = stored.strip_prefix("throttle:v1|site:").expect("the name");
            assert_eq!(hash.len(), 32, "{stored}");
            assert!(hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        let long = default(&name(&"n".repeat(65)));
        assert_eq!(long.len(), "throttle:v1|#".len() + 32);
    }

    #[test]
    fn the_hash_of_a_key_depends_on_the_secret() {
        let id = SITE.key("a").id(&SALT);
        let [one, two] = [SALT, [8; 32]].map(|salt| Keyspace::new("p", salt));
        assert_ne!(one.bucket(id.as_bytes()), two.bucket(id.as_bytes()));
    }

    /// Texts of characters with a special meaning, some of them long enough to be hashed.
    fn text(alphabet: &'static str) -> impl Strategy<Value = String> {
        let of = |length| {
            let pattern = format!("[{alphabet}]{length}");
            proptest::string::string_regex(&pattern).expect("a pattern")
        };
        prop_oneof![4 => of("{0,4}"), 1 => of("{64,66}")]
    }

    type Parts = (String, String, Option<String>);

    fn parts() -> impl Strategy<Value = Parts> {
        let name = text("a:#%{}/|*é").prop_map(|name| format!("a{name}"));
        let key = proptest::option::of(text("a:#%{}/|*é\u{0}"));
        (text("a:#%{}/é"), name, key)
    }

    /// The same prefix, or one that continues the other; and what would follow it, moved from
    /// one part to the next.
    fn neighbours() -> impl Strategy<Value = (Parts, Parts)> {
        let moved = (parts(), parts()).prop_flat_map(|(one, other)| {
            let (prefix, name, key) = one.clone();
            let last = key.clone().filter(|key| !key.is_empty());
            let last = last.unwrap_or_else(|| "a".to_owned());
            let near = vec![
                other,
                one.clone(),
                (format!("{prefix}{name}:"), last, None),
                (format!("{prefix}{name}:"), name.clone(), key.clone()),
                (prefix.clone(), format!("{name}:a"), None),
                (prefix.clone(), name.clone(), None),
                (prefix.clone(), name.clone(), Some(String::new())),
                (String::new(), format!("{prefix}{name}"), key),
                (prefix, "#limiters".to_owned(), None),
            ];
            (Just(one), proptest::sample::select(near))
        });
        moved.prop_filter("such a prefix is rejected", |(_, (prefix, ..))| {
            !prefix.contains(['|', '*'])
        })
    }

    proptest! {
        #![proptest_config(crate::verification::bucket_model::seeded())]

        /// Different prefixes, names or keys are different keys of Redis, and the pattern of
        /// a prefix matches the keys of that prefix alone.
        #[test]
        fn different_parts_are_different_keys((one, two) in neighbours()) {
            let stored = |(prefix, name, key): &Parts| {
                let scope = Scope::new(name.clone(), SITE.quota());
                redis_key(prefix, &match key {
                    Some(key) => scope.key(key),
                    None => scope,
                })
            };
            let (a, b) = (stored(&one), stored(&two));
            prop_assert_eq!(a == b, one == two, "{} {}", a, b);
            prop_assert_eq!(a.starts_with(&format!("{}|", two.0)), one.0 == two.0);
            for own in ["{#}limiters", "{#}epoch", "#probe", "#paid:me:1"] {
                let own = Keyspace::new(&two.0, SALT).own(own);
                prop_assert_ne!(a.as_bytes(), own);
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::verification::bucket_model::seeded())]

    /// No name and key are the bucket of another name and key.
    #[test]
    fn different_names_and_keys_have_different_buckets(
        a in ("[a:#%{]{1,3}", proptest::option::of("[a:#%{\u{0}]{0,3}")),
        b in ("[a:#%{]{1,3}", proptest::option::of("[a:#%{\u{0}]{0,3}")),
    ) {
        let make = |(name, key): &(String, Option<String>)| {
            let scope = Scope::new(name.clone(), SITE.quota());
            match key {
                Some(key) => scope.key(key),
                None => scope,
            }
        };
        let (one, two) = (make(&a), make(&b));
        let same = one.same_bucket(&two);
        prop_assert_eq!(same, a == b);
        prop_assert_eq!(one.id(&SALT).as_bytes() == two.id(&SALT).as_bytes(), same);
    }
}
