//! What holds through any history of answers, clock jumps, orders and restarts.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::super::*;
use super::checker::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::device::*;
use super::histories::*;

proptest! {
    #![proptest_config(miaf_spiffe::testing::cases(96))]

    /// Through any history the rules that [`Checker`] checks at every step hold, and an MIS that
    /// cooperates from then on (which includes a correction of what it refused for good) finds an
    /// active device in bounded time.
    #[test]
    fn histories_keep_the_rules_and_end_well(
        begin in beginning(),
        lifetime in prop_oneof![Just(60), Just(3600), Just(90 * 86_400), Just(5 * 365 * 86_400)],
        turns in prop::collection::vec(turn(), 1..250),
    ) {
        let mut checker = Checker::new(begin, secs(lifetime));
        for turn in turns {
            checker.turn(turn);
        }
        checker.cooperate();
    }

    /// Nothing that an MIS does for good makes a device hammer it.
    #[test]
    fn permanent_failures_lead_to_few_requests(
        seed in any::<u64>(),
        fails in failing(),
        flapping in any::<bool>(),
        held in any::<bool>(),
    ) {
        let mut device = Device::fresh();
        if held {
            device.becomes_active(90 * DAY);
            device.wall_jumps(50 * 86_400);
        } else {
            device.starts();
        }
        device.random = Some(seed | 1);
        let Failing { what, kind, at_once } = fails;
        let fail = || failure(kind, at_once.then_some(Duration::ZERO));
        for hour in 0..8 {
            let looks = device.lives_through(secs(3600), |action| match (action, what) {
                (FetchDiscovery, "discovery") => Event::Discovery(Err(fail())),
                (FetchDiscovery, _) => Event::Discovery(Ok(DiscoveryFacts { changed: flapping, ..document() })),
                (FetchBundle, "bundle") => Event::Bundle(Err(fail())),
                (FetchBundle, "anchor") => bundle_without_its_anchor(),
                (FetchBundle, _) => bundle(),
                (CreateKey, "key") => creation(Err(failure(FailureKind::Local, None))),
                (CreateKey | ProveKey, _) => good(action),
                (Work::Request(..), "request") => issuance(Err(fail())),
                (Work::Request(..), _) => answered(),
                (Work::Adopt { bundle_is_fresh: false }, "issuer") => {
                    adoption(Err(NotAdopted::UnknownIssuer))
                }
                (Work::Adopt { .. }, _) => not_adopted(),
            });
            for (work, times) in looks {
                // A local cause is looked at every half minute; it costs the MIS nothing.
                let most = if work == "key" || asks_nobody(kind) { 400 } else { 130 };
                prop_assert!(times <= most, "{times} times {work} in hour {hour}");
            }
        }
    }

    /// The window holds for every lifetime from a minute to five years, and for every draw.
    #[test]
    fn renewal_moments_lie_in_the_window(lifetime in 60..=157_680_000_u64, luck in 0.0..1.0_f64) {
        let mut device = Device::fresh();
        device.luck = luck;
        device.becomes_active(secs(lifetime));
        let at = START.until(device.view().renew_at().unwrap());
        prop_assert!(at >= secs(lifetime).mul_f64(0.399) && at <= secs(lifetime).mul_f64(0.601));
    }
}

/// Every way from one state to another that some history takes is drawn in docs/architecture.md,
/// and no other.
#[test]
fn diagram_shows_every_state_transition() {
    const APART: [&str; 2] = ["blocked", "waiting-for-clock"];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut taken = BTreeSet::new();
    for round in 0..240 {
        let begin = beginning().new_tree(&mut runner).unwrap().current();
        let turns = prop::collection::vec(turn(), 250).new_tree(&mut runner).unwrap().current();
        let mut checker = Checker::new(begin, secs([60, 3600, 90 * 86_400][round % 3]));
        turns.into_iter().for_each(|turn| checker.turn(turn));
        // Into what stands apart, and out of it, there is a way from everywhere.
        let transitions = checker.identities.into_iter().flat_map(|identity| identity.transitions);
        taken.extend(transitions.map(|(from, to)| match (APART.contains(&from), APART.contains(&to)) {
            (false, true) => ("in-progress", to),
            (true, false) => (from, "in-progress"),
            _ => (from, to),
        }));
    }
    // A name in the picture has no hyphen: Mermaid would take it for a piece of an arrow.
    let picture = include_str!("../../../docs/architecture.md").replace('_', "-");
    let drawn = picture.lines().filter_map(|line| {
        let (way, name) = line.trim().split_once(": ")?;
        assert!(!name.is_empty());
        way.split_once(" --> ")
    });
    assert_eq!(drawn.collect::<BTreeSet<_>>(), taken);
}

/// Texts with paths and commands belong to the shell: it knows what `--config` names, and how the
/// program is called.
#[test]
fn lifecycle_knows_no_path_and_no_command_name() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lifecycle");
    let mut files = 0;
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        files += 1;
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            for named in ["/etc/", "config.toml", "miaf-agent re", "--new-key"] {
                assert!(!line.contains(named), "{}: {line}", path.display());
            }
        }
    }
    assert!(files > 8, "the lifecycle is not found any more: {files} files");
}
