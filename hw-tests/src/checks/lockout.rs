//! Lock-out: passwords have been guessed until the TPM locked. The agent's keys have none to guess,
//! and go on.

use miaf_agent::keys::Key;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::Auth;

use super::{Outcome, Verdict, ensure, key};
use crate::bench::Bench;
use crate::connection::{self, During, Kind};
use crate::description::LockOut;
use crate::{Failure, swtpm};

/// TPM_RC_LOCKOUT.
const LOCKED: u32 = 0x921;

pub(super) fn does_not_stop_the_agent(bench: &Bench) -> Outcome {
    let is_software = swtpm::control_port(&bench.tcti).is_some();
    if !is_software && !bench.destructive {
        return Ok(Verdict::NotAvailable("a TPM is locked only with --destructive".into()));
    }
    let before = LockOut::read(&mut connection::open(&bench.tcti)?)?;
    if before.has_password || before.is_locked || before.tries_used > 0 {
        return Ok(Verdict::NotAvailable(
            "the TPM could not be put back as it is: it has a lock-out password, or tries have been used"
                .into(),
        ));
    }

    let made = bench.agent.create_key()?;
    let locked = Locked::lock(bench, before)?;
    let code = guess_and_use(bench)?;
    ensure(code == LOCKED, || {
        format!("the TPM does not lock: it says {code:#x} to a key that is not exempt")
    })?;
    let now = LockOut::read(&mut connection::open(&bench.tcti)?)?;
    ensure(now.is_locked, || "the TPM does not say that it is locked".into())?;

    key::sign_and_verify(&made, key::MESSAGE)?;
    let another = bench.agent.create_key()?;
    key::sign_and_verify(&another, key::MESSAGE)?;
    let reopened = bench.agent.key_from_pem(&another.to_pem()?)?;
    key::sign_and_verify(&reopened, key::MESSAGE)?;

    locked.unlock()?;
    let after = LockOut::read(&mut connection::open(&bench.tcti)?)?;
    ensure(after == before, || "the lock-out settings are not what they were".into())?;
    Ok(Verdict::Passed(format!("made and signed; a key that is not exempt: code {code:#x}; unlocked again")))
}

/// Uses a key that is not exempt with a wrong password, and then with the right one. Returns the
/// response to the latter.
fn guess_and_use(bench: &Bench) -> Result<u32, Failure> {
    let password = |text: &str| Auth::try_from(text.as_bytes().to_vec()).during("a password");
    let mut context = connection::open(&bench.tcti)?;
    let template = connection::p256_key(Kind { no_da: false, ..connection::AS_THE_AGENT_DOES })?;
    let guarded = context
        .create_primary(Hierarchy::Owner, template, Some(password("right")?), None, None, None)
        .during("CreatePrimary")?
        .key_handle;
    context.tr_set_auth(guarded.into(), password("wrong")?).during("a password")?;
    ensure(connection::sign(&mut context, guarded).is_err(), || "the TPM takes a wrong password".into())?;
    context.tr_set_auth(guarded.into(), password("right")?).during("a password")?;
    Ok(connection::sign(&mut context, guarded).map_or_else(|error| connection::code(&error), |_| 0))
}

/// A TPM that one wrong password locks. Unlocked and set as before when dropped.
struct Locked<'a> {
    bench: &'a Bench,
    before: LockOut,
    is_unlocked: bool,
}

impl<'a> Locked<'a> {
    fn lock(bench: &'a Bench, before: LockOut) -> Result<Self, Failure> {
        let locked = Self { bench, before, is_unlocked: false };
        // Long enough not to be over before the end of the check.
        locked.set(1, before.interval.max(1000))?;
        Ok(locked)
    }

    fn unlock(mut self) -> Result<(), Failure> {
        self.is_unlocked = true;
        self.restore()
    }

    fn restore(&self) -> Result<(), Failure> {
        self.bench.tool("tpm2_dictionarylockout", &["--clear-lockout"])?;
        self.set(self.before.tries, self.before.interval)
    }

    fn set(&self, tries: u32, interval: u32) -> Result<(), Failure> {
        let (tries, interval, recovery) =
            (tries.to_string(), interval.to_string(), self.before.recovery.to_string());
        let settings =
            ["--max-tries", &tries, "--recovery-time", &interval, "--lockout-recovery-time", &recovery];
        self.bench.tool("tpm2_dictionarylockout", &[["--setup-parameters"].as_slice(), &settings].concat())
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_unlocked {
            return;
        }
        if let Err(error) = self.restore() {
            let LockOut { tries, interval, recovery, .. } = self.before;
            eprintln!(
                "hw-tests: the TPM is still locked ({error}); unlock it with: tpm2_dictionarylockout -c && \
                 tpm2_dictionarylockout -s -n {tries} -t {interval} -l {recovery}"
            );
        }
    }
}
