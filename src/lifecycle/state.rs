//! The lifecycle as people see it.

use std::fmt;
use std::time::Duration;

use super::retry_gate::{LastError, Report, RetryGate};
use super::{Action, BundleForChain, CurrentKey, HeldSvid, Lifecycle, SvidFacts};
use crate::time::{Now, Timestamp};

/// Where the device stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no configuration yet.
    Unconfigured,
    /// The wall clock cannot be right: nothing is judged by it.
    WaitingForClock,
    /// The MIS of the trust domain is being found, or its trust bundle fetched.
    Discovering,
    /// A first identity is being asked for.
    Enrolling,
    /// The MIS knows of the device and waits for its operator to admit it.
    PendingAdmission,
    /// A valid identity is held.
    Active,
    /// A valid identity is held, and its successor is due: it is asked for, or will be when a wait is over.
    Renewing,
    /// The identity held is past its validity, and a new one is due.
    Expired,
    /// Somebody has to correct something before it goes on.
    Blocked,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Unconfigured,
        Self::WaitingForClock,
        Self::Discovering,
        Self::Enrolling,
        Self::PendingAdmission,
        Self::Active,
        Self::Renewing,
        Self::Expired,
        Self::Blocked,
    ];

    /// The state in a sentence, for a person who knows nothing of identities.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Unconfigured => {
                "the agent waits for a configuration: set [mis] in /etc/miaf-agent/config.toml"
            }
            Self::WaitingForClock => {
                "this device's clock cannot be right; the agent waits for it to be set, and judges nothing by it"
            }
            Self::Discovering => "the agent looks for the identity service (MIS) of its trust domain",
            Self::Enrolling => "the agent asks the identity service for this device's first identity",
            Self::PendingAdmission => {
                "the identity service knows this device; its operator has yet to admit it"
            }
            Self::Active => "this device has a valid identity",
            Self::Renewing => "this device has a valid identity, and its successor is due",
            Self::Expired => "the identity has expired, and a new one is due",
            Self::Blocked => "somebody has to correct something; the last error says what",
        }
    }

    /// The word used in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unconfigured => "unconfigured",
            Self::WaitingForClock => "waiting-for-clock",
            Self::Discovering => "discovering",
            Self::Enrolling => "enrolling",
            Self::PendingAdmission => "pending-admission",
            Self::Active => "active",
            Self::Renewing => "renewing",
            Self::Expired => "expired",
            Self::Blocked => "blocked",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Lifecycle {
    /// Where the device stands.
    pub fn state(&self, now: Now) -> State {
        if !self.believes(now) {
            return State::WaitingForClock;
        }
        let blocked = self.is_refused_for_good(now) || self.has_no_key(now);
        if blocked || self.gates(now).any(RetryGate::is_local) {
            return State::Blocked;
        }
        match &self.svid {
            Some(svid) if now.wall > svid.facts.not_after => State::Expired,
            Some(_) => {
                let asking = matches!(self.in_flight, Some(Action::Request(..) | Action::Adopt { .. }));
                if asking || self.request_due_in(now).is_zero() { State::Renewing } else { State::Active }
            }
            None if self.discovery.is_none() && self.discovery_gate.is_permanent() => State::Blocked,
            None if self.admission_pending => State::PendingAdmission,
            None if self.discovery.is_none() || self.bundle.is_none_or(|bundle| bundle.is_empty) => {
                State::Discovering
            }
            None => State::Enrolling,
        }
    }

    /// The error that matters most now, and how long until the next attempt, if there will be one by itself.
    pub fn last_error(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        if !self.believes(now) {
            return Some((self.clock_error(now), Some(self.look_for_the_time(now).0)));
        }
        if let Some(HeldSvid { key: CurrentKey::Lost(error), .. }) = &self.svid
            && self.has_no_key(now)
        {
            return Some((error.clone(), None));
        }
        let request = self.wanted_request(now);
        if let Some(report) = self.ruled_out(request) {
            let at = self.discovery.as_ref().map_or(now.wall, |discovery| discovery.read_at);
            let error = LastError { report: report.clone(), at, permanent: true };
            return Some((error, None));
        }
        if let Some(error) = self.blocked.by(request) {
            return Some((error.clone(), None));
        }
        // What makes the state `blocked` is what people have to read, whatever else went wrong meanwhile.
        let local = self.gates(now).find(|gate| gate.is_local());
        let Some(gate) = local.or_else(|| self.gates(now).find(|gate| gate.last_error().is_some())) else {
            let refresh_in = self.bundle_refresh_in(now).filter(|_| self.lacks_anchors(now));
            let no_anchors = refresh_in.map(|wait| (no_anchors(now), Some(wait)));
            return no_anchors.or_else(|| self.issues_in_vain(now));
        };
        Some((gate.last_error()?.clone(), Some(gate.opens_in(now))))
    }

    /// An SVID is due, and cannot be asked for under an empty bundle.
    fn lacks_anchors(&self, now: Now) -> bool {
        self.bundle.is_some_and(|bundle| bundle.is_empty) && self.request_due_in(now).is_zero()
    }

    /// The MIS issues SVIDs that end no later than those before them.
    fn issues_in_vain(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        let SvidFacts { not_after, .. } = self.svid.as_ref()?.facts;
        let count = self.issues_in_vain.count;
        // Once may be a clock that was set, or an operator's order.
        if count < 2 && (count == 0 || self.holds_valid_svid(now)) {
            return None;
        }
        let why = format!(
            "the last SVID ends at {not_after}, no later than the one before it: most likely because a certificate that it is \
             issued with ends then. Ask the operator of the MIS to replace that certificate"
        );
        let report = Report::of_agent("issued-in-vain", "The MIS issues no SVID that lasts longer", &why);
        let error = LastError { report, at: self.issues_in_vain.since?, permanent: false };
        Some((error, Some(self.request_due_in(now).max(self.identity_opens_in(now)))))
    }

    /// Until when the MIS asked not to be asked for an SVID (miaf-v0 E8), if it is not over.
    pub fn asked_to_wait_until(&self, now: Now) -> Option<Timestamp> {
        let wait = now.boot.until(self.identity_gate.asked_to_wait_until()?);
        (!wait.is_zero()).then(|| now.wall.after(wait))
    }

    /// Whether the SVID held ends before the MIS may be asked for another, so that there is none in between.
    pub fn svid_ends_while_waiting(&self, now: Now) -> bool {
        let ends = self.svid.as_ref().map(|svid| svid.facts.not_after);
        self.believes(now)
            && ends.zip(self.asked_to_wait_until(now)).is_some_and(|(ends, until)| ends < until)
    }

    /// Those with work behind them. What went wrong with a renewal that is not due any more, since the clock was put right,
    /// does not matter.
    fn gates(&self, now: Now) -> impl Iterator<Item = &RetryGate> {
        let waits = self.answer.as_ref().is_some_and(|a| a.bundle != BundleForChain::AnotherWanted);
        let is_due = waits || self.request_due_in(now).is_zero();
        let identity = is_due.then_some(&self.identity_gate);
        let key = self.key_work(now).is_some().then_some(&self.key_gate);
        identity.into_iter().chain([&self.discovery_gate, &self.bundle_gate]).chain(key)
    }

    fn clock_error(&self, now: Now) -> LastError {
        let why = format!(
            "it says {}, and it is at least {}: by the date of this agent, by the MIS, or by an operator's word. Set the clock, \
             or let a time service do it. If it is right, say so: miaf-agent retry",
            now.wall,
            self.time.at_least()
        );
        let report = Report::of_agent("clock", "The clock of this device cannot be right", &why);
        LastError { report, at: now.wall, permanent: true }
    }
}

fn no_anchors(now: Now) -> LastError {
    let why = "the MIS serves a trust bundle without any anchor, so no SVID of the trust domain is trusted now and none is \
               asked for. Ask its operator whether that is as it should be";
    let report = Report::of_agent("bundle-empty", "The trust bundle holds no anchor", &why);
    LastError { report, at: now.wall, permanent: false }
}

impl RetryGate {
    fn is_permanent(&self) -> bool {
        self.last_error().is_some_and(|error| error.permanent)
    }
}
