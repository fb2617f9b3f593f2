//! The state and the last error of an identity, as people see them.

use std::fmt;
use std::time::Duration;

use super::identity::{BundleForChain, CurrentKey, CurrentSvid, IdentityView};
use super::retry_gate::RetryGate;
use super::trust_domain::TrustDomain;
use super::types::{IdentityAction, SvidFacts};
use crate::problem::{LastError, Report};
use miaf_spiffe::time::Now;

/// The state of an identity, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No MIS is configured.
    Unconfigured,
    /// The wall clock cannot be right: nothing is validated by it.
    WaitingForClock,
    /// The discovery document or the trust bundle is being fetched.
    Discovering,
    /// The first SVID is being requested.
    Enrolling,
    /// The operator of the MIS has yet to admit the device.
    PendingAdmission,
    /// The SVID is valid.
    Active,
    /// The SVID is valid, and its renewal is due.
    Renewing,
    /// The SVID has expired, and a new one is due.
    Expired,
    /// Something has to be corrected before the agent can go on.
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
            Self::Unconfigured => "no identity service (MIS) is configured",
            Self::WaitingForClock => {
                "this device's clock cannot be right; the agent waits for it to be set, and validates nothing by it"
            }
            Self::Discovering => "the agent looks for the identity service (MIS) of its trust domain",
            Self::Enrolling => "the agent requests this device's first identity from the identity service",
            Self::PendingAdmission => {
                "the identity service knows this device; its operator has yet to admit it"
            }
            Self::Active => "this device has a valid identity",
            Self::Renewing => "this device has a valid identity, and its renewal is due",
            Self::Expired => "the identity has expired, and a new one is due",
            Self::Blocked => "something has to be corrected; the last error says what",
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

impl IdentityView<'_> {
    /// State of the identity.
    pub fn state(&self, now: Now) -> State {
        if !self.trust_domain.trusts_clock(now) {
            return State::WaitingForClock;
        }
        let blocked = self.is_refused_permanently(now) || self.lacks_key(now);
        if blocked || self.gates(now).any(RetryGate::is_local) {
            return State::Blocked;
        }
        match &self.identity.svid {
            Some(svid) if now.wall > svid.facts.not_after => State::Expired,
            Some(_) => {
                let requesting = matches!(
                    self.in_flight,
                    Some(IdentityAction::Request(..) | IdentityAction::Adopt { .. })
                );
                if requesting || self.request_due_in(now).is_zero() { State::Renewing } else { State::Active }
            }
            None => self.state_without_svid(),
        }
    }

    fn state_without_svid(&self) -> State {
        let trust_domain = self.trust_domain;
        if trust_domain.discovery.is_none() && trust_domain.discovery_gate.is_permanent() {
            State::Blocked
        } else if self.identity.admission_pending {
            State::PendingAdmission
        } else if trust_domain.allows_requests() {
            State::Enrolling
        } else {
            State::Discovering
        }
    }

    /// The error that matters most now, and the time until the next attempt, if there will be one without a correction.
    pub fn last_error(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        if !self.trust_domain.trusts_clock(now) {
            let check_in = self.trust_domain.time_check_in(now);
            return Some((self.trust_domain.clock_error(now), Some(check_in)));
        }
        if let Some(CurrentSvid { key: CurrentKey::Lost(error), .. }) = &self.identity.svid
            && self.lacks_key(now)
        {
            return Some((error.clone(), None));
        }
        let request = self.wanted_request(now);
        if let Some(report) = self.trust_domain.ruled_out(request) {
            let at = self.trust_domain.discovery.as_ref().map_or(now.wall, |discovery| discovery.read_at);
            let error = LastError { report: report.clone(), at, permanent: true };
            return Some((error, None));
        }
        if let Some(error) = self.identity.blocked.get(request) {
            return Some((error.clone(), None));
        }
        // What makes the state `blocked` is shown, whatever else went wrong meanwhile.
        let local = self.gates(now).find(|gate| gate.is_local());
        let Some(gate) = local.or_else(|| self.gates(now).find(|gate| gate.last_error().is_some())) else {
            let refresh_in = self.trust_domain.bundle_refresh_in(now).filter(|_| self.lacks_anchors(now));
            let no_anchors = refresh_in.map(|wait| (no_anchors(now), Some(wait)));
            return no_anchors.or_else(|| self.issuance_stalled(now));
        };
        Some((gate.last_error()?.clone(), Some(gate.opens_in(now))))
    }

    /// Whether an SVID is due, and cannot be requested under an empty bundle.
    fn lacks_anchors(&self, now: Now) -> bool {
        self.trust_domain.bundle.is_some_and(|bundle| bundle.is_empty) && self.request_due_in(now).is_zero()
    }

    /// The error of an MIS whose SVIDs end no later than those before them.
    fn issuance_stalled(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        let SvidFacts { not_after, .. } = self.identity.svid.as_ref()?.facts;
        let stalled = &self.identity.stalled;
        // Once may be a clock that was set, or an operator's command.
        if stalled.count < 2 && (stalled.count == 0 || self.identity.has_valid_svid(now)) {
            return None;
        }
        let why = format!(
            "the last SVID ends at {not_after}, no later than the one before it: most likely because a certificate that it is \
             issued with ends then. Ask the operator of the MIS to replace that certificate"
        );
        let report = Report::of_agent("issued-in-vain", "The MIS issues no SVID that lasts longer", &why);
        let error = LastError { report, at: stalled.since?, permanent: false };
        Some((error, Some(self.request_due_in(now).max(self.requests_open_in(now)))))
    }

    /// The gates of work that is wanted. The failure of a renewal that is not due any more, since the clock was put right,
    /// does not matter.
    fn gates(&self, now: Now) -> impl Iterator<Item = &RetryGate> {
        let issued = self.identity.issued.as_ref();
        let has_chain = issued.is_some_and(|chain| chain.bundle != BundleForChain::AnotherWanted);
        let is_due = has_chain || self.request_due_in(now).is_zero();
        let requests = is_due.then_some(&self.identity.gate);
        let key = self.key_proof_in(now).map(|_| &self.identity.key_gate);
        let shared = [&self.trust_domain.discovery_gate, &self.trust_domain.bundle_gate];
        requests.into_iter().chain(shared).chain(key)
    }
}

impl TrustDomain {
    fn clock_error(&self, now: Now) -> LastError {
        let why = format!(
            "it says {}, and it is at least {}: by the build date of this agent, by the MIS, or by an operator's word",
            now.wall,
            self.time.at_least()
        );
        let report = Report::of_agent("clock", "The clock of this device cannot be right", &why);
        LastError { report, at: now.wall, permanent: true }
    }
}

fn no_anchors(now: Now) -> LastError {
    let why = "the MIS serves a trust bundle without any anchor, so no SVID of the trust domain is trusted now and none is \
               requested. Ask its operator whether that is as it should be";
    let report = Report::of_agent("bundle-empty", "The trust bundle holds no anchor", &why);
    LastError { report, at: now.wall, permanent: false }
}
