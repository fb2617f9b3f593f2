//! What keeps the audit log from being filled by callers: refusals are recorded once a minute per uid and kind, and a key
//! that is given out once per process and SVID.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;

use super::caller::Caller;

/// Interval between two records of the same refusal.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(60);
/// Refusals that are told apart. Further ones are not recorded: asking costs a caller nothing.
const MAX_REFUSALS: usize = 256;
/// Processes that are told apart. Further ones are recorded each time: a key that leaves the agent is never unrecorded.
const MAX_PROCESSES: usize = 4096;

/// Refusals that have been recorded within the last minute.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<(Option<u32>, &'static str), Instant>>);

impl Refusals {
    /// Whether to record that `uid` was refused `what`.
    pub(super) fn is_news(&self, uid: Option<u32>, what: &'static str, now: Instant) -> bool {
        let mut recorded = lock(&self.0);
        recorded.retain(|_, at| now.saturating_duration_since(*at) < REFUSAL_INTERVAL);
        if recorded.len() >= MAX_REFUSALS || recorded.contains_key(&(uid, what)) {
            return false;
        }
        recorded.insert((uid, what), now);
        true
    }
}

/// The processes that have been given the key of the current SVID.
#[derive(Debug, Default)]
pub struct KeysGiven(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    /// SHA-256 of the leaf certificate. Serial numbers are the issuer's, and need not be unique.
    leaf: Vec<u8>,
    processes: BTreeSet<Process>,
}

type Process = (Option<u32>, Option<i32>);

impl KeysGiven {
    /// Whether to record that this process is given the key of the SVID with this leaf certificate.
    pub(super) fn is_news(&self, caller: Caller, leaf: &CertificateDer<'_>) -> bool {
        let (mut given, leaf) = (lock(&self.0), digest(&SHA256, leaf));
        if given.leaf != leaf.as_ref() {
            *given = Given { leaf: leaf.as_ref().to_vec(), processes: BTreeSet::new() };
        }
        if given.processes.len() >= MAX_PROCESSES {
            return !given.processes.contains(&process(caller));
        }
        given.processes.insert(process(caller))
    }

    /// This process is not entitled to the key any more: if it is given it again, that is recorded again.
    pub(super) fn forget(&self, caller: Caller) {
        lock(&self.0).processes.remove(&process(caller));
    }
}

fn process(Caller { uid, pid, .. }: Caller) -> Process {
    (uid, pid)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::caller::Right;

    #[test]
    fn refusals_are_recorded_once_a_minute_per_uid() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        assert!(refusals.is_news(Some(7), "key", now));
        assert!(!refusals.is_news(Some(7), "key", now + REFUSAL_INTERVAL / 2));
        assert!(refusals.is_news(Some(7), "sign", now) && refusals.is_news(None, "key", now));
        assert!(refusals.is_news(Some(7), "key", now + REFUSAL_INTERVAL));
        let later = now + REFUSAL_INTERVAL;
        assert!((0..1000).filter(|uid| refusals.is_news(Some(*uid), "other", later)).count() < MAX_REFUSALS);
    }

    #[test]
    fn a_key_is_recorded_once_per_process_and_svid() {
        let given = KeysGiven::default();
        let caller = |uid, pid| Caller { right: Right::Read, uid: Some(uid), pid: Some(pid) };
        let (first, second) = (CertificateDer::from(vec![1]), CertificateDer::from(vec![2]));
        assert!(given.is_news(caller(7, 1), &first));
        assert!(!given.is_news(caller(7, 1), &first));
        assert!(given.is_news(caller(7, 2), &first) && given.is_news(caller(8, 1), &first));
        assert!(given.is_news(caller(7, 1), &second) && !given.is_news(caller(7, 1), &second));
        given.forget(caller(7, 1));
        assert!(given.is_news(caller(7, 1), &second));
        for pid in 0..10_000 {
            assert!(given.is_news(caller(9, pid), &second), "never unrecorded, however many there are");
        }
        assert!(lock(&given.0).processes.len() <= MAX_PROCESSES);
    }
}
