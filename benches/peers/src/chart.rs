//! Charts as SVG: axes, lines with markers, steps, a legend.
//!
//! Written by hand: plotting crates would save the axes, about 60 lines, but leave no control over
//! the placement of labels, and no place for `<title>` and `<desc>`.

use std::fmt::Write;

const INK: &str = "#1f2328";
const MUTED: &str = "#59636e";
const GRID: &str = "#e4e7eb";

// Colours that colour-blind readers can distinguish (Okabe and Ito).

pub const BLUE: &str = "#0072b2";
pub const VERMILION: &str = "#d55e00";
pub const GREEN: &str = "#009e73";
pub const PURPLE: &str = "#aa4499";
pub const BLACK: &str = "#444444";

/// An SVG image with a background of its own, so that it can be read on light and dark pages.
pub struct Picture {
    svg: String,
}

#[derive(Clone, Copy)]
pub struct Text {
    pub size: u32,
    pub bold: bool,
    pub anchor: &'static str,
    pub colour: &'static str,
}

impl Text {
    pub const LABEL: Self = Self {
        size: 13,
        bold: false,
        anchor: "start",
        colour: INK,
    };
    pub const MUTED: Self = Self {
        colour: MUTED,
        ..Self::LABEL
    };
    pub const HEADING: Self = Self {
        size: 15,
        bold: true,
        ..Self::LABEL
    };

    pub const fn anchored(self, anchor: &'static str) -> Self {
        Self { anchor, ..self }
    }
}

impl Picture {
    pub const WIDTH: f64 = 860.0;

    /// `description` is for readers who cannot see the picture.
    pub fn new(height: f64, title: &str, description: &str) -> Self {
        let width = Self::WIDTH;
        let mut picture = Self {
            svg: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
                 width=\"{width}\" height=\"{height}\" role=\"img\" \
                 aria-labelledby=\"title description\" font-family=\"system-ui, -apple-system, \
                 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif\">\n\
                 <title id=\"title\">{}</title>\n\
                 <desc id=\"description\">{}</desc>\n\
                 <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"#ffffff\" \
                 stroke=\"#d1d9e0\"/>\n",
                escaped(title),
                escaped(description),
                width - 1.0,
                height - 1.0,
            ),
        };
        let heading = Text {
            size: 19,
            ..Text::HEADING
        };
        picture.text(24.0, 34.0, heading, title);
        picture
    }

    pub fn text(&mut self, x: f64, y: f64, style: Text, text: &str) {
        let Text {
            size,
            bold,
            anchor,
            colour,
        } = style;
        let weight = if bold { " font-weight=\"600\"" } else { "" };
        self.element(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\"{weight} \
             text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
            escaped(text)
        ));
    }

    /// Lines below the plots, the first at `y`.
    pub fn caption(&mut self, y: f64, lines: &[String]) {
        for (index, line) in lines.iter().enumerate() {
            self.text(24.0, y + 20.0 * index as f64, Text::MUTED, line);
        }
    }

    fn element(&mut self, element: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.svg, "{element}");
    }

    pub fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[derive(Clone, Copy)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
}

/// The style of a series, in the plot and in the legend.
#[derive(Clone, Copy)]
pub struct Look {
    pub colour: &'static str,
    pub width: f64,
    pub dashes: &'static str,
    pub marker: Option<Marker>,
}

impl Look {
    fn line(self, picture: &mut Picture, points: &str) {
        let Self {
            colour,
            width,
            dashes,
            ..
        } = self;
        picture.element(format_args!(
            "<path d=\"M{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-linejoin=\"round\" stroke-dasharray=\"{dashes}\"/>"
        ));
    }

    fn mark(self, picture: &mut Picture, x: f64, y: f64) {
        let corners: &[(f64, f64)] = match self.marker {
            None => return,
            Some(Marker::Circle) => {
                let colour = self.colour;
                return picture.element(format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
                ));
            }
            Some(Marker::Square) => &[(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)],
            Some(Marker::Triangle) => &[(0.0, -4.8), (4.6, 3.4), (-4.6, 3.4)],
            Some(Marker::Diamond) => &[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)],
        };
        let corners = corners.iter().map(|(dx, dy)| (x + dx, y + dy));
        let (path, colour) = (joined(corners), self.colour);
        picture.element(format_args!("<path d=\"M{path}Z\" fill=\"{colour}\"/>"));
    }

    /// An entry of the legend: a sample of the line, then its name.
    pub fn legend(self, picture: &mut Picture, x: f64, y: f64, name: &str) {
        let middle = y - 4.5;
        self.line(picture, &joined([(x, middle), (x + 28.0, middle)]));
        self.mark(picture, x + 14.0, middle);
        picture.text(x + 36.0, y, Text::LABEL, name);
    }
}

