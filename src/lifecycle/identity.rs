//! What exists once for each identity: SVID, keys, issued chain, and their retry gates.

use std::time::Duration;

use super::backoff::Backoff;
use super::retry_gate::{OpeningLimit, RetryGate};
use super::trust_domain::TrustDomain;
use super::types::{
    IdentityAction, IdentityIndex, IdentityMemory, IdentityPolicy, Issuance, Jitter, KeyChoice, Policy,
    Request, RestoredIdentity, SvidFacts,
};
use crate::problem::LastError;
use miaf_spiffe::time::{BootTime, Now, Timestamp};

/// State of one identity.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) policy: IdentityPolicy,
    /// The start of this agent: since then an operator is waited for, at least.
    pub(super) started_at: Timestamp,
    pub(super) svid: Option<CurrentSvid>,
    pub(super) pending_key: Option<PendingKey>,
    pub(super) issued: Option<IssuedChain>,
    /// The MIS refused to bind a new key: requests use the current one from now on (miaf-v0 R4).
    pub(super) rotation_refused: bool,
    /// The current SVID was answered `401`: only an enrollment helps (miaf-v0 R6).
    pub(super) reauthenticate: bool,
    /// Of requests, and of the key and the validation that belong to them.
    pub(super) gate: RetryGate,
    /// Of the proof that the current key works.
    pub(super) key_gate: RetryGate,
    pub(super) stalled: StalledIssuance,
    pub(super) blocked: Blocked,
    pub(super) admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    pub(super) replace_lost_key: bool,
    /// There is a token that may be used.
    pub(super) has_token: bool,
    /// The key that it was sent with: the MIS may take it with no other (X37).
    pub(super) token_key: Option<KeyChoice>,
    /// Why the last one may not be used any more.
    pub(super) token_error: Option<LastError>,
    opening: OpeningLimit,
}

#[derive(Clone, Debug)]
pub(super) struct CurrentSvid {
    pub(super) facts: SvidFacts,
    pub(super) renew_at: Timestamp,
    pub(super) key: CurrentKey,
    /// The renewal moment drawn for it, if its renewal was brought forward because the bundle no
    /// longer vouches for it.
    pub(super) renew_at_before: Option<Timestamp>,
}

/// State of the key of the current SVID.
#[derive(Clone, Debug)]
pub(super) enum CurrentKey {
    /// It has not signed since the start.
    Unproven,
    /// It has signed.
    Works,
    /// Its TPM does not know it any more: the SVID can neither be used nor renewed.
    Lost(LastError),
}

/// The permanent refusal of each request. The request is not repeated before something is corrected
/// (miaf-v0 P2). One entry for each request, since a wall clock that jumps over the expiry and back
/// changes which one is wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocked {
    enroll: Option<LastError>,
    renew: Option<LastError>,
    /// The enrollment was refused for its new key alone, while the current key was lost: with the
    /// current one it is open (R4).
    pub(super) enroll_without_current_key: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PendingKey {
    pub(super) refused: bool,
}

/// An issued chain that is not adopted yet.
#[derive(Clone, Debug)]
pub(super) struct IssuedChain {
    pub(super) not_before: Option<Timestamp>,
    pub(super) bundle: BundleForChain,
    /// Nothing led from it to an anchor, or an issuer of it had expired, when it was validated: another
    /// is requested from this moment on.
    pub(super) request_again_at: Option<BootTime>,
    /// It has signed the request, unless that was before a restart.
    pub(super) key: CurrentKey,
    /// An operator has brought a token since it was issued.
    pub(super) another_token: bool,
}

/// Consecutive SVIDs that ended no later than the one before, because an issuer ends then. The MIS
/// has nothing better yet, and each costs the device one of its few renewals a day.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StalledIssuance {
    pub(super) count: u32,
    pub(super) backoff: Option<Backoff>,
    /// When the last of them was adopted.
    pub(super) since: Option<Timestamp>,
    /// End of the pause after it.
    pub(super) pause_until: Option<BootTime>,
}

/// The bundle that an issued chain needs for its validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BundleForChain {
    /// The cached one.
    Cached,
    /// Its issuer is unknown: the bundle is fetched first.
    Wanted,
    /// Fetched since.
    Fetched,
    /// An issuer has expired. Another bundle may contain another path; until there is one, the
    /// chain is of no use.
    AnotherWanted,
    /// The MIS serves no issuers that lead to an anchor. The next fetch of the bundle is an occasion
    /// to look at both again.
    RefreshWanted,
}

