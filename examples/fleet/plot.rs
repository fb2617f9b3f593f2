//! Requests a second over time as an SVG: a logarithmic axis, and colours that can be told apart on
//! white and on black.

use std::fmt::Write as _;
use std::ops::Range;

use crate::counts::{Counts, Ending, Kind, Which};
use crate::device::Moment;

const LINES: [(&str, &str, Which); 6] = [
    ("enrollments", "#3b82f6", |kind, _| kind == Kind::Enrollment),
    ("renewals", "#22a35a", |kind, _| kind == Kind::Renewal),
    ("discovery", "#d97706", |kind, _| kind == Kind::Discovery),
    ("trust bundle", "#9261d6", |kind, _| kind == Kind::Bundle),
    ("answered 429", "#dc3545", |_, ending| ending == Ending::Refused),
    ("not answered", "#8a8f98", |_, ending| ending == Ending::Unanswered),
];

const LEFT: f64 = 62.0;
const TOP: f64 = 44.0;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 250.0;

pub(crate) struct Plot {
    pub(crate) title: String,
    /// What is shown, and in how wide bins.
    pub(crate) range: Range<Moment>,
    pub(crate) width: Moment,
    /// Zero of the time axis, its unit, and the distance of its marks in that unit.
    pub(crate) zero: Moment,
    pub(crate) unit: (&'static str, Moment),
    pub(crate) mark: i64,
    /// Shaded: the MIS is away.
    pub(crate) down: Range<Moment>,
    /// A line across: what the MIS can do.
    pub(crate) capacity: Option<f64>,
}

impl Plot {
    pub(crate) fn draw(&self, counts: &Counts) -> String {
        let shown: Vec<_> = LINES
            .iter()
            .map(|(name, colour, which)| (name, colour, counts.rates(*which, self.range.clone(), self.width)))
            .filter(|(_, _, rates)| rates.iter().any(|rate| *rate > 0.0))
            .collect();
        let all = || shown.iter().flat_map(|(_, _, rates)| rates).chain(&self.capacity);
        let (lowest, highest) = (all().copied().filter(|r| *r > 0.0), all().copied().fold(1.0, f64::max));
        let bottom = lowest.fold(f64::MAX, f64::min).log10().floor().max(-3.0);
        let top = highest.log10().ceil().max(bottom + 1.0);
        let y = |rate: f64| {
            let share = (rate.max(1e-9).log10() - bottom) / (top - bottom);
            TOP + HEIGHT * (1.0 - share.clamp(0.0, 1.0))
        };
        let span = (self.range.end - self.range.start) as f64;
        let x = |at: Moment| LEFT + WIDTH * (at.max(self.range.start) - self.range.start) as f64 / span;

        let mut svg = self.frame();
        let _ = write!(svg, "{}", self.shade(&x));
        for power in bottom as i32..=top as i32 {
            let (at, label) = (y(10_f64.powi(power)), number(10_f64.powi(power)));
            let _ = writeln!(svg, r#"<path class="grid" d="M{LEFT} {at:.1}h{WIDTH}"/>"#);
            let _ = writeln!(
                svg,
                r#"<text x="{}" y="{:.1}" text-anchor="end">{label}</text>"#,
                LEFT - 6.0,
                at + 4.0
            );
        }
        let unit = self.unit.1 as i64;
        let from = (self.range.start as i64 - self.zero as i64).div_euclid(unit * self.mark);
        for nth in from..=from + 60 {
            let value = nth * self.mark;
            let at = self.zero as i64 + value * unit;
            if at < self.range.start as i64 || at > self.range.end as i64 {
                continue;
            }
            let at = x(at as Moment);
            let foot = TOP + HEIGHT;
            let _ = writeln!(svg, r#"<path class="grid" d="M{at:.1} {foot}v5"/>"#);
            let _ = writeln!(
                svg,
                r#"<text x="{at:.1}" y="{:.0}" text-anchor="middle">{value}</text>"#,
                foot + 18.0
            );
        }
        let _ = writeln!(
            svg,
            r#"<text x="{:.0}" y="{:.0}" text-anchor="middle">{}</text>"#,
            LEFT + WIDTH / 2.0,
            TOP + HEIGHT + 36.0,
            self.unit.0
        );
        if let Some(capacity) = self.capacity {
            let at = y(capacity);
            let _ = writeln!(svg, r#"<path class="limit" d="M{LEFT} {at:.1}h{WIDTH}"/>"#);
        }
        for (nth, (name, colour, rates)) in shown.iter().enumerate() {
            let mut way = String::new();
            for (bin, rate) in rates.iter().enumerate() {
                let at = x(self.range.start + bin as Moment * self.width);
                let _ = write!(way, "{}{at:.0} {:.0}", if bin == 0 { 'M' } else { 'L' }, y(*rate));
            }
            let _ = writeln!(svg, r#"<path class="line" stroke="{colour}" d="{way}"/>"#);
            let legend = LEFT + nth as f64 * 120.0;
            let _ = writeln!(
                svg,
                r#"<path class="line" stroke="{colour}" stroke-width="3" d="M{legend} 33h14"/>"#
            );
            let _ = writeln!(svg, r#"<text x="{}" y="37">{name}</text>"#, legend + 19.0);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn frame(&self) -> String {
        let (width, height) = (LEFT + WIDTH + 18.0, TOP + HEIGHT + 46.0);
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>{title}</title>
<style>
text {{ font: 12px sans-serif; fill: #57606a }}
.title {{ font-weight: bold }}
.grid {{ stroke: #8a8f98; stroke-opacity: .35; fill: none }}
.limit {{ stroke: #dc3545; stroke-dasharray: 6 4; fill: none }}
.line {{ fill: none; stroke-width: 1.4; stroke-linejoin: round }}
.down {{ fill: #8a8f98; fill-opacity: .18 }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #adb5bd }} }}
</style>
<text class="title" x="{LEFT}" y="16">{title}</text>
"#,
            title = self.title
        )
    }

    fn shade(&self, x: &dyn Fn(Moment) -> f64) -> String {
        if self.down.is_empty() {
            return String::new();
        }
        let (from, to) = (x(self.down.start), x(self.down.end));
        let width = to - from;
        format!(
            "<rect class=\"down\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{HEIGHT}\"/>\n"
        )
    }
}

fn number(rate: f64) -> String {
    if rate >= 1000.0 { format!("{},000", rate / 1000.0) } else { format!("{rate}") }
}
