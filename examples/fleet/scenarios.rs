//! What happens to the fleet, what is measured, and the bounds that it has to keep.

use std::ops::Range;
use std::time::Duration;

use crate::counts::{DAY, Ending, Kind, MINUTE, Which};
use crate::device::Moment;
use crate::mis::{Limit, Mis};
use crate::plot::Plot;
use crate::world::World;

pub(crate) const SECOND: Moment = 1000;
pub(crate) const HOUR: Moment = 3_600_000;

/// The longest pause of the backoff, as configured by default.
const CAP: Moment = HOUR;

/// What "five lifetimes after" counts from, to the day.
const LIFETIMES: u64 = 5;

const SVIDS: Which = |kind, _| kind.is_for_an_svid();
const ISSUED: Which = |kind, ending| kind.is_for_an_svid() && ending == Ending::Served;
const TURNED_AWAY: Which = |_, ending| ending == Ending::Refused;
const DOCUMENTS: Which = |kind, _| !kind.is_for_an_svid();
const ALL: Which = |_, _| true;

/// How large the fleet is. The capacity of the MIS goes with it, and so does what chance makes of small numbers.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) devices: usize,
    pub(crate) seed: u64,
}

const FULL: usize = 100_000;

impl Scale {
    fn world(self, lifetime: Moment, limit: Option<Limit>, all_on: Moment) -> World {
        let mut mis = Mis::new(Duration::from_millis(lifetime));
        mis.limit = limit;
        World::new(self.devices, self.seed, mis, all_on)
    }

    /// 50 requests a second for a fleet of 100,000.
    fn limit(self, counts: fn(Kind) -> bool) -> Limit {
        let window = SECOND * (FULL / self.devices) as Moment;
        Limit { requests: 50, window, counts, retry_after: Duration::from_secs(60) }
    }

    /// Bins are as much wider as the fleet is smaller, up to an hour's sixth.
    fn bin(self) -> Moment {
        (MINUTE * (FULL / self.devices) as Moment).min(10 * MINUTE)
    }

    /// What chance may add to the highest of some bins with so many requests each: 3.5 standard deviations in a small fleet.
    /// Nothing in the full one.
    fn chance(self, requests: f64) -> f64 {
        if self.devices < FULL { 1.0 + 3.5 / requests.sqrt() } else { 1.0 }
    }
}

/// A bound of the issue, and what was measured.
pub(crate) struct Bound {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) most: f64,
}

impl Bound {
    fn new(what: &str, measured: f64, most: f64) -> Self {
        Self { what: what.to_owned(), measured, most }
    }

    pub(crate) fn holds(&self) -> bool {
        self.measured <= self.most
    }
}

/// What one scenario came to.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Vec<(&'static str, String)>,
    pub(crate) bounds: Vec<Bound>,
    pub(crate) plots: Vec<(&'static str, String)>,
}

impl Outcome {
    fn says(&mut self, name: &'static str, figure: String) {
        self.figures.push((name, figure));
    }
}

/// A day like any other, after five lifetimes.
pub(crate) fn steady(scale: Scale, lifetime: Moment, measured: Moment) -> Outcome {
    let mut world = scale.world(lifetime, None, lifetime);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let from = days(LIFETIMES * lifetime) + DAY;
    let range = from..from + measured;
    world.runs_until(range.end);
    let counts = &world.watcher.counts;
    let peak_to_mean = counts.daily_peak_to_mean(ISSUED, range.clone());
    let mut outcome = Outcome::default();
    outcome.says("mean", format!("{:.2}", counts.mean(SVIDS, range.clone())));
    outcome.says("documents", format!("{:.1}", counts.mean(DOCUMENTS, range.clone())));
    outcome.says("peak_to_mean", format!("{peak_to_mean:.3}"));
    outcome.says("expired", format!("{}", world.watcher.expired));
    let a_day = counts.mean(ISSUED, range) * (DAY / SECOND) as f64;
    outcome.bounds.push(Bound::new("peak to mean", peak_to_mean, 1.15 * scale.chance(a_day)));
    outcome
}

