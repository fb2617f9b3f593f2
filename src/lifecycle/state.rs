//! The state and the last error of an identity, as people see them.

use std::time::Duration;

use super::Lifecycle;
use super::identity::{CurrentKey, CurrentSvid, Identity, IdentityView, Prerequisite};
use super::retry_gate::RetryGate;
use super::trust_domain::TrustDomain;
use super::types::{IdentityAction, Request, SvidFacts};
use crate::problem::{LastError, ProblemCode, Report};
use miaf_client::api::State;
use miaf_spiffe::time::{Now, Timestamp};

/// From this part of the lifetime on a renewal that fails is a matter for an operator (X69).
const DEADLINE_FROM: f64 = 0.8;

/// The moment from which on a renewal that fails is a matter for an operator (X69).
pub(super) fn deadline_of(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_before.after(not_before.until(not_after).mul_f64(DEADLINE_FROM))
}

impl IdentityView<'_> {
    /// State of the identity.
    pub fn state(&self, now: Now) -> State {
        if !self.trust_domain.trusts_clock(now) {
            return State::WaitingForClock;
        }
        let refused_for_now = || self.gates(now).any(RetryGate::is_refused_for_now);
        let blocked = self.is_refused_permanently(now) || self.lacks_key(now) || refused_for_now();
        if blocked || self.trust_domain.gates().into_iter().chain(self.gates(now)).any(RetryGate::is_local) {
            return State::Blocked;
        }
        match &self.identity.svid {
            Some(svid) if now.wall > svid.facts.not_after => State::Expired,
            _ if self.trust_domain.allows_requests() && self.lacks_token(now) => State::WaitingForToken,
            svid if self.identity.is_by_operator() => {
                let adopting =
                    self.in_flight.is_some_and(|action| matches!(action, IdentityAction::Adopt { .. }));
                match (self.needs_operator(now), svid) {
                    _ if adopting && svid.is_some() => State::Renewing,
                    (false, _) => State::Active,
                    (true, _) if !self.identity.awaits_adoption() => State::WaitingForOperator,
                    (true, Some(_)) => State::Renewing,
                    (true, None) => self.state_without_svid(),
                }
            }
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

    /// The error of this identity alone that matters most now, and the time until the next attempt,
    /// if there will be one without a correction. What it shares with others is
    /// [`Lifecycle::last_error`].
    pub fn last_error(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        if !self.trust_domain.trusts_clock(now) {
            return None; // nothing is judged by it
        }
        if let Some(CurrentSvid { key: CurrentKey::Lost(error), .. }) = &self.identity.svid
            && self.lacks_key(now)
        {
            return Some((error.clone(), Some(self.identity.key_gate.opens_in(now))));
        }
        let request = self.wanted_request(now);
        if self.identity.is_by_operator() {
            return self.error_by_operator(now);
        }
        if let Some(report) = self.ruled_out(request) {
            let at = self.trust_domain.discovery.as_ref().map_or(now.wall, |discovery| discovery.read_at);
            let error = LastError { report: report.clone(), at, permanent: true };
            return Some((error, None));
        }
        if let Some(error) = self.identity.blocked.get(request) {
            return Some((error.clone(), None));
        }
        most_important(self.gates(now), now)
            .map(|(error, wait)| (self.with_deadline(error, now), wait))
            .or_else(|| Some((self.token_needed(now)?, None)))
            .or_else(|| self.issuance_stalled(now))
            .or_else(|| Some((self.prerequisite_missing(request, now)?, None)))
    }

    /// Whether only a token leads to the next SVID, and there is none that may be used.
    fn lacks_token(&self, now: Now) -> bool {
        self.prerequisite == Prerequisite::Token(false)
            && self.wanted_request(now) == Request::Enroll
            && !self.identity.awaits_adoption()
    }

    /// Whether an operator has to bring a token now: without one there will be no SVID, or no other
    /// one (X69).
    pub fn needs_token(&self, now: Now) -> bool {
        let trust_domain = self.trust_domain;
        trust_domain.trusts_clock(now) && trust_domain.allows_requests() && self.lacks_token(now)
    }

    /// The error of an enrollment that a token has to authorize (X69).
    fn token_needed(&self, now: Now) -> Option<LastError> {
        if !self.lacks_token(now) {
            return None;
        }
        if let Some(error) = &self.identity.token_error {
            return Some(error.clone());
        }
        let (detail, at) = match &self.identity.svid {
            None => ("there is none yet that may be used".to_owned(), self.identity.started_at),
            Some(CurrentSvid { key: CurrentKey::Lost(error), facts, .. }) if now.wall <= facts.not_after => {
                let detail = "the key of the current SVID is lost, and only an enrollment gives it another";
                (detail.to_owned(), error.at)
            }
            Some(CurrentSvid { facts, .. }) => {
                let detail = format!(
                    "the current SVID ended at {}, and an SVID that has ended cannot be renewed",
                    facts.not_after
                );
                (detail, facts.not_after)
            }
        };
        let title = match &self.identity.svid {
            None => "This identity needs an enrollment token",
            Some(_) => "This identity needs a fresh enrollment token",
        };
        Some(LastError { report: Report::new(ProblemCode::TokenNeeded, title, &detail), at, permanent: true })
    }

    /// A renewal that still fails near the end of the SVID is more than that: what follows it costs an
    /// operator some work (X69).
    fn with_deadline(&self, error: LastError, now: Now) -> LastError {
        let near = self.needs_token_after(now);
        let Some(not_after) = near.filter(|_| self.prerequisite == Prerequisite::Token(false)) else {
            return error;
        };
        let consequence =
            format!("If it is not renewed by {not_after}, this identity needs a fresh enrollment token");
        LastError { report: error.report.with_consequence(&consequence), ..error }
    }

    /// The end of an SVID whose renewal fails, from 80 % of its lifetime on, where only a token leads to
    /// the one after it (X69).
    pub fn needs_token_after(&self, now: Now) -> Option<Timestamp> {
        let SvidFacts { not_before, not_after, .. } = self.identity.svid.as_ref()?.facts;
        let is_near = now.wall <= not_after && now.wall >= deadline_of(not_before, not_after);
        let is_by_token = matches!(self.prerequisite, Prerequisite::Token(_));
        let fails = self.identity.gate.last_error().is_some() || self.is_refused_permanently(now);
        (is_by_token && is_near && fails).then_some(not_after)
    }

    /// Where an operator brings the SVIDs, a chain that was refused is not validated again: its
    /// error stays until the next one is there.
    fn error_by_operator(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        let Identity { gate, key_gate, .. } = self.identity;
        let key = self.key_proof_in(now).and_then(|_| most_important(std::iter::once(key_gate), now));
        let chain = most_important(std::iter::once(gate), now);
        if self.identity.awaits_adoption() {
            return if key_gate.is_local() && !gate.is_local() { key.or(chain) } else { chain.or(key) };
        }
        let chain = chain.map(|(error, _)| (LastError { permanent: true, ..error }, None));
        key.or(chain).or_else(|| Some((self.operator_needed(now)?, None)))
    }

    /// Whether an operator has to bring the next SVID: also one for a key of the configured provider
    /// (K1).
    fn needs_operator(&self, now: Now) -> bool {
        let is_due = |svid: &CurrentSvid| svid.renew_at <= now.wall || !svid.facts.key_fits;
        self.identity.is_by_operator() && self.identity.svid.as_ref().is_none_or(is_due)
    }

    fn operator_needed(&self, now: Now) -> Option<LastError> {
        if !self.needs_operator(now) {
            return None;
        }
        let (detail, at) = match &self.identity.svid {
            None => {
                ("there is none yet, and no issuer is asked for one".to_owned(), self.identity.started_at)
            }
            Some(CurrentSvid { facts, .. }) if now.wall > facts.not_after => {
                (format!("the current one ended at {}", facts.not_after), facts.not_after)
            }
            Some(CurrentSvid { facts, .. }) if !facts.key_fits => {
                let detail = "the key of the current one is not of the provider that is configured";
                (detail.to_owned(), self.identity.started_at)
            }
            Some(CurrentSvid { renew_at, renew_at_before: Some(_), .. }) => {
                ("the trust bundle does not vouch for the current one any more".to_owned(), *renew_at)
            }
            Some(CurrentSvid { facts, renew_at, .. }) => {
                let detail = format!(
                    "half of the lifetime of the current one is over; it ends at {}",
                    facts.not_after
                );
                (detail, *renew_at)
            }
        };
        let title = match &self.identity.svid {
            None => "An operator has to bring the SVID of this identity",
            Some(_) => "An operator has to bring the next SVID of this identity",
        };
        let report = Report::new(ProblemCode::OperatorNeeded, title, &detail);
        Some(LastError { report, at, permanent: true })
    }

    fn prerequisite_missing(&self, request: Request, now: Now) -> Option<LastError> {
        if !matches!(self.prerequisite, Prerequisite::Svid(_)) || !self.lacks_prerequisite(request, now) {
            return None;
        }
        let why = "the enrollment is authenticated by the SVID of the device, which has no valid one now";
        let title = "The identity of the device is not there yet";
        let report = Report::new(ProblemCode::DeviceIdentityNeeded, title, &why);
        Some(LastError { report, at: self.identity.started_at, permanent: false })
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
             issued with ends then"
        );
        let report =
            Report::new(ProblemCode::IssuanceStalled, "The MIS issues no SVID that lasts longer", &why);
        let error = LastError { report, at: stalled.since?, permanent: false };
        Some((error, Some(self.request_due_in(now).max(self.requests_open_in(now)))))
    }

    /// The gates of this identity's work that is wanted. The failure of a renewal that is not due
    /// any more, since the clock was put right, does not matter.
    fn gates(&self, now: Now) -> impl Iterator<Item = &RetryGate> {
        let is_wanted = || {
            let request = self.wanted_request(now);
            self.request_due_in(now).is_zero() && !self.lacks_prerequisite(request, now)
        };
        let is_due = self.identity.awaits_adoption() || self.identity.is_by_operator() || is_wanted();
        let requests = is_due.then_some(&self.identity.gate);
        let key = self.key_proof_in(now).map(|_| &self.identity.key_gate);
        requests.into_iter().chain(key)
    }
}

