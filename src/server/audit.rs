//! Bounds the audit log: a refusal is recorded once a minute per uid and kind; a use of the device's
//! key at once, and then once a minute with the number of uses since, per process and SVID.
//!
//! Both tables have limits, which a caller with many uids or many processes meets before the log
//! grows. No use of the key is left out for that: what is over a limit is counted together.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::digest::sha256;
use crate::platform::log::AUDIT;
use crate::server::peer::Caller;
use crate::spiffe::SpiffeId;
use crate::spiffe::svid::X509Svid;

/// Interval between two records of the same.
const INTERVAL: Duration = Duration::from_secs(60);
/// Refusals that are told apart. Further ones are not recorded: asking costs a caller nothing.
const MAX_REFUSALS: usize = 256;
/// Processes of one uid that are told apart. Further ones are counted together.
const MAX_PROCESSES_OF_USER: usize = 16;
/// Counts that a new process may add to; beyond it, the processes of each uid are counted together.
const MAX_PROCESSES: usize = 512;
/// Counts in all. Beyond it, all uids that have none are counted together.
const MAX_COUNTS: usize = 1024;

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

/// How a local program uses the device's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// `POST /v1/sign`
    Signature,
    /// A software key that is given out over the Workload API.
    Key,
}

/// Uses of the device's key of one kind, with the records of them that are due.
#[derive(Debug)]
pub struct KeyUses {
    kind: Use,
    counts: Mutex<BTreeMap<Counted, Count>>,
    /// Something has been counted that is not on record yet.
    pending: Notify,
}

/// What is counted together. SVIDs are told apart by the SHA-256 of the leaf: serial numbers are
/// the issuer's, and need not be unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Counted {
    leaf: [u8; 32],
    by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// The kernel gives the number of a process that has ended to another one.
    Process(Option<u32>, i32),
    /// Processes of another PID namespace, which have no number here, and those over the limits.
    User(Option<u32>),
    /// Users over the limit.
    Anyone,
}

#[derive(Debug)]
struct Count {
    spiffe_id: SpiffeId,
    serial: String,
    recorded_at: Instant,
    /// Uses since then.
    since: u64,
    /// Lowest and highest uid, where they are not told apart.
    uids: Option<(u32, u32)>,
}

/// One record of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    kind: Use,
    by: By,
    spiffe_id: SpiffeId,
    serial: String,
    /// Uses since the record before.
    count: u64,
    /// Lowest and highest uid.
    uids: Option<(u32, u32)>,
}

impl KeyUses {
    pub(super) fn new(kind: Use) -> Self {
        Self { kind, counts: Mutex::default(), pending: Notify::new() }
    }

    /// Puts one use on record: at once, or with those that are counted.
    pub(super) fn record(&self, caller: Caller, svid: &X509Svid) {
        if let Some(record) = self.count(caller, svid, Instant::now()) {
            record.write();
        }
    }

    /// Ends the count of this process, with a record of the rest: its next use is recorded at once.
    pub(super) fn end(&self, caller: Caller) {
        let Some(pid) = pid_of(caller) else { return };
        let by = By::Process(caller.uid, pid);
        self.take(|counted| counted.by == by).iter().for_each(Record::write);
    }

    /// Records everything that is still counted: the agent ends.
    pub fn end_all(&self) {
        self.take(|_| true).iter().for_each(Record::write);
    }

    /// Writes the records that fall due. Never ends; without callers it does not wake up.
    pub async fn run(&self) {
        loop {
            self.pending.notified().await;
            while let Some(wait) = self.next_due(Instant::now()) {
                sleep(wait).await;
                self.due(Instant::now()).iter().for_each(Record::write);
            }
        }
    }

