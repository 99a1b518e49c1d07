//! Whose bucket: [`Scope`], one or several of them, and their identity in a store.

use std::{
    fmt::{self, Display, Write},
    sync::Arc,
};

use crate::quota::Quota;

/// Keys up to this many bytes live inside the scope.
const INLINE: usize = 38;

/// Names and keys over this many bytes are known to the stores by a hash.
const LONGEST_PLAIN: usize = 64;

/// Bytes of that hash: 128 bits.
const HASH: usize = 16;

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
    secret: bool,
}

#[derive(Clone, PartialEq)]
enum Name {
    Static(&'static str),
    Shared(Arc<str>),
}

#[derive(Clone)]
enum Key {
    None,
    Inline(u8, [u8; INLINE]),
    Shared(Arc<[u8]>),
}

impl Key {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Inline(length, bytes) => Some(&bytes[..usize::from(*length)]),
            Self::Shared(bytes) => Some(bytes),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
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
            secret: false,
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
        let mut writer = KeyWriter::default();
        // A `Display` that reports an error still wrote what it could; that is its key.
        let _ = write!(writer, "{key}");
        Self {
            key: writer.finish(),
            ..self.clone()
        }
    }

    /// What this acquisition takes, in tokens.
    ///
    /// Never panics, because a cost often comes from a request: zero takes nothing; NaN,
    /// negative, infinite and more than the capacity are refused as
    /// [`Reason::Impossible`](crate::Reason::Impossible), and so is a cost below the capacity
    /// times 2^-40, which a double could not hold.
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

    /// The key is a secret, such as an API key: it leaves the process only as a keyed hash.
    ///
    /// ```
    /// # use tower_throttle::{Quota, Scope};
    /// const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key").secret();
    /// let scope = PER_KEY.key("sk-3f9a");
    /// # let _ = scope;
    /// ```
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// The name, for people.
    ///
    /// ```
    /// # use tower_throttle::Quota;
    /// assert_eq!(Quota::per_second(1.0).scope("site").key("x").name(), "site");
    /// ```
    pub fn name(&self) -> &str {
        match &self.name {
            Name::Static(name) => name,
            Name::Shared(name) => name,
        }
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

    /// Tokens that an acquisition takes.
    pub(crate) const fn tokens(&self) -> f64 {
        self.cost
    }

    /// Whether `cost` was said.
    pub(crate) const fn is_costed(&self) -> bool {
        self.costed
    }

    pub(crate) fn uncosted(mut self) -> Self {
        self.costed = false;
        self
    }

    pub(crate) fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Whether both name the same bucket.
    pub(crate) fn same_bucket(&self, other: &Self) -> bool {
        self.name() == other.name() && self.key == other.key && self.secret == other.secret
    }

    /// How a store knows this bucket.
    pub(crate) fn id(&self, secret: &[u8; 32]) -> BucketId {
        let mut id = BucketId::default();
        id.part(self.name().as_bytes(), false, secret);
        if let Some(key) = self.key.bytes() {
            id.push(&[KEY_MARK]);
            id.part(key, self.secret, secret);
        }
        id
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

/// Collects a key, in place as long as it is short.
struct KeyWriter {
    length: usize,
    inline: [u8; INLINE],
    spilled: Vec<u8>,
}

impl Default for KeyWriter {
    fn default() -> Self {
        Self {
            length: 0,
            inline: [0; INLINE],
            spilled: Vec::new(),
        }
    }
}

impl Write for KeyWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let bytes = text.as_bytes();
        let end = self.length + bytes.len();
        if self.spilled.is_empty() && end <= INLINE {
            self.inline[self.length..end].copy_from_slice(bytes);
        } else {
            if self.spilled.is_empty() {
                self.spilled.extend_from_slice(&self.inline[..self.length]);
            }
            self.spilled.extend_from_slice(bytes);
        }
        self.length = end;
        Ok(())
    }
}

impl KeyWriter {
    fn finish(self) -> Key {
        if self.spilled.is_empty() {
            // At most 38.
            Key::Inline(self.length as u8, self.inline)
        } else {
            Key::Shared(self.spilled.into())
        }
    }
}

/// Bytes that no UTF-8 text holds, so that no name or key can imitate them.
const HASH_MARK: u8 = 0xFE;
const KEY_MARK: u8 = 0xFF;

/// What distinguishes one bucket from all others, in memory and in Redis: the name, then the
/// key behind a mark, each by its hash where it is long or secret.
#[derive(Clone, Copy)]
pub(crate) struct BucketId {
    length: u8,
    bytes: [u8; 2 * LONGEST_PLAIN + 1],
}

impl Default for BucketId {
    fn default() -> Self {
        Self {
            length: 0,
            bytes: [0; 2 * LONGEST_PLAIN + 1],
        }
    }
}

impl BucketId {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The part before the key.
    pub(crate) fn name(&self) -> &[u8] {
        let bytes = self.as_bytes();
        // A hash may hold any byte; it is of a known length.
        let from = if bytes.first() == Some(&HASH_MARK) {
            1 + HASH
        } else {
            0
        };
        let end = bytes[from..].iter().position(|byte| *byte == KEY_MARK);
        &bytes[..end.map_or(bytes.len(), |end| from + end)]
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = usize::from(self.length);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }

