//! What happens to the fleet, what is measured, and the bounds that it has to keep.

use std::time::Duration;

use crate::counts::{DAY, Ending, Kind, MINUTE, Which};
use crate::device::Moment;
use crate::mis::{Est, Limit, Mis, Second};
use crate::outcome::{Outcome, Row, span};
use crate::plot::Plot;
use crate::world::World;

const SECOND: Moment = 1000;
pub(crate) const HOUR: Moment = 3_600_000;

/// The longest pause of the backoff, as configured by default.
const CAP: Moment = HOUR;

const FULL: usize = 100_000;

const SVIDS: Which = |kind, _| kind.is_for_an_svid();
const ISSUED: Which = |kind, ending| kind.is_for_an_svid() && ending == Ending::Served;
const DOCUMENTS: Which = |kind, _| !kind.is_for_an_svid();
const TURNED_AWAY: Which = |_, ending| ending == Ending::Refused;
const ALL: Which = |_, _| true;

/// How large the fleet is, and what it draws. The capacity of the MIS goes with the size.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) devices: usize,
    pub(crate) seed: u64,
    /// Each device has a second identity, of a WFM Client. The MIS has twice the capacity.
    pub(crate) with_clients: bool,
    /// The identity is enrolled over EST, by a token.
    pub(crate) est: Option<Est>,
}

impl Scale {
    /// A fleet, switched on one by one until `all_on`. Bundles are looked at once a day: months
    /// pass quicker so.
    fn world(self, lifetime: Moment, limit: Option<Limit>, all_on: Moment) -> World {
        let mut mis = Mis::new(Duration::from_millis(lifetime));
        mis.limit = limit;
        mis.refresh_hint = Some(Duration::from_millis(DAY));
        mis.second = self.with_clients.then_some(Second::Bound);
        mis.est = self.est;
        World::new(self.devices, self.seed, mis, all_on)
    }

    /// The same fleet, with a WFM Client on each device.
    pub(crate) fn with_clients(self) -> Self {
        Self { with_clients: true, ..self }
    }

    /// The same fleet, enrolled over EST.
    pub(crate) fn over_est(self, est: Est) -> Self {
        Self { est: Some(est), ..self }
    }

    /// 50 requests a second for a fleet of 100,000; for a smaller one, 50 in as many seconds as it
    /// is smaller.
    fn limit(self, counts: fn(Kind) -> bool) -> Limit {
        let window = SECOND * (FULL / self.devices) as Moment;
        let requests = if self.with_clients { 100 } else { 50 };
        Limit { requests, window, counts, retry_after: Duration::from_secs(60) }
    }

    /// So wide that chance counts for as little as in a minute of the full fleet; at most ten
    /// minutes, to see anything.
    fn bin(self) -> Moment {
        (MINUTE * (FULL / self.devices) as Moment).min(10 * MINUTE)
    }

    /// What chance may add to the busiest of many bins with so many requests each: four standard
    /// deviations in a small fleet, and nothing in the full one.
    fn allowance(self, requests: f64) -> f64 {
        if self.devices < FULL { 1.0 + 4.0 / requests.sqrt() } else { 1.0 }
    }

    /// A figure of this fleet as it would be in the full one.
    fn full(self, figure: f64) -> f64 {
        figure * FULL as f64 / self.devices as f64
    }
}

/// Days like any other, after five lifetimes.
pub(crate) fn steady(scale: Scale, lifetime: Moment, measured: Moment) -> Outcome {
    let mut world = scale.world(lifetime, None, lifetime);
    let from = days(5 * lifetime) + DAY;
    let range = from..from + measured;
    world.runs_until(range.end);
    let counts = &world.watcher.counts;
    let row = Row {
        lifetime: span(lifetime),
        refresh: "1 d".into(),
        svids_mean: format!("{:.2}", scale.full(counts.mean(SVIDS, range.clone()))),
        documents_mean: format!("{:.1}", scale.full(counts.mean(DOCUMENTS, range.clone()))),
        expired: world.watcher.expired.to_string(),
        ..Row::default()
    };
    let mut outcome = Outcome { row, ..Outcome::default() };
    let peak_to_mean = counts.daily_peak_to_mean(ISSUED, range.clone());
    outcome.row.peak_to_mean = format!("{peak_to_mean:.3}");
    let a_day = counts.mean(ISSUED, range) * (DAY / SECOND) as f64;
    outcome.holds("the daily peak to mean of renewals", peak_to_mean, 1.15 * scale.allowance(a_day));
    outcome.holds("SVIDs that expired", world.watcher.expired as f64, 0.0);
    outcome
}

