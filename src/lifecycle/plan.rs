//! The work that is wanted now, and when each piece of it is due: from the state, afresh at every
//! step.

use std::time::Duration;

use super::Lifecycle;
use super::identity::{
    BundleForChain, CurrentKey, CurrentSvid, Identity, IdentityView, PendingKey, Prerequisite,
};
use super::scheduler::{Next, Work};
use super::state::deadline_of;
use super::types::{Action, IdentityAction, IdentityIndex, Issuance, KeyChoice, Request, SvidFacts};
use crate::problem::Report;
use miaf_spiffe::time::Now;

/// Interval between checks of a clock that is not trusted: it may have been set without a jump.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);

impl Lifecycle {
    pub(super) fn next(&self, now: Now) -> Next {
        if !self.trusts_clock(now) {
            let work = Work { due_in: self.trust_domain.time_check_in(now), action: Action::FetchDiscovery };
            return match self.scheduler.next(std::iter::once(work)) {
                Next::Sleep(sleep) => Next::Sleep(sleep.min(CLOCK_CHECK_INTERVAL)),
                execute @ Next::Execute(_) => execute,
            };
        }
        let shared = [self.discovery_work(now), self.bundle_work(now)].into_iter();
        let own = self.identities().flat_map(|(index, view)| view.work(index, now));
        self.scheduler.next(shared.chain(own).flatten())
    }

    fn discovery_work(&self, now: Now) -> Option<Work> {
        let due_in = match &self.trust_domain.discovery {
            None => Duration::ZERO,
            Some(_) if self.trust_domain.checks_time_again() => Duration::ZERO,
            Some(discovery) if discovery.bundle_failed => Duration::ZERO, // at the pace of the bundle, by its gate
            Some(discovery) => {
                // While something is refused permanently, a changed document is the way out (P2).
                let matters = self.identities().any(|(_, view)| {
                    let is_refused = view.is_refused_permanently(now) || view.is_refused_for_now();
                    is_refused || view.is_about_to_request(now)
                });
                let stale_at = matters.then_some(discovery.stale_at);
                now.boot.until([stale_at, discovery.refresh_at].into_iter().flatten().min()?)
            }
        };
        let due_in = due_in.max(self.trust_domain.discovery_gate.opens_in(now));
        Some(Work { due_in, action: Action::FetchDiscovery })
    }

    fn bundle_work(&self, now: Now) -> Option<Work> {
        self.trust_domain.discovery.as_ref()?;
        let issued = self.identities.iter().filter_map(|identity| identity.issued.as_ref());
        let mut bundles = issued.map(|chain| chain.bundle);
        let wanted_now = bundles.any(|bundle| bundle == BundleForChain::Wanted);
        let due_in = match self.trust_domain.bundle {
            Some(bundle) if !wanted_now => now.boot.until(bundle.refresh_at),
            _ => Duration::ZERO,
        };
        let due_in = due_in.max(self.trust_domain.bundle_gate.opens_in(now));
        Some(Work { due_in, action: Action::FetchBundle })
    }

    /// Time until a current SVID becomes valid or expires, or an operator is asked for the next:
    /// status and subscribers show each at that moment.
    pub(super) fn validity_changes_in(&self, now: Now) -> Option<Duration> {
        if !self.trusts_clock(now) {
            return None;
        }
        let of = |identity: &Identity| Some((identity.svid.clone()?, identity.policy.issuance));
        let svids = self.identities.iter().filter_map(of);
        let changes = svids.filter_map(|(svid, issuance)| {
            let SvidFacts { not_before, not_after, .. } = svid.facts;
            let operator_from = match issuance {
                Issuance::ByOperator => svid.renew_at,
                Issuance::WithToken => deadline_of(not_before, not_after),
                Issuance::Requested | Issuance::With(_) => not_before,
            };
            let changes = [not_before, operator_from, not_after.after(Duration::from_millis(1))];
            changes.into_iter().map(|at| now.wall.until(at)).filter(|rest| !rest.is_zero()).min()
        });
        changes.min()
    }
}

