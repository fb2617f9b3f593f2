//! Retry-After delays over restarts and reboots (miaf-v0 E8): what is restored of them, and when
//! they are to be stored or restored anew. Values in, values out:
//! [`Records`](super::persist::Records) does the I/O.

use std::time::Duration;

use crate::config::{Enrollment, IdentityConfig};
use crate::lifecycle::{IdentityMemory, Memory, TrustDomainMemory};
use crate::state::{self, IdentityDelay, RetryAfterDelays};
use miaf_client::api::IdentityName;
use miaf_spiffe::time::{BootTime, Now};

/// How the Retry-After delays of this process stand on the disk.
#[derive(Debug, Default)]
pub(super) struct StoredRetryAfter {
    /// What is on the disk.
    stored: Memory,
    /// It was written by a clock that was trusted.
    by_right_clock: bool,
    /// What was restored of the delays of another boot, by a clock that was not trusted.
    in_doubt: Option<Vec<Option<BootTime>>>,
    /// The record is another boot's, and is not needed any more.
    is_stale: bool,
}

/// What the record on the disk needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Write,
    Remove,
}

/// Limit on removed identities whose delays are kept.
const MAX_REMOVED: usize = 64;

/// What is restored in this boot of a record: the memory, and the names of its identities. Those of
/// `names` come first; what follows are identities that are not configured any more, as long as the
/// delay that was asked of them lasts.
///
/// Within the same boot a delay ends on the boot clock, whatever became of the wall clock. After a
/// reboot only the wall clock is left, and it may be wrong. Neither makes a delay longer than it
/// was.
pub(super) fn remembered(
    record: &RetryAfterDelays,
    names: &[IdentityName],
    boot_id: Option<&str>,
    now: Now,
) -> (Memory, Vec<IdentityName>) {
    let end = |wait: state::RetryAfterDelay| {
        let rest = if is_of(record, boot_id) { now.boot.until(wait.boot) } else { now.wall.until(wait.wall) };
        now.boot.after(rest.min(Duration::from_millis(wait.left)))
    };
    let memory = |delay: &IdentityDelay| IdentityMemory {
        retry_after: delay.retry_after.map(end),
        error: delay.reason.clone(),
        admission_pending: delay.admission_pending,
        replace_lost_key: delay.replace_lost_key,
    };
    let of = |name: &IdentityName| record.identities.iter().find(|delay| delay.name == *name);
    let configured = names.iter().map(|name| (name.clone(), of(name).map(memory).unwrap_or_default()));
    let removed = record.identities.iter().filter(|delay| !names.contains(&delay.name));
    let removed = removed.map(|delay| (delay.name.clone(), memory(delay)));
    let lasting = removed.filter(|(_, memory)| memory.retry_after.is_some_and(|until| now.boot < until));
    let (names, identities) = configured.chain(lasting.take(MAX_REMOVED)).unzip();
    let trust_domain = TrustDomainMemory {
        discovery_retry_after: record.discovery.map(end),
        discovery_error: record.discovery_reason.clone(),
        bundle_retry_after: record.bundle.map(end),
    };
    (Memory { trust_domain, identities }, names)
}

/// Leaves out the delays that another WFM asked for than the one that the identity is configured for
/// now: it knows nothing of them.
pub(super) fn forget_other_wfms(record: &mut RetryAfterDelays, identities: &[IdentityConfig]) {
    for delay in &mut record.identities {
        let configured = identities.iter().find(|identity| identity.name == delay.name);
        let url = configured.map(|identity| match &identity.enroll {
            Enrollment::WfmBinding(wfm) => Some(wfm.url.to_string()),
            _ => None,
        });
        if delay.wfm.is_some() && url.is_some_and(|url| url != delay.wfm) {
            (delay.retry_after, delay.reason, delay.wfm) = (None, None, None);
        }
    }
}

impl StoredRetryAfter {
    /// The state after the start. `memory` is what the lifecycle has made of what is
    /// [`remembered`]: without what is over.
    pub(super) fn restored(
        record: &RetryAfterDelays,
        boot_id: Option<&str>,
        memory: Memory,
        trusted: bool,
    ) -> Self {
        let of_another_boot = !is_of(record, boot_id) && *record != RetryAfterDelays::default();
        let delays = memory.retry_after();
        let has_delays = delays.iter().any(Option::is_some);
        Self {
            in_doubt: (of_another_boot && !trusted && has_delays).then_some(delays),
            by_right_clock: record.ends_by_the_wall_clock(),
            // It is written anew with this boot's id, by a trusted clock; or removed, if the delays
            // are over.
            is_stale: of_another_boot && trusted,
            stored: memory,
        }
    }

