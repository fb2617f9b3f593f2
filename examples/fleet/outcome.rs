//! What a scenario came to, and how it is told.

use crate::counts::{DAY, MINUTE};
use crate::device::Moment;

/// A bound, and what was measured.
pub(crate) struct Bound {
    pub(crate) what: &'static str,
    pub(crate) measured: f64,
    pub(crate) most: f64,
}

impl Bound {
    pub(crate) fn holds(&self) -> bool {
        self.measured <= self.most
    }
}

#[derive(Default)]
pub(crate) struct Outcome {
    /// For the large table.
    pub(crate) row: Row,
    /// For a small one.
    pub(crate) cells: Vec<String>,
    /// For the text.
    pub(crate) figures: Vec<(&'static str, String)>,
    pub(crate) bounds: Vec<Bound>,
    pub(crate) plots: Vec<(&'static str, String)>,
}

/// Of the full fleet, in requests a second where nothing else is said.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) lifetime: String,
    pub(crate) refresh: String,
    pub(crate) svids_mean: String,
    pub(crate) svids_busiest: String,
    pub(crate) refused: String,
    pub(crate) above_until: String,
    pub(crate) documents_mean: String,
    pub(crate) documents_busiest: String,
    pub(crate) away: String,
    pub(crate) expired: String,
    pub(crate) last_back: String,
    pub(crate) peak_to_mean: String,
}

impl Row {
    pub(crate) fn cells(&self) -> [&str; 12] {
        [
            &self.lifetime,
            &self.refresh,
            &self.svids_mean,
            &self.svids_busiest,
            &self.refused,
            &self.above_until,
            &self.documents_mean,
            &self.documents_busiest,
            &self.away,
            &self.expired,
            &self.last_back,
            &self.peak_to_mean,
        ]
    }
}

impl Outcome {
    pub(crate) fn says(&mut self, name: &'static str, figure: f64, digits: usize) {
        self.figures.push((name, format!("{figure:.digits$}")));
    }

    pub(crate) fn holds(&mut self, what: &'static str, measured: f64, most: f64) {
        self.bounds.push(Bound { what, measured, most });
    }
}

/// A length of time for people, in the largest unit that it is at least two of.
pub(crate) fn span(time: Moment) -> String {
    let (count, unit) = match time {
        0..7_200_000 => (time as f64 / MINUTE as f64, "min"),
        7_200_000..172_800_000 => (time as f64 / (60 * MINUTE) as f64, "h"),
        _ => (time as f64 / DAY as f64, "d"),
    };
    format!("{} {unit}", (count * 100.0).round() / 100.0)
}
