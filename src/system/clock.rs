//! Where time comes from. Everything that decides takes it as a value.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::time::{BootTime, Now, Timestamp};

/// Reads both clocks.
pub fn now() -> Now {
    Now { wall: Timestamp::from(SystemTime::now()), boot: boot_time(), synchronised: false }
}

/// Tells one boot from the next: a [`BootTime`] means something only within one. The packaged unit hands it over, since
/// its sandbox has no `/proc/sys`. `None` where nobody tells: then no boot is taken for another's.
pub fn boot_id() -> Option<String> {
    let id =
        std::env::var("MIAF_BOOT_ID").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/random/boot_id"));
    id.ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty())
}

fn boot_time() -> BootTime {
    // Linux has had CLOCK_BOOTTIME since 2.6.39; it counts time in suspend, which Instant does not.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    BootTime::default().after(since_boot)
}
