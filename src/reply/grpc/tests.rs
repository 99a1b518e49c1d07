use std::time::Duration;

use super::*;
use crate::{quota::Quota, scope::Scope};

#[test]
fn tonic_reads_the_details() {
    use tonic_types::StatusExt;
    let scope = Scope::new("per-ü", Quota::per_second(1.0));
    let wait = Duration::new(200, 5_000);
    let response: Response<String> = rejection(&Rejected::limited(&scope, wait, 0.0, false), GRPC);
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
fn pushback_forbids_a_retry_that_cannot_succeed() {
    let scope = Quota::per_second(1.0).scope("s").cost(9.0);
    for never in [
        Rejected::exceeds_capacity(&scope),
        Rejected::too_many_scopes(&scope, 129, 128),
    ] {
        let response: Response<String> = rejection(&never, GRPC);
        assert_eq!(response.headers()[GRPC_PUSHBACK], "-1");
        assert_eq!(response.headers()[GRPC_STATUS], "8");
    }
    let response: Response<String> = rejection(&Rejected::unavailable(&scope, None), GRPC);
    assert_eq!(response.headers()[GRPC_STATUS], "14");
}