impl IdentityView<'_> {
    /// The proof of the key comes before whatever the key is for.
    fn work(&self, index: IdentityIndex, now: Now) -> [Option<Work>; 2] {
        let work = |due_in, action| Work { due_in, action: Action::Identity(index, action) };
        let key = self.key_proof_in(now).map(|due_in| work(due_in, IdentityAction::ProveKey));
        let wanted = self.wanted(now).filter(|(_, action)| match action {
            IdentityAction::Adopt { .. } => self.trust_domain.allows_validation(),
            _ => self.trust_domain.allows_requests(),
        });
        [key, wanted.map(|(due_in, action)| work(due_in, action))]
    }

    /// Time until the key is proven: at start, and from time to time while it is lost.
    pub(super) fn key_proof_in(&self, now: Now) -> Option<Duration> {
        let svid = self.identity.svid.as_ref()?;
        (!matches!(svid.key, CurrentKey::Works)).then(|| self.identity.key_gate.opens_in(now))
    }

    fn wanted(&self, now: Now) -> Option<(Duration, IdentityAction)> {
        let identity = self.identity;
        // A chain that is of no use as things stand delays nothing.
        let issued = identity.issued.as_ref().filter(|_| !identity.waits_for_another_bundle());
        if let Some(chain) = issued {
            let early = chain.not_before.map_or(Duration::ZERO, |at| now.wall.until(at));
            let bundle_is_fresh = chain.bundle == BundleForChain::Fetched;
            // The gate that an expired issuer has closed is that of the next request.
            let closed = if bundle_is_fresh && chain.request_again_at.is_some() && !identity.gate.is_local() {
                Duration::ZERO
            } else {
                identity.gate.opens_in(now)
            };
            let can_be_validated = chain.bundle != BundleForChain::Wanted;
            return can_be_validated.then(|| (early.max(closed), IdentityAction::Adopt { bundle_is_fresh }));
        }
        if identity.is_by_operator() || self.is_refused_permanently(now) || self.lacks_key(now) {
            return None;
        }
        let request = self.wanted_request(now);
        if self.lacks_prerequisite(request, now) {
            return None; // with the token, the other's SVID, or the beginning of its validity, comes a step
        }
        // The token is used up by the chain that is there, unless there is another one since.
        if request == Request::Enroll
            && matches!(self.prerequisite, Prerequisite::Token(_))
            && identity.issued.as_ref().is_some_and(|chain| !chain.another_token)
        {
            return None;
        }
        let due_in = self.request_due_in(now).max(self.requests_open_in(now));
        Some((
            due_in,
            match self.key_choice(request, now) {
                Some(key) => IdentityAction::Request(request, key),
                None => IdentityAction::CreateKey,
            },
        ))
    }

    pub(super) fn is_about_to_request(&self, now: Now) -> bool {
        matches!(self.wanted(now), Some((Duration::ZERO, IdentityAction::Request(..))))
    }

    /// Time until the MIS may be asked for another SVID.
    pub(super) fn requests_open_in(&self, now: Now) -> Duration {
        let pause_until = self.identity.stalled.pause_until;
        let pause = pause_until.map_or(Duration::ZERO, |until| now.boot.until(until));
        pause.max(self.identity.gate.opens_in(now))
    }

    /// Time until the next SVID is due.
    pub(super) fn request_due_in(&self, now: Now) -> Duration {
        match (&self.identity.svid, self.wanted_request(now)) {
            // A key of another provider than the configured one is not kept for years (K1).
            (Some(svid), Request::Renew) if !self.replaces_key(svid) => now.wall.until(svid.renew_at),
            _ => Duration::ZERO,
        }
    }

    pub(super) fn wanted_request(&self, now: Now) -> Request {
        let replaces_lost_key = self.identity.replace_lost_key && self.key_is_lost();
        let reauthenticates = self.identity.reauthenticate && self.may_enroll(now);
        if self.identity.has_valid_svid(now) && !reauthenticates && !replaces_lost_key {
            Request::Renew
        } else {
            Request::Enroll
        }
    }

    /// Whether an enrollment is wanted although the SVID is valid and could be renewed.
    pub(super) fn reauthenticates_early(&self, now: Now) -> bool {
        self.identity.reauthenticate && self.identity.has_valid_svid(now) && !self.key_is_lost()
    }

    /// Whether an enrollment could be sent in place of a renewal. Where it cannot, the renewal is
    /// tried further.
    pub(super) fn may_enroll(&self, now: Now) -> bool {
        self.identity.blocked.get(Request::Enroll).is_none()
            && self.ruled_out(Request::Enroll).is_none()
            && self.prerequisite.is_met(now)
    }

    /// Why the discovery document rules a request out. An operator needs none.
    pub(super) fn ruled_out(&self, request: Request) -> Option<&Report> {
        self.trust_domain.ruled_out(self.index, request).filter(|_| !self.identity.is_by_operator())
    }

    /// Whether the other identity, whose SVID authenticates an enrollment, has no valid one.
    pub(super) fn lacks_prerequisite(&self, request: Request, now: Now) -> bool {
        request == Request::Enroll && !self.prerequisite.is_met(now)
    }

    /// Whether only a renewal is allowed, and its key is lost. The operator may allow another key;
    /// once the SVID has expired, an enrollment is due anyway (miaf-v0 R6).
    pub(super) fn lacks_key(&self, now: Now) -> bool {
        self.key_is_lost() && self.wanted_request(now) == Request::Renew
    }

    /// `None`: a new key has to be created first.
    fn key_choice(&self, request: Request, now: Now) -> Option<KeyChoice> {
        let identity = self.identity;
        // The MIS may have bound the token to it (X48).
        let sent_with = identity.token_key.filter(|_| request == Request::Enroll);
        match (identity.pending_key, &identity.svid) {
            (_, Some(_)) if sent_with == Some(KeyChoice::Current) && !self.key_is_lost() => {
                Some(KeyChoice::Current)
            }
            // A lost response may have certified it: it is requested again before anything else
            // (E6).
            (Some(PendingKey { refused: false }), _) => Some(KeyChoice::Pending),
            (_, Some(svid)) if !self.key_is_lost() => {
                let rotates = identity.policy.rotate.is_due(svid.facts.key_use, now.wall);
                let keep = svid.facts.key_fits && (!rotates || request == Request::Enroll);
                (keep || identity.rotation_refused).then_some(KeyChoice::Current)
            }
            (Some(_), _) => Some(KeyChoice::Pending),
            (None, _) => None,
        }
    }

    fn replaces_key(&self, svid: &CurrentSvid) -> bool {
        !svid.facts.key_fits && !self.identity.rotation_refused
    }

    /// Whether the last request was refused for now: it is looked at again within a day.
    pub(super) fn is_refused_for_now(&self) -> bool {
        self.identity.gate.is_refused_for_now()
    }

    /// Whether the wanted request cannot be sent before something is corrected.
    pub(super) fn is_refused_permanently(&self, now: Now) -> bool {
        let request = self.wanted_request(now);
        self.identity.blocked.get(request).is_some() || self.ruled_out(request).is_some()
    }
}
