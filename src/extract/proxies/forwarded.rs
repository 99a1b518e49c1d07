//! The syntax of `Forwarded` (RFC 7239).

/// The value of `for` in each element of a line, from the last to the first; `None` for an element
/// that is malformed or has no `for`.
pub(super) fn nodes(line: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    Elements(Some(line)).map(node)
}

/// The elements of a line, from the last to the first. Quotes are matched from the end: otherwise
/// a quote that a client left open would hide the comma that the proxy appended.
struct Elements<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.0?;
        let mut quoted = false;
        for at in (0..line.len()).rev() {
            match line[at] {
                b'"' if !(quoted && is_escaped(line, at)) => quoted = !quoted,
                b',' if !quoted => {
                    self.0 = Some(&line[..at]);
                    return Some(&line[at + 1..]);
                }
                _ => {}
            }
        }
        self.0 = None;
        Some(line)
    }
}

fn is_escaped(line: &[u8], at: usize) -> bool {
    let backslashes = line[..at].iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

/// The value of `for`, which must occur once in an element.
fn node(element: &[u8]) -> Option<&[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    let pairs = element.split(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
        *byte == b';' && !quoted
    });
    let mut node = None;
    for pair in pairs
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
    {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"for") && node.replace(unquoted(value)?).is_some() {
            return None;
        }
    }
    node.filter(|_| !quoted)
}

/// A value without its quotes. None if they do not match, or if there are escapes, which no address
/// needs.
fn unquoted(value: &[u8]) -> Option<&[u8]> {
    let inside = match value.strip_prefix(b"\"") {
        Some(rest) => rest.strip_suffix(b"\"")?,
        None => value,
    };
    let plain = !inside.iter().any(|byte| b"\"\\".contains(byte));
    plain.then_some(inside)
}
