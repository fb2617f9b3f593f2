//! What keeps callers from filling the audit log: a refusal is recorded once a minute per uid and
//! kind, and a key that is given out at once, and then once a minute per process and SVID.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;

use super::caller::Caller;
use crate::system::log::AUDIT;

/// Interval between two records of the same.
const INTERVAL: Duration = Duration::from_secs(60);
/// Refusals that are told apart. Further ones are not recorded: asking costs a caller nothing.
const MAX_REFUSALS: usize = 256;
/// Processes that are told apart. Further ones are recorded each time: a key that leaves the agent
/// is never unrecorded.
const MAX_PROCESSES: usize = 4096;

/// Refusals that have been recorded within the last minute.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    at: BTreeMap<(Option<u32>, &'static str), Instant>,
    /// When it was last recorded that there are more.
    full_at: Option<Instant>,
}

impl Refusals {
    /// Whether to record that `uid` was refused `what`.
    pub(super) fn is_news(&self, uid: Option<u32>, what: &'static str, now: Instant) -> bool {
        let Recorded { at, full_at } = &mut *lock(&self.0);
        let is_recent = |at: Instant| now.saturating_duration_since(at) < INTERVAL;
        at.retain(|_, at| is_recent(*at));
        if at.contains_key(&(uid, what)) {
            return false;
        }
        if at.len() >= MAX_REFUSALS {
            if !full_at.is_some_and(is_recent) {
                *full_at = Some(now);
                tracing::warn!(
                    target: AUDIT, audit = "refusals", uid, what,
                    "more refusals than can be recorded: {MAX_REFUSALS} users and kinds within a minute, and others"
                );
            }
            return false;
        }
        at.insert((uid, what), now);
        true
    }
}

/// The processes that have been given the key of the current SVID within the last minute.
#[derive(Debug, Default)]
pub struct KeysGiven(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    /// SHA-256 of the leaf certificate. Serial numbers are the issuer's, and need not be unique.
    leaf: Vec<u8>,
    at: BTreeMap<Process, Instant>,
}

/// The kernel gives the number of a process that has ended to another one.
type Process = (Option<u32>, Option<i32>);

impl KeysGiven {
    /// Whether to record that this process is given the key of the SVID with this leaf certificate
    /// on another stream.
    pub(super) fn is_news(&self, caller: Caller, leaf: &CertificateDer<'_>, now: Instant) -> bool {
        let (mut given, leaf) = (lock(&self.0), digest(&SHA256, leaf));
        if given.leaf != leaf.as_ref() {
            *given = Given { leaf: leaf.as_ref().to_vec(), at: BTreeMap::new() };
        }
        if caller.pid.is_none_or(|pid| pid <= 0) {
            return true; // of another PID namespace: any process of it
        }
        given.at.retain(|_, at| now.saturating_duration_since(*at) < INTERVAL);
        if given.at.contains_key(&process(caller)) {
            return false;
        }
        if given.at.len() < MAX_PROCESSES {
            given.at.insert(process(caller), now);
        }
        true
    }

    /// This process is not entitled to the key any more: if it is given it again, that is recorded
    /// again.
    pub(super) fn forget(&self, caller: Caller) {
        lock(&self.0).at.remove(&process(caller));
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
        assert!(!refusals.is_news(Some(7), "key", now + INTERVAL / 2));
        assert!(refusals.is_news(Some(7), "sign", now) && refusals.is_news(None, "key", now));
        assert!(refusals.is_news(Some(7), "key", now + INTERVAL));
        let later = now + INTERVAL;
        assert!((0..1000).filter(|uid| refusals.is_news(Some(*uid), "other", later)).count() < MAX_REFUSALS);
    }

    #[test]
    fn a_key_is_recorded_once_a_minute_per_process_and_svid() {
        let given = KeysGiven::default();
        let caller = |uid, pid| Caller { right: Right::Read, uid: Some(uid), pid: Some(pid) };
        let (first, second) = (CertificateDer::from(vec![1]), CertificateDer::from(vec![2]));
        let now = Instant::now();
        assert!(given.is_news(caller(7, 1), &first, now));
        assert!(!given.is_news(caller(7, 1), &first, now + INTERVAL / 2));
        assert!(given.is_news(caller(7, 2), &first, now) && given.is_news(caller(8, 1), &first, now));
        assert!(given.is_news(caller(7, 1), &first, now + INTERVAL), "it may be another process by now");
        assert!(given.is_news(caller(7, 1), &second, now) && !given.is_news(caller(7, 1), &second, now));
        assert!(given.is_news(caller(7, 0), &second, now) && given.is_news(caller(7, 0), &second, now));
        given.forget(caller(7, 1));
        assert!(given.is_news(caller(7, 1), &second, now));
        for pid in 0..10_000 {
            assert!(given.is_news(caller(9, pid), &second, now), "never unrecorded, however many there are");
        }
        assert!(lock(&given.0).at.len() <= MAX_PROCESSES);
    }
}
