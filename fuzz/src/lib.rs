//! Fuzz targets: functions of any bytes that panic if a property does not hold.
//!
//! cargo-fuzz drives them by libFuzzer (`targets/`); `tests/short.rs` drives them on stable Rust,
//! with mutations of the inputs in `seeds/`.
#![forbid(unsafe_code)]

mod addresses;
mod grpc_details;
mod quota_text;
mod redis_replies;
mod upstream_headers;

use http::HeaderValue;

pub use self::{
    addresses::addresses, grpc_details::grpc_details, quota_text::quota_text,
    redis_replies::redis_replies, upstream_headers::upstream_headers,
};

/// A target, by the name of its directory in `seeds/`.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("addresses", addresses),
    ("grpc_details", grpc_details),
    ("quota_text", quota_text),
    ("redis_replies", redis_replies),
    ("upstream_headers", upstream_headers),
];

/// 24 November 2026, 17:00:00 UTC, in seconds since 1970.
const NOW: u64 = 1_795_539_600;

/// A field value; control characters, which no HTTP implementation passes on, become spaces.
fn header_value(bytes: &[u8]) -> HeaderValue {
    let control = |byte: u8| byte != b'\t' && (byte < b' ' || byte == 0x7f);
    let bytes: Vec<u8> = bytes
        .iter()
        .map(|&byte| if control(byte) { b' ' } else { byte })
        .collect();
    HeaderValue::from_bytes(&bytes).expect("no control characters")
}

/// Numbers that depend on all bytes of an input.
fn numbers_from(data: &[u8]) -> fastrand::Rng {
    // FNV-1a.
    let hash = data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    fastrand::Rng::with_seed(hash)
}
