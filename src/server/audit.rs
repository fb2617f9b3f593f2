//! Bounds the audit log: a refusal is recorded once a minute per uid and kind; a use of the
//! device's key at once, and then once a minute with the number of uses since, per process and
//! SVID.
//!
//! Both tables have limits, which a client with many uids or many processes meets before the log
//! grows. No use of the key is left out for that: what is over a limit is counted together.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::platform::log::AUDIT;
use crate::server::peer::Peer;
use miaf_client::api::IdentityName;
use miaf_spiffe::SpiffeId;
use miaf_spiffe::digest::sha256;
use miaf_spiffe::svid::X509Svid;

/// Interval between two records of the same.
const INTERVAL: Duration = Duration::from_secs(60);
/// Refusals that are recorded one by one. Further ones are not: a request costs a client nothing.
const MAX_REFUSALS: usize = 256;
/// Processes of one uid that are counted one by one. Further ones are counted together.
const MAX_PROCESSES_OF_USER: usize = 16;
/// Counts that a new process may add to; beyond it, the processes of each uid are counted together.
const MAX_PROCESSES: usize = 512;
/// Counts in all. Beyond it, all uids that have none are counted together.
const MAX_COUNTS: usize = 1024;

/// Limits how often refusals are recorded: it holds those of the last minute.
#[derive(Debug, Default)]
pub(crate) struct RefusalLog(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    at: BTreeMap<(Option<u32>, &'static str), Instant>,
    /// When it was last recorded that there are more.
    full_at: Option<Instant>,
}

impl RefusalLog {
    /// Whether a refusal of `what` to `uid` is to be recorded now.
    pub(super) fn is_due(&self, uid: Option<u32>, what: &'static str, now: Instant) -> bool {
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
                    target: AUDIT, audit = "refusals", uid, what, limit = MAX_REFUSALS,
                    "more refusals than can be recorded"
                );
            }
            return false;
        }
        at.insert((uid, what), now);
        true
    }
}

/// Kind of use of the device's key by a local program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// A signature (`POST /v1/sign`).
    Signature,
    /// A software key that is sent over the Workload API.
    KeySent,
}

/// Counts the uses of the device's key of one kind, and records them when they are due.
#[derive(Debug)]
pub(crate) struct KeyUseLog {
    kind: KeyUse,
    counts: Mutex<BTreeMap<CountKey, Count>>,
    /// Notified when a use has been counted that is not recorded yet.
    pending: Notify,
}

/// Key of a count. An SVID is identified by the SHA-256 of the leaf: serial numbers are the
/// issuer's, and need not be unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CountKey {
    leaf: [u8; 32],
    user: KeyUser,
}

/// Whose uses are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyUser {
    /// A process. The kernel reuses the number of one that has ended.
    Process(Option<u32>, i32),
    /// Processes of one user in another PID namespace, which have no number here, and those over
    /// the limits.
    User(Option<u32>),
    /// Users over the limit.
    Others,
}

#[derive(Debug)]
struct Count {
    identity: IdentityName,
    spiffe_id: SpiffeId,
    serial: String,
    recorded_at: Instant,
    /// Uses since then.
    since: u64,
    /// Lowest and highest uid, where several are counted together.
    uids: Option<(u32, u32)>,
}

/// One record of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AuditRecord {
    kind: KeyUse,
    user: KeyUser,
    identity: IdentityName,
    spiffe_id: SpiffeId,
    serial: String,
    /// Uses since the record before.
    count: u64,
    /// Lowest and highest uid.
    uids: Option<(u32, u32)>,
}

impl KeyUseLog {
    pub(super) fn new(kind: KeyUse) -> Self {
        Self { kind, counts: Mutex::default(), pending: Notify::new() }
    }

    /// Records one use: at once, or with those that are counted.
    pub(super) fn record(&self, peer: Peer, identity: &IdentityName, svid: &X509Svid) {
        if let Some(record) = self.count(peer, identity, svid, Instant::now()) {
            record.write();
        }
    }

    /// Ends the count of this process, with a record of the rest: its next use is recorded at once.
    pub(super) fn end(&self, peer: Peer) {
        let Some(pid) = pid_of(peer) else { return };
        let user = KeyUser::Process(peer.uid, pid);
        self.take(|key| key.user == user).iter().for_each(AuditRecord::write);
    }

    /// Records all uses that are not recorded yet. For the end of the agent.
    pub(crate) fn end_all(&self) {
        self.take(|_| true).iter().for_each(AuditRecord::write);
    }

