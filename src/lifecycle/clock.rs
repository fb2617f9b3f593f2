//! Whether the wall clock can be believed. Nothing is judged by one that cannot: no SVID is taken for expired, none is
//! asked for, nothing is thrown away.

use std::time::Duration;

use crate::time::{Now, Timestamp};

/// A clock that is less than this behind the MIS is believed: that of the MIS may be ahead.
const TOLERANCE: Duration = Duration::from_secs(3600);

/// The time that it is at least. It moves only by what an authenticated answer proves, in both directions: neither this
/// device's clock nor a slip of the MIS's strands the device for good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor(Timestamp);

impl Floor {
    pub(super) fn at(time: Timestamp) -> Self {
        Self(time)
    }

    /// Somebody has looked at the clock and says that it is right.
    pub(super) fn lower_to(&mut self, time: Timestamp) {
        self.0 = self.0.min(time);
    }

    /// Whether the wall clock may be right.
    pub(super) fn allows(self, now: Now) -> bool {
        now.synchronised || now.wall.after(TOLERANCE) >= self.0
    }

    pub(super) fn time(self) -> Timestamp {
        self.0
    }
}
