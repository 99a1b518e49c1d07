//! `google.rpc.Status` in the header `grpc-status-details-bin`: a protobuf message in base64.
//!
//! Only the fields of a rate limit are written and read here. `prost` would add six crates to every
//! build that answers over HTTP, for these messages:
//!
//! ```text
//! Status       { int32 code = 1; string message = 2; repeated Any details = 3 }
//! Any          { string type_url = 1; bytes value = 2 }
//! RetryInfo    { Duration retry_delay = 1 }
//! Duration     { int64 seconds = 1; int32 nanos = 2 }
//! QuotaFailure { repeated Violation violations = 1 }
//! Violation    { string subject = 1; string description = 2 }
//! ```

#[cfg(feature = "learn")]
mod decode;
mod encode;
#[cfg(all(test, feature = "learn"))]
mod tests;

#[cfg(feature = "learn")]
pub(crate) use self::decode::LimitDetails;
pub(crate) use self::encode::RpcStatus;

/// The names of the messages in `Any`.
const RETRY_INFO: &str = "google.rpc.RetryInfo";
const QUOTA_FAILURE: &str = "google.rpc.QuotaFailure";
