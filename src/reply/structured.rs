//! Structured fields (RFC 9651), as far as the `RateLimit` fields need them.

use http::HeaderValue;

#[cfg(test)]
mod tests;

/// The most digits of a `u64`.
const MOST_DIGITS: usize = 20;

/// A text as a string with its quotes. The text is printable ASCII.
pub(super) fn string(text: &str) -> Vec<u8> {
    let mut string = Vec::with_capacity(text.len() + 2);
    string.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            string.push(b'\\');
        }
        string.push(byte);
    }
    string.push(b'"');
    string
}

/// An item with two integers as its parameters. They have at most fifteen digits.
pub(super) fn with_parameters(item: &[u8], parameters: [(u8, u64); 2]) -> Vec<u8> {
    let mut rooms = [[0; MOST_DIGITS]; 2];
    let [(a, first), (b, second)] = parameters;
    let [room, other_room] = &mut rooms;
    let (first, second) = (digits(first, room), digits(second, other_room));
    // All of its capacity, so that it becomes a header value as it is.
    let length = item.len() + 3 + first.len() + 3 + second.len();
    let mut member = Vec::with_capacity(length);
    for part in [item, &[b';', a, b'='], first, &[b';', b, b'='], second] {
        member.extend_from_slice(part);
    }
    member
}

/// A number as the value of a field. `HeaderValue::from` allocates twice.
pub(super) fn number(number: u64) -> HeaderValue {
    let digits = HeaderValue::from_bytes(digits(number, &mut [0; MOST_DIGITS]));
    digits.unwrap_or_else(|_| HeaderValue::from(number))
}

fn digits(mut number: u64, room: &mut [u8; MOST_DIGITS]) -> &[u8] {
    let mut start = MOST_DIGITS;
    loop {
        start -= 1;
        room[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &room[start..];
        }
    }
}