/// New devices, all switched on in one second.
pub(crate) fn power_on(scale: Scale, lifetime: Moment, plot: bool) -> Outcome {
    let limit = scale.limit(Kind::is_for_an_svid);
    let mut world = scale.world(lifetime, Some(limit), SECOND);
    world.mis.refresh_hint = None;
    world.watcher.counts.look_closely(0..3 * HOUR);
    world.runs_until(HOUR);
    let enrolled = world.with_an_svid();
    world.runs_until(3 * HOUR);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let mut outcome = settles(scale, &mut world, lifetime, 0);
    let counts = &world.watcher.counts;
    outcome.row.refresh = "5 min".into();
    outcome.says("enrolled_in_an_hour", enrolled as f64 / scale.devices as f64 * 100.0, 1);
    let second_wave = counts.rates(SVIDS, 30 * SECOND..3 * HOUR, SECOND).into_iter().fold(0.0, f64::max);
    outcome.says("second_wave", scale.full(second_wave), 0);
    outcome.says("tries", counts.total(SVIDS, 0..3 * HOUR) as f64 / scale.devices as f64, 1);
    outcome.row.above_until = above_until(scale, &world, SVIDS, 0);
    if plot {
        let plot = Plot {
            title: "100,000 new devices switched on in one second; the MIS signs 50 a second (dashed)".into(),
            range: 0..2 * HOUR,
            width: 10 * SECOND,
            zero: 0,
            unit: ("minutes after power-on", MINUTE),
            mark: 15,
            down: 0..0,
            capacity: Some(limit.a_second()),
        };
        outcome.plots.push(("power-on.svg", plot.draw(&world.watcher.counts)));
    }
    outcome
}

/// A fleet with identities, all off for a while, and on again in one second.
pub(crate) fn restart(scale: Scale, lifetime: Moment, off: Moment, plot: bool) -> Outcome {
    let limit = scale.limit(Kind::is_for_an_svid);
    let mut world = scale.world(lifetime, Some(limit), lifetime);
    let begin = days(3 * lifetime) + 2 * DAY;
    at_the_default_pace_from(&mut world, begin);
    world.is_off_for(off);
    world.watcher.forget_expired();
    let back = world.now;
    world.watcher.counts.look_closely(back..back + 3 * HOUR);
    world.runs_until(back + 3 * HOUR);
    world.mis.refresh_hint = Some(Duration::from_millis(DAY));
    let mut outcome = settles(scale, &mut world, lifetime, back);
    outcome.row.refresh = "5 min".into();
    outcome.row.above_until = above_until(scale, &world, SVIDS, back);
    let later = world.watcher.counts.busiest(SVIDS, back + CAP..world.now, scale.bin());
    outcome.holds("SVID requests a second, later than a cap after", later, limit.a_second());
    if plot {
        let plot = Plot {
            title: format!("A fleet with identities, off for {} and switched on in one second", span(off)),
            range: back..back + 2 * HOUR,
            width: 10 * SECOND,
            zero: back,
            unit: ("minutes after power-on", MINUTE),
            mark: 15,
            down: 0..0,
            capacity: Some(limit.a_second()),
        };
        outcome.plots.push(("restart.svg", plot.draw(&world.watcher.counts)));
    }
    outcome
}

pub(crate) struct Outage {
    pub(crate) lifetime: Moment,
    pub(crate) length: Moment,
    /// In the days around it; before and after, bundles are looked at once a day.
    pub(crate) hint: Option<Moment>,
    pub(crate) counts: fn(Kind) -> bool,
    pub(crate) plot: Option<&'static str>,
}

