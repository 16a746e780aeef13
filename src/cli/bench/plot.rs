//! [pure] A run as a picture: what each item costs, and how many there are a second. An SVG made by hand.
//!
//! Called by `bench` for `--save`. Both axes are logarithmic, because the figures span three orders of magnitude.

use std::fmt::Write as _;

use super::figures::{Figures, Report};

const WIDTH: f64 = 980.0;
const LABELS: f64 = 210.0;
/// Of each of the two panels.
const PANEL: f64 = 310.0;
/// Between them, where the first one's numbers stand.
const GAP: f64 = 70.0;
const HEAD: f64 = 70.0;
const ROW: f64 = 20.0;
const BAR: f64 = 13.0;
const FOOT: f64 = 20.0;

/// A panel: what it tells, from where on, in which color.
struct Panel {
    title: &'static str,
    left: f64,
    color: &'static str,
    value: fn(&Figures) -> Option<f64>,
    digits: usize,
}

const PANELS: [Panel; 2] = [
    Panel {
        title: "CPU of service and PostgreSQL, × bare POST",
        left: LABELS,
        color: "#b5563c",
        value: |row| row.times_bare,
        digits: 2,
    },
    Panel {
        title: "items a second",
        left: LABELS + PANEL + GAP,
        color: "#3b6ea5",
        value: |row| Some(row.rate_per_s),
        digits: 0,
    },
];

/// The picture.
pub(super) fn svg(report: &Report) -> String {
    let bottom = HEAD + ROW * report.rows.len() as f64;
    let machine = &report.machine;
    let mut svg = String::new();
    // Writing into a string cannot fail.
    let _ = writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
<text x="10" y="20" font-size="14">Ringback {} · {} · {} × {}</text>"#,
        escaped(&machine.ringback),
        escaped(&machine.date),
        machine.cores,
        escaped(&machine.cpu),
        height = bottom + FOOT,
    );
    for panel in &PANELS {
        draw(&mut svg, panel, &report.rows, bottom);
    }
    for (place, row) in report.rows.iter().enumerate() {
        let y = HEAD + ROW * place as f64 + BAR;
        let name = escaped(&format!("{} {}", row.scenario, row.mode));
        let _ = writeln!(svg, r#"<text x="{}" y="{y}" text-anchor="end">{name}</text>"#, LABELS - 8.0);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, panel: &Panel, rows: &[Figures], bottom: f64) {
    let Panel { title, left, color, value, digits } = *panel;
    let scale = Scale::of(rows.iter().filter_map(value));
    let _ = writeln!(svg, r#"<text x="{left}" y="42" font-weight="bold">{title}</text>"#);
    for (tick, text) in scale.ticks() {
        let x = left + tick * PANEL;
        let _ = writeln!(
            svg,
            r##"<path d="M{x:.1} {HEAD}V{bottom}" stroke="#ccc"/><text x="{x:.1}" y="{}" fill="#666" text-anchor="middle">{text}</text>"##,
            HEAD - 8.0
        );
    }
    for (place, row) in rows.iter().enumerate() {
        // What stands beside a load, or was not measured, has no bar.
        let Some(value) = value(row).filter(|value| *value > 0.0) else { continue };
        let y = HEAD + ROW * place as f64 + (ROW - BAR) / 2.0;
        let width = scale.place(value) * PANEL;
        let _ = writeln!(
            svg,
            r#"<rect x="{left}" y="{y:.1}" width="{width:.1}" height="{BAR}" fill="{color}"/><text x="{:.1}" y="{:.1}">{value:.digits$}</text>"#,
            left + width + 4.0,
            y + BAR - 2.0,
        );
    }
}

/// Of a power of ten.
const LEAST_BAR: f64 = 0.05;

/// From a power of ten to another one.
struct Scale {
    from: i32,
    to: i32,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let logs: Vec<f64> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
        let (Some(least), Some(most)) =
            (logs.iter().copied().reduce(f64::min), logs.iter().copied().reduce(f64::max))
        else {
            return Self { from: 0, to: 1 };
        };
        // The least one has a bar, too.
        Self { from: (least - LEAST_BAR).floor() as i32, to: most.ceil() as i32 }
    }

    /// Where a value lies, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        ((value.log10() - f64::from(self.from)) / f64::from(self.to - self.from)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        (self.from..=self.to).map(|power| {
            let value = 10_f64.powi(power);
            (self.place(value), format!("{value}"))
        })
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_spans_whole_powers_of_ten() {
        let scale = Scale::of([3.0, 250.0].into_iter());
        assert_eq!((scale.from, scale.to), (0, 3));
        assert!((scale.place(1.0)).abs() < 1e-9 && (scale.place(1000.0) - 1.0).abs() < 1e-9);
        let ticks: Vec<String> = scale.ticks().map(|(_, text)| text).collect();
        assert_eq!(ticks, ["1", "10", "100", "1000"]);
        let one = Scale::of([1.0].into_iter());
        assert_eq!((one.from, one.to), (-1, 0));
        let none = Scale::of(std::iter::empty());
        assert_eq!((none.from, none.to), (0, 1));
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
