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

    fn field(scope: &Scope, salt: [u8; 32]) -> Vec<u8> {
        let (id, mut field) = (scope.id(&salt), Vec::new());
        Keyspace::new("p", salt).push_field(id.as_bytes(), &mut field);
        field
    }

    #[test]
    fn names_are_readable_and_keys_are_hashed() {
        let name = |name: &str| Scope::new(name, SITE.quota());
        for plain in ["site", "a-b_c/d", "a:{b}\0%#|"] {
            assert_eq!(field(&name(plain), SALT), plain.as_bytes());
        }
        for key in ["", "a", "192.0.2.1", "hunter2", &"k".repeat(65)] {
            let stored = field(&SITE.key(key), SALT);
            let hash = stored.strip_prefix(b"site\xFF").expect("the name");
            assert_eq!(hash.len(), 16, "{stored:?}");
        }
        assert_eq!(field(&name(&"n".repeat(65)), SALT).len(), 17);
    }

    #[test]
    fn the_hash_of_a_key_depends_on_the_secret() {
        for key in ["a", &"k".repeat(65)] {
            let key = SITE.key(key);
            assert_ne!(field(&key, SALT), field(&key, [8; 32]));
        }
    }

    #[test]
    fn all_keys_of_a_prefix_have_one_hash_tag() {
        let keyspace = Keyspace::new("p", SALT);
        let [first, second] = keyspace.class(16);
        for key in [keyspace.directory(), first, second] {
            assert!(key.starts_with(b"p|{#}"), "{key:?}");
        }
    }

    /// Texts of characters with a special meaning, some of them long enough to be hashed.
    fn text(alphabet: &'static str) -> impl Strategy<Value = String> {
        let of = |length| {
            let pattern = format!("[{alphabet}]{length}");
            proptest::string::string_regex(&pattern).expect("a pattern")
        };
        prop_oneof![4 => of("{0,4}"), 1 => of("{64,66}")]
    }

    type Parts = (String, Option<String>);

    fn parts() -> impl Strategy<Value = Parts> {
        let name = text("a:#%{}/|*é").prop_map(|name| format!("a{name}"));
        let key = proptest::option::of(text("a:#%{}/|*é\u{0}"));
        (name, key)
    }

    /// What would follow a name, moved to its key and back.
    fn neighbours() -> impl Strategy<Value = (Parts, Parts)> {
        (parts(), parts()).prop_flat_map(|(one, other)| {
            let (name, key) = one.clone();
            let near = vec![
                other,
                one.clone(),
                (format!("{name}:a"), None),
                (name.clone(), None),
                (name.clone(), Some(String::new())),
                (format!("{name}{}", key.unwrap_or_default()), None),
            ];
            (Just(one), proptest::sample::select(near))
        })
    }

    proptest! {
        #![proptest_config(crate::verification::bucket_model::seeded())]

        /// Different names or keys are different fields, and none is that of a bucket that no scope
        /// has.
        #[test]
        fn different_parts_are_different_fields((one, two) in neighbours()) {
            let stored = |(name, key): &Parts| {
                let scope = Scope::new(name.clone(), SITE.quota());
                field(&match key {
                    Some(key) => scope.key(key),
                    None => scope,
                }, SALT)
            };
            let (a, b) = (stored(&one), stored(&two));
            prop_assert_eq!(a == b, one == two, "{:?} {:?}", a, b);
            let mut own = Vec::new();
            Keyspace::new("p", SALT).push_own_field(&one.0, &mut own);
            prop_assert_ne!(a, own);
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
