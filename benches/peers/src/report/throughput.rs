//! The picture of throughput by number of tasks and by number of scopes.

use super::{Report, RowReport};
use crate::{
    chart::{
        Axis, BLACK, BLUE, GREEN, Look, Marker, PURPLE, Picture, Plot, Scale, Text, VERMILION,
        short,
    },
    rows::{Curve, Line},
    subjects::{MINIMAL, NAIVE, THROTTLE},
};

const PANELS: [(&str, &str); 2] = [
    ("curve-tasks", "One scope, by number of tasks"),
    ("curve-scopes", "1,024 tasks, by number of scopes"),
];

/// `None` unless both curves were measured.
pub fn draw(report: &Report) -> Option<String> {
    let curve = |name: &str| {
        let mut rows = report.rows.iter();
        let row: &RowReport = rows.find(|row| row.name == name)?;
        row.curve.as_ref()
    };
    let curves = [curve(PANELS[0].0)?, curve(PANELS[1].0)?];

    let values = || {
        let lines = curves.iter().flat_map(|curve| &curve.lines);
        lines.flat_map(|line| line.points.iter().map(|(_, y)| *y))
    };
    let lowest = values().fold(f64::INFINITY, f64::min);
    let highest = values().fold(0.0, f64::max);
    let up = || Axis {
        scale: Scale::Log,
        from: lowest / 1.4,
        to: highest * 1.8,
        ticks: (0..9)
            .map(|decade| 10_f64.powi(decade))
            .filter(|tick| (lowest / 1.4..=highest * 1.8).contains(tick))
            .collect(),
        title: "tokens/s (log scale)".to_owned(),
    };

    let mut picture = Picture::new(
        492.0,
        "Throughput of limiters that share a bucket through Redis",
        &described(&curves),
    );
    for (index, line) in ordered(curves[0]).into_iter().enumerate() {
        let at = 24.0 + 170.0 * index as f64;
        look(&line.name).legend(&mut picture, at, 64.0, &line.name);
    }
    for (index, (curve, (_, title))) in curves.iter().zip(PANELS).enumerate() {
        let plot = Plot {
            left: 68.0 + index as f64 * 424.0,
            top: 134.0,
            width: 340.0,
            height: 230.0,
            across: across(curve),
            up: up(),
        };
        picture.text(plot.left - 44.0, plot.top - 36.0, Text::HEADING, title);
        plot.frame(&mut picture);
        // tower-throttle comes first and is drawn last, over the others.
        for line in ordered(curve).into_iter().rev() {
            plot.line(&mut picture, look(&line.name), &line.points);
        }
        label(&plot, &mut picture, curve);
    }
    let caption = [
        "Naive script: HMGET, HMSET and EXPIRE for each token. Minimal script: GET and SET. \
         redis-cell: a module of the server."
            .to_owned(),
        format!(
            "One process on {} cores, shared with redis-server; each task requests a token as soon \
             as it has got the last one.",
            report.machine.cores
        ),
        format!(
            "Each point is the median of {} rounds of {} ms.",
            report.plan().short().rounds,
            report.round_ms
        ),
    ];
    picture.caption(434.0, &caption);
    Some(picture.finish())
}

fn look(name: &str) -> Look {
    let (colour, width, marker) = match name {
        THROTTLE => (BLUE, 3.0, Marker::Circle),
        "redis-cell" => (GREEN, 2.0, Marker::Diamond),
        MINIMAL => (VERMILION, 2.0, Marker::Triangle),
        NAIVE => (BLACK, 2.0, Marker::Square),
        _ => (PURPLE, 2.0, Marker::Square),
    };
    Look {
        colour,
        width,
        dashes: "none",
        marker: Some(marker),
    }
}

