//! The `RateLimit` headers of draft-ietf-httpapi-ratelimit-headers, in the three forms that its
//! versions have had.

use http::HeaderMap;
use sfv::{BareItem, Dictionary, List, ListEntry, Parameters, Parser};

use super::time;

/// One policy as an answer reports it.
pub(super) struct Policy {
    /// Empty in the forms without names.
    pub(super) name: String,
    /// Tokens.
    pub(super) remaining: f64,
    /// Seconds, or a time since 1970.
    pub(super) reset: Option<f64>,
}

impl Policy {
    fn unnamed(remaining: f64, reset: Option<f64>) -> Self {
        Self {
            name: String::new(),
            remaining,
            reset,
        }
    }
}

/// The policies of an answer, none if the headers are absent or malformed.
pub(super) fn policies(headers: &HeaderMap) -> Vec<Policy> {
    let mut lines = headers.get_all("ratelimit").iter();
    let Some(first) = lines.next() else {
        return Vec::from_iter(three_fields(headers));
    };
    let mut field = first.as_bytes().to_vec();
    for line in lines {
        field.extend_from_slice(b", ");
        field.extend_from_slice(line.as_bytes());
    }
    match dictionary(&field) {
        Some(policy) => vec![policy],
        None => list(&field),
    }
}

/// Drafts 00 to 06: `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset`.
fn three_fields(headers: &HeaderMap) -> Option<Policy> {
    let number = |name| {
        let text = headers.get(name)?.to_str().ok()?;
        // Early drafts allow `50, 100;w=60`, whose first number counts.
        time::seconds(text.split([',', ';']).next()?.trim())
    };
    let remaining = number("ratelimit-remaining")?;
    Some(Policy::unnamed(remaining, number("ratelimit-reset")))
}

/// Draft 07: `limit=100, remaining=50, reset=5`. A list of lowercase tokens is a dictionary too, but
/// its values are not numbers.
fn dictionary(field: &[u8]) -> Option<Policy> {
    let dictionary = Parser::new(field).parse::<Dictionary>().ok()?;
    let number = |key: &str| match dictionary.get(key) {
        Some(ListEntry::Item(item)) => integer(&item.bare_item),
        _ => None,
    };
    let remaining = number("remaining")?;
    Some(Policy::unnamed(remaining, number("reset")))
}

/// Since draft 08: `"burst";r=50;t=30`, in draft 08 itself `burst;r=50;t=30`.
fn list(field: &[u8]) -> Vec<Policy> {
    let policy = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else {
            return None;
        };
        let name = match &item.bare_item {
            BareItem::String(name) => name.as_str(),
            BareItem::Token(name) => name.as_str(),
            _ => return None,
        };
        Some(Policy {
            name: name.to_owned(),
            remaining: parameter(&item.params, "r")?,
            reset: parameter(&item.params, "t"),
        })
    };
    let list = Parser::new(field).parse::<List>().unwrap_or_default();
    list.iter().filter_map(policy).collect()
}

fn parameter(parameters: &Parameters, key: &str) -> Option<f64> {
    integer(parameters.get(key)?)
}

fn integer(item: &BareItem) -> Option<f64> {
    let number = i64::from(item.as_integer()?);
    (number >= 0).then_some(number as f64)
}