/// Everything at its default, and the whole fleet on the same second.
pub(crate) fn power_on(scale: Scale, lifetime: Moment, limit: Option<Limit>) -> Outcome {
    let mut world = scale.world(lifetime, limit, SECOND);
    world.watcher.counts.look_closely(0..6 * HOUR);
    world.runs_until(6 * HOUR);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let from = days(LIFETIMES * lifetime) + DAY;
    let range = from..from + days(lifetime).max(7 * DAY);
    world.runs_until(range.end);
    let counts = &world.watcher.counts;
    let peak_to_mean = counts.daily_peak_to_mean(ISSUED, range.clone());
    let mut outcome = Outcome::default();
    outcome.says("second", format!("{}", counts.busiest_second(SVIDS)));
    outcome.says("documents", format!("{}", counts.busiest_second(DOCUMENTS)));
    outcome.says("refused", format!("{}", counts.total(TURNED_AWAY, 0..range.end)));
    for after in [62, 63, 64, 90, 122, 124, 130, 200, 300, 400, 600, 900, 1200, 1800, 2400, 3600, 5400] {
        let r = counts.rates(SVIDS, (after - 2) * SECOND..(after + 3) * SECOND, 5 * SECOND);
        outcome.says("at", format!("{after}s {:.0}", r[0]));
    }
    let last = counts.last_above(0.01 , |k, _| k == Kind::Enrollment, 0..range.end).unwrap_or(0);
    outcome.says("last enrolled", format!("{} min", last / MINUTE));
    outcome.says("peak_to_mean", format!("{peak_to_mean:.3}"));
    outcome.plots.push(("power-on", Plot {
        title: format!("new"),
        range: 0..90*MINUTE, width: 10 * SECOND, zero: 0, unit: ("minutes", MINUTE), mark: 10, down: 0..0,
        capacity: limit.map(|l| l.a_second()),
    }.draw(counts)));
    let a_day = counts.mean(ISSUED, range) * (DAY / SECOND) as f64;
    outcome.bounds.push(Bound::new("peak to mean", peak_to_mean, 1.3 * scale.chance(a_day)));
    outcome
}

pub(crate) struct Outage {
    pub(crate) lifetime: Moment,
    pub(crate) length: Moment,
    pub(crate) hint: Option<Duration>,
    pub(crate) counts: fn(Kind) -> bool,
}

pub(crate) fn outage(scale: Scale, it: &Outage) -> Outcome {
    let limit = scale.limit(it.counts);
    let mut world = scale.world(it.lifetime, Some(limit), it.lifetime);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let begin = days(3 * it.lifetime) + 2 * DAY;
    world.runs_until(begin - 36 * HOUR);
    world.mis.refresh_hint = it.hint;
    world.mis.down = begin..begin + it.length;
    let back = begin + it.length;
    world.runs_until(begin);
    let mut outcome = Outcome::default();
    outcome.says("expired before", format!("{}", world.watcher.expired));
    world.watcher.forget_expired();
    world.watcher.counts.look_closely(back - 10 * MINUTE..back + 3 * HOUR);
    world.runs_until(back);
    outcome.says("invalid at return", format!("{}", world.without_a_valid_svid()));
    world.runs_until(back + 2 * CAP);
    outcome.bounds.push(Bound::new("invalid 2 caps after", world.without_a_valid_svid() as f64, 0.0));
    world.runs_until(back + 12 * HOUR);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let settled = back + days(LIFETIMES * it.lifetime) + DAY;
    let end = settled + days(it.lifetime).max(7 * DAY);
    world.runs_until(end);
    let counts = &world.watcher.counts;
    let counted: Which = if (it.counts)(Kind::Bundle) { ALL } else { SVIDS };
    outcome.says("expired", format!("{}", world.watcher.expired));
    outcome.says("last back (min)", format!("{:?}", world.watcher.last_back.map(|at| (at as f64 - back as f64) / MINUTE as f64)));
    outcome.says("least left (min)", format!("{:?}", world.watcher.least_left.map(|at| at as f64/ MINUTE as f64)));
    outcome.says("good day svids/docs", format!("{:.2} {:.2}", counts.mean(SVIDS, begin - 3 * HOUR..begin), counts.mean(DOCUMENTS, begin - 3 * HOUR..begin)));
    outcome.says("down svids/docs", format!("{:.2} {:.2}", counts.mean(SVIDS, back - 3 * HOUR..back), counts.mean(DOCUMENTS, back - 3 * HOUR..back)));
    outcome.says("busiest second back svids/docs", format!("{} {}", counts.busiest_second(|k, e| SVIDS(k, e) && e != Ending::Unanswered), counts.busiest_second(|k, e| DOCUMENTS(k, e) && e != Ending::Unanswered)));
    outcome.says("busiest minute back", format!("{:.1}", counts.busiest(counted, back + MINUTE..back + 12 * HOUR, MINUTE)));
    outcome.says("429", format!("{}", counts.total(TURNED_AWAY, back..end)));
    let above = counts.last_above(limit.a_second(), counted, back..end);
    outcome.says("above until (min)", format!("{:?}", above.map(|at| (at - back) / MINUTE)));
    let later = counts.busiest(counted, back + CAP..end, scale.bin());
    outcome.bounds.push(Bound::new("later than a cap, busiest", later, limit.a_second()));
    let peak_to_mean = counts.daily_peak_to_mean(ISSUED, settled..end);
    outcome.says("later peak to mean", format!("{:.3} {peak_to_mean:.3}", counts.daily_peak_to_mean(ISSUED, back + DAY..settled)));
    outcome.bounds.push(Bound::new("peak to mean", peak_to_mean, 1.3));
    if it.length * 100 < it.lifetime * 35 {
        outcome.bounds.push(Bound::new("expired", world.watcher.expired as f64, 0.0));
    }
    outcome.plots.push(("outage", Plot {
        title: "outage".into(), range: back - HOUR..back + 3 * HOUR, width: MINUTE, zero: back,
        unit: ("minutes", MINUTE), mark: 15, down: begin..back, capacity: Some(limit.a_second()),
    }.draw(counts)));
    outcome
}

