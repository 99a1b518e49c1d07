//! [`KeyExtractor`]: finds the key that selects a bucket.

use std::fmt::Display;

use crate::scope::Scope;

/// Finds the key of a request, which selects one bucket of a limit.
///
/// A closure that returns an `Option` of a displayable key is a key extractor, and so is a tuple of
/// key extractors: it has one bucket for each combination.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{KeyExtractor, ScopeExtractor}};
///
/// struct Job { tenant: u64 }
///
/// #[derive(Clone)]
/// struct Tenant;
///
/// impl KeyExtractor<Job> for Tenant {
///     fn scope(&self, base: &Scope, job: &Job) -> Option<Scope> {
///         Some(base.key(job.tenant))
///     }
/// }
///
/// const JOBS: Scope = Quota::per_minute(60.0).scope("jobs");
/// let limit = JOBS.by(Tenant).or_unlimited();
/// assert_eq!(limit.extract(&Job { tenant: 7 }).iter().count(), 1);
/// ```
///
/// # Spellings
///
/// Two spellings of one key are two buckets: a client that can choose among `n` spellings has `n`
/// times the limit. [`header`](super::header()) removes the differences that HTTP ignores,
/// [`method`](super::method()) treats all unknown methods as one, and
/// [`matched_path`](super::matched_path) uses the route instead of the path. A closure must
/// normalize its key itself. Common traps:
///
/// - percent-encoding, repeated or trailing slashes and the query of a path;
/// - case, default port and trailing dot of a host;
/// - case and sub-addresses of an e-mail address;
/// - leading zeros of a number;
/// - Unicode normalization;
/// - a value that is not text, for which `to_str().ok()` finds no key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not find a key in a `{Req}`",
    label = "expected a key extractor, such as `client_ip(…)`, or a tuple of them",
    note = "a closure `|req: &{Req}|` returns an `Option` of the key, which can be displayed and \
            borrows nothing from the request: `Some(value.to_owned())`",
    note = "`extension::<T>()` needs a `T: Display`; otherwise choose the key: \
            `extension::<T>().key(|value| value.id)`",
    note = "limits are joined outside of `by`: `(SITE, PER_CLIENT.by(client).or(UNKNOWN))`"
)]
pub trait KeyExtractor<Req> {
    /// `base` with the key of this request; `None` if the request has no key.
    ///
    /// # Examples
    ///
    /// See [`KeyExtractor`].
    fn scope(&self, base: &Scope, req: &Req) -> Option<Scope>;
}

#[diagnostic::do_not_recommend]
impl<Req, F, T> KeyExtractor<Req> for F
where
    F: Fn(&Req) -> Option<T>,
    T: Display,
{
    fn scope(&self, base: &Scope, req: &Req) -> Option<Scope> {
        Some(base.key(self(req)?))
    }
}
