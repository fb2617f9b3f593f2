//! The waits that the MIS asked for, over restarts and reboots (miaf-v0 E8): what is read back of them, and when they are to
//! be written or read anew. Values in, values out: the disk is the [`Device`](super::device::Device)'s.

use std::time::Duration;

use crate::lifecycle::{Memory, Waits};
use crate::state::{self, RetryAfterDelays};
use crate::time::Now;

/// The waits of this process, and how they stand on the disk.
#[derive(Debug, Default)]
pub(super) struct KeptWaits {
    /// What is on the disk.
    stored: Memory,
    /// It was written by a clock that could be right.
    by_right_clock: bool,
    /// What was read of the waits of another boot, by a clock that could not be right.
    in_doubt: Option<Waits>,
    /// The record is another boot's, and has served.
    is_stale: bool,
}

/// What is to be done to the record on the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Write,
    Remove,
}

/// What of a record a process in this boot is not to forget.
///
/// Within the same boot a wait ends on the boot clock, whatever became of the wall clock; after a reboot the wall clock
/// is all there is, and it may be wrong. Neither makes a wait longer than it was.
pub(super) fn remembered(record: &RetryAfterDelays, boot_id: Option<&str>, now: Now) -> Memory {
    let end = |wait: state::RetryAfterDelay| {
        let rest = if is_of(record, boot_id) { now.boot.until(wait.boot) } else { now.wall.until(wait.wall) };
        now.boot.after(rest.min(Duration::from_millis(wait.left)))
    };
    Memory {
        waits: Waits {
            discovery: record.discovery.map(end),
            bundle: record.bundle.map(end),
            identity: record.identity.map(end),
        },
        discovery_waits_because: record.discovery_reason.clone(),
        waits_because: record.reason.clone(),
        admission_pending: record.admission_pending,
        replace_lost_key: record.replace_lost_key,
    }
}

impl KeptWaits {
    /// As they stand after the start. `memory` is what the lifecycle made of what is [`remembered`]: without what is over.
    pub(super) fn restored(
        record: &RetryAfterDelays,
        boot_id: Option<&str>,
        memory: Memory,
        believed: bool,
    ) -> Self {
        let of_another_boot = !is_of(record, boot_id) && *record != RetryAfterDelays::default();
        Self {
            in_doubt: (of_another_boot && !believed && memory.waits != Waits::default())
                .then_some(memory.waits),
            by_right_clock: record.ends_by_the_wall_clock(),
            // It is written anew with this boot's name, by a clock that can be right; or removed, if it is over.
            is_stale: of_another_boot && believed,
            stored: memory,
        }
    }

    /// What the record lacks of what is not to be forgotten now.
    pub(super) fn change(&self, memory: &Memory, believed: bool) -> Option<Change> {
        let is_to_be_right = believed && !self.by_right_clock && self.in_doubt.is_none();
        if *memory == self.stored && !is_to_be_right && !self.is_stale {
            return None;
        }
        Some(if *memory == Memory::default() { Change::Remove } else { Change::Write })
    }

    /// The record is as [`change`](Self::change) said.
    pub(super) fn changed(&mut self, memory: Memory, believed: bool) {
        self.by_right_clock = believed || memory == Memory::default();
        (self.stored, self.is_stale) = (memory, false);
    }

    /// Whether the clock, which could not be right at the start, tells now how much is left of the waits of another boot:
    /// they are to be read anew. Says so once.
    pub(super) fn are_to_be_restored(&mut self, believed: bool, waits: Waits) -> bool {
        // Where the MIS has asked for another wait since, there is nothing to go back to.
        believed && self.in_doubt.take() == Some(waits)
    }
}

