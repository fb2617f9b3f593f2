//! Working out what is wanted now, and until when there is nothing to do: from what is held, afresh at every step.

use std::time::Duration;

use super::retry_gate::Report;
use super::types::{Action, KeyChoice, Request, SvidFacts};
use super::{BundleForChain, CurrentKey, HeldSvid, Lifecycle, PendingKey};
use crate::time::Now;

/// Somebody may have set the clock without a jump, or said that it is right.
const BETWEEN_LOOKS_AT_THE_CLOCK: Duration = Duration::from_secs(60);

/// Nothing sleeps longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 3600);

/// What a step comes to.
pub(super) enum Next {
    Do(Action),
    In(Duration),
}

impl Next {
    fn or_first(self, work: Option<(Duration, Action)>) -> Self {
        match (self, work) {
            (Self::In(_), Some((Duration::ZERO, action))) => Self::Do(action),
            (Self::In(wait), Some((sooner, _))) => Self::In(wait.min(sooner)),
            (chosen, _) => chosen,
        }
    }
}

impl Lifecycle {
    pub(super) fn next(&self, now: Now) -> Next {
        if !self.time.allows(now) {
            return Next::In(BETWEEN_LOOKS_AT_THE_CLOCK).or_first(Some(self.look_for_the_time(now)));
        }
        let identity = self.identity_work(now);
        let work = [
            self.discovery_work(&identity, now),
            self.bundle_work(now),
            self.key_work(now),
            // An SVID is asked for only under a discovery document and a bundle to judge it by (D1, E4). Under an empty
            // one it would be refused, and each answer costs the device one of its few renewals a day.
            (self.discovery.is_some() && self.bundle.is_some_and(|bundle| !bundle.is_empty))
                .then_some(identity)
                .flatten(),
        ];
        work.into_iter().fold(Next::In(LONGEST_SLEEP), Next::or_first)
    }

    fn discovery_work(&self, identity: &Option<(Duration, Action)>, now: Now) -> Option<(Duration, Action)> {
        let due_in = match &self.discovery {
            None => Duration::ZERO,
            Some(_) if self.asks_for_the_time_again() => Duration::ZERO,
            Some(discovery) if discovery.bundle_failed => Duration::ZERO, // at the pace of the bundle, by its gate
            Some(discovery) => {
                let about_to_ask = matches!(identity, Some((Duration::ZERO, Action::Request(..))));
                // While something is refused for good, a changed document is the way out (P2).
                let waits_for_change = self.is_refused_for_good(now);
                let stale_at = (about_to_ask || waits_for_change).then_some(discovery.stale_at);
                now.boot.until([stale_at, discovery.look_from].into_iter().flatten().min()?)
            }
        };
        Some((due_in.max(self.discovery_gate.opens_in(now)), Action::FetchDiscovery))
    }

    /// While the wall clock cannot be believed, only the MIS is asked: the time comes with every answer.
    pub(super) fn look_for_the_time(&self, now: Now) -> (Duration, Action) {
        let due_in = match &self.discovery {
            Some(discovery) if self.looks_for_the_time == 0 && !self.asks_for_the_time_again() => {
                now.boot.until(discovery.look_from.unwrap_or(discovery.stale_at))
            }
            _ => Duration::ZERO, // the gate says when
        };
        (due_in.max(self.discovery_gate.opens_in(now)), Action::FetchDiscovery)
    }

    fn bundle_work(&self, now: Now) -> Option<(Duration, Action)> {
        self.discovery.as_ref()?;
        let wanted_now = matches!(&self.answer, Some(a) if a.bundle == BundleForChain::Wanted);
        let due_in = match self.bundle {
            Some(bundle) if !wanted_now => now.boot.until(bundle.refresh_at),
            _ => Duration::ZERO,
        };
        Some((due_in.max(self.bundle_gate.opens_in(now)), Action::FetchBundle))
    }

    fn identity_work(&self, now: Now) -> Option<(Duration, Action)> {
        // One that is of no use as things stand is in nobody's way.
        if let Some(answer) = self.answer.as_ref().filter(|a| a.bundle != BundleForChain::AnotherWanted) {
            let early = answer.not_before.map_or(Duration::ZERO, |at| now.wall.until(at));
            let is_fresh = answer.bundle == BundleForChain::Fetched;
            // What the gate waits for is asking anew.
            let waits = if is_fresh && answer.asks_anew_at.is_some() && !self.identity_gate.is_local() {
                Duration::ZERO
            } else {
                self.identity_gate.opens_in(now)
            };
            let adopt = Action::Adopt { bundle_is_fresh: is_fresh };
            return (answer.bundle != BundleForChain::Wanted).then(|| (early.max(waits), adopt));
        }
        if self.is_refused_for_good(now) || self.has_no_key(now) {
            return None;
        }
        let request = self.wanted_request(now);
        let due_in = self.request_due_in(now);
        let action = match self.key_choice(request) {
            Some(key) => Action::Request(request, key),
            None => Action::CreateKey,
        };
        Some((due_in.max(self.identity_opens_in(now)), action))
    }