    /// Counts one use. The record is to be written now.
    fn count(&self, caller: Caller, svid: &X509Svid, now: Instant) -> Option<Record> {
        let leaf = sha256(svid.chain().leaf());
        let mut counts = lock(&self.counts);
        let counted = Counted { leaf, by: by(&mut counts, caller, leaf, now) };
        let is_first = !counts.contains_key(&counted);
        let count = counts.entry(counted).or_insert_with(|| Count {
            spiffe_id: svid.spiffe_id().clone(),
            serial: svid.serial().to_owned(),
            recorded_at: now,
            since: 0,
            uids: None,
        });
        if let Some(uid) = caller.uid.filter(|_| counted.by == By::Anyone) {
            let (lowest, highest) = count.uids.unwrap_or((uid, uid));
            count.uids = Some((lowest.min(uid), highest.max(uid)));
        }
        count.since += 1;
        if !is_first && is_within_interval(count.recorded_at, now) {
            self.pending.notify_one();
            return None;
        }
        count.recorded_at = now;
        count.take(self.kind, counted)
    }

    fn due(&self, now: Instant) -> Vec<Record> {
        let mut counts = lock(&self.counts);
        let due = counts.iter_mut().filter(|(_, count)| !is_within_interval(count.recorded_at, now));
        let records: Vec<Record> = due
            .filter_map(|(counted, count)| {
                let record = count.take(self.kind, *counted)?;
                count.recorded_at = now;
                Some(record)
            })
            .collect();
        forget_the_past(&mut counts, now);
        records
    }

    /// Time until a record of what is counted is due.
    fn next_due(&self, now: Instant) -> Option<Duration> {
        let counts = lock(&self.counts);
        let pending = counts.values().filter(|count| count.since > 0);
        let waits =
            pending.map(|count| INTERVAL.saturating_sub(now.saturating_duration_since(count.recorded_at)));
        waits.min()
    }

    fn take(&self, which: impl Fn(&Counted) -> bool) -> Vec<Record> {
        let mut counts = lock(&self.counts);
        let records = counts.iter_mut().filter(|(counted, _)| which(counted));
        let records = records.filter_map(|(counted, count)| count.take(self.kind, *counted)).collect();
        counts.retain(|counted, _| !which(counted));
        records
    }
}

impl Count {
    fn take(&mut self, kind: Use, counted: Counted) -> Option<Record> {
        let count = std::mem::take(&mut self.since);
        let (by, uids) = (counted.by, self.uids.take());
        let Self { spiffe_id, serial, .. } = self;
        (count > 0).then(|| Record {
            kind,
            by,
            spiffe_id: spiffe_id.clone(),
            serial: serial.clone(),
            count,
            uids,
        })
    }
}

/// Where a use is counted, as far as the limits allow.
fn by(counts: &mut BTreeMap<Counted, Count>, caller: Caller, leaf: [u8; 32], now: Instant) -> By {
    let user = By::User(caller.uid);
    let process = pid_of(caller).map_or(user, |pid| By::Process(caller.uid, pid));
    let is_known = |counts: &BTreeMap<Counted, Count>, by| counts.contains_key(&Counted { leaf, by });
    if is_known(counts, process) {
        return process;
    }
    forget_the_past(counts, now);
    let lowest = Counted { leaf, by: By::Process(caller.uid, i32::MIN) };
    let highest = Counted { leaf, by: By::Process(caller.uid, i32::MAX) };
    let of_user = counts.range(lowest..=highest).count();
    if process != user && counts.len() < MAX_PROCESSES && of_user < MAX_PROCESSES_OF_USER {
        process
    } else if is_known(counts, user) || counts.len() < MAX_COUNTS {
        user
    } else {
        By::Anyone
    }
}

/// Counts without a use for an interval.
fn forget_the_past(counts: &mut BTreeMap<Counted, Count>, now: Instant) {
    counts.retain(|_, count| count.since > 0 || is_within_interval(count.recorded_at, now));
}

/// The number of a process, unless it is in another PID namespace.
fn pid_of(caller: Caller) -> Option<i32> {
    caller.pid.filter(|pid| *pid > 0)
}

fn is_within_interval(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < INTERVAL
}