fn is_of(record: &RetryAfterDelays, boot_id: Option<&str>) -> bool {
    boot_id.is_some() && record.boot_id.as_deref() == boot_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{BootTime, Timestamp};

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    const SOME_DAY: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn at(wall: Timestamp, boot: Duration) -> Now {
        Now { wall, boot: BootTime::default().after(boot), synchronised: false }
    }

    /// What a device that is asked to wait for an hour does not forget.
    fn to_wait_for_an_hour(now: Now) -> Memory {
        let waits = Waits { identity: Some(now.boot.after(HOUR)), ..Waits::default() };
        Memory { waits, ..Memory::default() }
    }

    fn record(memory: &Memory, boot_id: &str, believed: bool, now: Now) -> RetryAfterDelays {
        RetryAfterDelays::new(memory, None, Some(boot_id.into()), believed.then_some(now.wall), now.boot)
    }

    fn left(memory: &Memory, now: Now) -> Duration {
        memory.waits.identity.map_or(Duration::ZERO, |until| now.boot.until(until))
    }

    #[test]
    fn a_wait_survives_a_restart_and_a_reboot_and_no_clock_stretches_it() {
        let then = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(then), "this boot", true, then);
        let memory = remembered(&record, Some("this boot"), then);
        let kept = KeptWaits::restored(&record, Some("this boot"), memory.clone(), true);
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
    fn after_a_boot_in_1970_a_clock_that_is_set_tells_what_is_left_of_a_wait_and_once() {
        let asked = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(asked), "first", true, asked);

        // Off for half an hour, and on again without a clock.
        let boot = at(Timestamp::from_secs(5), MINUTE);
        let memory = remembered(&record, Some("second"), boot);
        assert_eq!(left(&memory, boot), HOUR, "nothing tells how long it was off");
        let mut kept = KeptWaits::restored(&record, Some("second"), memory.clone(), false);
        assert_eq!(kept.change(&memory, false), None, "the record that a right clock wrote is kept");
        assert!(!kept.are_to_be_restored(false, memory.waits));

        // Ten minutes later the clock is set.
        let set = at(SOME_DAY.after(40 * MINUTE), 11 * MINUTE);
        assert_eq!(kept.change(&memory, true), None, "or there would be nothing to read anew");
        assert!(kept.are_to_be_restored(true, memory.waits));
        assert!(!kept.are_to_be_restored(true, memory.waits), "once");
        let memory = remembered(&record, Some("second"), set);
        assert_eq!(left(&memory, set), 20 * MINUTE);
        let kept = KeptWaits::restored(&record, Some("second"), memory.clone(), true);
        assert_eq!(kept.change(&memory, true), Some(Change::Write), "under the name of this boot");
    }

    #[test]
    fn what_the_mis_has_said_since_is_not_undone_by_a_clock_that_is_set() {
        let asked = at(SOME_DAY, MINUTE);
        let record = record(&to_wait_for_an_hour(asked), "first", true, asked);
        let boot = at(Timestamp::from_secs(5), MINUTE);
        let memory = remembered(&record, Some("second"), boot);
        let mut kept = KeptWaits::restored(&record, Some("second"), memory, false);
        let again = to_wait_for_an_hour(at(Timestamp::from_secs(65), 2 * MINUTE));
        assert_eq!(kept.change(&again, false), Some(Change::Write));
        kept.changed(again.clone(), false);
        assert!(!kept.are_to_be_restored(true, again.waits));
        assert_eq!(kept.change(&again, true), Some(Change::Write), "with the end that a right clock sees");
        kept.changed(again.clone(), true);
        assert_eq!(kept.change(&again, true), None);
        assert_eq!(kept.change(&Memory::default(), true), Some(Change::Remove));
    }

    #[test]
    fn a_wait_that_is_over_is_not_found_by_a_later_boot_and_one_that_a_wrong_clock_wrote_is_written_by_a_right_one()
     {
        let asked = at(SOME_DAY, MINUTE);
        let over = at(SOME_DAY.after(2 * HOUR), MINUTE);
        let found = record(&to_wait_for_an_hour(asked), "first", true, asked);
        assert_eq!(left(&remembered(&found, Some("second"), over), over), Duration::ZERO);
        let mut kept = KeptWaits::restored(&found, Some("second"), Memory::default(), true);
        assert_eq!(kept.change(&Memory::default(), true), Some(Change::Remove));
        kept.changed(Memory::default(), true);
        assert_eq!(kept.change(&Memory::default(), true), None);
        let nothing =
            KeptWaits::restored(&RetryAfterDelays::default(), Some("second"), Memory::default(), true);
        assert_eq!(nothing.change(&Memory::default(), true), None);

        let boot = at(Timestamp::from_secs(5), MINUTE);
        let memory = to_wait_for_an_hour(boot);
        let written = record(&memory, "first", false, boot);
        let kept = KeptWaits::restored(&written, Some("first"), memory.clone(), false);
        assert_eq!(kept.change(&memory, false), None);
        assert_eq!(
            kept.change(&memory, true),
            Some(Change::Write),
            "of the same boot, when the clock was set"
        );
    }
}
