//! Reading a status.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

use super::{QUOTA_FAILURE, RETRY_INFO};

/// Longer headers are not read: gRPC bounds all headers of a response to 8 KiB.
const MAX_LENGTH: usize = 16_384;

/// The limit that the details of a status report.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct LimitDetails {
    /// `RetryInfo.retry_delay` in seconds, at least zero; the longest of several.
    pub(crate) retry_delay: Option<f64>,
    /// Whether there is a `QuotaFailure`.
    pub(crate) is_quota_failure: bool,
}

impl LimitDetails {
    /// From the value of the header, with padding or without. None if it is not base64.
    pub(crate) fn from_header(text: &str) -> Option<Self> {
        if text.len() > MAX_LENGTH {
            return None;
        }
        let status = STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        Some(Self::decode(&status))
    }

    fn decode(status: &[u8]) -> Self {
        let mut details = Self::default();
        for detail in fields(status).filter(|field| field.number == 3) {
            let any = detail.bytes;
            let type_url = str::from_utf8(bytes(any, 1)).unwrap_or_default();
            match type_url.rsplit('/').next() {
                Some(RETRY_INFO) => {
                    let delay = bytes(bytes(any, 2), 1);
                    let seconds = number(delay, 1) as f64 + number(delay, 2) as f64 / 1e9;
                    let longest = details.retry_delay.unwrap_or_default().max(seconds);
                    details.retry_delay = Some(longest);
                }
                Some(QUOTA_FAILURE) => details.is_quota_failure = true,
                _ => {}
            }
        }
        details
    }
}

/// The bytes of a field; of several the last, as protobuf has it.
fn bytes(message: &[u8], number: u64) -> &[u8] {
    let all = fields(message).filter(|field| field.number == number);
    all.last().map_or(&[], |field| field.bytes)
}

/// As `bytes`, of an `int32` or `int64`.
fn number(message: &[u8], number: u64) -> i64 {
    let all = fields(message).filter(|field| field.number == number);
    all.last().map_or(0, |field| field.varint as i64)
}

/// Only one of `varint` and `bytes` is used, depending on the wire type.
struct Field<'a> {
    number: u64,
    varint: u64,
    bytes: &'a [u8],
}

/// The fields of a message, up to the first that is malformed.
fn fields(mut message: &[u8]) -> impl Iterator<Item = Field<'_>> {
    std::iter::from_fn(move || {
        let tag = varint(&mut message)?;
        let mut field = Field {
            number: tag >> 3,
            varint: 0,
            bytes: &[],
        };
        match tag & 7 {
            0 => field.varint = varint(&mut message)?,
            1 => field.bytes = message.split_off(..8)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                field.bytes = message.split_off(..length)?;
            }
            5 => field.bytes = message.split_off(..4)?,
            _ => return None,
        }
        Some(field)
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let byte = *message.split_off_first()?;
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
