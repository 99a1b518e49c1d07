//! What a gRPC status says of a limit.

use http::HeaderMap;

const RESOURCE_EXHAUSTED: &str = "8";
const UNAVAILABLE: &str = "14";

/// Details beyond this many characters are not read: gRPC bounds headers to 8 KiB.
const LONGEST: usize = 16_384;

/// A limit was met; for how many seconds nothing comes, if the upstream says.
pub(super) struct Limited {
    pub(super) hold: Option<f64>,
}

/// None where the status does not speak of a limit: RESOURCE_EXHAUSTED is also a message that is
/// too large, and UNAVAILABLE a lost connection.
pub(super) fn limited(headers: &HeaderMap) -> Option<Limited> {
    let text = |name| headers.get(name)?.to_str().ok();
    if !matches!(text("grpc-status")?, RESOURCE_EXHAUSTED | UNAVAILABLE) {
        return None;
    }
    // gRFC A6: a number that is negative, or none, says not to retry.
    let pushback = text("grpc-retry-pushback-ms").map(|text| text.parse::<i32>().unwrap_or(-1));
    let details = text("grpc-status-details-bin")
        .and_then(base64)
        .map(|status| details(&status))
        .unwrap_or_default();
    if pushback.is_none() && details.delay.is_none() && !details.quota {
        return None;
    }
    let pushback = pushback.filter(|millis| *millis >= 0);
    let hold = pushback
        .map(|millis| f64::from(millis) / 1e3)
        .or(details.delay);
    Some(Limited { hold })
}

#[derive(Default)]
struct Details {
    /// `RetryInfo.retry_delay`, in seconds.
    delay: Option<f64>,
    /// There is a `QuotaFailure`.
    quota: bool,
}

/// Of a `google.rpc.Status`.
fn details(status: &[u8]) -> Details {
    let mut found = Details::default();
    // Status { repeated Any details = 3 }; Any { string type_url = 1; bytes value = 2 }
    for any in Fields(status).filter_map(|field| field.bytes(3)) {
        let of = |number| Fields(any).filter_map(|field| field.bytes(number)).last();
        let name = of(1)
            .unwrap_or_default()
            .rsplit(|byte| *byte == b'/')
            .next();
        match name.unwrap_or_default() {
            b"google.rpc.RetryInfo" => {
                // RetryInfo { Duration retry_delay = 1 }; Duration { int64 seconds = 1; int32
                // nanos = 2 }
                let info = of(2).unwrap_or_default();
                let delay = Fields(info).filter_map(|field| field.bytes(1)).last();
                let number = |n| {
                    let field = Fields(delay.unwrap_or_default()).filter_map(|f| f.number(n));
                    field.last().unwrap_or_default() as i64 as f64
                };
                let seconds = number(1) + number(2) / 1e9;
                found.delay = found.delay.max_with(seconds.max(0.0));
            }
            b"google.rpc.QuotaFailure" => found.quota = true,
            _ => {}
        }
    }
    found
}

trait MaxWith {
    fn max_with(self, other: f64) -> Option<f64>;
}

impl MaxWith for Option<f64> {
    fn max_with(self, other: f64) -> Option<f64> {
        Some(self.map_or(other, |this| this.max(other)))
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

impl<'a> Field<'a> {
    fn bytes(&self, number: u64) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) if self.number == number => Some(bytes),
            _ => None,
        }
    }

    fn number(&self, number: u64) -> Option<u64> {
        match self.value {
            Value::Number(value) if self.number == number => Some(value),
            _ => None,
        }
    }
}

/// The fields of a message in protobuf's encoding; ends at what is none.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.split(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.split(length)?)
            }
            5 => self.split(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some(Field {
            number: tag >> 3,
            value,
        })
    }
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for place in 0..10 {
            let byte = *self.split(1)?.first()?;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn split(&mut self, at: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(at)?;
        self.0 = tail;
        Some(head)
    }
}

/// RFC 4648, with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    if text.len() > LONGEST {
        return None;
    }
    let (mut bytes, mut group, mut bits) = (Vec::new(), 0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        group = group << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits) as u8);
        }
    }
    Some(bytes)
}