/// What makes a state `blocked` is shown, whatever else went wrong meanwhile.
fn most_important<'a>(
    gates: impl Iterator<Item = &'a RetryGate>,
    now: Now,
) -> Option<(LastError, Option<Duration>)> {
    let gates: Vec<_> = gates.filter(|gate| gate.last_error().is_some()).collect();
    let gate = gates.iter().find(|gate| gate.is_local()).or(gates.first())?;
    Some((gate.last_error()?.clone(), Some(gate.opens_in(now))))
}

impl Lifecycle {
    /// The error of what all identities share that matters most now, and the time until the next
    /// attempt.
    pub fn last_error(&self, now: Now) -> Option<(LastError, Option<Duration>)> {
        let trust_domain = &self.trust_domain;
        if !trust_domain.trusts_clock(now) {
            return Some((trust_domain.clock_error(now), Some(trust_domain.time_check_in(now))));
        }
        most_important(trust_domain.gates().into_iter(), now).or_else(|| {
            trust_domain.bundle.filter(|bundle| bundle.is_empty)?;
            Some((no_anchors(now), trust_domain.bundle_refresh_in(now)))
        })
    }
}

impl TrustDomain {
    fn gates(&self) -> [&RetryGate; 2] {
        [&self.discovery_gate, &self.bundle_gate]
    }

    fn clock_error(&self, now: Now) -> LastError {
        let why = format!(
            "it is earlier than {}: by the build date of this agent, by the MIS, or by an operator's word",
            self.time.at_least()
        );
        let report = Report::new(ProblemCode::Clock, "The clock of this device cannot be right", &why);
        LastError { report, at: now.wall, permanent: true }
    }
}

fn no_anchors(now: Now) -> LastError {
    let why = "the MIS serves a trust bundle without any anchor, so no SVID of the trust domain is trusted now and none is \
               requested";
    let report = Report::new(ProblemCode::BundleEmpty, "The trust bundle holds no anchor", &why);
    LastError { report, at: now.wall, permanent: false }
}
