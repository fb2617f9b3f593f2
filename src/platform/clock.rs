//! Where time comes from. Everything that decides takes it as a value.

use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::time::{BootTime, Now, Timestamp};

/// Made by systemd-timesyncd at every synchronisation, for others to see (systemd-timesyncd.service(8)). It is on a tmpfs: a
/// boot begins without it.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Where no build says when it was made: the date of this version.
const DATE_OF_VERSION: Timestamp = Timestamp::from_secs(1_793_491_200); // 2026-11-01T00:00:00Z

/// Reads both clocks, and asks whether the wall clock was set.
pub fn now() -> Now {
    Now { wall: Timestamp::from(SystemTime::now()), boot: boot_time(), synchronised: is_synchronised() }
}

/// Tells one boot from the next: a [`BootTime`] means something only within one. The packaged unit hands it over, since
/// its sandbox has no `/proc/sys`. `None` where nobody tells: then no boot is taken for another's.
pub fn boot_id() -> Option<String> {
    let id =
        std::env::var("MIAF_BOOT_ID").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/random/boot_id"));
    id.ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Whether the wall clock has been set from a time source in this boot, by the word of systemd-timesyncd. `false` where
/// another service sets it: then nobody says so here. The kernel knows as well, but adjtimex(2) has no safe wrapper and is
/// closed to the packaged service (`ProtectClock=`).
fn is_synchronised() -> bool {
    Path::new(SYNCHRONISED).exists()
}

/// When this program was built, or at least when its sources were made: it is later now. The same sources say the same
/// (`SOURCE_DATE_EPOCH`, <https://reproducible-builds.org/specs/source-date-epoch/>).
pub const fn built_at() -> Timestamp {
    const BUILT_AT: Timestamp = match option_env!("SOURCE_DATE_EPOCH") {
        Some(seconds) => match i64::from_str_radix(seconds, 10) {
            Ok(seconds) => Timestamp::from_secs(seconds),
            Err(_) => DATE_OF_VERSION,
        },
        None => DATE_OF_VERSION,
    };
    BUILT_AT
}

fn boot_time() -> BootTime {
    // Linux has had CLOCK_BOOTTIME since 2.6.39; it counts time in suspend, which Instant does not.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    BootTime::default().after(since_boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_was_built_when_the_build_says_or_when_its_version_was_made() {
        assert_eq!(DATE_OF_VERSION.to_string(), "2026-11-01T00:00:00Z");
        let told = option_env!("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
        assert_eq!(built_at(), told.map_or(DATE_OF_VERSION, Timestamp::from_secs));
    }
}
