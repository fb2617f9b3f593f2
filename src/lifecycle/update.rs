//! What each event does to the state: the table of miaf-v0 P among it.

use std::time::Duration;

use super::Lifecycle;
use super::backoff::BackoffPolicy;
use super::identity::{
    Blocked, BundleForChain, CurrentKey, CurrentSvid, Identity, IdentityView, IssuedChain, PendingKey,
    Prerequisite, StalledIssuance,
};
use super::retry_gate::{Failure, FailureKind, Verdict};
use super::trust_domain::{Bundle, Discovery, TrustDomain};
use super::types::{
    Action, BundleFacts, Command, DiscoveryFacts, Event, IdentityAction, IdentityEvent, IdentityIndex,
    Issuance, Jitter, KeyChoice, NotAdopted, Policy, Request, Supplied, SvidFacts, SvidTrust,
};
use crate::problem::LastError;
use miaf_spiffe::time::Now;

/// Interval between proofs of a lost key: its TPM may have been put back.
const LOST_KEY_CHECK_INTERVAL: Duration = Duration::from_secs(3600);

/// Minimum pause after each issued SVID, however short the lifetimes are.
const MIN_BETWEEN_ISSUES: Duration = Duration::from_secs(5);

impl Lifecycle {
    pub(super) fn update(&mut self, event: Event, now: Now, jitter: Jitter<'_>) {
        let ended = match event {
            Event::Wake | Event::Command(_) | Event::Supplied(..) | Event::BundleFileChanged => None,
            _ => self.in_flight.take(),
        };
        match event {
            Event::Wake => {}
            Event::Command(command) => self.execute_command(command, now),
            Event::Discovery(outcome) => self.discovery_ended(outcome, now, jitter),
            Event::Bundle(outcome) => self.bundle_ended(outcome, now, jitter),
            Event::Supplied(index, supplied) => {
                if let Some(identity) = self.identities.get_mut(index.0).filter(|one| one.takes(supplied)) {
                    identity.supplied(supplied, now);
                }
            }
            Event::BundleFileChanged => self.trust_domain.read_bundle_file(now),
            Event::Identity(index, event) => {
                let ended = match ended {
                    Some(Action::Identity(of, action)) if of == index => Some(action),
                    _ => None,
                };
                if let Some(mut identity) = self.identity_update(index) {
                    identity.action_ended(ended, event, now, jitter);
                }
            }
        }
    }