    /// Writes the records that fall due. Never ends; without clients it does not wake up.
    pub(crate) async fn run(&self) {
        loop {
            self.pending.notified().await;
            while let Some(wait) = self.next_due(Instant::now()) {
                sleep(wait).await;
                self.due(Instant::now()).iter().for_each(AuditRecord::write);
            }
        }
    }

    /// Counts one use. Returns the record that is to be written now, if one is.
    fn count(
        &self,
        peer: Peer,
        identity: &IdentityName,
        svid: &X509Svid,
        now: Instant,
    ) -> Option<AuditRecord> {
        let leaf = sha256(svid.chain().leaf());
        let mut counts = lock(&self.counts);
        let key = CountKey { leaf, user: key_user(&mut counts, peer, leaf, now) };
        let is_first = !counts.contains_key(&key);
        let count = counts.entry(key).or_insert_with(|| Count {
            identity: identity.clone(),
            spiffe_id: svid.spiffe_id().clone(),
            serial: svid.serial().to_owned(),
            recorded_at: now,
            since: 0,
            uids: None,
        });
        if let Some(uid) = peer.uid.filter(|_| key.user == KeyUser::Others) {
            let (lowest, highest) = count.uids.unwrap_or((uid, uid));
            count.uids = Some((lowest.min(uid), highest.max(uid)));
        }
        count.since += 1;
        if !is_first && is_within_interval(count.recorded_at, now) {
            self.pending.notify_one();
            return None;
        }
        count.recorded_at = now;
        count.take(self.kind, key)
    }

    fn due(&self, now: Instant) -> Vec<AuditRecord> {
        let mut counts = lock(&self.counts);
        let due = counts.iter_mut().filter(|(_, count)| !is_within_interval(count.recorded_at, now));
        let records: Vec<AuditRecord> = due
            .filter_map(|(key, count)| {
                let record = count.take(self.kind, *key)?;
                count.recorded_at = now;
                Some(record)
            })
            .collect();
        remove_old(&mut counts, now);
        records
    }

    /// Time until the next record is due.
    fn next_due(&self, now: Instant) -> Option<Duration> {
        let counts = lock(&self.counts);
        let pending = counts.values().filter(|count| count.since > 0);
        let waits =
            pending.map(|count| INTERVAL.saturating_sub(now.saturating_duration_since(count.recorded_at)));
        waits.min()
    }

    fn take(&self, which: impl Fn(&CountKey) -> bool) -> Vec<AuditRecord> {
        let mut counts = lock(&self.counts);
        let records = counts.iter_mut().filter(|(key, _)| which(key));
        let records = records.filter_map(|(key, count)| count.take(self.kind, *key)).collect();
        counts.retain(|key, _| !which(key));
        records
    }
}

impl Count {
    fn take(&mut self, kind: KeyUse, key: CountKey) -> Option<AuditRecord> {
        let count = std::mem::take(&mut self.since);
        let (user, uids) = (key.user, self.uids.take());
        let Self { identity, spiffe_id, serial, .. } = self;
        (count > 0).then(|| AuditRecord {
            kind,
            user,
            identity: identity.clone(),
            spiffe_id: spiffe_id.clone(),
            serial: serial.clone(),
            count,
            uids,
        })
    }
}

/// Decides with which others a use is counted: with as few as the limits allow.
fn key_user(counts: &mut BTreeMap<CountKey, Count>, peer: Peer, leaf: [u8; 32], now: Instant) -> KeyUser {
    let user = KeyUser::User(peer.uid);
    let process = pid_of(peer).map_or(user, |pid| KeyUser::Process(peer.uid, pid));
    let is_known = |counts: &BTreeMap<CountKey, Count>, user| counts.contains_key(&CountKey { leaf, user });
    if is_known(counts, process) {
        return process;
    }
    remove_old(counts, now);
    let lowest = CountKey { leaf, user: KeyUser::Process(peer.uid, i32::MIN) };
    let highest = CountKey { leaf, user: KeyUser::Process(peer.uid, i32::MAX) };
    let of_user = counts.range(lowest..=highest).count();
    if process != user && counts.len() < MAX_PROCESSES && of_user < MAX_PROCESSES_OF_USER {
        process
    } else if is_known(counts, user) || counts.len() < MAX_COUNTS {
        user
    } else {
        KeyUser::Others
    }
}

/// Removes the counts without a use within the interval.
fn remove_old(counts: &mut BTreeMap<CountKey, Count>, now: Instant) {
    counts.retain(|_, count| count.since > 0 || is_within_interval(count.recorded_at, now));
}

