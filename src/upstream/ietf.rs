//! `RateLimit` of draft-ietf-httpapi-ratelimit-headers in its three shapes.

use http::HeaderMap;
use sfv::{BareItem, Dictionary, List, ListEntry, Parameters, Parser};

use super::parse;

/// One policy: its name, what remains, and for how long nothing comes.
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) remaining: f64,
    pub(super) reset: Option<f64>,
}

pub(super) fn policies(headers: &HeaderMap) -> Vec<Policy> {
    let mut lines = headers.get_all("ratelimit").iter();
    let Some(first) = lines.next() else {
        // Drafts 00 to 06: three fields.
        // Of `50, 100;w=60`, which early drafts allowed, the first.
        let number = |name| {
            let text = headers.get(name)?.to_str().ok()?;
            parse::seconds(text.split([',', ';']).next()?.trim())
        };
        let policy = |remaining| Policy {
            name: String::new(),
            remaining,
            reset: number("ratelimit-reset"),
        };
        return number("ratelimit-remaining")
            .map(policy)
            .into_iter()
            .collect();
    };
    let mut field = first.as_bytes().to_vec();
    for line in lines {
        field.extend_from_slice(b", ");
        field.extend_from_slice(line.as_bytes());
    }
    // Draft 07, a dictionary: `limit=100, remaining=50, reset=5`. A list of tokens in lower case can
    // be read as one, too, whose values are no numbers.
    if let Ok(dictionary) = Parser::new(&field).parse::<Dictionary>() {
        let number = |key: &str| match dictionary.get(key) {
            Some(ListEntry::Item(item)) => integer(&item.bare_item),
            _ => None,
        };
        if let Some(remaining) = number("remaining") {
            return vec![Policy {
                name: String::new(),
                remaining,
                reset: number("reset"),
            }];
        }
    }
    // Since draft 08, a list: `"burst";r=50;t=30`, in 08 itself `burst;r=50;t=30`.
    let Ok(list) = Parser::new(&field).parse::<List>() else {
        return Vec::new();
    };
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
    list.iter().filter_map(policy).collect()
}

fn parameter(parameters: &Parameters, key: &str) -> Option<f64> {
    integer(parameters.get(key)?)
}

fn integer(item: &BareItem) -> Option<f64> {
    let number = i64::from(item.as_integer()?);
    (number >= 0).then_some(number as f64)
}
