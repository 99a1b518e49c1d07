//! A refusal as a gRPC status: trailers-only, with `google.rpc.RetryInfo` and `QuotaFailure`.

use http::{
    HeaderName, Response,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::policy::policy_name;
use crate::{Reason, Rejected, rpc_status::RpcStatus};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// gRFC A6: how long a client that retries by itself shall wait, in milliseconds.
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

#[cfg(any(feature = "tonic", test))]
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

const RESOURCE_EXHAUSTED: u8 = 8;
const UNAVAILABLE: u8 = 14;

pub(super) fn refusal<B: Default>(rejected: &Rejected, content_type: HeaderValue) -> Response<B> {
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
        // The details also tell this RESOURCE_EXHAUSTED from that of a message that is too large.
        let status = RpcStatus {
            code,
            message: &message,
            retry_delay: rejected.retry_after(),
            subject: rejected.scope(),
        };
        insert(headers, GRPC_DETAILS, status.to_header());
    }
    if let Some(retry_after) = rejected.retry_after() {
        // The protocol has an i32 here.
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
    // Both encodings yield visible ASCII.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// The same status as a server under the limit would answer.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let limiter = Limiter::in_memory();
/// let too_much = Quota::per_second(10.0).scope("api").cost(11.0);
/// let refused = limiter.try_acquire(too_much).await.unwrap_err();
/// assert_eq!(tonic::Status::from(refused).code(), tonic::Code::ResourceExhausted);
/// # }
/// ```
#[cfg(feature = "tonic")]
impl From<Rejected> for tonic::Status {
    fn from(rejected: Rejected) -> Self {
        let headers = refusal::<()>(&rejected, GRPC).into_parts().0.headers;
        // None only without a `grpc-status`, which is always there.
        let mut status = Self::from_header_map(&headers)
            .unwrap_or_else(|| Self::resource_exhausted(rejected.to_string()));
        status.set_source(std::sync::Arc::new(rejected));
        status
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Quota;

    #[test]
    fn a_peer_implementation_reads_the_details() {
        use tonic_types::StatusExt;
        let scope = crate::Scope::new("per-ü", Quota::per_second(1.0));
        let wait = Duration::new(200, 5_000);
        let response: Response<String> =
            refusal(&Rejected::limited(&scope, wait, 0.0, false), GRPC);
        let status = tonic::Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("per-ü"), "{}", status.message());
        let delay = status
            .get_details_retry_info()
            .expect("RetryInfo")
            .retry_delay;
        assert_eq!(delay, Some(wait));
        assert_eq!(response.headers()[GRPC_PUSHBACK], "200001");
        let failure = status.get_details_quota_failure().expect("QuotaFailure");
        assert_eq!(failure.violations.len(), 1);
        assert_eq!(failure.violations[0].subject, "per-ü");
        assert_eq!(failure.violations[0].description, status.message());
    }

    #[test]
    fn what_never_succeeds_is_not_retried() {
        let scope = Quota::per_second(1.0).scope("s").cost(9.0);
        let response: Response<String> = refusal(&Rejected::exceeds_capacity(&scope), GRPC);
        assert_eq!(response.headers()[GRPC_PUSHBACK], "-1");
        assert_eq!(response.headers()[GRPC_STATUS], "8");
        let response: Response<String> = refusal(&Rejected::unavailable(&scope, None), GRPC);
        assert_eq!(response.headers()[GRPC_STATUS], "14");
    }
}