    fn execute_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Retry => self.retry(now),
            Command::Renew(index) => self.renew(index, now),
            Command::ReplaceKey(index) => {
                self.retry(now);
                // An operator has another key certified in any case.
                if let Some(identity) = self.identities.get_mut(index.0)
                    && !identity.is_by_operator()
                    && let Some(svid) = &mut identity.svid
                {
                    identity.replace_lost_key = true;
                    if matches!(svid.key, CurrentKey::Works) {
                        svid.key = CurrentKey::Unproven; // it did when it was last used
                    }
                }
            }
        }
    }

    fn retry(&mut self, now: Now) {
        let from = self.trust_domain.open_gates(now);
        for identity in &mut self.identities {
            identity.open_gates(now);
            identity.correct_by_command();
        }
        self.trust_domain.time.vouch(now);
        self.trust_domain.refresh_discovery(now);
        if let Some(bundle) = &mut self.trust_domain.bundle {
            bundle.refresh_at = bundle.refresh_at.min(from);
        }
    }

    /// Without an SVID there is nothing to renew, and an enrollment is not what was asked for.
    fn renew(&mut self, index: IdentityIndex, now: Now) {
        let Some(identity) = self.identities.get_mut(index.0) else { return };
        if identity.svid.is_none() || identity.is_by_operator() {
            return;
        }
        self.trust_domain.open_gates(now);
        let from = identity.open_gates(now);
        identity.correct_by_command();
        if let Some(svid) = &mut identity.svid {
            svid.renew_at_before = None; // the command outranks what the bundle says later
            svid.renew_at = svid.renew_at.min(now.wall.after(now.boot.until(from)));
        }
    }

    /// Opens what is closed after a failure, for the trust domain and every identity.
    pub(super) fn open_gates(&mut self, now: Now) {
        self.trust_domain.open_gates(now);
        for identity in &mut self.identities {
            identity.open_gates(now);
        }
    }

    fn discovery_ended(&mut self, outcome: Result<DiscoveryFacts, Failure>, now: Now, jitter: Jitter<'_>) {
        match outcome {
            Ok(facts) => {
                let trusted = self.trusts_clock(now);
                let responses = self.trust_domain.responses_without_clock;
                self.trust_domain.responses_without_clock =
                    if trusted { 0 } else { responses.saturating_add(1) };
                self.trust_domain.discovery_gate.succeeded();
                // While a time is in doubt, the next response is wanted at once, and not for long.
                if !self.trust_domain.checks_time_again() {
                    let pause = if trusted {
                        // An MIS that alternates between two documents, and answers 404 under both,
                        // must not cause a request loop.
                        self.min_between_reads(now.wall)
                    } else {
                        self.time_check_delay(jitter)
                    };
                    self.trust_domain.discovery_gate.pause(pause, now);
                }
                if facts.changed {
                    self.mis_may_be_corrected(now);
                }
                let stale_at = now.boot.after(spread(self.policy.bundle_refresh, jitter));
                self.trust_domain.discovery = Some(Discovery::new(facts, now.wall, stale_at));
            }
            Err(failure) => {
                let was_sent = is_of_mis(&failure);
                let backoff = self.discovery_backoff(now);
                let for_the_bundle = self.trust_domain.discovery_failed();
                let TrustDomain { discovery, discovery_gate, bundle, .. } = &mut self.trust_domain;
                discovery_gate.failed(failure, backoff, now, jitter);
                // The last good document stays in use (miaf-v0 D4), and is polled until the MIS
                // responds. One that was fetched for the sake of a cached bundle is fetched again
                // when the bundle fails again, and no sooner.
                if let Some(discovery) = discovery
                    && (!for_the_bundle || !was_sent || bundle.is_none())
                {
                    discovery.refresh_at = Some(now.boot);
                }
            }
        }
    }

    /// The discovery document has changed: what the MIS refused before it may grant now.
    fn mis_may_be_corrected(&mut self, now: Now) {
        for identity in &mut self.identities {
            identity.forget_refusals();
            identity.gate.open_from(now.boot, now);
            identity.request_another_svid_from(now.boot);
        }
        self.trust_domain.bundle_gate.open_from(now.boot, now);
        if let Some(bundle) = &mut self.trust_domain.bundle {
            bundle.refresh_at = now.boot; // the document may name another address
        }
    }

    fn bundle_ended(&mut self, outcome: Result<BundleFacts, Failure>, now: Now, jitter: Jitter<'_>) {
        match outcome {
            Ok(facts) => {
                let refresh_every = self.refresh_interval(&facts, now);
                let refresh_at = now.boot.after(spread(refresh_every, jitter));
                let vouches_for_none = facts.svids.iter().any(|svid| svid.vouches == Some(false));
                let trust_domain = &mut self.trust_domain;
                trust_domain.bundle_gate.succeeded();
                trust_domain.bundle = Some(Bundle { refresh_at, refresh_every, is_empty: facts.is_empty });
                if trust_domain.discovery_gate.last_error().is_some() {
                    if trust_domain.wanted_discovery_for_the_bundle() {
                        trust_domain.discovery_gate.succeeded_late(now); // the bundle is there without it
                    } else {
                        trust_domain.refresh_discovery(now); // what made it fail may be over as well
                    }
                }
                trust_domain.doubt_bundle_address(facts.is_empty || vouches_for_none);
                for (identity, trust) in self.identities.iter_mut().zip(&facts.svids) {
                    identity.bundle_changed(trust, facts.is_new, &self.policy, now, jitter);
                }
            }
            Err(failure) => {
                let backoff = self.bundle_backoff();
                // Who asks for a delay is the right one, and has enough to do.
                let doubtful = is_of_mis(&failure) && failure.retry_after.is_none();
                if doubtful {
                    self.trust_domain.doubt_bundle_address(true);
                }
                self.trust_domain.bundle_gate.failed(failure, backoff, now, jitter);
            }
        }
    }

    fn identity_update(&mut self, index: IdentityIndex) -> Option<IdentityUpdate<'_>> {
        let Self { policy, trust_domain, identities, .. } = self;
        let prerequisite = Prerequisite::of(identities.get(index.0)?, identities);
        let identity = identities.get_mut(index.0)?;
        Some(IdentityUpdate { policy, index, prerequisite, trust_domain, identity })
    }
}

