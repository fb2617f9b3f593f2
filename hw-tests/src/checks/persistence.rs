//! A key is loaded again from its PEM.

use miaf_agent::keys::Key;
use miaf_agent::keys::tpm::Tpm;
use tss_esapi::constants::StartupType;

use super::{Outcome, Verdict, ensure, key};
use crate::bench::Bench;
use crate::connection::{self, During};
use crate::description::LockOut;
use crate::swtpm;

pub(super) fn new_connection(bench: &Bench) -> Outcome {
    // A connection of its own, closed before the next is opened.
    let maker = Tpm::start(bench.tcti.clone());
    let made = maker.create_key()?;
    let (pem, public) = (made.to_pem()?, made.public_key().clone());
    drop((maker, made));

    let again = Tpm::start(bench.tcti.clone()).key_from_pem(&pem)?;
    ensure(again.public_key() == &public, || "it comes back with another public key".into())?;
    key::sign_and_verify(&again, key::MESSAGE)?;
    Ok(Verdict::Passed(format!("{} bytes of PEM", pem.len())))
}

const POWER_CUTS: u32 = 5;

/// The power goes after the key was used and before anybody has told the TPM.
pub(super) fn power_cuts(bench: &Bench) -> Outcome {
    let Some(control) = swtpm::control_port(&bench.tcti) else {
        return Ok(Verdict::NotAvailable("a TPM cannot be reset while the system runs".into()));
    };
    // Not to count what others have used since the TPM was last shut down in order.
    connection::open(&bench.tcti)?
        .execute_without_session(|context| context.shutdown(StartupType::Clear))
        .during("TPM2_Shutdown")?;
    swtpm::cut_power(&bench.tcti, control)?;

    let made = bench.agent.create_key()?;
    let before = LockOut::read(&mut connection::open(&bench.tcti)?)?;
    for _ in 0..POWER_CUTS {
        key::sign_and_verify(&made, key::MESSAGE)?;
        swtpm::cut_power(&bench.tcti, control)?;
    }
    let again = Tpm::start(bench.tcti.clone()).key_from_pem(&made.to_pem()?)?;
    key::sign_and_verify(&again, key::MESSAGE)?;
    let after = LockOut::read(&mut connection::open(&bench.tcti)?)?;
    ensure(after == before, || {
        format!(
            "{} tries were used before, {} after {POWER_CUTS} power cuts",
            before.tries_used, after.tries_used
        )
    })?;
    Ok(Verdict::Passed(format!("{POWER_CUTS} power cuts, {} tries used", after.tries_used)))
}
