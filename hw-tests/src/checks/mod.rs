//! What is tried, in this order.

mod concurrency;
mod factory;
pub(crate) mod key;
mod lockout;
mod mistakes;
mod persistence;

use crate::Failure;
use crate::bench::Bench;

/// How a check that has not failed came out.
pub(crate) enum Verdict {
    /// All was as it should be; with a figure to file.
    Passed(String),
    /// It cannot be tried on this TPM, and why.
    NotAvailable(String),
}

/// How a check came out.
pub(crate) type Outcome = Result<Verdict, Failure>;

type Check = fn(&Bench) -> Outcome;

/// Every check, by its name in the report.
pub(crate) const ALL: &[(&str, Check)] = &[
    ("the agent's key has the attributes it should", key::attributes),
    ("it cannot be duplicated", key::cannot_be_duplicated),
    ("it cannot be made exportable afterwards", key::cannot_be_made_exportable),
    ("its signatures are good, and no two alike", key::signs),
    ("it signs a certification request", key::requests_a_certificate),
    ("it identifies the device in TLS 1.3", key::identifies),
    ("it comes back from its PEM on a new connection", persistence::new_connection),
    ("it survives power cuts, which count for nothing", persistence::power_cuts),
    ("factory key at a handle: P-256, certificate in NV", factory::p256_with_certificate_in_nv),
    ("factory key at a handle: P-384", factory::p384),
    ("factory key at a handle: RSA 2048", factory::rsa_2048),
    ("the agent's keys are made and sign in lock-out", lockout::does_not_stop_the_agent),
    ("tpm2-tools and the agent at the same time", concurrency::tools_at_the_same_time),
    ("the key of another TPM is named as such", mistakes::key_of_another_tpm),
    ("a damaged key is named as such", mistakes::damaged_key),
    ("an empty handle and NV index are named as such", mistakes::nothing_there),
];

/// Fails with `why` unless `condition` holds.
fn ensure(condition: bool, why: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(why().into()) }
}
