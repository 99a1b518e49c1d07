//! The table in the document, and the table of this run.

use std::fs;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md");
const BEGIN: &str = "<!-- formats: begin -->\n";
const END: &str = "<!-- formats: end -->\n";

pub(crate) struct Row {
    pub(crate) case: &'static str,
    /// The configuration of the layer.
    pub(crate) layer: &'static str,
    pub(crate) answer: Vec<String>,
}

/// # Panics
///
/// If the document differs from these rows.
pub(crate) fn compare(rows: &[Row]) {
    let mut table = String::from("| case | layer | response |\n|---|---|---|\n");
    for row in rows {
        let answer = row.answer.iter().map(|line| format!("`{}`", mask(line)));
        let answer = answer.collect::<Vec<_>>().join("<br>");
        table += &format!("| {} | `{}` | {answer} |\n", row.case, row.layer);
    }
    println!("{table}");
    let document = fs::read_to_string(DOCUMENT).expect("docs/formats.md");
    let (head, rest) = document.split_once(BEGIN).expect("the first mark");
    let (documented, tail) = rest.split_once(END).expect("the second mark");
    if std::env::var_os("THROTTLE_FORMATS").is_some_and(|value| value == "write") {
        let document = format!("{head}{BEGIN}{table}{END}{tail}");
        fs::write(DOCUMENT, document).expect("docs/formats.md");
        return;
    }
    for (documented, sent) in documented.lines().zip(table.lines()) {
        assert_eq!(
            documented, sent,
            "docs/formats.md has the first, the second is sent"
        );
    }
    assert_eq!(documented.lines().count(), table.lines().count(), "rows");
}

/// A wait of half a day is shorter when it is read: its seconds and milliseconds are shown as at
/// its beginning.
fn mask(text: &str) -> String {
    let number = |byte: char| byte.is_ascii_digit() || byte == '.';
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|byte: char| byte.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let digits = &from[..from.find(|byte| !number(byte)).unwrap_or(from.len())];
        let digits = digits.trim_end_matches('.');
        let value: f64 = digits.parse().unwrap_or_default();
        masked += before;
        match value {
            36_000.0..=43_200.0 => masked += "43200",
            36_000_000.0..=43_200_000.0 => masked += "43200000",
            _ => masked += digits,
        }
        rest = &from[digits.len()..];
    }
    masked + rest
}