    fn part(&mut self, bytes: &[u8], hide: bool, secret: &[u8; 32]) {
        if hide || bytes.len() > LONGEST_PLAIN {
            self.push(&[HASH_MARK]);
            self.push(&blake3::keyed_hash(secret, bytes).as_bytes()[..HASH]);
        } else {
            self.push(bytes);
        }
    }

    /// `name` or `name:key`, in characters that no key can use to leave its place: everything
    /// but letters, digits and `-._~@/` is percent-encoded, and `#` starts a hash.
    #[cfg(feature = "redis")]
    pub(crate) fn redis_key(&self, prefix: &str) -> Vec<u8> {
        let mut redis_key = Vec::with_capacity(prefix.len() + self.as_bytes().len() + 8);
        redis_key.extend_from_slice(prefix.as_bytes());
        let mut hashed = 0;
        for &byte in self.as_bytes() {
            if hashed > 0 {
                hashed -= 1;
                redis_key.extend(hex(byte));
                continue;
            }
            match byte {
                HASH_MARK => {
                    redis_key.push(b'#');
                    hashed = HASH;
                }
                KEY_MARK => redis_key.push(b':'),
                _ if byte.is_ascii_alphanumeric() || b"-._~@/".contains(&byte) => {
                    redis_key.push(byte);
                }
                _ => {
                    redis_key.push(b'%');
                    redis_key.extend(hex(byte));
                }
            }
        }
        redis_key
    }
}

#[cfg(feature = "redis")]
fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]
}

/// One or several scopes of one acquisition, or none.
///
/// Made by [`IntoScopes`]; cloning it allocates nothing.
///
/// # Examples
///
/// ```
/// use tower_throttle::{IntoScopes, Quota};
///
/// let rpm = Quota::per_minute(60.0).scope("rpm");
/// let tpm = Quota::per_minute(90_000.0).scope("tpm").cost(1_200.0);
/// assert_eq!([rpm, tpm].into_scopes().iter().count(), 2);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Scopes(Inner);

#[derive(Clone, Debug, Default)]
#[allow(
    clippy::large_enum_variant,
    reason = "the one scope is the common case and must not allocate"
)]
enum Inner {
    #[default]
    None,
    One(Scope),
    Many(Arc<[Scope]>),
}

impl Scopes {
    /// The scopes, in the order in which they were given.
    ///
    /// ```
    /// # use tower_throttle::Scopes;
    /// assert_eq!(Scopes::default().iter().count(), 0);
    /// ```
    pub fn iter(&self) -> std::slice::Iter<'_, Scope> {
        self.as_slice().iter()
    }

    pub(crate) fn as_slice(&self) -> &[Scope] {
        match &self.0 {
            Inner::None => &[],
            Inner::One(scope) => std::slice::from_ref(scope),
            Inner::Many(scopes) => scopes,
        }
    }
}

