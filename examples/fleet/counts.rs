//! Requests, counted in bins of time.

use std::ops::Range;

use miaf_agent::lifecycle::Failure;

use crate::device::Moment;

pub(crate) const MINUTE: Moment = 60_000;
pub(crate) const DAY: Moment = 24 * 3_600_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Enrollment,
    Renewal,
    Discovery,
    Bundle,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Enrollment, Self::Renewal, Self::Discovery, Self::Bundle];

    /// It costs the MIS a signature.
    pub(crate) fn is_for_an_svid(self) -> bool {
        matches!(self, Self::Enrollment | Self::Renewal)
    }

    pub(crate) fn is_any(self) -> bool {
        Self::ALL.contains(&self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Served,
    Refused,
    Unanswered,
}

impl Ending {
    pub(crate) const ALL: [Self; 3] = [Self::Served, Self::Refused, Self::Unanswered];

    pub(crate) fn of(answer: &Result<(), Failure>) -> Self {
        match answer {
            Ok(()) => Self::Served,
            Err(failure) if failure.retry_after.is_some() => Self::Refused,
            Err(_) => Self::Unanswered,
        }
    }
}

/// Which requests are meant.
pub(crate) type Which = fn(Kind, Ending) -> bool;

/// How many requests there were in each minute; and in each second, for a while.
pub(crate) struct Counts {
    minutes: Bins,
    seconds: Bins,
    seconds_wanted: Range<Moment>,
}

struct Bins {
    width: Moment,
    bins: Vec<[[u32; 3]; 4]>,
}

impl Bins {
    fn add(&mut self, kind: Kind, ending: Ending, at: Moment) {
        let bin = (at / self.width) as usize;
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, [[0; 3]; 4]);
        }
        self.bins[bin][kind as usize][ending as usize] += 1;
    }

    fn sum(&self, which: Which, range: Range<Moment>) -> u64 {
        let within = (range.start / self.width) as usize..(range.end / self.width) as usize;
        let bins = self.bins.get(within.start..within.end.min(self.bins.len())).unwrap_or_default();
        bins.iter().map(|bin| sum(bin, which)).sum()
    }
}

fn sum(bin: &[[u32; 3]; 4], which: Which) -> u64 {
    let all = Kind::ALL.into_iter().flat_map(|kind| Ending::ALL.map(|ending| (kind, ending)));
    all.filter(|(kind, ending)| which(*kind, *ending))
        .map(|(kind, ending)| u64::from(bin[kind as usize][ending as usize]))
        .sum()
}

impl Counts {
    pub(crate) fn new() -> Self {
        let bins = |width| Bins { width, bins: Vec::new() };
        Self { minutes: bins(MINUTE), seconds: bins(1000), seconds_wanted: 0..0 }
    }

    /// From here on, for so long, seconds are counted too.
    pub(crate) fn look_closely(&mut self, range: Range<Moment>) {
        self.seconds_wanted = range;
        self.seconds.bins.clear();
    }

    pub(crate) fn add(&mut self, kind: Kind, ending: Ending, at: Moment) {
        self.minutes.add(kind, ending, at);
        if self.seconds_wanted.contains(&at) {
            self.seconds.add(kind, ending, at - self.seconds_wanted.start);
        }
    }

    pub(crate) fn total(&self, which: Which, range: Range<Moment>) -> u64 {
        self.minutes.sum(which, range)
    }

    /// Requests a second, on average.
    pub(crate) fn mean(&self, which: Which, range: Range<Moment>) -> f64 {
        self.total(which, range.clone()) as f64 * 1000.0 / (range.end - range.start) as f64
    }

    /// Requests a second in the busiest of the bins of this width.
    pub(crate) fn busiest(&self, which: Which, range: Range<Moment>, width: Moment) -> f64 {
        steps(range, width).map(|bin| self.mean(which, bin)).fold(0.0, f64::max)
    }

    /// The same, of the seconds that were looked at closely.
    pub(crate) fn busiest_second(&self, which: Which) -> u64 {
        self.seconds.bins.iter().map(|bin| sum(bin, which)).max().unwrap_or(0)
    }

    /// The end of the last bin of this width with more than `rate` requests a second.
    pub(crate) fn last_above(
        &self,
        rate: f64,
        which: Which,
        range: Range<Moment>,
        width: Moment,
    ) -> Option<Moment> {
        let above = steps(range, width).filter(|bin| self.mean(which, bin.clone()) > rate);
        above.last().map(|bin| bin.end)
    }

    /// The busiest day over the average day.
    pub(crate) fn daily_peak_to_mean(&self, which: Which, range: Range<Moment>) -> f64 {
        let days = (range.end - range.start) / DAY * DAY;
        let range = range.start..range.start + days;
        self.busiest(which, range.clone(), DAY) / self.mean(which, range)
    }

    /// Requests a second over time, in bins of this width.
    pub(crate) fn rates(&self, which: Which, range: Range<Moment>, width: Moment) -> Vec<f64> {
        if width.is_multiple_of(MINUTE) {
            return steps(range, width).map(|bin| self.mean(which, bin)).collect();
        }
        let from = self.seconds_wanted.start;
        let close = steps(range.start - from..range.end - from, width);
        close.map(|bin| self.seconds.sum(which, bin) as f64 * 1000.0 / width as f64).collect()
    }
}

/// The whole bins of this width in a range.
fn steps(range: Range<Moment>, width: Moment) -> impl Iterator<Item = Range<Moment>> {
    let count = (range.end - range.start) / width;
    (0..count).map(move |nth| range.start + nth * width..range.start + (nth + 1) * width)
}