/// Expiry in outages of 34.9 %, at each phase of a fleet that was issued its SVIDs within the first hour.
pub(crate) fn sweep(scale: Scale, lifetime: Moment, phases: u64, together: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut expired, mut least) = (0, u64::MAX);
    for phase in 0..phases {
        let limit = scale.limit(Kind::is_for_an_svid);
        let mut world = scale.world(lifetime, None, if together { HOUR } else { lifetime });
        world.mis.refresh_hint = Some(Duration::from_millis(DAY));
        let begin = if together { lifetime * (20 + phase * 40 / phases) / 100 } else { 3 * lifetime };
        let back = begin + lifetime * 349 / 1000;
        world.mis.down = begin..back;
        world.runs_until(begin);
        world.mis.limit = Some(limit);
        world.watcher.forget_expired();
        world.runs_until(back + 12 * HOUR);
        expired += world.watcher.expired;
        let e = world.watcher.expired;
        let l = world.watcher.least_left.unwrap_or(u64::MAX);
        let total = world.watcher.counts.total(TURNED_AWAY, back..back + 12 * HOUR);
        outcome.says("phase", format!("{:.2} {e} {:.1}min {}x429 ", begin as f64 / lifetime as f64, l as f64 / MINUTE as f64, total));
        least = least.min(l);
    }
    outcome.bounds.push(Bound::new("expired", expired as f64, 0.0));
    outcome
}

/// A fleet with identities, all off, and on in one second.
pub(crate) fn restart(scale: Scale, lifetime: Moment, off: Moment) -> Outcome {
    let limit = scale.limit(Kind::is_for_an_svid);
    let mut world = scale.world(lifetime, Some(limit), lifetime);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let begin = days(3 * lifetime) + 2 * DAY;
    world.runs_until(begin - 36 * HOUR);
    world.mis.refresh_hint = None;
    world.runs_until(begin);
    world.is_off_for(off);
    world.watcher.forget_expired();
    let back = world.now;
    world.watcher.counts.look_closely(back..back + 3 * HOUR);
    world.runs_until(back + 12 * HOUR);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let settled = back + days(LIFETIMES * lifetime) + DAY;
    let end = settled + days(lifetime).max(7 * DAY);
    world.runs_until(end);
    let counts = &world.watcher.counts;
    let mut outcome = Outcome::default();
    outcome.says("expired", format!("{}", world.watcher.expired));
    outcome.says("last back (min)", format!("{:?}", world.watcher.last_back.map(|at| (at as f64 - back as f64) / MINUTE as f64)));
    outcome.says("second", format!("{} {}", counts.busiest_second(SVIDS), counts.busiest_second(DOCUMENTS)));
    outcome.says("429", format!("{}", counts.total(TURNED_AWAY, back..end)));
    let above = counts.last_above(limit.a_second(), SVIDS, back..end);
    outcome.says("above until (min)", format!("{:?}", above.map(|at| (at - back) / MINUTE)));
    let peak_to_mean = counts.daily_peak_to_mean(ISSUED, settled..end);
    outcome.says("later peak to mean", format!("{peak_to_mean:.3}"));
    outcome.bounds.push(Bound::new("peak to mean", peak_to_mean, 1.3));
    outcome.plots.push(("restart", Plot {
        title: "restart".into(), range: back..back + 90 * MINUTE, width: 10 * SECOND, zero: back,
        unit: ("minutes", MINUTE), mark: 10, down: 0..0, capacity: Some(limit.a_second()),
    }.draw(counts)));
    outcome
}

fn days(time: Moment) -> Moment {
    time.div_ceil(DAY) * DAY
}

#[expect(dead_code)]
fn unused(_: Range<Moment>) {}
