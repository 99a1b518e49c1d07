use std::time::Duration;

use super::{LimitDetails, RpcStatus};

const STATUS: RpcStatus = RpcStatus {
    code: 8,
    message: "rate limit exceeded",
    retry_delay: Some(Duration::from_millis(1_500)),
    subject: "api",
};

#[test]
fn written_status_is_read_back() {
    let details = LimitDetails {
        retry_delay: Some(1.5),
        is_quota_failure: true,
    };
    let header = STATUS.to_header();
    for padding in ["", "=", "=="] {
        let read = LimitDetails::from_header(&format!("{header}{padding}"));
        assert_eq!(read.as_ref(), Some(&details), "{padding:?}");
    }
    let never = RpcStatus {
        retry_delay: None,
        ..STATUS
    };
    let read = LimitDetails::from_header(&never.to_header());
    assert_eq!(read.map(|details| details.retry_delay), Some(None));
}

#[test]
fn malformed_headers_are_ignored() {
    assert_eq!(LimitDetails::from_header("{}"), None);
    assert_eq!(LimitDetails::from_header(&"A".repeat(16_388)), None);
    let header = STATUS.to_header();
    for end in 0..header.len() {
        // Of a message that is cut off, the fields before the cut count.
        if let Some(details) = LimitDetails::from_header(&header[..end]) {
            assert!(details.retry_delay.is_none_or(|seconds| seconds == 1.5));
        }
    }
}
