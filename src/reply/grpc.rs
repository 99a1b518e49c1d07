//! A rejection as a gRPC status: a trailers-only response with `google.rpc.RetryInfo` and
//! `QuotaFailure`.

use http::{
    HeaderName, Response,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::policy::policy_name;
use crate::{
    rejected::{Reason, Rejected},
    rpc_status::RpcStatus,
};

#[cfg(test)]
mod tests;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// The time in milliseconds after which the client library retries; negative if it must not (gRFC
/// A6).
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

#[cfg(any(feature = "tonic", test))]
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

const RESOURCE_EXHAUSTED: u8 = 8;
const UNAVAILABLE: u8 = 14;

pub(super) fn rejection<B: Default>(rejected: &Rejected, content_type: HeaderValue) -> Response<B> {
    let code = match rejected.reason() {
        Reason::Limited | Reason::ExceedsCapacity | Reason::TooManyScopes => RESOURCE_EXHAUSTED,
        Reason::Unavailable => UNAVAILABLE,
    };
    let message = rejected.to_string();
    let mut response = Response::new(B::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code)));
    insert(headers, GRPC_MESSAGE, policy_name(&message).into_owned());
    if rejected.reason() != Reason::Unavailable {
        // The details also distinguish this RESOURCE_EXHAUSTED from that of a message that is too
        // large.
        let status = RpcStatus {
            code,
            message: &message,
            retry_delay: rejected.retry_after(),
            subject: rejected.scope(),
        };
        insert(headers, GRPC_DETAILS, status.to_header());
    }
    if let Some(retry_after) = rejected.retry_after() {
        // The protocol limits the value to an `i32`.
        let millis = retry_after
            .as_nanos()
            .div_ceil(1_000_000)
            .min(i32::MAX as u128);
        headers.insert(GRPC_PUSHBACK, HeaderValue::from(millis as u64));
    } else if rejected.reason() != Reason::Unavailable {
        headers.insert(GRPC_PUSHBACK, HeaderValue::from_static("-1"));
    }
    response
}

fn insert(headers: &mut http::HeaderMap, name: HeaderName, value: String) {
    // Percent-encoding and Base64 are visible ASCII.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// The status that a rate-limited server answers with.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let over_capacity = Quota::per_second(10.0).scope("api").cost(11.0);
/// let rejected = limiter.try_acquire(over_capacity).await.unwrap_err();
/// assert_eq!(tonic::Status::from(rejected).code(), tonic::Code::ResourceExhausted);
/// # }
/// ```
#[cfg(feature = "tonic")]
impl From<Rejected> for tonic::Status {
    fn from(rejected: Rejected) -> Self {
        let headers = rejection::<()>(&rejected, GRPC).into_parts().0.headers;
        // `None` only without a `grpc-status`, which `rejection` always sets.
        let mut status = Self::from_header_map(&headers)
            .unwrap_or_else(|| Self::resource_exhausted(rejected.to_string()));
        status.set_source(std::sync::Arc::new(rejected));
        status
    }
}