/// Whether the MIS was asked, or at least the network.
fn is_of_mis(failure: &Failure) -> bool {
    !matches!(failure.kind, FailureKind::Local | FailureKind::Offline)
}

/// Whether a request that failed so may have reached the MIS.
fn may_have_been_sent(failure: &Failure) -> bool {
    use FailureKind as K;
    let was_not =
        matches!(failure.kind, K::PendingKeyLost | K::CurrentKeyLost | K::NoToken | K::OtherAuthority);
    is_of_mis(failure) && !was_not
}

impl Identity {
    fn takes(&self, supplied: Supplied) -> bool {
        match supplied {
            Supplied::Key | Supplied::Chain => self.is_by_operator(),
            Supplied::Token => self.policy.issuance == Issuance::WithToken,
            Supplied::Certificate => self.policy.issuance == Issuance::Requested,
        }
    }

    fn supplied(&mut self, supplied: Supplied, now: Now) {
        match supplied {
            Supplied::Token => {
                (self.has_token, self.token_key, self.token_error) = (true, None, None);
                self.blocked.set(Request::Enroll, None);
                // What was refused was refused for the one before it. A script that brings one after the
                // other does not set the pace.
                let from = self.next_opening(now);
                self.gate.open_from(from, now);
                if let Some(chain) = &mut self.issued {
                    chain.another_token = true;
                }
                // It is the operator's word that this device is to have the identity (X70).
                self.replace_lost_key |= self.key_is_lost();
            }
            Supplied::Certificate => {
                self.blocked.set(Request::Enroll, None);
                self.gate.open_from(now.boot, now);
            }
            Supplied::Key => self.pending_key = Some(PendingKey { refused: false }),
            Supplied::Chain => {
                self.gate.succeeded(); // what was wrong with the one before it is over
                self.issued = Some(IssuedChain::new(CurrentKey::Unproven));
            }
        }
    }

    /// The operator may have corrected what stood in the way.
    fn correct_by_command(&mut self) {
        let key_is_lost = self.key_is_lost();
        if key_is_lost {
            self.key_gate.succeeded(); // it is proven before anything is requested
        }
        self.forget_refusals();
        self.reauthenticate &= key_is_lost; // both requests are open again, if there is a key to renew with
    }

    fn bundle_changed(
        &mut self,
        trust: &SvidTrust,
        is_new: bool,
        policy: &Policy,
        now: Now,
        jitter: Jitter<'_>,
    ) {
        self.move_end(trust, policy, now, jitter);
        self.hasten_renewal(trust, policy, now, jitter);
        if is_new && self.gate.awaits_bundle() {
            self.gate.open_from(now.boot, now);
        }
        match self.issued.as_mut().map(|chain| &mut chain.bundle) {
            Some(bundle @ (BundleForChain::Wanted | BundleForChain::RefreshWanted)) => {
                *bundle = BundleForChain::Fetched;
            }
            Some(bundle @ BundleForChain::AnotherWanted) if is_new => *bundle = BundleForChain::Fetched,
            _ => {}
        }
    }