/// The MIS is away for a while: connections to it time out. It comes back with a limit.
pub(crate) fn outage(scale: Scale, it: &Outage) -> Outcome {
    let limit = scale.limit(it.counts);
    let counted = if (it.counts)(Kind::Bundle) { ALL } else { SVIDS };
    let mut world = scale.world(it.lifetime, Some(limit), it.lifetime);
    let begin = days(3 * it.lifetime) + 2 * DAY;
    let back = begin + it.length;
    world.runs_until(begin - 26 * HOUR);
    world.mis.refresh_hint = it.hint.map(Duration::from_millis);
    world.runs_until(begin);
    world.watcher.forget_expired();
    world.mis.down = begin..back;
    world.watcher.counts.look_closely(back..back + 3 * HOUR);
    world.runs_until(back + 2 * CAP);
    let still_expired = world.without_a_valid_svid();
    world.runs_until(back + 3 * HOUR);
    world.mis.refresh_hint = Some(Duration::from_millis(it.hint.unwrap_or(DAY).max(6 * HOUR)));
    let mut outcome = settles(scale, &mut world, it.lifetime, back);
    let counts = &world.watcher.counts;
    outcome.row.refresh = it.hint.map_or("5 min".into(), span);
    outcome.row.above_until = above_until(scale, &world, counted, back);
    let last_hours = back - (3 * HOUR).min(it.length)..back;
    outcome.row.away = format!("{:.0}", scale.full(counts.mean(ALL, last_hours)));
    let before = begin - HOUR..begin;
    outcome.says("good_day_documents", scale.full(counts.mean(DOCUMENTS, before)), 0);
    let later = counts.busiest(counted, back + CAP..world.now, scale.bin());
    outcome.holds(
        "what the limit counts, later than a cap after the outage, requests a second",
        later,
        limit.a_second() * scale.allowance(limit.a_second() * (scale.bin() / SECOND) as f64),
    );
    outcome.holds("SVIDs still expired two caps after the outage", still_expired as f64, 0.0);
    if it.length * 100 < it.lifetime * 35 {
        let expired = world.watcher.expired as f64;
        outcome.holds("SVIDs that expired in an outage shorter than 35 % of their lifetime", expired, 0.0);
    }
    if let Some(file) = it.plot {
        let plot = Plot {
            title: format!(
                "The last hour of an outage of {}, and what follows; SVIDs live {}",
                span(it.length),
                span(it.lifetime)
            ),
            range: back - HOUR..back + 3 * HOUR,
            width: MINUTE,
            zero: back,
            unit: ("minutes after the outage", MINUTE),
            mark: 15,
            down: begin..back,
            capacity: Some(limit.a_second()),
        };
        outcome.plots.push((file, plot.draw(counts)));
    }
    outcome
}

/// The certificate that the MIS issues with ends, and is replaced later: all SVIDs end in one
/// moment, and none that lasts longer can be had before. `most` are the SVIDs of 100,000 that may
/// be asked for in the busiest second.
pub(crate) fn issuer_ends(scale: Scale, lifetime: Moment, replaced_after: Moment, most: f64) -> Outcome {
    let mut world = scale.world(lifetime, None, lifetime);
    let ends = days(3 * lifetime) + 2 * DAY;
    let replaced = ends + replaced_after;
    world.mis.issuer_expired = ends..replaced;
    world.runs_until(replaced + 2 * CAP);
    let still_expired = world.without_a_valid_svid();
    let counts = &world.watcher.counts;
    let a_device = |range| counts.total(SVIDS, range) as f64 / scale.devices as f64;
    let mut outcome = Outcome::default();
    let (last, after) = (ends - lifetime..ends, ends..replaced);
    outcome.says("last_lifetime", a_device(last.clone()), 1);
    outcome.holds("SVIDs asked for by a device in the last lifetime of the issuer", a_device(last), 8.0);
    outcome.holds(
        "SVIDs asked for by a device in an hour after its end",
        a_device(after.clone()) * HOUR as f64 / replaced_after as f64,
        2.0,
    );
    let bin = scale.bin();
    let allowance = scale.allowance(60.0 * (bin / SECOND) as f64 * scale.devices as f64 / FULL as f64);
    let busiest = scale.full(counts.busiest(SVIDS, ends - lifetime..replaced + 2 * CAP, bin));
    outcome.says("busiest", busiest, 0);
    outcome.holds("SVIDs asked for in a second, the busiest minute", busiest, most * allowance);
    outcome.holds("SVIDs still expired two caps after it was replaced", still_expired as f64, 0.0);
    outcome
}

