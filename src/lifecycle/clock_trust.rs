//! Trust in the wall clock. By a clock that is not trusted nothing is validated: no SVID counts as
//! expired, none is requested, nothing is discarded.

use std::time::Duration;

use miaf_spiffe::svid;
use miaf_spiffe::time::{BootTime, Now, Timestamp};

/// A clock that is behind the MIS by no more than this is trusted: the clock of the MIS may be
/// ahead, and what it issues is then kept until it becomes valid.
const TOLERANCE: Duration = svid::MAX_AHEAD;

/// Consecutive responses that have to agree before the MIS outweighs this device's clock: the one
/// that raised the doubt, and those to [`REQUESTS_IN_DOUBT`].
const RESPONSES_THAT_CONVINCE: u32 = 3;

/// Requests that a doubt causes at once.
const REQUESTS_IN_DOUBT: u32 = RESPONSES_THAT_CONVINCE - 1;

/// A doubt that was not settled is forgotten after this time.
const DOUBT_LASTS: Duration = Duration::from_secs(10 * 60);

/// Difference of wall clock and boot clock that counts as a jump: more than time services correct
/// all day.
const JUMP: Duration = Duration::from_secs(60);

/// What is known of the time in addition to the wall clock: it is at least this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownTime {
    /// When the agent was built.
    pub built: Timestamp,
    /// The time in the last authenticated response of the MIS. Only such responses move it, in both
    /// directions: neither a jump of this device's clock nor a mistake of the MIS locks the device
    /// out for good.
    pub proven: Option<Timestamp>,
    /// The wall clock at the moment at which an operator declared it right, whatever else is known.
    pub vouched: Option<Timestamp>,
}

impl KnownTime {
    /// Whether the wall clock may be right.
    pub fn allows(self, now: Now) -> bool {
        now.synchronised || agree(now.wall, self.at_least())
    }

    /// The earliest time that it can be.
    pub(super) fn at_least(self) -> Timestamp {
        self.vouched.unwrap_or_else(|| self.built.max(self.proven.unwrap_or_default()))
    }

    /// Takes in the time that an authenticated response of the MIS shows.
    ///
    /// One response is enough where it agrees with this device's clock, and where nothing depends
    /// on it. Where it would take trust from the clock, or give trust against what the clock says,
    /// [`RESPONSES_THAT_CONVINCE`] consecutive responses have to agree: one server of several may
    /// be wrong.
    pub(super) fn observe(&mut self, time: Timestamp, now: Now, doubt: &mut Option<Doubt>) -> TimeVerdict {
        let is_ahead = time > now.wall;
        let counts = if are_near(now.wall, time) {
            true
        } else if self.allows(now) {
            // It was not earlier than that: no news. A time service and the operator outweigh one
            // MIS.
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
        // The operator's word counted in place of the MIS's. When clock and MIS agree again, it is
        // not needed.
        if agree(now.wall, self.built.max(time)) {
            self.vouched = None;
        }
        TimeVerdict::Counts
    }

    /// The operator declares the wall clock right. Needed only where it is not trusted.
    pub(super) fn vouch(&mut self, now: Now) {
        if !self.allows(now) {
            self.vouched = Some(now.wall);
        }
    }
}

/// What follows from a time that the MIS has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeVerdict {
    /// It is the latest proven time.
    Counts,
    /// Nothing.
    NoNews,
    /// It contradicts this device's clock. The MIS is asked again before anything follows from it.
    Doubted,
}

/// A time that contradicts this device's clock, and has not been repeated often enough to outweigh
/// it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    time: Timestamp,
    at: BootTime,
    /// Consecutive responses that agree.
    responses: u32,
    /// Requests since the first of them.
    requests: u32,
}

impl Doubt {
    /// Whether, with this response, enough agree.
    fn is_settled_by(slot: &mut Option<Self>, time: Timestamp, now: Now) -> bool {
        let last = slot.filter(|doubt| doubt.at.until(now.boot) < DOUBT_LASTS);
        let requests = last.map_or(0, |doubt| doubt.requests);
        let responses = match last {
            Some(doubt) if are_near(doubt.time.after(doubt.at.until(now.boot)), time) => doubt.responses + 1,
            _ => 1, // servers that contradict one another are not asked without end
        };
        *slot = Some(Self { time, at: now.boot, responses, requests });
        responses >= RESPONSES_THAT_CONVINCE
    }

    /// Whether another request is to be sent for its sake.
    pub(super) fn wants_request(&self) -> bool {
        self.requests < REQUESTS_IN_DOUBT
    }

    pub(super) fn note_request(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }
}

/// Whether two clocks differ by no more than the tolerance, either way.
fn are_near(one: Timestamp, other: Timestamp) -> bool {
    one.until(other).max(other.until(one)) <= TOLERANCE
}

fn agree(wall: Timestamp, at_least: Timestamp) -> bool {
    wall.after(TOLERANCE) >= at_least
}

/// Whether the wall clock has gone another way than the boot clock since.
pub(super) fn has_jumped(last: Now, now: Now) -> bool {
    let expected = last.wall.after(last.boot.until(now.boot));
    expected.until(now.wall).max(now.wall.until(expected)) >= JUMP
}
