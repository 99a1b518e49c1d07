//! The figures of all rows, as a table.

use std::{fs, path::Path, sync::Mutex};

use super::{
    child::{CAPACITY, SCOPES},
    figures::Figures,
    rows::Row,
};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

#[derive(Default)]
pub(crate) struct Table {
    lines: Mutex<Vec<String>>,
}

impl Table {
    pub(crate) fn add(&self, row: &Row, figures: &Figures) {
        let ms = |us: Option<i64>| us.map_or("–".into(), |us| format!("{:.1}", us as f64 / 1e3));
        let worst = |strict| {
            let of = figures.scopes.iter().zip(&SCOPES);
            let excess = of
                .filter(|(_, kind)| kind.strict == strict)
                .map(|(of, _)| of.excess / CAPACITY);
            excess.fold(f64::NEG_INFINITY, f64::max)
        };
        let range = |numbers: &mut dyn Iterator<Item = f64>, digits: usize| {
            let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
            for number in numbers {
                (least, most) = (least.min(number), most.max(number));
            }
            match least.is_finite() {
                true => format!("{least:.digits$} to {most:.digits$}"),
                false => "–".into(),
            }
        };
        let scopes = &figures.scopes;
        let line = format!(
            "| {} | {} | {} | {} | {} | {} | {:+.2} | {:+.2} | {} | {} |",
            row.fault,
            figures.acquired,
            figures.errors + figures.overdue,
            ms(Some(figures.caught)),
            ms(figures.p99_while_degraded),
            ms(figures.recovery),
            worst(false),
            worst(true),
            range(&mut scopes.iter().filter_map(|of| of.share), 2),
            range(&mut scopes.iter().filter_map(|of| of.missing), 0),
        );
        for (of, kind) in scopes.iter().zip(&SCOPES) {
            println!(
                "{}: {}: {} admitted, {} of them by memory, worst window {:+.1} tokens \
                 ({:.3} s to {:.3} s), share {:.2?}, missing {:.1?}",
                row.name,
                kind.name,
                of.admitted,
                of.by_memory,
                of.excess,
                of.worst.0 as f64 / 1e6,
                of.worst.1 as f64 / 1e6,
                of.share,
                of.missing
            );
        }
        println!("{line}");
        self.lines.lock().expect("no panic").push(line);
    }

    fn text(&self) -> String {
        let head = "| fault | acquisitions | failed or hung | caught in flight, at most, ms | p99 \
                    while degraded, ms | back after, ms | worst window over the limit, \
                    capacities: shares | strict | of the share while degraded | tokens missing \
                    2 s after |\n|---|---|---|---|---|---|---|---|---|---|\n";
        let lines = self.lines.lock().expect("no panic");
        head.to_owned() + &lines.join("\n") + "\n"
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.text());
    }

    /// Writes the table between the marks in this file.
    ///
    /// # Panics
    ///
    /// If the file has no such marks.
    pub(crate) fn write(&self, file: &Path) {
        let text = fs::read_to_string(file).expect("a file");
        let (head, rest) = text.split_once(BEGIN).expect("a mark where figures begin");
        let (_, tail) = rest.split_once(END).expect("a mark where figures end");
        let text = format!("{head}{BEGIN}\n{}{END}{tail}", self.text());
        fs::write(file, text).expect("a file that can be written");
    }
}
