//! A fleet of 100,000 devices, each with the daemon's own lifecycle, against a model of an MIS in
//! simulated time.
//!
//! `make fleet` runs all scenarios, writes docs/fleet.md and its plots, and fails if a bound does
//! not hold. With other numbers drawn (`--seed N`), other fleets (`--devices N`) or some of the
//! scenarios (`--only WORD`, which their names have) nothing is written.

// A simulation may break off where it pleases.
#![allow(clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

#[path = "fleet/catalogue.rs"]
mod catalogue;
#[path = "fleet/counts.rs"]
mod counts;
#[path = "fleet/device.rs"]
mod device;
#[path = "fleet/mis.rs"]
mod mis;
#[path = "fleet/outcome.rs"]
mod outcome;
#[path = "fleet/page.rs"]
mod page;
#[path = "fleet/plot.rs"]
mod plot;
#[path = "fleet/scenarios.rs"]
mod scenarios;
#[path = "fleet/world.rs"]
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use catalogue::{FLEET, Scenario};
use outcome::Outcome;
use scenarios::Scale;

const USAGE: &str = "usage: fleet [--seed N] [--devices N] [--only WORD]";

fn main() -> ExitCode {
    let (mut seed, mut devices, mut only) = (None, None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().expect(USAGE);
        match word.as_str() {
            "--seed" => seed = Some(value.parse().expect(USAGE)),
            "--devices" => devices = Some(value.parse().expect(USAGE)),
            "--only" => only = Some(value),
            _ => panic!("{USAGE}"),
        }
    }
    let chosen: Vec<_> = catalogue::scenarios()
        .into_iter()
        .filter(|scenario| only.as_ref().is_none_or(|word| scenario.name.contains(word)))
        .collect();
    let scale =
        Scale { devices: devices.unwrap_or(FLEET), seed: seed.unwrap_or(1), with_clients: false, est: None };
    let outcomes = run(&chosen, scale);
    let mut all_hold = true;
    for (scenario, outcome) in chosen.iter().zip(&outcomes) {
        report(scenario, outcome);
        all_hold &= outcome.bounds.iter().all(outcome::Bound::holds);
    }
    if seed.is_none() && devices.is_none() && only.is_none() {
        page::write(&chosen, &outcomes)
            .expect("docs/fleet.md and its plots are written from the directory of the checkout");
    }
    if all_hold { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// On all cores, each scenario on one.
fn run(scenarios: &[Scenario], scale: Scale) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(scenarios.iter().map(|_| None).collect::<Vec<Option<Outcome>>>());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|threads| {
        for _ in 0..cores {
            threads.spawn(|| {
                while let Some((nth, scenario)) = {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    scenarios.get(nth).map(|scenario| (nth, scenario))
                } {
                    let begun = Instant::now();
                    let outcome = (scenario.run)(scenario.of(scale));
                    eprintln!("{:>5.0} s  {}", begun.elapsed().as_secs_f64(), scenario.name);
                    outcomes.lock().expect("no scenario panics")[nth] = Some(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("no scenario panics").into_iter().flatten().collect()
}

fn report(scenario: &Scenario, outcome: &Outcome) {
    println!("{}: {}", scenario.name, outcome.row.cells().join(" | "));
    println!("    {} {:?}", outcome.cells.join(" | "), outcome.figures);
    for bound in &outcome.bounds {
        let word = if bound.holds() { "holds" } else { "DOES NOT HOLD" };
        println!("    {word}: {} {:.3}, at most {:.3}", bound.what, bound.measured, bound.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same bounds on a fleet of 2,000, with an allowance for what chance does to smaller
    /// numbers.
    #[test]
    fn a_small_fleet_keeps_the_bounds() {
        let chosen: Vec<_> =
            catalogue::scenarios().into_iter().filter(|scenario| scenario.in_short).collect();
        let outcomes = run(&chosen, Scale { devices: 2000, seed: 1, with_clients: false, est: None });
        assert!(!outcomes.is_empty());
        for (scenario, outcome) in chosen.iter().zip(&outcomes) {
            report(scenario, outcome);
            for bound in &outcome.bounds {
                assert!(
                    bound.holds(),
                    "{}: {}: {} is more than {}",
                    scenario.name,
                    bound.what,
                    bound.measured,
                    bound.most
                );
            }
        }
    }
}
