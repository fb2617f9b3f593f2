//! Guard against dictionary-attack lock-out: a password that the TPM has refused is not sent again
//! for a day.
//!
//! A TPM counts wrong passwords and locks itself when there have been too many (TPM 2.0
//! specification, part 1, "Dictionary Attack Protection"). The agent retries for years, so one
//! wrong password in its configuration would sooner or later lock the TPM for every user. One a day
//! is few enough for any TPM to forgive, and shows without help when the password was corrected in
//! the meantime; a restart shows it at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA256};

use super::response_code::{Failure, Step};

/// How long a refused password is not sent again.
const RECORDED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Passwords that the TPM has refused recently.
#[derive(Default)]
pub(super) struct LockoutGuard(Mutex<HashMap<AuthAttempt, Refusal>>);

#[derive(Clone, Copy)]
struct Refusal {
    step: Step,
    code: u32,
    at: Instant,
}

/// An object of the TPM and a password for it, as a digest of both.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct AuthAttempt(Vec<u8>);

impl AuthAttempt {
    /// `object` distinguishes the object from others. Another password, or another object, is
    /// another attempt.
    pub(super) fn new(object: &[u8], password: &[u8]) -> Self {
        let mut digest = Context::new(&SHA256);
        digest.update(&object.len().to_be_bytes());
        digest.update(object);
        digest.update(password);
        Self(digest.finish().as_ref().to_vec())
    }
}

impl LockoutGuard {
    /// Runs `work`, which sends the attempt's password, unless the TPM is known to refuse it. Only
    /// the thread that talks to the TPM calls this, so no second caller can pass while the first
    /// one is waiting for its response.
    pub(super) fn run<T>(
        &self,
        attempt: &AuthAttempt,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.check(attempt)?;
        let done = work();
        if let Err(failure) = &done {
            self.record(attempt, failure);
        }
        done
    }

    /// Records a refusal of the attempt's password, if the TPM has counted it.
    pub(super) fn record(&self, attempt: &AuthAttempt, failure: &Failure) {
        if let Some((step, code)) = failure.was_counted() {
            self.lock().insert(attempt.clone(), Refusal { step, code, at: Instant::now() });
        }
    }

    /// The refusal of the attempt's password that is on record.
    pub(super) fn check(&self, attempt: &AuthAttempt) -> Result<(), Failure> {
        self.check_at(attempt, Instant::now())
    }

    fn check_at(&self, attempt: &AuthAttempt, now: Instant) -> Result<(), Failure> {
        match self.lock().get(attempt) {
            Some(refusal) if now.duration_since(refusal.at) < RECORDED_FOR => {
                Err(Failure::Password(refusal.step, refusal.code))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AuthAttempt, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LockoutGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockoutGuard({} refused)", self.lock().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_counts_for_its_object_and_password_only() {
        let guard = LockoutGuard::default();
        let (wrong, right) = (AuthAttempt::new(b"key", b"wrong"), AuthAttempt::new(b"key", b"right"));
        let mut runs = 0;
        for _ in 0..10 {
            let outcome = guard.run(&wrong, || -> Result<(), Failure> {
                runs += 1;
                Err(Failure::Password(Step::Sign, 0x98e))
            });
            assert!(matches!(outcome, Err(Failure::Password(Step::Sign, 0x98e))), "{outcome:?}");
        }
        assert_eq!(runs, 1);
        assert!(guard.check_at(&wrong, Instant::now() + RECORDED_FOR / 2).is_err());
        assert!(guard.check_at(&wrong, Instant::now() + RECORDED_FOR).is_ok(), "it may be right by now");
        assert!(guard.run(&right, || Ok(())).is_ok());
        assert!(guard.check(&AuthAttempt::new(b"ke", b"ywrong")).is_ok());

        let busy = || -> Result<(), Failure> { Err(Failure::Deviant("not about the password".into())) };
        assert!(guard.run(&right, busy).is_err());
        assert!(guard.check(&right).is_ok());
    }
}