/// A fleet that was enrolled within one hour, or one by one, in outages of 34.9 % of the lifetime
/// that begin at each of so many phases of it. The MIS comes back with its limit.
pub(crate) fn sweep(scale: Scale, lifetime: Moment, phases: u64, together: bool) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut expired, mut least_left, mut refused) = (0, Moment::MAX, 0);
    for phase in 0..phases {
        // Before a fifth of it has passed, an outage ends before the first renewal is due.
        let begin = match together {
            true => lifetime * (200 + phase * 450 / phases) / 1000,
            false => 3 * lifetime + lifetime * phase / phases / 2,
        };
        let back = begin + lifetime * 349 / 1000;
        let end = back + (lifetime / 5).max(4 * CAP);
        let mut world = scale.world(lifetime, None, if together { HOUR } else { lifetime });
        world.mis.down = begin..back;
        world.runs_until(begin);
        world.watcher.forget_expired();
        world.mis.limit = Some(scale.limit(Kind::is_for_an_svid));
        world.runs_until(end);
        expired += world.watcher.expired;
        least_left = least_left.min(world.watcher.least_left.unwrap_or(Moment::MAX));
        refused += world.watcher.counts.total(TURNED_AWAY, back..end);
    }
    outcome.cells = vec![
        span(lifetime),
        if together { "in one hour" } else { "one by one" }.into(),
        scale.devices.to_string(),
        phases.to_string(),
        span(lifetime * 349 / 1000),
        refused.to_string(),
        expired.to_string(),
        format!("{:.1} min", least_left as f64 / MINUTE as f64),
    ];
    outcome.holds("SVIDs that expired in an outage of 34.9 % of their lifetime", expired as f64, 0.0);
    outcome
}

/// An MIS that holds each identity to five successes in 24 hours (miaf-v0 R5), for ten days.
pub(crate) fn five_a_day(scale: Scale, lifetime: Moment) -> Outcome {
    let mut world = scale.world(lifetime, None, lifetime);
    world.mis.a_day = Some(5);
    world.runs_until(3 * DAY);
    world.watcher.forget_expired();
    world.runs_until(10 * DAY);
    let range = 3 * DAY..10 * DAY;
    let counts = &world.watcher.counts;
    let mut outcome = Outcome::default();
    let refused = counts.total(TURNED_AWAY, range.clone()) as f64;
    let asked = counts.total(SVIDS, range.clone()) as f64;
    let successors = counts.total(ISSUED, range) as f64;
    outcome.cells = vec![
        span(lifetime),
        format!("{:.1}", successors / scale.devices as f64 / 7.0),
        format!("{:.1} %", refused / asked * 100.0),
        format!("{:.1} %", world.watcher.expired as f64 / successors * 100.0),
    ];
    outcome
}

/// Days like any other, for a fleet whose devices have two identities. Whatever becomes of the
/// second, the first is renewed on time.
pub(crate) fn second_identity(scale: Scale, lifetime: Moment, second: Second) -> Outcome {
    let mut mis = Mis::new(Duration::from_millis(lifetime));
    mis.refresh_hint = Some(Duration::from_millis(DAY));
    mis.second = Some(second);
    let mut world = World::new(scale.devices, scale.seed, mis, lifetime);
    world.runs_until(2 * lifetime);
    world.watcher.forget_expired();
    world.runs_until(5 * lifetime);
    let watcher = &world.watcher;
    let mut outcome = Outcome::default();
    let requests = watcher.requests_of_the_second as f64 / scale.devices as f64;
    outcome.says("requests_of_the_second", requests, 1);
    outcome.holds("SVIDs of the first identity that expired", watcher.expired as f64, 0.0);
    let seconds = watcher.longest_delay as f64 / SECOND as f64;
    outcome.holds("seconds from a renewal moment of the first identity to its next SVID", seconds, 10.0);
    outcome
}