fn joined(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let points: Vec<String> = points
        .into_iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    points.join("L")
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
}

pub struct Axis {
    pub scale: Scale,
    pub from: f64,
    pub to: f64,
    /// The values that have a label.
    pub ticks: Vec<f64>,
    pub title: String,
}

impl Axis {
    /// The position of a value, between 0 and 1.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => (value / self.from).ln() / (self.to / self.from).ln(),
        }
    }
}

/// A rectangle with two axes.
pub struct Plot {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub across: Axis,
    pub up: Axis,
}

/// The space for the label of a tick, in pixels.
const LABEL_WIDTH: f64 = 44.0;

impl Plot {
    pub fn x(&self, value: f64) -> f64 {
        self.left + self.across.place(value) * self.width
    }

    pub fn y(&self, value: f64) -> f64 {
        self.top + (1.0 - self.up.place(value)) * self.height
    }

    pub fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, labels and titles of the axes.
    pub fn frame(&self, picture: &mut Picture) {
        let (left, bottom) = (self.left, self.bottom());
        let (right, middle) = (left + self.width, left + self.width / 2.0);
        for &tick in &self.up.ticks {
            let y = self.y(tick);
            picture.element(format_args!(
                "<path d=\"M{left},{y:.1}H{right}\" stroke=\"{GRID}\"/>"
            ));
            let label = Text::MUTED.anchored("end");
            picture.text(left - 8.0, y + 4.5, label, &short(tick));
        }
        picture.text(left - 44.0, self.top - 12.0, Text::MUTED, &self.up.title);
        picture.element(format_args!(
            "<path d=\"M{left},{bottom}H{right}\" stroke=\"{MUTED}\"/>"
        ));
        // From the last tick, which always has a label, to the first.
        let mut free = f64::INFINITY;
        for &tick in self.across.ticks.iter().rev() {
            let x = self.x(tick);
            picture.element(format_args!(
                "<path d=\"M{x:.1},{bottom}v5\" stroke=\"{MUTED}\"/>"
            ));
            if x <= free {
                let label = Text::MUTED.anchored("middle");
                picture.text(x, bottom + 20.0, label, &short(tick));
                free = x - LABEL_WIDTH;
            }
        }
        let title = Text::MUTED.anchored("middle");
        picture.text(middle, bottom + 40.0, title, &self.across.title);
    }

    /// A line through the points.
    pub fn line(&self, picture: &mut Picture, look: Look, points: &[(f64, f64)]) {
        let places = points.iter().map(|&(x, y)| (self.x(x), self.y(y)));
        look.line(picture, &joined(places.clone()));
        for (x, y) in places {
            look.mark(picture, x, y);
        }
    }

    /// One value for each interval of length `step`; the first interval begins at `from`.
    pub fn steps(&self, picture: &mut Picture, look: Look, from: f64, step: f64, values: &[f64]) {
        let corners = values.iter().enumerate().flat_map(|(index, &value)| {
            let start = from + index as f64 * step;
            let y = self.y(value);
            [(self.x(start), y), (self.x(start + step), y)]
        });
        look.line(picture, &joined(corners));
    }

    /// Shades the plot between two values of the horizontal axis.
    pub fn band(&self, picture: &mut Picture, from: f64, to: f64, title: &str) {
        let (left, right) = (self.x(from), self.x(to));
        picture.element(format_args!(
            "<rect x=\"{left:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"#eef0f3\"/>",
            self.top,
            right - left,
            self.height
        ));
        let label = Text::MUTED.anchored("middle");
        picture.text(f64::midpoint(left, right), self.top + 20.0, label, title);
    }
}

/// A number as a label: `10 k`, `2.4 M`, `1,024`.
pub fn short(value: f64) -> String {
    let scaled = |unit: f64| (10.0 * value / unit).round() / 10.0;
    match value {
        _ if value >= 1e6 => format!("{} M", scaled(1e6)),
        _ if value >= 1e3 && value % 1e3 == 0.0 => format!("{} k", value / 1e3),
        _ if value >= 1e3 => grouped(value),
        _ => format!("{value}"),
    }
}

/// A whole number with commas between its thousands.
pub fn grouped(value: f64) -> String {
    let mut text = format!("{value:.0}");
    let mut end = text.len();
    while end > 3 {
        end -= 3;
        text.insert(end, ',');
    }
    text
}