impl<'a> IntoIterator for &'a Scopes {
    type Item = &'a Scope;
    type IntoIter = std::slice::Iter<'a, Scope>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Vec<Scope>> for Scopes {
    fn from(mut scopes: Vec<Scope>) -> Self {
        match scopes.len() {
            0 => Self(Inner::None),
            1 => Self(scopes.pop().map_or(Inner::None, Inner::One)),
            _ => Self(Inner::Many(scopes.into())),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What can stand for the scopes of an acquisition: a [`Scope`] or a reference to one, an array
/// or a `Vec` of them (all or none), an `Option` (`None` is not limited), [`Scopes`].
///
/// # Examples
///
/// ```
/// use tower_throttle::{IntoScopes, Quota, Scope};
///
/// const SITE: Scope = Quota::per_second(500.0).scope("site");
/// assert_eq!(SITE.into_scopes().iter().count(), 1);
/// assert_eq!(None::<Scope>.into_scopes().iter().count(), 0);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not name whose bucket to take from",
    label = "expected a `Scope`, an array or `Vec` of them, or an `Option`",
    note = "name the limit first: `const API: Scope = Quota::per_second(50.0).scope(\"api\");`, \
            then pass `API`, or `API.key(value)` for a bucket of its own per value"
)]
pub trait IntoScopes: sealed::Sealed {
    /// The scopes.
    ///
    /// ```
    /// # use tower_throttle::{IntoScopes, Quota};
    /// let scope = Quota::per_second(1.0).scope("a");
    /// assert_eq!(vec![scope.clone(), scope].into_scopes().iter().count(), 2);
    /// ```
    fn into_scopes(self) -> Scopes;
}

macro_rules! into_scopes {
    ($([$($generics:tt)*] $type:ty, $this:ident => $scopes:expr;)*) => {$(
        impl<$($generics)*> sealed::Sealed for $type {}
        impl<$($generics)*> IntoScopes for $type {
            fn into_scopes(self) -> Scopes {
                let $this = self;
                $scopes
            }
        }
    )*};
}

into_scopes! {
    [] Scope, scope => Scopes(Inner::One(scope));
    [] &Scope, scope => Scopes(Inner::One(scope.clone()));
    [] Scopes, scopes => scopes;
    [] &Scopes, scopes => scopes.clone();
    [] Vec<Scope>, scopes => scopes.into();
    [const N: usize] [Scope; N], scopes => Vec::from(scopes).into();
    [const N: usize] &[Scope; N], scopes => scopes.to_vec().into();
    [T: IntoScopes] Option<T>, scopes => scopes.map(T::into_scopes).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SITE: Scope = Quota::per_second(1.0).scope("site");
    const SALT: [u8; 32] = [7; 32];

    #[test]
    fn short_keys_stay_inside() {
        assert!(matches!(SITE.key("x".repeat(38)).key, Key::Inline(38, _)));
        assert!(matches!(SITE.key("x".repeat(39)).key, Key::Shared(_)));
        let pieces = SITE.key(format_args!("{}{}", "a".repeat(30), "b".repeat(30)));
        assert_eq!(pieces.key.bytes().map(<[u8]>::len), Some(60));
    }

    #[test]
    fn an_empty_name_panics_where_it_is_written() {
        let quota = Quota::per_second(1.0);
        assert!(std::panic::catch_unwind(|| quota.scope("")).is_err());
        assert!(std::panic::catch_unwind(|| Scope::new("", quota)).is_err());
    }

    #[test]
    fn long_and_secret_parts_are_hashed() {
        let long = Scope::new("n".repeat(10_000), SITE.quota());
        assert!(long.id(&SALT).as_bytes().len() < 40);
        let key = SITE.key("k".repeat(10_000));
        assert!(key.id(&SALT).as_bytes().len() < 40);
        let secret = SITE.secret().key("hunter2");
        assert!(
            !secret
                .id(&SALT)
                .as_bytes()
                .windows(7)
                .any(|part| part == b"hunter2")
        );
        assert_ne!(
            secret.id(&SALT).as_bytes(),
            secret.id(&[8; 32]).as_bytes(),
            "the hash is keyed"
        );
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_keys_are_readable_and_escaped() {
        let redis_key = |scope: &Scope| {
            String::from_utf8(scope.id(&SALT).redis_key("throttle:v1:")).expect("ASCII")
        };
        assert_eq!(redis_key(&SITE), "throttle:v1:site");
        assert_eq!(redis_key(&SITE.key("a-b_c")), "throttle:v1:site:a-b_c");
        assert_eq!(redis_key(&SITE.key("")), "throttle:v1:site:");
        assert_eq!(
            redis_key(&SITE.key("a:{b}\0%#")),
            "throttle:v1:site:a%3a%7bb%7d%00%25%23"
        );
        assert!(redis_key(&SITE.secret().key("x")).starts_with("throttle:v1:site:#"));
    }

    proptest! {
        /// No name and key are the bucket of another name and key, in either store.
        #[test]
        fn buckets_never_meet(
            a in ("[a:#%{]{1,3}", proptest::option::of("[a:#%{\u{0}]{0,3}"), any::<bool>()),
            b in ("[a:#%{]{1,3}", proptest::option::of("[a:#%{\u{0}]{0,3}"), any::<bool>()),
        ) {
            let make = |(name, key, secret): &(String, Option<String>, bool)| {
                let mut scope = Scope::new(name.clone(), SITE.quota());
                if let Some(key) = key {
                    scope = scope.key(key);
                    if *secret {
                        scope = scope.secret();
                    }
                }
                scope
            };
            let (one, two) = (make(&a), make(&b));
            let (id, other) = (one.id(&SALT), two.id(&SALT));
            let same = one.same_bucket(&two);
            prop_assert_eq!(id.as_bytes() == other.as_bytes(), same);
            #[cfg(feature = "redis")]
            prop_assert_eq!(id.redis_key("p:") == other.redis_key("p:"), same);
        }
    }
}
