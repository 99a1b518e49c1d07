//! [`status`]: the HTTP status of a rejection.

use http::StatusCode;

use crate::rejected::{Reason, Rejected};

/// The HTTP status of a rejection, for a response of your own.
///
/// | reason | status |
/// |---|---|
/// | `Limited` | 429 |
/// | `ExceedsCapacity`, `TooManyScopes` | 403 |
/// | `Unavailable` | 503 |
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota, reply::status};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let over_capacity = Quota::per_second(10.0).scope("api").cost(11.0);
/// let rejected = Limiter::in_memory().try_acquire(over_capacity).await.unwrap_err();
/// assert_eq!(status(&rejected), 403);
/// # }
/// ```
pub fn status(rejected: &Rejected) -> StatusCode {
    match rejected.reason() {
        Reason::Limited => StatusCode::TOO_MANY_REQUESTS,
        Reason::ExceedsCapacity | Reason::TooManyScopes => StatusCode::FORBIDDEN,
        Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}
