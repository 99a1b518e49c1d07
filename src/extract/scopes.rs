//! [`ScopeExtractor`]: the trait, for scopes known ahead and for closures.

use std::sync::Arc;

use crate::scope::{IntoScopes, LiveScope, Scope, Scopes};

/// Finds the scopes that a request takes from.
///
/// A [`Scope`], an array or `Vec` of them and [`Scopes`] are known ahead; every
/// `Fn(&Req) -> impl IntoScopes` looks at the request. A tuple takes from all that its members
/// find, together or not at all; an `Option` that is `None` limits nobody.
///
/// A request for which a closure returns `None`, or an empty `Vec`, is not limited: a `?` in it on
/// what a client may leave out, or write so that it does not parse, is a way round the limit. Use
/// [`Scope::by`] instead, which requires an alternative for such requests.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, Scopes, extract::ScopeExtractor};
///
/// struct Job { tenant: String, weight: f64 }
///
/// #[derive(Clone)]
/// struct PerTenant;
///
/// impl ScopeExtractor<Job> for PerTenant {
///     fn extract(&self, job: &Job) -> Scopes {
///         const JOBS: Scope = Quota::per_minute(600.0).scope("jobs");
///         Scopes::from(vec![JOBS.key(&job.tenant).cost(job.weight)])
///     }
/// }
///
/// let layer = RateLimitLayer::new(&Limiter::in_memory(), PerTenant);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a limit for a `{Req}`",
    label = "expected a `Scope`, several, a closure `|req: &{Req}|` that returns one, or \
             `SCOPE.by(key)` with `.or(…)` or `.or_unlimited()` behind it",
    note = "`SCOPE.by(key)` is not a limit until it says what requests without a key take from: \
            write `.or(OTHER_SCOPE)`, or `.or_unlimited()` where another limit covers them",
    note = "name the limit first: `const API: Scope = Quota::per_second(50.0).scope(\"api\");`",
    note = "a closure returns `API.key(value)`, or an `Option` or `Vec` of such; it cannot be \
            async, because a scope is found without waiting",
    note = "in a `By`, a key is found by `client_ip(…)`, `extension::<Account>()`, a closure that \
            returns an `Option` of an owned key, or a tuple of such; in a `When` or a tuple of \
            limits, every part must be what can stand here by itself; in a chain of `.or(…)`, the \
            last one must, and only the last one may limit every request"
)]
pub trait ScopeExtractor<Req> {
    /// The scopes, where they are the same for every request: then waiting for them is
    /// readiness.
    ///
    /// ```
    /// # use tower_throttle::{Quota, ScopeExtractor};
    /// let site = Quota::per_second(5.0).scope("site");
    /// assert!(ScopeExtractor::<()>::fixed(&site).is_some());
    /// ```
    fn fixed(&self) -> Option<Scopes> {
        None
    }

    /// As [`fixed`](Self::fixed), without a copy, where there is something to refer to.
    #[doc(hidden)]
    fn fixed_ref(&self) -> Option<&[Scope]> {
        None
    }

    /// Whether the layer counts the requests in which this finds no scope. It does for closures;
    /// a [`By`](super::By) counts by itself.
    #[doc(hidden)]
    fn is_unwatched(&self) -> bool {
        false
    }

    /// The scopes of this request; none is not limited.
    ///
    /// ```
    /// # use tower_throttle::{Quota, ScopeExtractor};
    /// let per_tenant = |tenant: &u64| Quota::per_second(5.0).scope("tenant").key(tenant);
    /// assert_eq!(per_tenant.extract(&7).iter().count(), 1);
    /// ```
    fn extract(&self, req: &Req) -> Scopes;
}

macro_rules! fixed {
    ($([$($generics:tt)*] $type:ty, $this:ident => $slice:expr;)*) => {$(
        impl<Req, $($generics)*> ScopeExtractor<Req> for $type {
            fn fixed(&self) -> Option<Scopes> {
                Some(self.clone().into_scopes())
            }

            #[inline]
            fn fixed_ref(&self) -> Option<&[Scope]> {
                let $this = self;
                Some($slice)
            }

            fn extract(&self, _: &Req) -> Scopes {
                self.clone().into_scopes()
            }
        }
    )*};
}

fixed! {
    [] Scope, scope => std::slice::from_ref(scope);
    [] &Scope, scope => std::slice::from_ref(*scope);
    [] Scopes, scopes => scopes.as_slice();
    [const N: usize] [Scope; N], scopes => scopes;
    [] Vec<Scope>, scopes => scopes;
}

/// Known ahead, as of now: who waits for a turn does so by the quota at the time of asking.
impl<Req> ScopeExtractor<Req> for LiveScope {
    fn fixed(&self) -> Option<Scopes> {
        Some(self.current().into_scopes())
    }

    fn extract(&self, _: &Req) -> Scopes {
        self.current().into_scopes()
    }
}

impl<Req, const N: usize> ScopeExtractor<Req> for [LiveScope; N] {
    fn fixed(&self) -> Option<Scopes> {
        Some(self.each_ref().map(LiveScope::current).into_scopes())
    }

    fn extract(&self, _: &Req) -> Scopes {
        self.each_ref().map(LiveScope::current).into_scopes()
    }
}

impl<Req, X: ScopeExtractor<Req> + ?Sized> ScopeExtractor<Req> for Arc<X> {
    fn fixed(&self) -> Option<Scopes> {
        (**self).fixed()
    }

    fn fixed_ref(&self) -> Option<&[Scope]> {
        (**self).fixed_ref()
    }

    fn extract(&self, req: &Req) -> Scopes {
        (**self).extract(req)
    }
}

impl<Req, X: ScopeExtractor<Req>> ScopeExtractor<Req> for Option<X> {
    fn fixed(&self) -> Option<Scopes> {
        match self {
            Some(extractor) => extractor.fixed(),
            None => Some(Scopes::default()),
        }
    }

    fn fixed_ref(&self) -> Option<&[Scope]> {
        match self {
            Some(extractor) => extractor.fixed_ref(),
            None => Some(&[]),
        }
    }

    fn extract(&self, req: &Req) -> Scopes {
        match self {
            Some(extractor) => extractor.extract(req),
            None => Scopes::default(),
        }
    }
}

#[diagnostic::do_not_recommend]
impl<Req, F, T> ScopeExtractor<Req> for F
where
    F: Fn(&Req) -> T,
    T: IntoScopes,
{
    fn is_unwatched(&self) -> bool {
        true
    }

    fn extract(&self, req: &Req) -> Scopes {
        self(req).into_scopes()
    }
}