/// Devices with WFM Clients, switched on within a day. Their WFM refuses every binding for some
/// time, and then grants them.
pub(crate) fn wfm_refuses(scale: Scale, lifetime: Moment, length: Moment) -> Outcome {
    let mut world = scale.world(lifetime, None, DAY);
    world.mis.wfm_refuses = 0..DAY + length;
    world.runs_until(DAY);
    world.watcher.forget_expired();
    let before = world.watcher.bindings;
    let back = DAY + length;
    world.runs_until(back);
    let mut outcome = Outcome::default();
    let bindings = (world.watcher.bindings - before) as f64 / scale.devices as f64;
    let an_hour = bindings * HOUR as f64 / length as f64;
    outcome.says("bindings_an_hour", an_hour, 2);
    outcome.holds("bindings asked for by a device in an hour, all refused", an_hour, 2.0);
    outcome.holds("SVIDs of the device that expired", world.watcher.expired as f64, 0.0);
    let seconds = world.watcher.longest_delay as f64 / SECOND as f64;
    outcome.holds("seconds from a renewal moment of the device to its next SVID", seconds, 10.0);
    let bin = scale.bin();
    world.runs_until(back + 2 * CAP);
    let busiest = world.watcher.counts.busiest(SVIDS, back..back + 2 * CAP, bin);
    let busiest = scale.full(busiest);
    outcome.says("busiest", busiest, 0);
    // A cap of an hour, and none sooner than half of it: 56 a second, and renewals beside it.
    let allowance = scale.allowance(60.0 * (bin / SECOND) as f64 * scale.devices as f64 / FULL as f64);
    outcome.holds("SVIDs asked for in a second when the WFM grants", busiest, 70.0 * allowance);
    let without = world.without_a_valid_svid() as f64;
    outcome.holds("devices without both SVIDs two caps after the WFM grants", without, 0.0);
    outcome
}

/// New devices with tokens, all switched on in one second. The MIS holds every enrollment for review,
/// and grants all in one moment; from then on it has its limit. `most` are the requests of a device in
/// an hour meanwhile.
pub(crate) fn held(scale: Scale, retry_after: Option<u64>, most: f64) -> Outcome {
    let granted = 6 * HOUR;
    let retry_after = retry_after.map(Duration::from_secs);
    let est = Est { held_until: granted, retry_after, ..Est::default() };
    let mut world = scale.over_est(est).world(7 * DAY, None, SECOND);
    world.runs_until(granted);
    world.mis.limit = Some(scale.limit(Kind::is_for_an_svid));
    world.runs_until(granted + 2 * CAP);
    let counts = &world.watcher.counts;
    let mut outcome = Outcome::default();
    let hours = (granted - HOUR) as f64 / HOUR as f64;
    let an_hour = counts.total(SVIDS, HOUR..granted) as f64 / scale.devices as f64 / hours;
    outcome.says("an_hour", an_hour, 1);
    outcome.holds("enrollments asked for by a device in an hour, all held", an_hour, most);
    let busiest = scale.full(counts.busiest(SVIDS, HOUR..granted, scale.bin()));
    outcome.says("busiest", busiest, 0);
    let served = counts.total(ISSUED, granted..granted + 2 * CAP) as f64 / scale.devices as f64;
    outcome.holds("SVIDs issued to a device once it is granted", served, 1.0);
    let without = world.without_a_valid_svid() as f64;
    outcome.holds("devices without an SVID two caps after the grant", without, 0.0);
    outcome
}