    /// What the record needs to hold what must survive a restart now.
    pub(super) fn change(&self, memory: &Memory, trusted: bool) -> Option<Change> {
        let is_to_be_right = trusted && !self.by_right_clock && self.in_doubt.is_none();
        if *memory == self.stored && !is_to_be_right && !self.is_stale {
            return None;
        }
        Some(if memory.is_empty() { Change::Remove } else { Change::Write })
    }

    /// Notes that the record has been changed as [`change`](Self::change) said.
    pub(super) fn changed(&mut self, memory: Memory, trusted: bool) {
        self.by_right_clock = trusted || memory.is_empty();
        (self.stored, self.is_stale) = (memory, false);
    }

    /// Whether the clock, which was not trusted at the start, shows now how much is left of the
    /// delays of another boot: they are to be restored anew. True once.
    pub(super) fn are_to_be_restored(&mut self, trusted: bool, memory: &Memory) -> bool {
        // A later Retry-After stands.
        trusted && self.in_doubt.take() == Some(memory.retry_after())
    }
}

fn is_of(record: &RetryAfterDelays, boot_id: Option<&str>) -> bool {
    boot_id.is_some() && record.boot_id.as_deref() == boot_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use miaf_spiffe::time::Timestamp;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    const SOME_DAY: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn at(wall: Timestamp, boot: Duration) -> Now {
        Now { wall, boot: BootTime::default().after(boot), synchronised: false }
    }

    /// What a device that is asked to wait for an hour does not forget.
    fn to_wait_for_an_hour(now: Now) -> Memory {
        let identity =
            IdentityMemory { retry_after: Some(now.boot.after(HOUR)), ..IdentityMemory::default() };
        Memory { trust_domain: TrustDomainMemory::default(), identities: vec![identity] }
    }

    fn record(memory: &Memory, boot_id: &str, trusted: bool, now: Now) -> RetryAfterDelays {
        RetryAfterDelays::new(
            memory,
            &[IdentityName::DEVICE],
            None,
            Some(boot_id.into()),
            trusted.then_some(now.wall),
            now.boot,
        )
    }

    fn remembered(record: &RetryAfterDelays, boot_id: Option<&str>, now: Now) -> Memory {
        super::remembered(record, &[IdentityName::DEVICE], boot_id, now).0
    }

    fn left(memory: &Memory, now: Now) -> Duration {
        memory.identities[0].retry_after.map_or(Duration::ZERO, |until| now.boot.until(until))
    }

    #[test]
    fn wait_survives_restart_and_reboot_and_is_never_extended() {
        let then = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(then), "this boot", true, then);
        let memory = remembered(&record, Some("this boot"), then);
        let kept = StoredRetryAfter::restored(&record, Some("this boot"), memory.clone(), true);
        assert_eq!(kept.change(&memory, true), None, "what is on the disk is as good as new");
        let left = |boot_id, now| left(&remembered(&record, boot_id, now), now);
        let later = at(Timestamp::default(), MINUTE + HOUR / 4);
        assert_eq!(left(Some("this boot"), later), HOUR * 3 / 4, "whatever the wall clock says");
        for other in [Some("another boot"), None] {
            let left = |wall| left(other, at(wall, MINUTE));
            assert_eq!(left(SOME_DAY), HOUR, "at once");
            assert_eq!(left(SOME_DAY.after(HOUR / 2)), HOUR / 2, "half of it was spent switched off");
            assert_eq!(left(SOME_DAY.after(HOUR * 1000)), Duration::ZERO, "it is long over");
            assert_eq!(left(Timestamp::default()), HOUR, "a clock at 1970 makes it no longer than it was");
        }
    }

    #[test]
    fn delay_of_a_wfm_ends_with_the_change_to_another() {
        let then = at(SOME_DAY, MINUTE);
        let mut asked = record(&to_wait_for_an_hour(then), "this boot", true, then);
        asked.identities[0].name = IdentityName::parse("client").unwrap();
        let config = |name: &str, url: &str| {
            let text = format!(
                "[bootstrap]\ncert_file = \"a\"\nkey = \"file:b\"\n\
                 [[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n\
                 [[identity]]\nname = \"{name}\"\nenroll = \"wfm-binding\"\n\
                 [identity.wfm]\nurl = \"{url}\"\nid = \"w\"\n"
            );
            crate::config::Config::parse(&text, std::path::Path::new("/etc/config.toml"), None)
                .unwrap()
                .identities
        };
        let (one, other) = ("https://one.example/", "https://other.example");
        for (asked_by, identities, is_kept) in [
            (Some(one), config("client", "https://one.example"), true),
            (Some(one), config("client", other), false),
            (Some(one), config("another", other), true), // it may come back
            (None, config("client", other), true),       // the MIS asked for it
        ] {
            let mut record = asked.clone();
            record.identities[0].wfm = asked_by.map(str::to_owned);
            forget_other_wfms(&mut record, &identities);
            let delay = &record.identities[0];
            assert_eq!(
                (delay.retry_after.is_some(), delay.wfm.is_some()),
                (is_kept, is_kept && asked_by.is_some())
            );
        }
    }

    #[test]
    fn delay_of_a_removed_identity_is_kept_while_it_lasts() {
        let then = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(then), "this boot", true, then);
        let other = [IdentityName::parse("wfm").unwrap()];
        let (memory, names) = super::remembered(&record, &other, Some("this boot"), then);
        assert_eq!(names, [other[0].clone(), IdentityName::DEVICE]);
        assert_eq!(memory.identities[0], IdentityMemory::default());
        assert_eq!(memory.identities[1].retry_after, Some(then.boot.after(HOUR)));
        let over = at(SOME_DAY, MINUTE + HOUR);
        let (memory, names) = super::remembered(&record, &other, Some("this boot"), over);
        assert_eq!((memory.identities.len(), names), (1, other.to_vec()));
    }

    #[test]
    fn wait_is_restored_once_the_clock_of_a_boot_is_set() {
        let asked = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(asked), "first", true, asked);

        // Off for half an hour, and on again without a clock.
        let boot = at(Timestamp::from_secs(5), MINUTE);
        let memory = remembered(&record, Some("second"), boot);
        assert_eq!(left(&memory, boot), HOUR, "nothing tells how long it was off");
        let mut kept = StoredRetryAfter::restored(&record, Some("second"), memory.clone(), false);
        assert_eq!(kept.change(&memory, false), None, "the record that a right clock wrote is kept");
        assert!(!kept.are_to_be_restored(false, &memory));

        // Ten minutes later the clock is set.
        let set = at(SOME_DAY.after(40 * MINUTE), 11 * MINUTE);
        assert_eq!(kept.change(&memory, true), None, "or there would be nothing to read anew");
        assert!(kept.are_to_be_restored(true, &memory));
        assert!(!kept.are_to_be_restored(true, &memory), "once");
        let memory = remembered(&record, Some("second"), set);
        assert_eq!(left(&memory, set), 20 * MINUTE);
        let kept = StoredRetryAfter::restored(&record, Some("second"), memory.clone(), true);
        assert_eq!(kept.change(&memory, true), Some(Change::Write), "under the name of this boot");
    }

    #[test]
    fn later_retry_after_is_not_undone_by_setting_the_clock() {
        let asked = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(asked), "first", true, asked);
        let boot = at(Timestamp::from_secs(5), MINUTE);
        let memory = remembered(&record, Some("second"), boot);
        let mut kept = StoredRetryAfter::restored(&record, Some("second"), memory, false);
        let again = to_wait_for_an_hour(at(Timestamp::from_secs(65), 2 * MINUTE));
        assert_eq!(kept.change(&again, false), Some(Change::Write));
        kept.changed(again.clone(), false);
        assert!(!kept.are_to_be_restored(true, &again));
        assert_eq!(kept.change(&again, true), Some(Change::Write), "with the end that a right clock sees");
        kept.changed(again.clone(), true);
        assert_eq!(kept.change(&again, true), None);
        assert_eq!(kept.change(&Memory::default(), true), Some(Change::Remove));
    }

    #[test]
    fn finished_wait_is_removed_and_a_doubtful_one_rewritten() {
        let asked = at(SOME_DAY, MINUTE);
        let over = at(SOME_DAY.after(2 * HOUR), MINUTE);
        let found = record(&to_wait_for_an_hour(asked), "first", true, asked);
        assert_eq!(left(&remembered(&found, Some("second"), over), over), Duration::ZERO);
        let mut kept = StoredRetryAfter::restored(&found, Some("second"), Memory::default(), true);
        assert_eq!(kept.change(&Memory::default(), true), Some(Change::Remove));
        kept.changed(Memory::default(), true);
        assert_eq!(kept.change(&Memory::default(), true), None);
        let nothing =
            StoredRetryAfter::restored(&RetryAfterDelays::default(), Some("second"), Memory::default(), true);
        assert_eq!(nothing.change(&Memory::default(), true), None);

        let boot = at(Timestamp::from_secs(5), MINUTE);
        let memory = to_wait_for_an_hour(boot);
        let written = record(&memory, "first", false, boot);
        let kept = StoredRetryAfter::restored(&written, Some("first"), memory.clone(), false);
        assert_eq!(kept.change(&memory, false), None);
        assert_eq!(
            kept.change(&memory, true),
            Some(Change::Write),
            "of the same boot, when the clock was set"
        );
    }
}
