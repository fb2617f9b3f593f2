//! All scenarios, the longest first where that keeps the cores busy.

use crate::counts::{DAY, Kind, MINUTE};
use crate::mis;
use crate::outcome::Outcome;
use crate::scenarios::{
    HOUR, Outage, Scale, five_a_day, held, issuer_ends, outage, power_on, restart, second_identity, steady,
    sweep, tokens_expire, wfm_refuses,
};

pub(crate) const FLEET: usize = 100_000;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(Scale) -> Outcome,
    /// The fleet is this many times smaller than elsewhere.
    smaller: usize,
    /// It is one of those that CI runs.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests choose by it"))]
    pub(crate) in_short: bool,
    pub(crate) table: Table,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Large,
    Sweep,
    FiveADay,
    /// In no table: bounds alone.
    Issuer,
    /// In no table: bounds alone.
    Second,
}

impl Scenario {
    pub(crate) fn of(&self, scale: Scale) -> Scale {
        Scale { devices: if scale.devices == FLEET { FLEET / self.smaller } else { scale.devices }, ..scale }
    }

    const fn new(name: &'static str, table: Table, run: fn(Scale) -> Outcome) -> Self {
        Self { name, run, smaller: 1, in_short: false, table }
    }

    const fn smaller(self, smaller: usize) -> Self {
        Self { smaller, ..self }
    }

    const fn in_short(self) -> Self {
        Self { in_short: true, ..self }
    }
}

/// `Retry-After` and the limit are for what costs the MIS a signature; documents are served by
/// anything.
const SIGNED: fn(Kind) -> bool = Kind::is_for_an_svid;

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Table::{FiveADay, Issuer, Large, Second, Sweep};
    let new = Scenario::new;
    vec![
        new("steady, 24 h", Large, |s| steady(s, DAY, 14 * DAY)).in_short(),
        new("steady, 7 d", Large, |s| steady(s, 7 * DAY, 28 * DAY)),
        new("steady, 30 d", Large, |s| steady(s, 30 * DAY, 60 * DAY)),
        new("steady, 90 d", Large, |s| steady(s, 90 * DAY, 90 * DAY)),
        new("power-on, new, 24 h", Large, |s| power_on(s, DAY, false)).in_short(),
        new("power-on, new, 7 d", Large, |s| power_on(s, 7 * DAY, true)),
        new("power-on, new, 90 d", Large, |s| power_on(s, 90 * DAY, false)),
        new("power-on, 10 min off", Large, |s| restart(s, 7 * DAY, 10 * MINUTE, true)).in_short(),
        new("power-on, 60 h off", Large, |s| restart(s, 7 * DAY, 60 * HOUR, false)),
        new("outage 24 h, SVIDs 24 h", Large, |s| away(s, DAY, DAY, None, Some("outage-24h.svg"))),
        new("outage 24 h, SVIDs 7 d", Large, |s| away(s, DAY, 7 * DAY, SOME_HOURS, None)),
        new("outage 7 d, SVIDs 24 h", Large, |s| away(s, 7 * DAY, DAY, SOME_HOURS, None)).in_short(),
        new("outage 7 d, SVIDs 7 d", Large, |s| away(s, 7 * DAY, 7 * DAY, SOME_HOURS, Some("outage-7d.svg"))),
        new("all counted, 24 h outage", Large, |s| {
            outage(
                s,
                &Outage {
                    lifetime: 7 * DAY,
                    length: DAY,
                    hint: Some(DAY),
                    counts: Kind::is_any,
                    plot: Some("all-counted.svg"),
                },
            )
        }),
        new("sweep, 20 h, together", Sweep, |s| sweep(s, 20 * HOUR, 9, true)).in_short(),
        new("sweep, 24 h, together", Sweep, |s| sweep(s, DAY, 9, true)).smaller(2),
        new("sweep, 7 d, together", Sweep, |s| sweep(s, 7 * DAY, 9, true)).smaller(20),
        new("sweep, 30 d, together", Sweep, |s| sweep(s, 30 * DAY, 9, true)).smaller(100),
        new("sweep, 20 h, one by one", Sweep, |s| sweep(s, 20 * HOUR, 2, false)).in_short(),
        new("sweep, 24 h, one by one", Sweep, |s| sweep(s, DAY, 2, false)).smaller(2),
        new("sweep, 7 d, one by one", Sweep, |s| sweep(s, 7 * DAY, 2, false)).smaller(20),
        new("sweep, 30 d, one by one", Sweep, |s| sweep(s, 30 * DAY, 2, false)).smaller(100),
        new("issuer ends, SVIDs 24 h", Issuer, |s| issuer_ends(s, DAY, 6 * HOUR, 60.0)).in_short(),
        new("issuer ends, SVIDs 1 h", Issuer, |s| issuer_ends(s, HOUR, 6 * HOUR, 300.0))
            .smaller(10)
            .in_short(),
        new("second identity, served", Second, |s| second_identity(s, DAY, mis::Second::Served)).in_short(),
        new("second identity, pending", Second, |s| second_identity(s, 2 * HOUR, mis::Second::Pending))
            .smaller(10)
            .in_short(),
        new("second identity, refused", Second, |s| second_identity(s, 2 * HOUR, mis::Second::Refused))
            .smaller(10)
            .in_short(),
        new("second identity, failing", Second, |s| second_identity(s, 2 * HOUR, mis::Second::Failing))
            .smaller(10)
            .in_short(),
        new("WFM Clients, power-on", Second, |s| power_on(s.with_clients(), DAY, false)).in_short(),
        new("WFM Clients, outage", Second, |s| away(s.with_clients(), DAY, DAY, None, None)),
        new("WFM Clients, refused", Second, |s| wfm_refuses(s.with_clients(), 2 * DAY, 2 * DAY)).in_short(),
        new("EST, held", Second, |s| held(s, Some(300), 12.0)).in_short(),
        new("EST, held without Retry-After", Second, |s| held(s, None, 3.0)),
        new("EST, outage 24 h", Second, |s| {
            away(s.over_est(mis::Est::default()), DAY, 7 * DAY, SOME_HOURS, None)
        }),
        new("EST, tokens expire", Second, tokens_expire).in_short(),
        new("five a day, 6 h", FiveADay, |s| five_a_day(s, 6 * HOUR)).smaller(10),
        new("five a day, 8 h", FiveADay, |s| five_a_day(s, 8 * HOUR)).smaller(10),
        new("five a day, 10 h", FiveADay, |s| five_a_day(s, 10 * HOUR)).smaller(10),
        new("five a day, 12 h", FiveADay, |s| five_a_day(s, 12 * HOUR)).smaller(10),
    ]
}

const SOME_HOURS: Option<u64> = Some(6 * HOUR);

fn away(scale: Scale, length: u64, lifetime: u64, hint: Option<u64>, plot: Option<&'static str>) -> Outcome {
    outage(scale, &Outage { lifetime, length, hint, counts: SIGNED, plot })
}
