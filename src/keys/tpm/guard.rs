//! A password that the TPM has refused is not sent again.
//!
//! A TPM counts wrong passwords and locks itself when there have been too many (TPM 2.0 specification, part 1,
//! "Dictionary Attack Protection"). The agent tries again for years, so one wrong password in its configuration would
//! sooner or later lock the TPM for everybody.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::digest::{Context, SHA256};

use super::failure::{Failure, Step};

/// What the TPM has refused, for as long as the process lives.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<Pair, (Step, u32)>>);

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
        if let Some(refusal) = done.as_ref().err().and_then(Failure::password_refused) {
            self.lock().insert(pair.clone(), refusal);
        }
        done
    }

    /// What the TPM has said to the pair, if it was a refusal.
    pub(super) fn check(&self, pair: &Pair) -> Result<(), Failure> {
        match self.lock().get(pair) {
            Some((step, code)) => Err(Failure::Password(*step, *code)),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, (Step, u32)>> {
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
        assert!(refusals.guard(&right, || Ok(())).is_ok());
        assert!(refusals.check(&Pair::new(b"ke", b"ywrong")).is_ok());

        let busy = || -> Result<(), Failure> { Err(Failure::Deviant("not about the password".into())) };
        assert!(refusals.guard(&right, busy).is_err());
        assert!(refusals.check(&right).is_ok());
    }
}