impl Identity {
    pub(super) fn new(restored: RestoredIdentity, policy: &Policy, now: Now, jitter: Jitter<'_>) -> Self {
        // Where an operator brings the SVIDs now, no delay and no permission of a request is left.
        let by_operator = restored.policy.issuance == Issuance::ByOperator;
        let memory = if by_operator { IdentityMemory::default() } else { restored.memory };
        let IdentityMemory { retry_after, error, admission_pending, replace_lost_key } = memory;
        let delay = retry_after.map_or(Duration::ZERO, |until| now.boot.until(until));
        let backoff = policy.identity_backoff(restored.svid.as_ref(), now.wall.after(delay));
        let mut gate = RetryGate::restored(retry_after, backoff, now, jitter).with_error(error);
        let can_renew = restored.svid.as_ref().is_some_and(|svid| now.wall <= svid.not_after);
        if let Some(refusal) = restored.token_refusal.filter(|_| restored.has_token && !can_renew) {
            gate = gate.after_token_refusal(refusal, now, jitter);
        }
        let svid = restored.svid.map(|facts| {
            // A moment that passed while the device was off means: now (R2). That at which an operator
            // is asked follows from the lifetime, whatever was stored.
            let stored = facts.renew_at.filter(|_| !by_operator);
            let renew_at =
                stored.unwrap_or_else(|| policy.draw_first_renewal(restored.policy, &facts, jitter));
            CurrentSvid { facts, renew_at, key: CurrentKey::Unproven, renew_at_before: None }
        });
        Self {
            policy: restored.policy,
            started_at: now.wall,
            svid,
            pending_key: restored.pending_key.then_some(PendingKey { refused: false }),
            issued: restored.issued_chain.then_some(IssuedChain {
                // One that was not sent yet was brought after the chain.
                another_token: restored.has_token && restored.token_key.is_none(),
                ..IssuedChain::new(CurrentKey::Unproven)
            }),
            rotation_refused: false,
            reauthenticate: false,
            gate,
            key_gate: RetryGate::default(),
            stalled: StalledIssuance::default(),
            blocked: Blocked::default(),
            admission_pending,
            replace_lost_key,
            has_token: restored.has_token,
            token_key: restored.token_key,
            token_error: None,
            opening: OpeningLimit::default(),
        }
    }

    /// Whether the current SVID has not expired.
    pub(super) fn has_valid_svid(&self, now: Now) -> bool {
        self.svid.as_ref().is_some_and(|svid| now.wall <= svid.facts.not_after)
    }

    /// Whether an operator brings the SVIDs.
    pub(super) fn is_by_operator(&self) -> bool {
        self.policy.issuance == Issuance::ByOperator
    }

    /// Validity of the current SVID, if its key works as far as is known.
    fn usable_svid(&self) -> Option<(Timestamp, Timestamp)> {
        let svid = self.svid.as_ref().filter(|_| !self.key_is_lost())?;
        Some((svid.facts.not_before, svid.facts.not_after))
    }

    /// Whether the key of the current SVID is lost.
    pub(super) fn key_is_lost(&self) -> bool {
        self.svid.as_ref().is_some_and(|svid| matches!(svid.key, CurrentKey::Lost(_)))
    }

    /// Whether an issued chain is about to be adopted, as soon as it is valid and can be validated.
    pub(super) fn awaits_adoption(&self) -> bool {
        self.issued.is_some() && !self.waits_for_another_bundle()
    }

    /// Whether the bundle is wanted soon for the sake of an issued chain. One that an operator has
    /// brought, and that is of no use under the current bundle, may lie there for years.
    pub(super) fn hurries_bundle(&self) -> bool {
        self.issued.is_some() && !(self.is_by_operator() && self.waits_for_another_bundle())
    }

    /// Whether an issued chain waits for another bundle.
    pub(super) fn waits_for_another_bundle(&self) -> bool {
        let waits = |chain: &IssuedChain| {
            matches!(chain.bundle, BundleForChain::AnotherWanted | BundleForChain::RefreshWanted)
        };
        self.issued.as_ref().is_some_and(waits)
    }

    /// [`Policy::identity_backoff`] under the current SVID.
    pub(super) fn backoff(&self, policy: &Policy, at: Timestamp) -> Backoff {
        policy.identity_backoff(self.svid.as_ref().map(|svid| &svid.facts), at).backoff
    }

    /// The moment from which on an operator may have gates opened.
    pub(super) fn next_opening(&mut self, now: Now) -> BootTime {
        self.opening.next(now)
    }

    /// Opens what is closed after a failure. Returns from when on.
    pub(super) fn open_gates(&mut self, now: Now) -> BootTime {
        let from = self.next_opening(now);
        for gate in [&mut self.gate, &mut self.key_gate] {
            gate.open_from(from, now);
        }
        self.request_another_svid_from(from);
        from
    }

    /// Ends the pauses after SVIDs and chains that were no better than those before: the MIS may
    /// issue better ones by now.
    pub(super) fn request_another_svid_from(&mut self, from: BootTime) {
        let request_again_at = self.issued.as_mut().and_then(|chain| chain.request_again_at.as_mut());
        for at in [self.stalled.pause_until.as_mut(), request_again_at].into_iter().flatten() {
            *at = (*at).min(from);
        }
    }

