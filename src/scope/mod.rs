//! Whose bucket: [`Scope`], one or several of them, and their identity in a store.

mod bucket_id;
mod key;
mod live;
mod scopes;

use std::{
    fmt::{self, Display},
    sync::Arc,
};

pub(crate) use self::bucket_id::{BucketId, Hashes, Keyspace, Lookup, PREFIX_END};
use self::key::Key;
pub use self::{
    live::LiveScope,
    scopes::{IntoScopes, Scopes},
};
use crate::{
    bucket::BucketParams,
    fallback::{Fallback, Share},
    quota::Quota,
};

/// Whose bucket, by which limit, and what this acquisition costs.
///
/// The *name* is for people, metrics and headers; the *key* is what comes from outside (a
/// tenant, a user, an address) and gives each its own bucket; the *cost* is how many tokens one
/// acquisition takes, 1 unless said.
///
/// `Debug` hides the key, because it may be a secret.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope};
///
/// const PER_TENANT: Scope = Quota::per_minute(60.0).scope("tenant");
/// let scope = PER_TENANT.key("acme").cost(3.0);
/// assert_eq!(scope.name(), "tenant");
/// assert!(!format!("{scope:?}").contains("acme"));
/// ```
#[must_use]
#[derive(Clone, PartialEq)]
pub struct Scope {
    name: Name,
    key: Key,
    quota: Quota,
    cost: f64,
    costed: bool,
    fallback: OwnFallback,
    /// The part of a [`Share::Fixed`] in `fallback`, otherwise 0.
    part: f64,
}

/// `Option<Fallback>` without the number of its share, which is a field of the scope.
///
/// `Option<Fallback>` is 24 bytes, so that a scope would be 136 bytes instead of 120. Each decision
/// copies its scope: it would execute 5 % more instructions (cachegrind, a layer in memory).
#[derive(Clone, Copy, PartialEq)]
enum OwnFallback {
    None,
    Share,
    ShareOf,
    Strict,
    StrictOf,
    Open,
    Closed,
}

#[derive(Clone, PartialEq)]
pub(crate) enum Name {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Name {
    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Shared(name) => name,
        }
    }
}

impl Quota {
    /// Names this limit: a [`Scope`] with one bucket, until it is given a key.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const SITE: Scope = Quota::per_second(500.0).scope("site");
    /// assert_eq!(SITE.name(), "site");
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is empty; in a `const`, a compile error.
    #[track_caller]
    pub const fn scope(self, name: &'static str) -> Scope {
        Scope::fixed(name, self)
    }
}

impl Scope {
    /// A scope whose name comes from configuration.
    ///
    /// Names over 64 bytes work; the stores know them by a hash.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// let name = format!("upstream-{}", 7);
    /// assert_eq!(Scope::new(name, Quota::per_second(5.0)).name(), "upstream-7");
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is empty.
    pub fn new(name: impl Into<String>, quota: Quota) -> Self {
        let name = name.into();
        assert!(
            !name.is_empty(),
            "the name of a scope is empty: name what is limited, such as \"api-key\""
        );
        Self {
            name: Name::Shared(name.into()),
            ..Self::fixed("-", quota)
        }
    }

    pub(crate) const fn fixed(name: &'static str, quota: Quota) -> Self {
        assert!(
            !name.is_empty(),
            "the name of a scope is empty: name what is limited, such as \"api-key\""
        );
        Self {
            name: Name::Static(name),
            key: Key::None,
            quota,
            cost: 1.0,
            costed: false,
            fallback: OwnFallback::None,
            part: 0.0,
        }
    }

    /// The same limit, in a bucket of its own for `key`.
    ///
    /// Keys up to 38 bytes allocate nothing. Whatever a key holds, it never reaches the bucket
    /// of another name or key.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const PER_USER: Scope = Quota::per_second(5.0).scope("user");
    /// assert_ne!(PER_USER.key(17), PER_USER.key(18));
    /// ```
    pub fn key(&self, key: impl Display) -> Self {
        Self {
            name: self.name.clone(),
            key: Key::new(key),
            ..*self
        }
    }

    /// The same limit, in a bucket of its own for each combination of `keys`: what
    /// [`by`](Self::by) finds with a tuple.
    ///
    /// Combinations that differ in any key are different buckets, whatever the keys contain: a
    /// key `a/b` is not the keys `a` and `b`. One key alone is the same as [`key`](Self::key), and
    /// none at all is the bucket without a key.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const PER_USER: Scope = Quota::per_second(5.0).scope("user");
    /// assert_ne!(PER_USER.keys(["GET", "ann"]), PER_USER.key("GET/ann"));
    /// assert_eq!(PER_USER.keys(["ann"]), PER_USER.key("ann"));
    /// ```
    pub fn keys(&self, keys: impl IntoIterator<Item = impl Display>) -> Self {
        Self {
            name: self.name.clone(),
            key: Key::joined(keys),
            ..*self
        }
    }

