//! Lines over logarithmic axes, one panel a curve, as SVG.

use std::fmt::Write;

use crate::rows::Curve;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 40.0;
const COLOURS: [&str; 5] = ["#888888", "#d97706", "#2563eb", "#059669", "#9333ea"];

pub fn draw(curves: &[(&str, &Curve)]) -> String {
    let rows = curves.len().div_ceil(2) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        2.0 * WIDTH,
        rows * HEIGHT,
    );
    for (index, (title, curve)) in curves.iter().enumerate() {
        let (x, y) = ((index % 2) as f64 * WIDTH, (index / 2) as f64 * HEIGHT);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, title, curve);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// From the value to its place between 0 and 1.
struct Axis {
    least: f64,
    most: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let logs: Vec<f64> = values.map(log).collect();
        let least = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self {
            least,
            most: most.max(least + 0.1),
        }
    }

    fn place(&self, value: f64) -> f64 {
        (log(value) - self.least) / (self.most - self.least)
    }
}

/// Zero has a place too.
fn log(value: f64) -> f64 {
    value.max(0.1).log10()
}

fn panel(svg: &mut String, title: &str, curve: &Curve) {
    let points = || curve.lines.iter().flat_map(|(_, points)| points.iter());
    let across = Axis::over(points().map(|(x, _)| *x));
    let mut up = Axis::over(points().map(|(_, y)| *y));
    (up.least, up.most) = (up.least.floor(), up.most.ceil());
    let x = |value| LEFT + across.place(value) * (WIDTH - LEFT - RIGHT);
    let y = |value| HEIGHT - BOTTOM - up.place(value) * (HEIGHT - TOP - BOTTOM);
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"18\" font-size=\"13\">{title}</text>"
    );
    let _ = writeln!(svg, "<text x=\"4\" y=\"{}\">ops/s</text>", TOP - 6.0);
    for decade in up.least as i32..=up.most as i32 {
        let value = 10_f64.powi(decade);
        let (at, end) = (y(value), WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{end}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(value),
        );
    }
    let bottom = HEIGHT - BOTTOM;
    let mut marks: Vec<f64> = points().map(|(x, _)| *x).collect();
    marks.sort_unstable_by(f64::total_cmp);
    marks.dedup();
    for mark in marks {
        let (at, label) = (x(mark), short(mark));
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            bottom + 16.0
        );
    }
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        bottom + 32.0,
        curve.axis
    );
    let mut taken: Vec<f64> = Vec::new();
    for ((name, points), colour) in curve.lines.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = points
            .iter()
            .map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        let Some((_, last)) = points.last() else {
            continue;
        };
        // Labels do not lie on each other.
        let mut at = y(*last);
        while taken.iter().any(|other| (other - at).abs() < 12.0) {
            at += 3.0;
        }
        taken.push(at);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            WIDTH - RIGHT + 6.0,
            at + 4.0
        );
    }
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value if value >= 1e3 => format!("{} k", value / 1e3),
        value => format!("{value}"),
    }
}