    /// How long the MIS is left alone before it is asked for another SVID.
    pub(super) fn identity_opens_in(&self, now: Now) -> Duration {
        let pause = self.issues_in_vain.pause_until.map_or(Duration::ZERO, |until| now.boot.until(until));
        pause.max(self.identity_gate.opens_in(now))
    }

    /// How long until the next SVID is asked for, if nothing stands in the way.
    pub(super) fn request_due_in(&self, now: Now) -> Duration {
        match (&self.svid, self.wanted_request(now)) {
            // A key that is not where the configuration wants it is not kept for years (K1).
            (Some(svid), Request::Renew) if !self.key_is_to_go(svid) => now.wall.until(svid.renew_at),
            _ => Duration::ZERO,
        }
    }

    /// At start, and from time to time while it is lost.
    pub(super) fn key_work(&self, now: Now) -> Option<(Duration, Action)> {
        let svid = self.svid.as_ref()?;
        let known = matches!(svid.key, CurrentKey::Works);
        (!known).then(|| (self.key_gate.opens_in(now), Action::ProveKey))
    }

    pub(super) fn wanted_request(&self, now: Now) -> Request {
        let replaces_key = self.replace_lost_key && self.key_is_lost();
        let reauthenticates = self.reauthenticate && self.may_enroll();
        if self.holds_valid_svid(now) && !reauthenticates && !replaces_key {
            Request::Renew
        } else {
            Request::Enroll
        }
    }

    /// An enrollment is wanted although the SVID is still good, and could be renewed.
    pub(super) fn reauthenticates_early(&self, now: Now) -> bool {
        self.reauthenticate && self.holds_valid_svid(now) && !self.key_is_lost()
    }

    pub(super) fn may_enroll(&self) -> bool {
        self.blocked.enroll.is_none() && self.ruled_out(Request::Enroll).is_none()
    }

    pub(super) fn holds_valid_svid(&self, now: Now) -> bool {
        self.svid.as_ref().is_some_and(|svid| now.wall <= svid.facts.not_after)
    }

    /// Whether the key of the SVID held is lost: nobody can use that SVID.
    pub fn key_is_lost(&self) -> bool {
        self.svid.as_ref().is_some_and(|svid| matches!(svid.key, CurrentKey::Lost(_)))
    }

    /// A renewal is all that is allowed, and there is no key for it. The operator may allow another; and when the SVID
    /// has expired, an enrollment is due anyway (miaf-v0 R6).
    pub(super) fn has_no_key(&self, now: Now) -> bool {
        self.key_is_lost() && self.wanted_request(now) == Request::Renew
    }

    /// `None`: a new one has to be made first.
    fn key_choice(&self, request: Request) -> Option<KeyChoice> {
        match (self.pending_key, &self.svid) {
            // It may have been certified by an answer that was lost: asked for again before anything else (E6).
            (Some(PendingKey { refused: false }), _) => Some(KeyChoice::Pending),
            (_, Some(svid)) if !self.key_is_lost() => {
                let keep = svid.facts.key_fits && (!self.policy.rotate || request == Request::Enroll);
                (keep || self.rotation_refused).then_some(KeyChoice::Current)
            }
            (Some(_), _) => Some(KeyChoice::Pending),
            (None, _) => None,
        }
    }

    fn key_is_to_go(&self, svid: &HeldSvid) -> bool {
        !svid.facts.key_fits && !self.rotation_refused
    }

    /// Why the request that is wanted now cannot be made before something is corrected.
    pub(super) fn is_refused_for_good(&self, now: Now) -> bool {
        let request = self.wanted_request(now);
        self.blocked.by(request).is_some() || self.ruled_out(request).is_some()
    }

    /// Why the discovery document rules the request out (miaf-v0 D5).
    pub(super) fn ruled_out(&self, request: Request) -> Option<&Report> {
        let facts = &self.discovery.as_ref()?.facts;
        match request {
            Request::Enroll => facts.cannot_enroll.as_ref(),
            Request::Renew => facts.cannot_renew.as_ref(),
        }
    }

    /// When the SVID held becomes valid, or expires: people and programs are told of both.
    pub(super) fn until_validity_changes(&self, now: Now) -> Option<Duration> {
        let svid = self.svid.as_ref().filter(|_| self.time.allows(now))?;
        let SvidFacts { not_before, not_after, .. } = svid.facts;
        let changes = [not_before, not_after.after(Duration::from_millis(1))];
        changes.into_iter().map(|at| now.wall.until(at)).find(|rest| !rest.is_zero())
    }
}
