use std::time::Duration;

use http::header::RETRY_AFTER;

use super::*;
use crate::quota::Quota;

fn rejection(rejected: &Rejected) -> Response<String> {
    HttpReply::default().reject(rejected, &Request::new(()))
}

#[test]
fn retry_after_is_rounded_up() {
    let scope = Quota::per_second(1.0).scope("s");
    for (wait, seconds) in [
        (Duration::from_micros(1), "1"),
        (Duration::from_millis(999), "1"),
        (Duration::from_secs(1), "1"),
        (Duration::new(1, 1), "2"),
        (Duration::from_secs(86_400), "86400"),
    ] {
        let rejected = Rejected::limited(&scope, wait, 0.0, false);
        let response = rejection(&rejected);
        assert_eq!(response.headers()[RETRY_AFTER], seconds);
    }
    for never in [
        Rejected::exceeds_capacity(&scope),
        Rejected::too_many_scopes(&scope, 129, 128),
    ] {
        let response = rejection(&never);
        assert_eq!(response.status(), 403);
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
    let unavailable = rejection(&Rejected::unavailable(&scope, None));
    assert_eq!(unavailable.status(), 503);
}

#[test]
fn grpc_is_recognised() {
    for (content_type, expected) in [
        ("application/grpc", Some("application/grpc")),
        ("Application/gRPC+proto", Some("application/grpc")),
        ("application/grpc; charset=utf-8", Some("application/grpc")),
        ("application/grpc-web", Some("application/grpc-web")),
        ("application/grpc-web+proto", Some("application/grpc-web")),
        (
            "application/grpc-web-text",
            Some("application/grpc-web-text"),
        ),
        ("application/grpc ;x=y", Some("application/grpc")),
        ("application/grpc x", None),
        ("application/grpcx", None),
        ("application/grp", None),
        ("application/json", None),
    ] {
        let answer = grpc_content_type(&HeaderValue::from_static(content_type));
        assert_eq!(answer, expected.map(HeaderValue::from_static));
    }
}
