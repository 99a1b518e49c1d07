//! [`ScopeExtractor`]: finds the scopes of a request.

use std::sync::Arc;

use crate::scope::{IntoScopes, LiveScope, Scope, Scopes};

/// Finds the scopes that a request takes tokens from.
///
/// A [`Scope`], an array or `Vec` of them and [`Scopes`] are known in advance. A closure
/// `Fn(&Req) -> impl IntoScopes` depends on the request. A tuple takes from the scopes of all its
/// members, or from none. An `Option` that is `None` does not limit requests.
///
/// A request for which a closure returns `None` or an empty `Vec` is not limited. So do not use `?`
/// on a value that a client may leave out, or send in a form that does not parse. Use
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
             `SCOPE.by(key)` followed by `.or(…)` or `.or_unlimited()`",
    note = "`SCOPE.by(key)` needs a limit for requests without a key: write `.or(OTHER_SCOPE)`, \
            or `.or_unlimited()` if another limit covers them",
    note = "name the limit first: `const API: Scope = Quota::per_second(50.0).scope(\"api\");`",
    note = "a closure returns `API.key(value)`, or an `Option` or `Vec` of scopes; it cannot be \
            async",
    note = "the key of a `By` is `client_ip(…)`, `extension::<Account>()`, a closure that returns \
            an `Option` of an owned key, or a tuple of these; every part of a `When` or of a tuple \
            of limits must be a limit by itself; so must the last part of a chain of `.or(…)`, and \
            only the last one may limit every request"
)]
pub trait ScopeExtractor<Req> {
    /// The scopes, if they are the same for every request. Then `poll_ready` acquires them.
    ///
    /// ```
    /// # use tower_throttle::{Quota, ScopeExtractor};
    /// let site = Quota::per_second(5.0).scope("site");
    /// assert!(ScopeExtractor::<()>::fixed(&site).is_some());
    /// ```
    fn fixed(&self) -> Option<Scopes> {
        None
    }

    /// [`fixed`](Self::fixed) without a copy, if the scopes can be borrowed.
    #[doc(hidden)]
    fn fixed_ref(&self) -> Option<&[Scope]> {
        None
    }

    /// Whether the layer counts the requests without a scope. `true` for closures; a
    /// [`By`](super::By) counts them itself.
    #[doc(hidden)]
    fn is_unwatched(&self) -> bool {
        false
    }

    /// The scopes of this request. A request without scopes is not limited.
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

/// The scopes of a request have the quota that applies when it acquires; a later change does not
/// affect its wait.
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