    /// Under another bundle the SVID may last longer than before, or not as long.
    fn move_end(&mut self, trust: &SvidTrust, policy: &Policy, now: Now, jitter: Jitter<'_>) {
        let Some((ends, svid)) = trust.svid_ends.zip(self.svid.as_mut()) else { return };
        let is_sooner = ends < svid.facts.not_after;
        let is_other = ends != svid.facts.not_after;
        svid.facts.not_after = ends;
        if is_other && self.policy.issuance == Issuance::ByOperator {
            // Half of the lifetime, also where that grows again.
            let half = policy.draw_first_renewal(self.policy, &svid.facts, jitter);
            svid.renew_at = match &mut svid.renew_at_before {
                Some(before) => {
                    *before = half;
                    svid.renew_at.min(half)
                }
                None => half,
            };
        } else if is_sooner {
            let not_before = svid.facts.not_before;
            let renew_at = policy.draw_renewal_after(self.policy, not_before, ends, now.wall, jitter);
            svid.renew_at = svid.renew_at.min(renew_at);
        }
    }

    /// An SVID that no anchor leads to any more is of no use: it is renewed soon, and not by the
    /// whole fleet at once.
    fn hasten_renewal(&mut self, trust: &SvidTrust, policy: &Policy, now: Now, jitter: Jitter<'_>) {
        let within = self.backoff(policy, now.wall).cap.min(policy.bundle_refresh);
        let Some(svid) = &mut self.svid else { return };
        match (trust.vouches, svid.renew_at_before) {
            (Some(false), None) => {
                svid.renew_at_before = Some(svid.renew_at);
                svid.renew_at = svid.renew_at.min(now.wall.after(within.mul_f64(jitter())));
            }
            // Servers that do not agree yet, most likely: there is no hurry after all.
            (Some(true), Some(before)) => {
                svid.renew_at = before;
                svid.renew_at_before = None;
            }
            _ => {}
        }
    }
}

/// One identity that an outcome changes, under its trust domain.
struct IdentityUpdate<'a> {
    policy: &'a Policy,
    index: IdentityIndex,
    prerequisite: Prerequisite,
    trust_domain: &'a mut TrustDomain,
    identity: &'a mut Identity,
}