impl Record {
    fn write(&self) {
        let Self { kind, by, spiffe_id, serial, count, uids } = self;
        let (uid, pid) = match *by {
            By::Process(uid, pid) => (uid, Some(pid)),
            By::User(uid) => (uid, None),
            By::Anyone => (None, None),
        };
        let (uid_from, uid_to) = uids.unzip();
        let whom = match by {
            By::Process(..) => "a local program",
            By::User(_) => "processes of this user that have no number here or are too many",
            By::Anyone => "users that are too many to tell apart",
        };
        // Constants each: targets and names of fields cannot be chosen at run time.
        match kind {
            Use::Signature => tracing::info!(
                target: AUDIT, audit = "sign", uid, pid, uid_from, uid_to, %spiffe_id, serial, count,
                "the device's key has signed for {whom}"
            ),
            Use::Key => tracing::info!(
                target: AUDIT, audit = "key", uid, pid, uid_from, uid_to, %spiffe_id, serial, count,
                "the device's key is given to {whom}"
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
    use crate::server::peer::Right;
    use crate::spiffe::svid::Chain;

    const ID: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";

    fn svid() -> X509Svid {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(ID.try_into().unwrap())];
        params.serial_number = Some(vec![7].into()); // as an MIS may number all of its SVIDs
        let pair = rcgen::KeyPair::generate().unwrap();
        let chain = Chain::from_pem(&[params.self_signed(&pair).unwrap().pem()]).unwrap();
        X509Svid::from_stored(chain).unwrap()
    }

    fn caller(uid: u32, pid: i32) -> Caller {
        Caller { right: Right::Sign, uid: Some(uid), pid: Some(pid) }
    }

    /// Whom a record names, and how many uses it counts.
    fn told(records: &[Record]) -> Vec<(By, u64)> {
        records.iter().map(|record| (record.by, record.count)).collect()
    }

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
    fn a_use_is_recorded_at_once_and_further_ones_once_a_minute_with_their_number() {
        let (uses, svid, now) = (KeyUses::new(Use::Signature), svid(), Instant::now());
        let first = uses.count(caller(7, 1), &svid, now).unwrap();
        assert_eq!((first.by, first.count, first.serial.as_str()), (By::Process(Some(7), 1), 1, "07"));
        assert_eq!(uses.next_due(now), None, "nothing to wake up for");
        for _ in 0..999 {
            assert_eq!(uses.count(caller(7, 1), &svid, now + INTERVAL / 2), None);
        }
        assert!(
            uses.count(caller(7, 2), &svid, now).is_some() && uses.count(caller(8, 1), &svid, now).is_some()
        );
        assert_eq!(uses.next_due(now + INTERVAL / 2), Some(INTERVAL / 2));
        assert!(uses.due(now + INTERVAL / 2).is_empty());
        assert_eq!(told(&uses.due(now + INTERVAL)), [(By::Process(Some(7), 1), 999)]);
        // From then on the minute counts anew, and one that brings no use ends the count.
        assert_eq!(uses.count(caller(7, 1), &svid, now + INTERVAL * 3 / 2), None);
        assert_eq!(told(&uses.due(now + INTERVAL * 2)), [(By::Process(Some(7), 1), 1)]);
        assert!(uses.due(now + INTERVAL * 3).is_empty() && lock(&uses.counts).is_empty());
        assert_eq!(uses.count(caller(7, 1), &svid, now + INTERVAL * 3).unwrap().count, 1);
    }

    #[test]
    fn a_late_use_takes_the_count_before_it_along() {
        let (uses, svid, now) = (KeyUses::new(Use::Signature), svid(), Instant::now());
        uses.count(caller(7, 1), &svid, now);
        uses.count(caller(7, 1), &svid, now);
        assert_eq!(uses.count(caller(7, 1), &svid, now + INTERVAL).unwrap().count, 2);
    }

    #[test]
    fn svids_of_one_serial_number_are_told_apart() {
        let (uses, now) = (KeyUses::new(Use::Key), Instant::now());
        for _ in 0..6 {
            let (svid, caller) = (svid(), caller(7, 1));
            assert!(uses.count(caller, &svid, now).is_some());
            assert!(uses.count(caller, &svid, now).is_none());
        }
    }

    #[test]
    fn what_is_counted_is_recorded_when_the_process_is_refused_or_the_agent_ends() {
        let (uses, svid, now) = (KeyUses::new(Use::Key), svid(), Instant::now());
        for pid in [1, 1, 1, 2, 2] {
            uses.count(caller(7, pid), &svid, now);
        }
        assert_eq!(
            told(&uses.take(|counted| counted.by == By::Process(Some(7), 1))),
            [(By::Process(Some(7), 1), 2)]
        );
        assert!(uses.count(caller(7, 1), &svid, now).is_some(), "the next is recorded at once");
        assert_eq!(told(&uses.take(|_| true)), [(By::Process(Some(7), 2), 1)]);
        assert!(lock(&uses.counts).is_empty());
    }

    #[test]
    fn processes_of_another_namespace_count_together() {
        let (uses, svid, now) = (KeyUses::new(Use::Signature), svid(), Instant::now());
        let unknown = Caller { pid: None, ..caller(7, 0) };
        let all = [caller(7, 0), caller(7, -1), unknown].map(|caller| uses.count(caller, &svid, now));
        let [first, further @ ..] = all;
        assert!(first.unwrap().by == By::User(Some(7)) && further == [None, None]);
    }

    #[test]
    fn a_process_for_each_signature_does_not_fill_the_log() {
        let (uses, svid, now) = (KeyUses::new(Use::Signature), svid(), Instant::now());
        let records = |pids: std::ops::Range<i32>, at| {
            pids.filter_map(|pid| uses.count(caller(7, pid), &svid, at)).count()
        };
        assert_eq!(records(1..10_000, now), MAX_PROCESSES_OF_USER + 1);
        let rest = told(&uses.due(now + INTERVAL));
        assert_eq!(rest, [(By::User(Some(7)), 9_999 - MAX_PROCESSES_OF_USER as u64 - 1)]);
        assert!(uses.count(caller(8, 1), &svid, now).is_some(), "others are told apart as before");
    }

    #[test]
    fn many_uids_and_processes_fill_a_table_of_fixed_size_and_lose_no_use() {
        let (uses, svid, now) = (KeyUses::new(Use::Signature), svid(), Instant::now());
        let mut recorded = 0;
        for uid in 0..3000 {
            for pid in 1..=3 {
                recorded += uses.count(caller(uid, pid), &svid, now).map_or(0, |record| record.count);
            }
        }
        assert!(recorded <= MAX_COUNTS as u64 + 1 && lock(&uses.counts).len() <= MAX_COUNTS + 1);
        let users = lock(&uses.counts).keys().filter(|counted| matches!(counted.by, By::User(_))).count();
        assert!(users >= MAX_COUNTS - MAX_PROCESSES - 1, "half of it is for users alone");
        let rest = uses.due(now + INTERVAL);
        let counted: u64 = rest.iter().map(|record| record.count).sum();
        assert_eq!(recorded + counted, 9000);
        let anyone = rest.iter().find(|record| record.by == By::Anyone).unwrap();
        assert!(anyone.uids.is_some_and(|(_, highest)| highest == 2999), "{anyone:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_is_recorded_without_another_use() {
        let (uses, svid) = (std::sync::Arc::new(KeyUses::new(Use::Signature)), svid());
        let running = tokio::spawn({
            let uses = uses.clone();
            async move { uses.run().await }
        });
        let long_ago = Instant::now().checked_sub(INTERVAL).unwrap();
        uses.count(caller(7, 1), &svid, long_ago);
        uses.count(caller(7, 1), &svid, long_ago);
        while uses.next_due(Instant::now()).is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.abort();
    }
}