    /// What was refused permanently may be requested once more (miaf-v0 P2).
    pub(super) fn forget_refusals(&mut self) {
        self.blocked = Blocked::default();
        self.rotation_refused = false;
        if let Some(pending) = &mut self.pending_key {
            pending.refused = false;
        }
    }

    pub(super) fn memory(&self) -> IdentityMemory {
        let retry_after = self.gate.retry_after();
        IdentityMemory {
            retry_after,
            error: retry_after.and_then(|_| self.gate.last_error().cloned()),
            admission_pending: self.admission_pending,
            replace_lost_key: self.replace_lost_key,
        }
    }
}

impl IssuedChain {
    pub(super) fn new(key: CurrentKey) -> Self {
        Self {
            not_before: None,
            bundle: BundleForChain::Cached,
            request_again_at: None,
            key,
            another_token: false,
        }
    }
}

impl Blocked {
    pub(super) fn get(&self, request: Request) -> Option<&LastError> {
        match request {
            Request::Enroll => self.enroll.as_ref(),
            Request::Renew => self.renew.as_ref(),
        }
    }

    pub(super) fn set(&mut self, request: Request, error: Option<LastError>) {
        match request {
            Request::Enroll => self.enroll = error,
            Request::Renew => self.renew = error,
        }
    }

    pub(super) fn current_key_is_back(&mut self) {
        if std::mem::take(&mut self.enroll_without_current_key) {
            self.enroll = None;
        }
    }
}

/// What an enrollment needs of another identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prerequisite {
    Nothing,
    /// A valid SVID; the validity of the one that is there.
    Svid(Option<(Timestamp, Timestamp)>),
    /// A token; whether there is one.
    Token(bool),
}

impl Prerequisite {
    pub(super) fn of(identity: &Identity, identities: &[Identity]) -> Self {
        match identity.policy.issuance {
            Issuance::With(index) => Self::Svid(identities.get(index.0).and_then(Identity::usable_svid)),
            Issuance::WithToken => Self::Token(identity.has_token),
            Issuance::Requested | Issuance::ByOperator => Self::Nothing,
        }
    }

    pub(super) fn is_met(self, now: Now) -> bool {
        match self {
            Self::Nothing => true,
            Self::Token(is_there) => is_there,
            Self::Svid(validity) => validity.is_some_and(|(from, to)| from <= now.wall && now.wall <= to),
        }
    }
}

/// One identity under its trust domain: what is known of it, and what it needs next.
#[derive(Clone, Copy, Debug)]
pub struct IdentityView<'a> {
    pub(super) policy: &'a Policy,
    pub(super) index: IdentityIndex,
    pub(super) prerequisite: Prerequisite,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) identity: &'a Identity,
    /// The action of this identity that is in flight.
    pub(super) in_flight: Option<IdentityAction>,
}

impl IdentityView<'_> {
    /// Whether there is a current SVID, valid or not.
    pub fn has_svid(&self) -> bool {
        self.identity.svid.is_some()
    }

    /// When the current SVID is to be renewed.
    pub fn renew_at(&self) -> Option<Timestamp> {
        self.identity.svid.as_ref().map(|svid| svid.renew_at)
    }

    /// Between which moments renewals of the current SVID are drawn, unless something brings them
    /// forward.
    pub fn renewal_window(&self) -> Option<(Timestamp, Timestamp)> {
        if self.identity.is_by_operator() {
            return None;
        }
        let SvidFacts { not_before, not_after, .. } = self.identity.svid.as_ref()?.facts;
        Some(self.policy.renewal_window(not_before, not_after))
    }

    /// Whether the key of the current SVID is lost: the SVID cannot be used.
    pub fn key_is_lost(&self) -> bool {
        self.identity.key_is_lost()
    }

    /// Whether an enrollment that is sent now may lead to another SPIFFE ID than the current one:
    /// that has expired, or was answered `401` (miaf-v0 E9).
    pub fn may_be_renamed(&self, now: Now) -> bool {
        self.identity.reauthenticate || !self.identity.has_valid_svid(now)
    }

    /// End of the Retry-After delay of requests (miaf-v0 E8), if it has not elapsed.
    pub fn retry_after_until(&self, now: Now) -> Option<Timestamp> {
        let delay = now.boot.until(self.identity.gate.retry_after()?);
        (!delay.is_zero()).then(|| now.wall.after(delay))
    }

    /// Whether the current SVID ends before Retry-After has elapsed, so that there is none in
    /// between.
    pub fn svid_ends_before_retry_after(&self, now: Now) -> bool {
        let ends = self.identity.svid.as_ref().map(|svid| svid.facts.not_after);
        self.trust_domain.trusts_clock(now)
            && ends.zip(self.retry_after_until(now)).is_some_and(|(ends, until)| ends < until)
    }
}