/// The same, where the tokens expire while they are held. Operators bring fresh ones in the course of
/// a day.
pub(crate) fn tokens_expire(scale: Scale) -> Outcome {
    let (expire, fresh_from) = (6 * HOUR, 2 * DAY);
    let est = Est {
        held_until: fresh_from,
        retry_after: Some(Duration::from_secs(300)),
        tokens_until: expire,
        fresh_from: Some(fresh_from),
    };
    let mut world = scale.over_est(est).world(7 * DAY, None, HOUR);
    world.runs_until(fresh_from + DAY + 2 * CAP);
    let counts = &world.watcher.counts;
    let a_device = |range| counts.total(SVIDS, range) as f64 / scale.devices as f64;
    let mut outcome = Outcome::default();
    let refused = a_device(expire..expire + 4 * HOUR);
    outcome.says("refused", refused, 1);
    outcome.holds("attempts of a device with an expired token", refused, 5.0);
    let in_an_hour = (0..3).map(|hour| a_device(expire + hour * HOUR..expire + (hour + 1) * HOUR));
    let in_an_hour = in_an_hour.fold(0.0, f64::max);
    outcome.says("refused_an_hour", in_an_hour, 1);
    outcome.holds("of them in the busiest hour", in_an_hour, 5.0);
    let silent = counts.total(SVIDS, expire + 4 * HOUR..fresh_from) as f64;
    outcome.holds("requests after them, until there is a fresh token", silent, 0.0);
    let without = world.without_a_valid_svid() as f64;
    outcome.holds("devices without an SVID two caps after the last fresh token", without, 0.0);
    outcome
}

/// From `back` on, the rest of an event: until five lifetimes and some days more have passed.
fn settles(scale: Scale, world: &mut World, lifetime: Moment, back: Moment) -> Outcome {
    let settled = back + days(5 * lifetime) + DAY;
    let end = settled + days(lifetime).max(7 * DAY);
    world.runs_until(end);
    let Watched { peak_to_mean, a_day } = watched(world, settled..end);
    let counts = &world.watcher.counts;
    let answered = |which: Which| scale.full(counts.busiest_second(which) as f64);
    let row = Row {
        lifetime: span(lifetime),
        svids_mean: format!("{:.2}", scale.full(counts.mean(SVIDS, settled..end))),
        svids_busiest: format!("{:.0}", answered(|kind, end| SVIDS(kind, end) && end != Ending::Unanswered)),
        refused: format!("{:.0}", scale.full(counts.total(TURNED_AWAY, back..end) as f64)),
        documents_busiest: format!(
            "{:.0}",
            answered(|kind, end| DOCUMENTS(kind, end) && end != Ending::Unanswered)
        ),
        expired: world.watcher.expired.to_string(),
        last_back: world
            .watcher
            .last_back
            .map_or(String::new(), |at| format!("{} min", at.saturating_sub(back).div_ceil(MINUTE))),
        peak_to_mean: format!("{peak_to_mean:.3}"),
        ..Row::default()
    };
    let mut outcome = Outcome { row, ..Outcome::default() };
    outcome.holds("the daily peak to mean five lifetimes later", peak_to_mean, 1.3 * scale.allowance(a_day));
    outcome.holds("devices without a valid SVID in the end", world.without_a_valid_svid() as f64, 0.0);
    outcome
}

struct Watched {
    peak_to_mean: f64,
    a_day: f64,
}

fn watched(world: &World, range: std::ops::Range<Moment>) -> Watched {
    let counts = &world.watcher.counts;
    let a_day = counts.mean(ISSUED, range.clone()) * (DAY / SECOND) as f64;
    Watched { peak_to_mean: counts.daily_peak_to_mean(ISSUED, range), a_day }
}

fn above_until(scale: Scale, world: &World, counted: Which, back: Moment) -> String {
    let capacity = scale.limit(Kind::is_any).a_second();
    let last = world.watcher.counts.last_above(capacity, counted, back..world.now, scale.bin());
    last.map_or("never".into(), |at| format!("{} min", (at - back) / MINUTE))
}

/// From a day before on the fleet moves over to looking at the bundle every 5 minutes.
fn at_the_default_pace_from(world: &mut World, begin: Moment) {
    world.runs_until(begin - 26 * HOUR);
    world.mis.refresh_hint = None;
    world.runs_until(begin);
}

/// Whole days.
fn days(time: Moment) -> Moment {
    time.div_ceil(DAY) * DAY
}
