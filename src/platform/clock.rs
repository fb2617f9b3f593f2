//! The clocks. Every decision takes the time as a value.

use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use miaf_spiffe::time::{BootTime, Now, Timestamp};

/// A file that systemd-timesyncd makes at every synchronisation (systemd-timesyncd.service(8)). It
/// is on a tmpfs: a boot begins without it.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// The build date, where the build does not set one: the date of this version.
const DATE_OF_VERSION: Timestamp = Timestamp::from_secs(1_793_491_200); // 2026-11-01T00:00:00Z

/// Reads both clocks, and whether the wall clock was synchronised.
pub(crate) fn now() -> Now {
    Now { wall: Timestamp::from(SystemTime::now()), boot: boot_time(), synchronised: is_synchronised() }
}

/// The id of this boot: a [`BootTime`] has a meaning only within one. The packaged unit passes it
/// in the environment, since its sandbox has no `/proc/sys`. `None` where it is unknown: then no
/// two boots count as the same.
pub(crate) fn boot_id() -> Option<String> {
    let id =
        std::env::var("MIAF_BOOT_ID").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/random/boot_id"));
    id.ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Whether systemd-timesyncd has set the wall clock from a time source in this boot. `false` where
/// another service sets it: those leave no such file. The kernel knows as well, but adjtimex(2) has
/// no safe wrapper and is closed to the packaged service (`ProtectClock=`).
fn is_synchronised() -> bool {
    Path::new(SYNCHRONISED).exists()
}

/// The time at which this program was built, or at least when its sources were made: a lower limit
/// of the current time. The same sources give the same (`SOURCE_DATE_EPOCH`,
/// <https://reproducible-builds.org/specs/source-date-epoch/>).
pub(crate) const fn built_at() -> Timestamp {
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
    fn build_time_is_source_date_epoch_or_date_of_version() {
        assert_eq!(DATE_OF_VERSION.to_string(), "2026-11-01T00:00:00Z");
        let set = option_env!("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
        assert_eq!(built_at(), set.map_or(DATE_OF_VERSION, Timestamp::from_secs));
    }
}