/// By throughput at the most work that was measured, tower-throttle first.
fn ordered(curve: &Curve) -> Vec<&Line> {
    let mut lines: Vec<_> = curve.lines.iter().collect();
    let last = |line: &Line| line.points.last().map_or(0.0, |(_, y)| *y);
    lines.sort_by(|one, other| last(other).total_cmp(&last(one)));
    lines.sort_by_key(|line| line.name != THROTTLE);
    lines
}

fn across(curve: &Curve) -> Axis {
    let points = curve.lines.first().map_or(&[][..], |line| &line.points);
    let ticks: Vec<f64> = points.iter().map(|(x, _)| *x).collect();
    Axis {
        scale: Scale::Log,
        from: ticks.first().copied().unwrap_or(1.0),
        to: ticks.last().copied().unwrap_or(10.0),
        ticks,
        title: curve.axis.clone(),
    }
}

/// A point of tower-throttle.
struct Note {
    work: f64,
    tokens_per_s: f64,
    /// Relative to the naive script.
    ratio: f64,
}

/// The point of the highest throughput, and that of the most work if it is another one.
fn noted(curve: &Curve) -> Vec<Note> {
    let points = |name: &str| {
        let line = curve.lines.iter().find(|line| line.name == name);
        line.map_or(&[][..], |line| &line.points)
    };
    let mut notes: Vec<Note> = points(THROTTLE)
        .iter()
        .zip(points(NAIVE))
        .map(|((work, tokens_per_s), (_, naive))| Note {
            work: *work,
            tokens_per_s: *tokens_per_s,
            ratio: tokens_per_s / naive,
        })
        .collect();
    let by_throughput = |one: &Note, other: &Note| one.tokens_per_s.total_cmp(&other.tokens_per_s);
    let last = notes.pop();
    let best = notes.into_iter().max_by(by_throughput);
    match (best, last) {
        (Some(best), Some(last)) if best.tokens_per_s > last.tokens_per_s => vec![best, last],
        (_, last) => last.into_iter().collect(),
    }
}

/// Labels in the plot.
fn label(plot: &Plot, picture: &mut Picture, curve: &Curve) {
    let style = Text {
        bold: true,
        colour: BLUE,
        ..Text::LABEL
    };
    let middle = plot.left + plot.width / 2.0;
    let mut last = f64::INFINITY;
    for (index, note) in noted(curve).iter().enumerate() {
        let x = plot.x(note.work);
        if (x - last).abs() < 120.0 {
            continue;
        }
        last = x;
        let (at, anchor) = match x > middle {
            true => (x + 8.0, "end"),
            false => (x - 2.0, "start"),
        };
        let (tokens, ratio) = (short(rounded(note.tokens_per_s)), rounded(note.ratio));
        // The second label has no space for all words.
        let text = match index {
            0 => format!("{tokens} tokens/s: {ratio}× the naive script"),
            _ => format!("{tokens}: {ratio}×"),
        };
        let y = plot.y(note.tokens_per_s) - 14.0;
        picture.text(at, y, style.anchored(anchor), &text);
    }
}

fn described(curves: &[&Curve]) -> String {
    let mut text = String::from(
        "Two line charts of tokens per second over logarithmic axes, with a line for each limiter.",
    );
    for (curve, (_, title)) in curves.iter().zip(PANELS) {
        let points = noted(curve).into_iter().map(|note| {
            format!(
                "tower-throttle reaches {} tokens/s with {} = {}, {} times the naive script",
                short(rounded(note.tokens_per_s)),
                curve.axis,
                short(note.work),
                rounded(note.ratio)
            )
        });
        let points = points.collect::<Vec<_>>().join("; ");
        text.push_str(&format!(" {title}: {points}."));
    }
    text
}

/// Rounded to two significant digits.
fn rounded(value: f64) -> f64 {
    let digits = 1 - value.abs().log10().floor() as i32;
    // Divided where possible: fractions of ten are not exact.
    match digits > 0 {
        true => (value * 10_f64.powi(digits)).round() / 10_f64.powi(digits),
        false => (value / 10_f64.powi(-digits)).round() * 10_f64.powi(-digits),
    }
}
