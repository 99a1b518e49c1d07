//! One or several scopes of one acquisition.

use std::sync::Arc;

use super::scope::Scope;

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

    /// Both, in one acquisition.
    pub(crate) fn and(self, other: Self) -> Self {
        match (&self.0, &other.0) {
            (Inner::None, _) => other,
            (_, Inner::None) => self,
            _ => self
                .iter()
                .chain(&other)
                .cloned()
                .collect::<Vec<_>>()
                .into(),
        }
    }

    /// The same bucket twice in one acquisition is one demand of both costs.
    pub(crate) fn merged(self) -> Self {
        let slice = self.as_slice();
        let twice = |index: usize, scope: &Scope| {
            slice[..index]
                .iter()
                .any(|earlier| earlier.same_bucket(scope))
        };
        if !slice
            .iter()
            .enumerate()
            .any(|(index, scope)| twice(index, scope))
        {
            return self;
        }
        let mut merged: Vec<Scope> = Vec::new();
        for scope in slice {
            match merged.iter_mut().find(|other| other.same_bucket(scope)) {
                None => merged.push(scope.clone()),
                Some(other) => {
                    let costed = other.is_costed() || scope.is_costed();
                    let mut cost = other.tokens() + scope.tokens();
                    if other.tokens() < 0.0 || scope.tokens() < 0.0 {
                        // One cost is invalid, so the sum is.
                        cost = f64::NAN;
                    }
                    let (a, b) = (other.quota(), scope.quota());
                    // The lower rate and the lower capacity of the two quotas.
                    let slower = if a.rate() <= b.rate() { a } else { b };
                    let quota = slower.burst(a.capacity().min(b.capacity()));
                    let both = other.clone().with_quota(quota).cost(cost);
                    *other = if costed { both } else { both.uncosted() };
                }
            }
        }
        merged.into()
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[Scope] {
        match &self.0 {
            Inner::None => &[],
            Inner::One(scope) => std::slice::from_ref(scope),
            Inner::Many(scopes) => scopes,
        }
    }

    /// All of them, where they are more than one.
    pub(crate) fn several(&self) -> Option<Arc<[Scope]>> {
        match &self.0 {
            Inner::Many(scopes) => Some(scopes.clone()),
            _ => None,
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
/// An acquisition of more than 128 scopes is rejected as
/// [`Reason::TooManyScopes`](crate::Reason::TooManyScopes).
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
            #[inline]
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