/// Number of the peer's process, unless it is in another PID namespace.
fn pid_of(peer: Peer) -> Option<i32> {
    peer.pid.filter(|pid| *pid > 0)
}

fn is_within_interval(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < INTERVAL
}

impl AuditRecord {
    fn write(&self) {
        let Self { kind, user, identity, spiffe_id, serial, count, uids } = self;
        let identity = identity.as_str();
        let (uid, pid, counted_for) = match *user {
            KeyUser::Process(uid, pid) => (uid, Some(pid), "process"),
            KeyUser::User(uid) => (uid, None, "user"),
            KeyUser::Others => (None, None, "users"),
        };
        let (uid_from, uid_to) = uids.unzip();
        // Constants each: targets and names of fields cannot be chosen at run time.
        match kind {
            KeyUse::Signature => tracing::info!(
                target: AUDIT, audit = "sign", identity, uid, pid, counted_for, uid_from, uid_to, %spiffe_id, serial, count,
                "signature made"
            ),
            KeyUse::KeySent => tracing::info!(
                target: AUDIT, audit = "key", identity, uid, pid, counted_for, uid_from, uid_to, %spiffe_id, serial, count,
                "key sent"
            ),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::peer::Role;
    use miaf_spiffe::svid::Chain;

    const ID: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";

    fn svid() -> X509Svid {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(ID.try_into().unwrap())];
        params.serial_number = Some(vec![7].into()); // as an MIS may number all of its SVIDs
        let pair = rcgen::KeyPair::generate().unwrap();
        let chain = Chain::from_pem(&[params.self_signed(&pair).unwrap().pem()]).unwrap();
        X509Svid::from_stored(chain).unwrap()
    }

    fn peer(uid: u32, pid: i32) -> Peer {
        Peer { role: Role::Sign, uid: Some(uid), pid: Some(pid) }
    }

    /// Whose uses each record counts, and how many.
    fn summary(records: &[AuditRecord]) -> Vec<(KeyUser, u64)> {
        records.iter().map(|record| (record.user, record.count)).collect()
    }

    #[test]
    fn refusals_are_recorded_once_a_minute_per_uid() {
        let (refusals, now) = (RefusalLog::default(), Instant::now());
        assert!(refusals.is_due(Some(7), "key", now));
        assert!(!refusals.is_due(Some(7), "key", now + INTERVAL / 2));
        assert!(refusals.is_due(Some(7), "sign", now) && refusals.is_due(None, "key", now));
        assert!(refusals.is_due(Some(7), "key", now + INTERVAL));
        let later = now + INTERVAL;
        assert!((0..1000).filter(|uid| refusals.is_due(Some(*uid), "other", later)).count() < MAX_REFUSALS);
    }

    #[test]
    fn key_use_is_recorded_at_once_and_then_once_a_minute() {
        let (uses, svid, now) = (KeyUseLog::new(KeyUse::Signature), svid(), Instant::now());
        let first = uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now).unwrap();
        assert_eq!((first.user, first.count, first.serial.as_str()), (KeyUser::Process(Some(7), 1), 1, "07"));
        assert_eq!(uses.next_due(now), None, "nothing to wake up for");
        for _ in 0..999 {
            assert_eq!(uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now + INTERVAL / 2), None);
        }
        assert!(
            uses.count(peer(7, 2), &IdentityName::DEVICE, &svid, now).is_some()
                && uses.count(peer(8, 1), &IdentityName::DEVICE, &svid, now).is_some()
        );
        assert_eq!(uses.next_due(now + INTERVAL / 2), Some(INTERVAL / 2));
        assert!(uses.due(now + INTERVAL / 2).is_empty());
        assert_eq!(summary(&uses.due(now + INTERVAL)), [(KeyUser::Process(Some(7), 1), 999)]);
        // From then on the minute counts anew, and one that brings no use ends the count.
        assert_eq!(uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now + INTERVAL * 3 / 2), None);
        assert_eq!(summary(&uses.due(now + INTERVAL * 2)), [(KeyUser::Process(Some(7), 1), 1)]);
        assert!(uses.due(now + INTERVAL * 3).is_empty() && lock(&uses.counts).is_empty());
        assert_eq!(
            uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now + INTERVAL * 3).unwrap().count,
            1
        );
    }

    #[test]
    fn late_use_is_recorded_with_those_before_it() {
        let (uses, svid, now) = (KeyUseLog::new(KeyUse::Signature), svid(), Instant::now());
        uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now);
        uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now);
        assert_eq!(uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now + INTERVAL).unwrap().count, 2);
    }

    #[test]
    fn svids_of_one_serial_number_are_counted_apart() {
        let (uses, now) = (KeyUseLog::new(KeyUse::KeySent), Instant::now());
        for _ in 0..6 {
            let (svid, peer) = (svid(), peer(7, 1));
            assert!(uses.count(peer, &IdentityName::DEVICE, &svid, now).is_some());
            assert!(uses.count(peer, &IdentityName::DEVICE, &svid, now).is_none());
        }
    }

    #[test]
    fn pending_count_is_recorded_on_refusal_and_at_the_end() {
        let (uses, svid, now) = (KeyUseLog::new(KeyUse::KeySent), svid(), Instant::now());
        for pid in [1, 1, 1, 2, 2] {
            uses.count(peer(7, pid), &IdentityName::DEVICE, &svid, now);
        }
        assert_eq!(
            summary(&uses.take(|key| key.user == KeyUser::Process(Some(7), 1))),
            [(KeyUser::Process(Some(7), 1), 2)]
        );
        assert!(
            uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, now).is_some(),
            "the next is recorded at once"
        );
        assert_eq!(summary(&uses.take(|_| true)), [(KeyUser::Process(Some(7), 2), 1)]);
        assert!(lock(&uses.counts).is_empty());
    }

    #[test]
    fn processes_of_another_namespace_are_counted_together() {
        let (uses, svid, now) = (KeyUseLog::new(KeyUse::Signature), svid(), Instant::now());
        let unknown = Peer { pid: None, ..peer(7, 0) };
        let all = [peer(7, 0), peer(7, -1), unknown]
            .map(|peer| uses.count(peer, &IdentityName::DEVICE, &svid, now));
        let [first, further @ ..] = all;
        assert!(first.unwrap().user == KeyUser::User(Some(7)) && further == [None, None]);
    }

    #[test]
    fn process_for_each_signature_does_not_fill_the_log() {
        let (uses, svid, now) = (KeyUseLog::new(KeyUse::Signature), svid(), Instant::now());
        let records = |pids: std::ops::Range<i32>, at| {
            pids.filter_map(|pid| uses.count(peer(7, pid), &IdentityName::DEVICE, &svid, at)).count()
        };
        assert_eq!(records(1..10_000, now), MAX_PROCESSES_OF_USER + 1);
        let rest = summary(&uses.due(now + INTERVAL));
        assert_eq!(rest, [(KeyUser::User(Some(7)), 9_999 - MAX_PROCESSES_OF_USER as u64 - 1)]);
        assert!(
            uses.count(peer(8, 1), &IdentityName::DEVICE, &svid, now).is_some(),
            "others are counted apart as before"
        );
    }

    #[test]
    fn many_uids_fill_a_bounded_table_and_lose_no_use() {
        let (uses, svid, now) = (KeyUseLog::new(KeyUse::Signature), svid(), Instant::now());
        let mut recorded = 0;
        for uid in 0..3000 {
            for pid in 1..=3 {
                recorded += uses
                    .count(peer(uid, pid), &IdentityName::DEVICE, &svid, now)
                    .map_or(0, |record| record.count);
            }
        }
        assert!(recorded <= MAX_COUNTS as u64 + 1 && lock(&uses.counts).len() <= MAX_COUNTS + 1);
        let users = lock(&uses.counts).keys().filter(|key| matches!(key.user, KeyUser::User(_))).count();
        assert!(users >= MAX_COUNTS - MAX_PROCESSES - 1, "half of it is for users alone");
        let rest = uses.due(now + INTERVAL);
        let counted: u64 = rest.iter().map(|record| record.count).sum();
        assert_eq!(recorded + counted, 9000);
        let others = rest.iter().find(|record| record.user == KeyUser::Others).unwrap();
        assert!(others.uids.is_some_and(|(_, highest)| highest == 2999), "{others:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pending_count_is_recorded_without_another_use() {
        let (uses, svid) = (std::sync::Arc::new(KeyUseLog::new(KeyUse::Signature)), svid());
        let running = tokio::spawn({
            let uses = uses.clone();
            async move { uses.run().await }
        });
        let long_ago = Instant::now().checked_sub(INTERVAL).unwrap();
        uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, long_ago);
        uses.count(peer(7, 1), &IdentityName::DEVICE, &svid, long_ago);
        while uses.next_due(Instant::now()).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.abort();
    }
}
