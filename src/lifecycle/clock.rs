//! Whether the wall clock can be believed. Nothing is judged by one that cannot: no SVID is taken for expired, none is
//! asked for, nothing is thrown away.

use std::time::Duration;

use crate::spiffe::svid;
use crate::time::{Now, Timestamp};

/// A clock that is less than this behind the MIS is believed: that of the MIS may be ahead, and what it issues is then
/// kept until its time comes.
const TOLERANCE: Duration = svid::MAX_AHEAD;

/// What is known of the time besides the wall clock: it is at least this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownTime {
    /// The agent was built then.
    pub built: Timestamp,
    /// The MIS has shown it by its last authenticated answer. Only such answers move it, in both directions: neither a
    /// jump of this device's clock nor a slip of the MIS's strands the device for good.
    pub proven: Option<Timestamp>,
    /// An operator has looked at the wall clock then and said that it is right, whatever else is known.
    pub vouched: Option<Timestamp>,
}

impl KnownTime {
    /// Whether the wall clock may be right.
    pub fn allows(self, now: Now) -> bool {
        now.synchronised || agree(now.wall, self.at_least())
    }

    /// The time that it is at least.
    pub(super) fn at_least(self) -> Timestamp {
        self.vouched.unwrap_or_else(|| self.built.max(self.proven.unwrap_or_default()))
    }

    pub(super) fn is_proven(&mut self, time: Timestamp, now: Now) {
        self.proven = Some(time);
        // Somebody has taken this device's word for the MIS's before. When the two agree again, no word is needed.
        if agree(now.wall, self.built.max(time)) {
            self.vouched = None;
        }
    }

    pub(super) fn is_vouched_for(&mut self, now: Now) {
        if !self.allows(now) {
            self.vouched = Some(now.wall);
        }
    }
}

fn agree(wall: Timestamp, at_least: Timestamp) -> bool {
    wall.after(TOLERANCE) >= at_least
}

/// A wall clock that has gone another way than the boot clock since, by more than time services correct all day.
pub(super) fn has_jumped(last: Now, now: Now) -> bool {
    let expected = last.wall.after(last.boot.until(now.boot));
    expected.until(now.wall).max(now.wall.until(expected)) >= JUMP
}

const JUMP: Duration = Duration::from_secs(60);
