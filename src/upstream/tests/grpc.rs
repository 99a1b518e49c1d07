use std::time::Duration;

use tonic_types::{ErrorDetails, StatusExt};

use super::{Advice, NOW, Upstream};

#[test]
fn only_a_status_about_a_limit_is_a_rejection() {
    let upstream = Upstream::grpc();
    let of = |code, details, pushback: Option<&str>| {
        let status = tonic::Status::with_error_details(code, "no", details);
        let mut response = status.into_http::<()>();
        if let Some(pushback) = pushback {
            let value = pushback.parse().expect("a value");
            response
                .headers_mut()
                .insert("grpc-retry-pushback-ms", value);
        }
        upstream.read(response.status(), response.headers(), NOW)
    };
    let exhausted = tonic::Code::ResourceExhausted;
    let delay = ErrorDetails::with_retry_info(Some(Duration::from_millis(2_500)));
    let advice = of(exhausted, delay.clone(), None);
    assert_eq!(advice.pause, Some(Duration::from_millis(2_500)));
    assert_eq!(of(tonic::Code::Internal, delay, None), Advice::default());
    let mut quota = ErrorDetails::new();
    quota.add_quota_failure_violation("rpm", "too many");
    assert!(of(exhausted, quota, None).is_exhausted);
    assert_eq!(of(exhausted, ErrorDetails::new(), None), Advice::default());
    let pushed = of(tonic::Code::Unavailable, ErrorDetails::new(), Some("750"));
    assert_eq!(pushed.pause, Some(Duration::from_millis(750)));
    assert!(of(exhausted, ErrorDetails::new(), Some("-1")).is_exhausted);
}
