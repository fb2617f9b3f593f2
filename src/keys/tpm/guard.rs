//! A password that the TPM has refused is not sent again.
//!
//! A TPM counts wrong passwords and locks itself when there have been too many (TPM 2.0 specification, part 1,
//! "Dictionary Attack Protection"). The agent tries again for years, so one wrong password in its configuration would
//! sooner or later lock the TPM for everybody. One a day is few enough for any TPM to forgive, and so whatever was put
//! right in the meantime is found out without anybody's help; a restart finds it out at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{Context, SHA256};

use super::failure::{Failure, Step};

/// So long a refused password is not sent again.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// What the TPM has refused of late.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<Pair, Refusal>>);

#[derive(Clone, Copy)]
struct Refusal {
    step: Step,
    code: u32,
    at: Instant,
}

/// An object of the TPM and a password for it, as a digest of both.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Pair(Vec<u8>);

impl Pair {
    /// `object` is whatever tells it from others: another password, or another object, is another pair.
    pub(super) fn new(object: &[u8], password: &[u8]) -> Self {
        let mut digest = Context::new(&SHA256);
        digest.update(&object.len().to_be_bytes());
        digest.update(object);
        digest.update(password);
        Self(digest.finish().as_ref().to_vec())
    }
}

impl Refusals {
    /// Does `work`, which sends the pair's password, unless the TPM is known to refuse it. Only the thread that talks
    /// to the TPM calls this, so no second caller can slip through while the first one is on its way.
    pub(super) fn guard<T>(
        &self,
        pair: &Pair,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.check(pair)?;
        let done = work();
        if let Err(failure) = &done {
            self.note(pair, failure);
        }
        done
    }

    /// Remembers a refusal of the pair's password, if the TPM has counted it.
    pub(super) fn note(&self, pair: &Pair, failure: &Failure) {
        if let Some((step, code)) = failure.was_counted() {
            self.lock().insert(pair.clone(), Refusal { step, code, at: Instant::now() });
        }
    }

    /// What the TPM has said to the pair, if it was a refusal.
    pub(super) fn check(&self, pair: &Pair) -> Result<(), Failure> {
        self.check_at(pair, Instant::now())
    }

    fn check_at(&self, pair: &Pair, now: Instant) -> Result<(), Failure> {
        match self.lock().get(pair) {
            Some(refusal) if now.duration_since(refusal.at) < REMEMBERED => {
                Err(Failure::Password(refusal.step, refusal.code))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusals({})", self.lock().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_is_enough_and_counts_for_the_pair_only() {
        let refusals = Refusals::default();
        let (wrong, right) = (Pair::new(b"key", b"wrong"), Pair::new(b"key", b"right"));
        let mut asked = 0;
        for _ in 0..10 {
            let outcome = refusals.guard(&wrong, || -> Result<(), Failure> {
                asked += 1;
                Err(Failure::Password(Step::Sign, 0x98e))
            });
            assert!(matches!(outcome, Err(Failure::Password(Step::Sign, 0x98e))), "{outcome:?}");
        }
        assert_eq!(asked, 1);
        assert!(refusals.check_at(&wrong, Instant::now() + REMEMBERED / 2).is_err());
        assert!(refusals.check_at(&wrong, Instant::now() + REMEMBERED).is_ok(), "it may be right by now");
        assert!(refusals.guard(&right, || Ok(())).is_ok());
        assert!(refusals.check(&Pair::new(b"ke", b"ywrong")).is_ok());

        let busy = || -> Result<(), Failure> { Err(Failure::Deviant("not about the password".into())) };
        assert!(refusals.guard(&right, busy).is_err());
        assert!(refusals.check(&right).is_ok());
    }
}
