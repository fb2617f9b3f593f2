//! A fleet of 100,000 devices, each with the daemon's own lifecycle, against a model of an MIS in simulated time.
//! `make fleet` runs all scenarios, holds them against their bounds, and writes docs/fleet.md and its plots.
#![allow(clippy::indexing_slicing, clippy::expect_used)] // a simulation may break off where it pleases

#[path = "fleet/counts.rs"]
mod counts;
#[path = "fleet/device.rs"]
mod device;
#[path = "fleet/mis.rs"]
mod mis;
#[path = "fleet/plot.rs"]
mod plot;
#[path = "fleet/scenarios.rs"]
mod scenarios;
#[path = "fleet/world.rs"]
mod world;

use counts::*; use scenarios::*; use std::time::Duration;

fn main() {
    let scale = Scale { devices: 100_000, seed: 1 };
    println!("{} bytes", std::mem::size_of::<device::Device>());
    let limit = Some(mis::Limit { requests: 50, window: 1000, counts: Kind::is_for_an_svid, retry_after: Duration::from_secs(60) });
    let svid = Kind::is_for_an_svid as fn(Kind) -> bool;
    let what = std::env::args().nth(1).unwrap_or_default();
    let begun = std::time::Instant::now();
    let hint = |h: u64| Some(Duration::from_secs(h * 3600));
    let outcome = match what.as_str() {
        "steady24h" => steady(scale, DAY, 14 * DAY),
        "steady7d" => steady(scale, 7 * DAY, 28 * DAY),
        "steady30d" => steady(scale, 30 * DAY, 60 * DAY),
        "steady90d" => steady(scale, 90 * DAY, 90 * DAY),
        "on7d" => power_on(scale, 7 * DAY, None),
        "on7dl" => power_on(scale, 7 * DAY, limit),
        "on30d" => power_on(scale, 30 * DAY, limit),
        "on90d" => power_on(scale, 90 * DAY, limit),
        "o24-24h" => outage(scale, &Outage { lifetime: DAY, length: DAY, hint: None, counts: svid }),
        "o24-7d" => outage(scale, &Outage { lifetime: 7*DAY, length: DAY, hint: None, counts: svid }),
        "o7d-24h" => outage(scale, &Outage { lifetime: DAY, length: 7 * DAY, hint: hint(6), counts: svid }),
        "o7d-7d" => outage(scale, &Outage { lifetime: 7*DAY, length: 7*DAY, hint: hint(6), counts: svid }),
        "o7d-30d" => outage(scale, &Outage { lifetime: 30*DAY, length: 7*DAY, hint: hint(6), counts: svid }),
        "all" => outage(scale, &Outage { lifetime: 7*DAY, length: DAY, hint: hint(6), counts: Kind::is_any }),
        "restart10m" => restart(scale, 7 * DAY, 10 * MINUTE),
        "restart60h" => restart(scale, 7 * DAY, 60 * HOUR),
        "sweep20h" => sweep(scale, 20 * HOUR, 20, true),
        "sweep20hs" => sweep(scale, 20 * HOUR, 1, false),
        "sweep24h" => sweep(scale, 24 * HOUR, 20, true),
        _ => panic!(),
    };
    for (name, figure) in &outcome.figures { println!("{what}: {name} = {figure}"); }
    for bound in &outcome.bounds { println!("{what}: {} {:.3} <= {:.3} {}", bound.what, bound.measured, bound.most, bound.holds()); }
    for (name, svg) in &outcome.plots { println!("{} bytes", svg.len()); std::fs::write(format!("/tmp/{what}-{name}.svg"), svg).unwrap(); }
    println!("{what}: {:.1?}", begun.elapsed());
}
