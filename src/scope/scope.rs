//! [`Scope`]: a limit, the bucket that counts for it, and a cost.

use std::{
    fmt::{self, Display},
    sync::Arc,
};

use super::{
    bucket_id::{BucketId, Hashes, Lookup},
    key::Key,
};
use crate::{
    bucket::BucketParams,
    fallback::{Fallback, Share},
    quota::Quota,
};

/// A limit, the bucket that counts for it, and the cost of one acquisition.
///
/// The *name* identifies the limit, also in metrics and headers. The *key* comes from a request (a
/// tenant, a user, an address), and each key has a bucket of its own. The *cost* is how many tokens
/// one acquisition takes. It defaults to 1.
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
    /// Names of more than 64 bytes are stored as their hash.
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
            "the name of a scope must not be empty: use what is limited, such as \"api-key\""
        );
        Self {
            name: Name::Shared(name.into()),
            ..Self::fixed("-", quota)
        }
    }

    pub(crate) const fn fixed(name: &'static str, quota: Quota) -> Self {
        assert!(
            !name.is_empty(),
            "the name of a scope must not be empty: use what is limited, such as \"api-key\""
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

    /// The same limit with a bucket of its own for `key`.
    ///
    /// Keys of up to 38 bytes allocate nothing. No key, whatever its bytes, selects the bucket of
    /// another name or key.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const PER_USER: Scope = Quota::per_second(5.0).scope("user");
    /// assert_ne!(PER_USER.key(17), PER_USER.key(18));
    /// ```
    #[inline]
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

    /// The same as [`key`](Self::key) of a text, whose bytes these are, without formatting it.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn key_bytes(&self, text: &[u8]) -> Self {
        Self {
            name: self.name.clone(),
            key: Key::of(text),
            ..*self
        }
    }

    /// As `keys`, of the keys that these scopes have.
    pub(crate) fn keys_of(&self, scopes: &[&Self]) -> Self {
        Self {
            name: self.name.clone(),
            key: Key::joined_from(scopes.iter().map(|scope| &scope.key)),
            ..*self
        }
    }

    /// Sets the cost of an acquisition, in tokens. Defaults to 1.
    ///
    /// Never panics, because a cost often comes from a request. Zero takes nothing. A cost that is
    /// NaN, negative, infinite or more than the capacity is rejected with
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

    /// Sets what decides on this scope while Redis is unavailable, instead of the limiter's
    /// [`fallback`](crate::LimiterBuilder::fallback). Use the same fallback in all processes.
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

    /// Whether `cost` was called.
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

    /// The key of this bucket for a look-up in a store.
    #[inline]
    pub(crate) fn lookup<'a>(&'a self, secret: &[u8; 32], hashes: &'a mut Hashes) -> Lookup<'a> {
        Lookup::new(self.name().as_bytes(), self.key.bytes(), secret, hashes)
    }

    /// The identity of this bucket in a store.
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
mod tests;
