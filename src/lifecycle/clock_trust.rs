//! Whether the wall clock can be believed. Nothing is judged by one that cannot: no SVID is taken for expired, none is
//! asked for, nothing is thrown away.

use std::time::Duration;

use crate::spiffe::svid;
use crate::time::{BootTime, Now, Timestamp};

/// A clock that is less than this behind the MIS is believed: that of the MIS may be ahead, and what it issues is then
/// kept until its time comes.
const TOLERANCE: Duration = svid::MAX_AHEAD;

/// Responses in a row that have to agree with one another before the MIS is believed against this device's clock: the one
/// that raised the doubt, and those to [`REQUESTS_IN_DOUBT`].
const RESPONSES_THAT_CONVINCE: u32 = 3;

/// Requests that are made at once because of a doubt.
const REQUESTS_IN_DOUBT: u32 = RESPONSES_THAT_CONVINCE - 1;

/// After this long a doubt that could not be settled is forgotten.
const DOUBT_LASTS: Duration = Duration::from_secs(10 * 60);

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

    /// Takes in the time that an authenticated response of the MIS shows.
    ///
    /// One response is enough where it agrees with this device's clock, and where nothing depends on it. Where it would
    /// have a clock that is believed doubted, or the other way round against what that clock says, the responses of
    /// [`RESPONSES_THAT_CONVINCE`] in a row have to agree: one server of several may be wrong.
    pub(super) fn is_shown(&mut self, time: Timestamp, now: Now, doubt: &mut Option<Doubt>) -> TimeVerdict {
        let is_ahead = time > now.wall;
        let counts = if are_near(now.wall, time) {
            true
        } else if self.allows(now) {
            // It was not earlier than that: no news. A time service and the operator know better than one MIS.
            if !is_ahead || now.synchronised || self.vouched.is_some() {
                *doubt = None;
                return TimeVerdict::NoNews;
            }
            false
        } else {
            is_ahead // the clock is behind as before
        };
        if !counts && !Doubt::is_settled_by(doubt, time, now) {
            return TimeVerdict::Doubted;
        }
        *doubt = None;
        self.proven = Some(time);
        // Somebody has taken this device's word for the MIS's before. When the two agree again, no word is needed.
        if agree(now.wall, self.built.max(time)) {
            self.vouched = None;
        }
        TimeVerdict::Counts
    }

    pub(super) fn is_vouched_for(&mut self, now: Now) {
        if !self.allows(now) {
            self.vouched = Some(now.wall);
        }
    }
}

/// What a time that the MIS has shown comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeVerdict {
    /// It is the latest that is known.
    Counts,
    /// Nothing follows from it.
    NoNews,
    /// It contradicts this device's clock. The MIS is asked again before anything follows from it.
    Doubted,
}

/// A time that contradicts this device's clock, and has not been repeated often enough to be believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    time: Timestamp,
    at: BootTime,
    /// Responses in a row that agree.
    responses: u32,
    /// Requests since the first of them.
    requests: u32,
}

impl Doubt {
    /// Whether with this response so many agree that their time is believed.
    fn is_settled_by(slot: &mut Option<Self>, time: Timestamp, now: Now) -> bool {
        let last = slot.filter(|doubt| doubt.at.until(now.boot) < DOUBT_LASTS);
        let requests = last.map_or(0, |doubt| doubt.requests);
        let responses = match last {
            Some(doubt) if are_near(doubt.time.after(doubt.at.until(now.boot)), time) => doubt.responses + 1,
            _ => 1, // a contradiction among servers is not asked about without end
        };
        *slot = Some(Self { time, at: now.boot, responses, requests });
        responses >= RESPONSES_THAT_CONVINCE
    }

    /// Whether the MIS is asked now because of it.
    pub(super) fn asks(&self) -> bool {
        self.requests < REQUESTS_IN_DOUBT
    }

    pub(super) fn asked(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }
}

/// Whether two clocks differ by no more than is tolerated, either way.
fn are_near(one: Timestamp, other: Timestamp) -> bool {
    one.until(other).max(other.until(one)) <= TOLERANCE
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
