//! A response over HTTP, parsed.

use reqwest::header::HeaderMap;
use sfv::{BareItem, List, ListEntry, Parser};

/// The fields that the table shows, in this order.
pub(crate) const SHOWN: [&str; 8] = [
    "content-type",
    "cache-control",
    "retry-after",
    "ratelimit-policy",
    "ratelimit",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(&self) -> Vec<String> {
        let retry_after = self.number("retry-after");
        let policies = self.list("ratelimit-policy");
        for (name, q, w) in self.members("ratelimit-policy", "q", "w") {
            assert!(q >= 0 && w >= 1, "{name}: q={q} w={w}");
        }
        let left = self.members("ratelimit", "r", "t");
        for (name, r, t) in &left {
            assert!(*r >= 0 && *t >= 1, "{name}: r={r} t={t}");
            let of = |(policy, q, _): &(String, i64, i64)| policy == name && r <= q;
            let policies = self.members("ratelimit-policy", "q", "w");
            assert!(policies.iter().any(of), "{name} is no policy");
        }
        assert!(left.len() <= policies.len());
        if let Some(seconds) = retry_after {
            assert!(seconds >= 1);
            assert!(left.iter().all(|(_, _, t)| *t == seconds), "{left:?}");
            let reset = self.number("x-ratelimit-reset");
            assert!(reset.is_none_or(|reset| reset == seconds));
        }
        let shown = SHOWN.iter().flat_map(|name| {
            let values = self.headers.get_all(*name).iter();
            values.map(move |value| format!("{name}: {}", value.to_str().expect("ASCII")))
        });
        let plain = |line: &String| !line.starts_with("content-type: text/plain");
        let mut lines = vec![self.status.to_string()];
        lines.extend(shown.filter(plain));
        if self
            .headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/problem+json")
        {
            let problem: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
            assert_eq!(problem["status"], self.status);
            assert!(problem["violated-policies"].is_array());
            lines.push(self.body.clone());
        } else if self.status != 200 && !self.body.is_empty() {
            lines.push(self.body.clone());
        }
        lines
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        let value = self.headers.get(name)?.to_str().expect("ASCII");
        Some(value.parse().expect("a number"))
    }

    /// The field as defined in RFC 9651: lines with the same name are one list.
    fn list(&self, name: &str) -> List {
        let lines = self.headers.get_all(name).iter();
        let lines: Vec<_> = lines.map(|line| line.to_str().expect("ASCII")).collect();
        let list = Parser::new(&lines.join(", ")).parse();
        list.unwrap_or_else(|error| panic!("{name}: {lines:?}: {error}"))
    }

    /// Each member with its name and two of its parameters.
    pub(crate) fn members(&self, name: &str, one: &str, two: &str) -> Vec<(String, i64, i64)> {
        let member = |member: &ListEntry| {
            let ListEntry::Item(item) = member else {
                panic!("{name}: {member:?}")
            };
            let BareItem::String(policy) = &item.bare_item else {
                panic!("{name}: {item:?}")
            };
            let number = |key: &str| match item.params.get(key) {
                Some(BareItem::Integer(number)) => i64::from(*number),
                other => panic!("{name}: {key}: {other:?}"),
            };
            (policy.as_str().to_owned(), number(one), number(two))
        };
        self.list(name).iter().map(member).collect()
    }
}