impl IdentityUpdate<'_> {
    fn view(&self) -> IdentityView<'_> {
        let Self { policy, index, prerequisite, trust_domain, identity } = self;
        let (index, prerequisite) = (*index, *prerequisite);
        IdentityView { policy, index, prerequisite, trust_domain, identity, in_flight: None }
    }

    fn action_ended(
        &mut self,
        ended: Option<IdentityAction>,
        event: IdentityEvent,
        now: Now,
        jitter: Jitter<'_>,
    ) {
        match event {
            IdentityEvent::KeyCreated(Ok(())) => {
                self.identity.pending_key = Some(PendingKey { refused: false });
                self.identity.gate.progressed();
            }
            IdentityEvent::KeyCreated(Err(failure)) => self.failed(failure, now, jitter),
            IdentityEvent::KeyProven(outcome) => self.key_proven(outcome, now, jitter),
            IdentityEvent::Issued(Ok(())) => {
                self.identity.admission_pending = false;
                self.identity.gate.progressed();
                self.identity.issued = Some(IssuedChain::new(CurrentKey::Works));
                if let Some(IdentityAction::Request(request, key)) = ended {
                    self.was_sent(request, key);
                }
            }
            IdentityEvent::Issued(Err(failure)) => match ended {
                Some(IdentityAction::Request(request, key)) => {
                    if may_have_been_sent(&failure) {
                        self.was_sent(request, key);
                    }
                    self.request_failed(request, key, failure, now, jitter);
                }
                _ => self.failed(failure, now, jitter),
            },
            IdentityEvent::Adopted(Ok(facts)) => self.adopted(facts, now, jitter),
            IdentityEvent::Adopted(Err(why)) => self.not_adopted(why, now, jitter),
        }
    }

    /// The MIS may have bound the token to the key (X37).
    fn was_sent(&mut self, request: Request, key: KeyChoice) {
        if request == Request::Enroll && self.identity.has_token {
            self.identity.token_key = Some(key);
        }
    }

    fn key_proven(&mut self, outcome: Result<(), Failure>, now: Now, jitter: Jitter<'_>) {
        let identity = &mut *self.identity;
        match outcome {
            Ok(()) => {
                identity.key_gate.succeeded();
                identity.replace_lost_key = false; // there is nothing to replace any more
                identity.blocked.current_key_is_back();
                if let Some(svid) = &mut identity.svid {
                    svid.key = CurrentKey::Works;
                }
            }
            Err(failure) if failure.kind == FailureKind::CurrentKeyLost => {
                self.current_key_lost(failure, now);
            }
            Err(failure) => {
                let backoff = identity.backoff(self.policy, now.wall);
                identity.key_gate.failed(failure, backoff, now, jitter);
            }
        }
    }

    fn current_key_lost(&mut self, failure: Failure, now: Now) {
        self.identity.key_gate.succeeded();
        self.identity.key_gate.pause(LOST_KEY_CHECK_INTERVAL, now);
        if let Some(svid) = &mut self.identity.svid {
            svid.key = CurrentKey::Lost(LastError { report: failure.report, at: now.wall, permanent: true });
        }
    }

    /// The table of miaf-v0 P.
    fn request_failed(
        &mut self,
        request: Request,
        key: KeyChoice,
        failure: Failure,
        now: Now,
        jitter: Jitter<'_>,
    ) {
        match failure.kind {
            FailureKind::Pending => self.identity.admission_pending = true,
            // The MIS has said nothing of it.
            FailureKind::Transient
            | FailureKind::OtherAuthority
            | FailureKind::Offline
            | FailureKind::Local
            | FailureKind::PendingKeyLost
            | FailureKind::CurrentKeyLost => {}
            _ => self.identity.admission_pending = false,
        }
        if failure.kind == FailureKind::NotFound {
            self.trust_domain.refresh_discovery(now);
        }
        // Once: from then on it is fetched at its own pace.
        if failure.kind == FailureKind::OtherAuthority && !self.identity.gate.awaits_bundle() {
            self.trust_domain.refresh_bundle(now);
        }
        match failure.kind {
            FailureKind::KeyRotationRefused => {
                self.identity.token_key = self.identity.token_key.filter(|_| request == Request::Renew);
                if key == KeyChoice::Pending {
                    self.identity.rotation_refused = true;
                    if let Some(pending) = &mut self.identity.pending_key {
                        pending.refused = true;
                    }
                }
                let key_is_lost = self.identity.key_is_lost();
                // The current key, if there is one that was not refused itself, is tried without
                // delay (R4).
                if key == KeyChoice::Pending && self.identity.svid.is_some() && !key_is_lost {
                    self.failed_over(failure, now, jitter);
                } else {
                    self.identity.blocked.enroll_without_current_key =
                        request == Request::Enroll && key_is_lost;
                    self.failed_request(Some(request), failure, now, jitter);
                }
            }
            FailureKind::NotAuthenticated if request == Request::Renew && self.view().may_enroll(now) => {
                self.identity.reauthenticate = true; // R6: enroll again, now
                self.failed_over(failure, now, jitter);
            }
            // The factory certificate does not help: perhaps the 401 at renewal was not the MIS's.
            // While the SVID is valid, renewal and enrollment are tried in turn, slowly (R7).
            FailureKind::NotAuthenticated
            | FailureKind::TokenRefused
            | FailureKind::RefusedForNow
            | FailureKind::OtherAuthority
            | FailureKind::Slow
            | FailureKind::Permanent
            | FailureKind::NotFound
            | FailureKind::Transient
                if self.view().reauthenticates_early(now) =>
            {
                self.identity.reauthenticate = false;
                self.failed_request(Some(request), failure, now, jitter);
            }
            FailureKind::Local if self.view().reauthenticates_early(now) => {
                self.identity.reauthenticate = false;
                let slowly = Failure { kind: FailureKind::Slow, ..failure };
                self.failed_request(Some(request), slowly, now, jitter);
            }
            FailureKind::CurrentKeyLost => {
                self.identity.gate.progressed(); // no request was sent
                self.current_key_lost(failure, now);
            }
            FailureKind::NoToken if self.identity.policy.issuance == Issuance::WithToken => {
                let error = LastError { report: failure.report, at: now.wall, permanent: true };
                let identity = &mut *self.identity;
                (identity.has_token, identity.token_key, identity.token_error) = (false, None, Some(error));
                self.identity.gate.succeeded_late(now); // another token is not delayed for this one
            }
            FailureKind::PendingKeyLost => {
                (self.identity.pending_key, self.identity.token_key) = (None, None); // an SVID for it is of no use
                self.failed(failure, now, jitter);
            }
            _ => self.failed_request(Some(request), failure, now, jitter),
        }
    }

    fn failed(&mut self, failure: Failure, now: Now, jitter: Jitter<'_>) {
        self.failed_request(None, failure, now, jitter);
    }

    fn failed_request(&mut self, request: Option<Request>, failure: Failure, now: Now, jitter: Jitter<'_>) {
        let backoff = self.backoff_after(&failure, now);
        let verdict = self.identity.gate.failed(failure, backoff, now, jitter);
        if let (Verdict::Blocked, Some(request)) = (verdict, request) {
            self.identity.blocked.set(request, self.identity.gate.last_error().cloned());
        }
    }

    /// Another kind of request follows at once.
    fn failed_over(&mut self, failure: Failure, now: Now, jitter: Jitter<'_>) {
        let backoff = self.backoff_after(&failure, now);
        self.identity.gate.failed_over(failure, &backoff, now, jitter);
    }

    /// As it will be when Retry-After has elapsed.
    fn backoff_after(&self, failure: &Failure, now: Now) -> BackoffPolicy {
        let svid = self.identity.svid.as_ref().map(|svid| &svid.facts);
        self.policy.identity_backoff(svid, now.wall.after(failure.bounded_retry_after().unwrap_or_default()))
    }

    fn adopted(&mut self, facts: SvidFacts, now: Now, jitter: Jitter<'_>) {
        let stalled = self.count_stalled(&facts, now, jitter);
        let identity = &mut *self.identity;
        if facts.key == KeyChoice::Pending {
            identity.pending_key = None;
        }
        let key = identity.issued.take().map_or(CurrentKey::Unproven, |chain| chain.key);
        identity.reauthenticate = false;
        identity.blocked = Blocked::default();
        identity.gate.succeeded_late(now);
        identity.gate.pause(MIN_BETWEEN_ISSUES, now);
        identity.stalled = stalled;
        identity.key_gate.succeeded();
        identity.replace_lost_key = false;
        // It is used up, or has been overtaken: programs have an SVID.
        (identity.has_token, identity.token_key, identity.token_error) = (false, None, None);
        let renew_at = facts.renew_at.unwrap_or_else(|| {
            let SvidFacts { not_before, not_after, .. } = facts;
            self.policy.draw_renewal_after(identity.policy, not_before, not_after, now.wall, jitter)
        });
        identity.svid = Some(CurrentSvid { facts, renew_at, key, renew_at_before: None });
    }

    fn not_adopted(&mut self, why: NotAdopted, now: Now, jitter: Jitter<'_>) {
        match why {
            NotAdopted::Early(not_before) => {
                if let Some(chain) = &mut self.identity.issued {
                    chain.not_before = Some(not_before);
                }
            }
            NotAdopted::UnknownIssuer => {
                if let Some(chain) = &mut self.identity.issued {
                    chain.bundle = BundleForChain::Wanted;
                }
                // It may have failed when nothing waited for it, with a delay of an hour.
                self.trust_domain.bundle_gate.open_from(now.boot, now);
            }
            NotAdopted::IssuerExpired(failure) => {
                match self.identity.issued.as_ref().and_then(|chain| chain.request_again_at) {
                    Some(at) => self.identity.gate.failed_as_before(failure, at, now),
                    None => self.unusable_chain(failure, now, jitter),
                }
                let opens_at = now.boot.after(self.identity.gate.opens_in(now));
                // Where the chain has used up a token nothing more is requested: other issuers may lead to
                // an anchor.
                let by_token = self.identity.policy.issuance == Issuance::WithToken;
                if let Some(chain) = &mut self.identity.issued {
                    chain.bundle =
                        if by_token { BundleForChain::RefreshWanted } else { BundleForChain::AnotherWanted };
                    chain.request_again_at = chain.request_again_at.or(Some(opens_at));
                }
            }
            NotAdopted::NoPath(failure) => {
                let opens_at = |identity: &Identity| now.boot.after(identity.gate.opens_in(now));
                // Refreshes come at their own pace, which must not keep the next request from being due,
                // nor make it due sooner.
                match self.identity.issued.as_ref().and_then(|chain| chain.request_again_at) {
                    Some(_) => self.identity.gate.failed_as_before(failure, opens_at(self.identity), now),
                    None => self.unusable_chain(failure, now, jitter),
                }
                let opens_at = opens_at(self.identity);
                if let Some(chain) = &mut self.identity.issued {
                    chain.bundle = BundleForChain::RefreshWanted;
                    chain.request_again_at = chain.request_again_at.or(Some(opens_at));
                }
            }
            NotAdopted::Kept(failure) => {
                // Its issuers are asked for where the discovery document says.
                if failure.kind == FailureKind::NotFound {
                    self.trust_domain.refresh_discovery(now);
                }
                // Where the MIS was asked for the issuers, its gate decides when it is asked again.
                if is_of_mis(&failure)
                    && let Some(chain) = &mut self.identity.issued
                {
                    chain.request_again_at = None;
                }
                self.failed(failure, now, jitter);
            }
            NotAdopted::Refused(failure) => {
                self.identity.issued = None;
                self.unusable_chain(failure, now, jitter);
            }
        }
    }

    /// An SVID was issued, and cannot be used. While the current one can be, another is requested
    /// at the pace that its lifetime asks for (R7). From then on nothing is lost by requesting
    /// slowly, however short the lifetimes are: each response is an SVID that the MIS has issued.
    fn unusable_chain(&mut self, failure: Failure, now: Now, jitter: Jitter<'_>) {
        if self.identity.has_valid_svid(now) {
            self.failed(failure, now, jitter);
        } else {
            self.identity.gate.failed(failure, self.policy.retry, now, jitter);
        }
    }

    /// Spares an MIS that issues SVIDs which end no later than those before them: the longer, the
    /// more of them.
    fn count_stalled(&self, facts: &SvidFacts, now: Now, jitter: Jitter<'_>) -> StalledIssuance {
        let before = self.identity.stalled;
        let svid = self.identity.svid.as_ref();
        let Some(svid) = svid.filter(|svid| facts.not_after <= svid.facts.not_after) else {
            return StalledIssuance::default();
        };
        let count = before.count.saturating_add(1);
        // What is left of the lifetime shrinks each time, and must not set the pace.
        let backoff = before.backoff.unwrap_or_else(|| self.policy.stalled_backoff(&svid.facts));
        let pause = backoff.interval(count).mul_f64(1.0 - jitter() / 2.0);
        let pause_until = Some(now.boot.after(pause));
        StalledIssuance { count, backoff: Some(backoff), since: Some(now.wall), pause_until }
    }
}

/// Up to a fifth earlier than agreed, at random: a fleet that was switched on in one second drifts
/// apart.
fn spread(interval: Duration, jitter: Jitter<'_>) -> Duration {
    interval.mul_f64(1.0 - jitter() / 5.0)
}