    /// As `keys`, of the keys that these scopes have.
    pub(crate) fn keys_of(&self, scopes: &[&Self]) -> Self {
        let keys: Vec<_> = scopes.iter().map(|scope| &scope.key).collect();
        Self {
            name: self.name.clone(),
            key: Key::joined_from(&keys),
            ..*self
        }
    }

    /// What this acquisition takes, in tokens.
    ///
    /// Never panics, because a cost often comes from a request: zero takes nothing; NaN,
    /// negative, infinite and more than the capacity are refused as
    /// [`Reason::ExceedsCapacity`](crate::Reason::ExceedsCapacity). A level is rounded to 2^-54 of the
    /// capacity, so that a cost below that may not be counted.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const TOKENS: Scope = Quota::per_minute(90_000.0).scope("llm-tokens").cost(1_200.0);
    /// # let _ = TOKENS;
    /// ```
    pub const fn cost(mut self, tokens: f64) -> Self {
        self.cost = tokens;
        self.costed = true;
        self
    }

    /// What decides on this scope while Redis cannot be asked, whatever the limiter's
    /// [`fallback`](crate::LimiterBuilder::fallback) is. All processes should say the same.
    ///
    /// ```
    /// # use tower_throttle::{Fallback, Quota, Scope};
    /// const LOGIN: Scope = Quota::per_minute(5.0).scope("login").fallback(Fallback::FailClosed);
    /// const SEARCH: Scope = Quota::per_second(50.0).scope("search").fallback(Fallback::FailOpen);
    /// # let _ = (LOGIN, SEARCH);
    /// ```
    ///
    /// # Panics
    ///
    /// If a [`Share::Fixed`](crate::Share::Fixed) is not above 0 and at most 1.
    pub const fn fallback(mut self, fallback: Fallback) -> Self {
        fallback.assert();
        (self.fallback, self.part) = match fallback {
            Fallback::LocalShare(Share::Auto) => (OwnFallback::Share, 0.0),
            Fallback::LocalShare(Share::Fixed(part)) => (OwnFallback::ShareOf, part),
            Fallback::StrictShare(Share::Auto) => (OwnFallback::Strict, 0.0),
            Fallback::StrictShare(Share::Fixed(part)) => (OwnFallback::StrictOf, part),
            Fallback::FailOpen => (OwnFallback::Open, 0.0),
            Fallback::FailClosed => (OwnFallback::Closed, 0.0),
        };
        self
    }

    /// The name, for people.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(1.0).scope("site").key("x").name(), "site");
    /// ```
    #[inline]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The limit.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(7.0).scope("site").quota().rate(), 7.0);
    /// ```
    pub const fn quota(&self) -> Quota {
        self.quota
    }

    /// The name, to be kept.
    pub(crate) fn to_name(&self) -> Name {
        self.name.clone()
    }

    /// The parameters of its bucket.
    #[inline]
    pub(crate) const fn params(&self) -> BucketParams {
        self.quota.params()
    }

    /// Tokens that an acquisition takes.
    pub(crate) const fn tokens(&self) -> f64 {
        self.cost
    }

    /// The fallback of this scope, if one was set.
    pub(crate) const fn own_fallback(&self) -> Option<Fallback> {
        Some(match self.fallback {
            OwnFallback::None => return None,
            OwnFallback::Share => Fallback::LocalShare(Share::Auto),
            OwnFallback::ShareOf => Fallback::LocalShare(Share::Fixed(self.part)),
            OwnFallback::Strict => Fallback::StrictShare(Share::Auto),
            OwnFallback::StrictOf => Fallback::StrictShare(Share::Fixed(self.part)),
            OwnFallback::Open => Fallback::FailOpen,
            OwnFallback::Closed => Fallback::FailClosed,
        })
    }

    /// Whether `cost` was said.
    pub(crate) const fn is_costed(&self) -> bool {
        self.costed
    }

    pub(crate) fn uncosted(mut self) -> Self {
        self.costed = false;
        self
    }

    pub(crate) fn unkeyed(&self) -> Self {
        Self {
            name: self.name.clone(),
            key: Key::None,
            ..*self
        }
    }

    pub(crate) fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Whether both name the same bucket.
    pub(crate) fn same_bucket(&self, other: &Self) -> bool {
        self.name() == other.name() && self.key == other.key
    }

    /// By what a store is asked for this bucket.
    #[inline]
    pub(crate) fn lookup<'a>(&'a self, secret: &[u8; 32], hashes: &'a mut Hashes) -> Lookup<'a> {
        Lookup::new(self.name().as_bytes(), self.key.bytes(), secret, hashes)
    }

    /// How a store knows this bucket.
    pub(crate) fn id(&self, secret: &[u8; 32]) -> BucketId {
        BucketId::new(self.name().as_bytes(), self.key.bytes(), secret)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Scope");
        debug.field("name", &self.name());
        if self.key.bytes().is_some() {
            debug.field("key", &format_args!("***"));
        }
        debug.field("quota", &format_args!("{}", self.quota));
        debug.field("cost", &self.cost).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

        /// Long enough to be hashed, or not, out of the characters that have a meaning somewhere.
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
        fn buckets_never_meet(
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
}
