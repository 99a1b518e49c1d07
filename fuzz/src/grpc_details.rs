//! The status of a gRPC response: `grpc-status-details-bin`, which holds a `google.rpc.Status`.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use tower_throttle::{
    fuzz::{Advice, advice},
    upstream::Upstream,
};

use crate::{NOW, header_value};

const CAP: Duration = Duration::from_secs(3_600);

/// The input is a status in protobuf's encoding, and once more a header value as it arrives.
///
/// - A pause is at most the cap.
/// - A status that is encoded here, with a delay from the input, is read as that delay.
pub fn grpc_details(data: &[u8]) {
    let data = &data[..data.len().min(16_384)];
    bounded(&read(header_value(base64(data).as_bytes())));
    bounded(&read(header_value(data)));
    if let Some((numbers, rest)) = data.split_first_chunk::<12>() {
        let (seconds, nanos) = numbers.split_at(8);
        let seconds = i64::from_le_bytes(seconds.try_into().expect("8 bytes"));
        let nanos = i32::from_le_bytes(nanos.try_into().expect("4 bytes"));
        // All, and those that real services send.
        delayed(seconds, nanos, rest);
        delayed(
            seconds.rem_euclid(10_000),
            nanos.rem_euclid(1_000_000_000),
            rest,
        );
    }
}

fn read(details: HeaderValue) -> Advice {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from_static("8"));
    headers.insert("grpc-status-details-bin", details);
    let upstream = Upstream::grpc().cap(CAP);
    advice(&upstream, StatusCode::OK, &headers, NOW as f64)
}

fn bounded(advice: &Advice) {
    assert!(advice.pause.is_none_or(|pause| pause <= CAP), "{advice:?}");
    assert!(advice.remaining.is_empty(), "{advice:?}");
}

fn delayed(seconds: i64, nanos: i32, other: &[u8]) {
    // Duration { int64 seconds = 1; int32 nanos = 2 }
    let delay = [field(1, seconds as u64), field(2, i64::from(nanos) as u64)].concat();
    // RetryInfo { Duration retry_delay = 1 }
    let info = any(
        "type.googleapis.com/google.rpc.RetryInfo",
        &bytes(1, &delay),
    );
    // Status { int32 code = 1; string message = 2; repeated Any details = 3 }
    let status = [
        field(1, 8),
        bytes(2, b"slow down"),
        bytes(3, &any("type.googleapis.com/google.rpc.Help", other)),
        bytes(3, &info),
        bytes(
            3,
            &any("type.googleapis.com/google.rpc.QuotaFailure", other),
        ),
    ]
    .concat();
    if status.len() > 8_192 {
        return;
    }
    let seconds = (seconds as f64 + f64::from(nanos) / 1e9).clamp(0.0, CAP.as_secs_f64());
    let read = read(header_value(base64(&status).as_bytes()));
    let pause = read.pause.expect("a delay").as_secs_f64();
    assert!((pause - seconds).abs() < 1e-6, "{pause} s of {seconds} s");
}

/// Any { string type_url = 1; bytes value = 2 }
fn any(url: &str, value: &[u8]) -> Vec<u8> {
    [bytes(1, url.as_bytes()), bytes(2, value)].concat()
}

fn field(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
    let length = varint(value.len() as u64);
    [&varint(number << 3 | 2), &length, value].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// RFC 4648 without padding, as gRPC sends it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |group: u32, at: usize| DIGITS[(group >> (18 - 6 * at)) as usize & 63] as char;
    let groups = bytes.chunks(3).map(|chunk| {
        let group = (0..3).fold(0, |group, at| {
            group << 8 | u32::from(chunk.get(at).copied().unwrap_or(0))
        });
        (0..=chunk.len()).map(move |at| digit(group, at))
    });
    groups.flatten().collect()
}
