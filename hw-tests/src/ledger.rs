//! What is in the TPM, before and after: the suite and the agent leave nothing, and nothing counts
//! against anybody.

use std::collections::BTreeSet;

use miaf_agent::keys::tpm::Tcti;

use crate::Failure;
use crate::bench::Bench;
use crate::checks::{Outcome, Verdict};
use crate::connection::{self, LOADED_SESSION, NV, PERSISTENT, SAVED_SESSION, TRANSIENT};
use crate::description::LockOut;

/// What is in the TPM at a moment.
pub(crate) struct Ledger {
    /// Through what it was seen.
    seen_through: Tcti,
    handles: [BTreeSet<u32>; KINDS.len()],
    lock_out: LockOut,
}

const KINDS: [(&str, u32); 5] = [
    ("transient objects", TRANSIENT),
    ("loaded sessions", LOADED_SESSION),
    ("saved sessions", SAVED_SESSION),
    ("persistent keys", PERSISTENT),
    ("NV indices", NV),
];

type Comparison = fn(&Bench, &Ledger) -> Outcome;

/// Made after everything else.
pub(crate) const COMPARISONS: &[(&str, Comparison)] =
    &[("nothing is left in the TPM", nothing_is_left), ("nothing counts towards lock-out", nothing_counts)];

impl Ledger {
    /// Through the TPM's own device file where it may be opened: a resource manager shows transient
    /// objects to the program that made them only.
    pub(crate) fn read(bench: &Bench) -> Result<Self, Failure> {
        let below = below_the_resource_manager(&bench.tcti);
        let opened = below.and_then(|tcti| connection::open(&tcti).ok().map(|context| (tcti, context)));
        let (seen_through, mut context) = match opened {
            Some(opened) => opened,
            None => (bench.tcti.clone(), connection::open(&bench.tcti)?),
        };
        let mut handles: [BTreeSet<u32>; KINDS.len()] = Default::default();
        for (set, (_, kind)) in handles.iter_mut().zip(KINDS) {
            *set = connection::handles(&mut context, kind)?;
        }
        Ok(Self { seen_through, handles, lock_out: LockOut::read(&mut context)? })
    }

    /// Fails if something else is in the TPM now.
    pub(crate) fn still_holds(&self, bench: &Bench) -> Result<Self, Failure> {
        let now = Self::read(bench)?;
        let mut differences = Vec::new();
        for (before, now) in self.handles.iter().zip(&now.handles) {
            differences.extend(now.difference(before).map(|handle| format!("{handle:#010x} is new")));
            differences.extend(before.difference(now).map(|handle| format!("{handle:#010x} is gone")));
        }
        if self.seen_through != now.seen_through {
            differences.push(format!("seen through {} before, {} now", self.seen_through, now.seen_through));
        }
        if differences.is_empty() {
            Ok(now)
        } else {
            Err(format!("the TPM is not left as it was: {}", differences.join("; ")).into())
        }
    }
}

/// `/dev/tpm0` for `/dev/tpmrm0`.
fn below_the_resource_manager(tcti: &Tcti) -> Option<Tcti> {
    let number = tcti.to_string().strip_prefix("device:/dev/tpmrm")?.to_owned();
    format!("device:/dev/tpm{number}").parse().ok()
}

fn nothing_is_left(bench: &Bench, before: &Ledger) -> Outcome {
    let now = before.still_holds(bench)?;
    let counts: Vec<String> = KINDS
        .iter()
        .zip(&now.handles)
        .map(|((name, _), handles)| format!("{} {name}", handles.len()))
        .collect();
    Ok(Verdict::Passed(format!("{}, as before; seen through {}", counts.join(", "), now.seen_through)))
}

fn nothing_counts(bench: &Bench, before: &Ledger) -> Outcome {
    let after = Ledger::read(bench)?.lock_out;
    let before = before.lock_out;
    if after != before {
        return Err(format!(
            "{} tries used before and {} after; limit {} and {}, interval {} s and {} s, recovery {} s and {} s{}",
            before.tries_used,
            after.tries_used,
            before.tries,
            after.tries,
            before.interval,
            after.interval,
            before.recovery,
            after.recovery,
            if after.is_locked { "; the TPM is locked" } else { "" }
        )
        .into());
    }
    Ok(Verdict::Passed(format!("{} of {} tries used, as before", after.tries_used, after.tries)))
}
