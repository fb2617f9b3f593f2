//! Inputs and outputs of the lifecycle: policy, actions, events, facts, and what survives a
//! restart.

use std::time::Duration;

use super::backoff::Backoff;
use super::clock_trust::KnownTime;
use super::retry_gate::Failure;
use crate::problem::{LastError, Report};
use miaf_spiffe::time::{BootTime, Timestamp};

/// The settings that decide when things happen.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Renewal window, as fractions of the lifetime (miaf-v0 R2).
    pub window: (f64, f64),
    /// Backoff between attempts (miaf-v0 R7).
    pub retry: Backoff,
    /// Longest time between two polls of the bundle where the MIS gives no hint (miaf-v0 B4).
    pub bundle_refresh: Duration,
}

/// The settings of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityPolicy {
    /// When a renewal requests a new key (miaf-v0 R4).
    pub rotate: Rotation,
    /// Who obtains its SVIDs.
    pub issuance: Issuance,
}

/// When a renewal is for a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Never: the key stays for as long as it works.
    Never,
    /// At every renewal.
    Always,
    /// At the renewal after this many with the same key.
    AfterRenewals(u32),
    /// At the first renewal when the key is of this age.
    AfterAge(Duration),
}

impl Rotation {
    /// Whether a renewal that is sent now is for a new key.
    pub(super) fn is_due(self, key: KeyUse, now: Timestamp) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::AfterRenewals(most) => key.renewals >= most,
            // A record without the age is one of an earlier version: the key is replaced, and the age
            // of the next one is known.
            Self::AfterAge(age) => key.since.is_none_or(|since| since.until(now) >= age),
        }
    }
}

/// How long the key of an SVID has been in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUse {
    /// Renewals that kept it.
    pub renewals: u32,
    /// When its first SVID was adopted, if that is known.
    pub since: Option<Timestamp>,
}

/// Who obtains the SVIDs of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuance {
    /// The agent requests them.
    Requested,
    /// The agent requests them; to enroll it needs a valid SVID of this other identity (miaf-v0
    /// W1).
    With(IdentityIndex),
    /// The agent requests them; to enroll it needs a token of the operator's (X31).
    WithToken,
    /// An operator brings them (N9). The agent sends no request, and asks for the next one when half
    /// of the lifetime is over.
    ByOperator,
}

impl Default for IdentityPolicy {
    /// A new key for every SVID, which the agent requests.
    fn default() -> Self {
        Self { rotate: Rotation::Always, issuance: Issuance::Requested }
    }
}

/// Position of an identity in the configuration. Names it in actions, events and queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityIndex(pub usize);

/// The work to execute next. One action is in flight at a time; its outcome returns as an
/// [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetches or revalidates the discovery document (miaf-v0 D1).
    FetchDiscovery,
    /// Fetches or revalidates the trust bundle (miaf-v0 B4).
    FetchBundle,
    /// Works for one identity.
    Identity(IdentityIndex, IdentityAction),
}

/// The work of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityAction {
    /// Creates a key and stores it before any request is sent with it (miaf-v0 E6).
    CreateKey,
    /// Requests an SVID and stores the issued chain.
    Request(Request, KeyChoice),
    /// Signs with the current key, since the TPM may have been replaced or cleared while the device
    /// was off.
    ProveKey,
    /// Validates the pending chain and, if it is valid, commits it as the current SVID.
    Adopt {
        /// The bundle has been fetched since the chain was issued: an unknown issuer is final.
        bundle_is_fresh: bool,
    },
}

/// The two requests for an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Authenticated by the factory certificate (miaf-v0 E).
    Enroll,
    /// Authenticated by the current SVID (miaf-v0 R).
    Renew,
}

/// The key that an SVID is requested for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChoice {
    /// The key created for the next SVID.
    Pending,
    /// The key of the current SVID.
    Current,
}

/// A change that the lifecycle has to know of.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time has passed, or the wall clock was set.
    Wake,
    /// An operator's command.
    Command(Command),
    /// Outcome of [`Action::FetchDiscovery`].
    Discovery(Result<DiscoveryFacts, Failure>),
    /// Outcome of [`Action::FetchBundle`].
    Bundle(Result<BundleFacts, Failure>),
    /// Outcome of [`Action::Identity`].
    Identity(IdentityIndex, IdentityEvent),
    /// An operator has supplied something for an identity, while an action may be in flight (N9).
    Supplied(IdentityIndex, Supplied),
    /// The file with the trust bundle may have changed, while an action may be in flight (X12).
    BundleFileChanged,
}

/// What an operator supplies, or has the agent create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supplied {
    /// A key for the next SVID. It is stored.
    Key,
    /// A chain, as if it had been issued. It is stored.
    Chain,
    /// A token that may be used, in place of the one before it.
    Token,
    /// A certificate that authorizes enrollments, in place of the one before it.
    Certificate,
}

/// The outcome of an [`IdentityAction`].
#[derive(Clone, Debug)]
pub enum IdentityEvent {
    /// Of [`IdentityAction::CreateKey`].
    KeyCreated(Result<(), Failure>),
    /// Of [`IdentityAction::ProveKey`].
    KeyProven(Result<(), Failure>),
    /// Of [`IdentityAction::Request`]. `Ok`: the issued chain is stored.
    Issued(Result<(), Failure>),
    /// Of [`IdentityAction::Adopt`]. `Ok`: the SVID is current, and the pending key, if the SVID is
    /// for it, as well.
    Adopted(Result<SvidFacts, NotAdopted>),
}

/// An operator's command. None makes the agent send a request before Retry-After has elapsed
/// (miaf-v0 E8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Tries again what was refused or is waited for, for every identity; takes the wall clock as
    /// right.
    Retry,
    /// Renews the SVID now. Without one it has no effect.
    Renew(IdentityIndex),
    /// As [`Retry`](Self::Retry), and allows that the key of this identity be replaced, should it
    /// be lost.
    ReplaceKey(IdentityIndex),
}

/// Facts of a discovery document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryFacts {
    /// It differs from the cached one: a correction in the sense of miaf-v0 P2.
    pub changed: bool,
    /// What it rules out for each identity, in the order of their indexes.
    pub identities: Vec<RuledOut>,
}

/// What a discovery document rules out for an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuledOut {
    /// Why no enrollment is possible, if so (miaf-v0 D5).
    pub enrollment: Option<Report>,
    /// Why no renewal is possible, if so.
    pub renewal: Option<Report>,
}

/// Facts of a trust bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFacts {
    /// Poll interval that the MIS suggests.
    pub refresh_hint: Option<Duration>,
    /// It holds no anchor: no SVID of the trust domain is trusted (miaf-v0 B3).
    pub is_empty: bool,
    /// It differs from the cached one.
    pub is_new: bool,
    /// What it means for the SVID of each identity, in the order of their indexes.
    pub svids: Vec<SvidTrust>,
}

/// What a trust bundle means for the current SVID of an identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SvidTrust {
    /// Whether an anchor leads to the SVID. `None` without an SVID, or under an empty bundle: then
    /// no other SVID would be better.
    pub vouches: Option<bool>,
    /// Last moment at which the SVID can be used. `None` without one.
    pub svid_ends: Option<Timestamp>,
    /// When the validity of the anchor that leads to the SVID begins, if that is still to come, or
    /// ends. Some peers accept it no longer, and another bundle helps.
    pub anchor_changes: Option<Timestamp>,
}

/// Facts of an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidFacts {
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment at which it can be used: the first end among the leaf and the issuers that it
    /// needs.
    pub not_after: Timestamp,
    /// The renewal moment stored with it. `None`: it is drawn when the lifecycle learns of the
    /// SVID.
    pub renew_at: Option<Timestamp>,
    /// Whether its key was the pending one.
    pub key: KeyChoice,
    /// The key is of the kind that the configuration asks for: in the TPM, for instance.
    pub key_fits: bool,
    /// How long the key has been in use.
    pub key_use: KeyUse,
}

/// Why an issued chain was not adopted.
#[derive(Clone, Debug)]
pub enum NotAdopted {
    /// It becomes valid at this moment, and is kept until then (miaf-v0 E4).
    Early(Timestamp),
    /// The cached bundle does not vouch for it. It is kept until the bundle has been fetched once
    /// more (miaf-v0 E4).
    UnknownIssuer,
    /// An issuer of it has expired, under a bundle that was just fetched. It is kept until the
    /// bundle changes or the slow next request is due: the MIS would issue another like it. For a
    /// chain that an operator brought, also one of an issuer that is not in that bundle.
    IssuerExpired(Failure),
    /// The issuers that the MIS serves do not lead to an anchor of a bundle that was just fetched.
    /// It is kept and validated again after each fetch of the bundle (X63): where there is a key to
    /// renew with, another is requested slowly.
    NoPath(Failure),
    /// It could not be validated or stored now, on a full disk for instance. It is kept.
    Kept(Failure),
    /// It is invalid, and has been discarded. The current SVID stays.
    Refused(Failure),
}

/// What the agent finds on disk at start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Cached documents and clock.
    pub trust_domain: RestoredTrustDomain,
    /// One entry for each configured identity.
    pub identities: Vec<RestoredIdentity>,
}

/// The trust domain's part of [`Restored`].
#[derive(Clone, Debug, Default)]
pub struct RestoredTrustDomain {
    /// The cached discovery document.
    pub discovery: Option<DiscoveryFacts>,
    /// The cached bundle.
    pub bundle: Option<RestoredBundle>,
    /// Retry-After delays.
    pub memory: TrustDomainMemory,
    /// What is known of the time.
    pub time: KnownTime,
}

/// A cached trust bundle.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoredBundle {
    /// It holds no anchor.
    pub is_empty: bool,
    /// Poll interval that the MIS suggests.
    pub refresh_hint: Option<Duration>,
}

/// An identity's part of [`Restored`].
#[derive(Clone, Debug, Default)]
pub struct RestoredIdentity {
    /// Its settings.
    pub policy: IdentityPolicy,
    /// The current SVID.
    pub svid: Option<SvidFacts>,
    /// Whether a key is pending: it may have been sent already.
    pub pending_key: bool,
    /// Whether an issued chain is pending.
    pub issued_chain: bool,
    /// Whether there is a token that may be used (X31).
    pub has_token: bool,
    /// The last refusal of that token. It is not sent sooner for the restart.
    pub token_refusal: Option<LastError>,
    /// The key that this token was sent with, if it was.
    pub token_key: Option<KeyChoice>,
    /// Retry-After delay and permissions.
    pub memory: IdentityMemory,
}

/// State that must survive a restart, in addition to documents, keys and SVIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of the trust domain.
    pub trust_domain: TrustDomainMemory,
    /// Of each identity, in the order of their indexes.
    pub identities: Vec<IdentityMemory>,
}

/// The trust domain's part of [`Memory`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustDomainMemory {
    /// End of the Retry-After delay of discovery (miaf-v0 E8).
    pub discovery_retry_after: Option<BootTime>,
    /// The error that discovery waits after.
    pub discovery_error: Option<LastError>,
    /// End of the Retry-After delay of the bundle.
    pub bundle_retry_after: Option<BootTime>,
}

/// An identity's part of [`Memory`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityMemory {
    /// End of the Retry-After delay of enrollment and renewal (miaf-v0 E8).
    pub retry_after: Option<BootTime>,
    /// The error that enrollment or renewal waits after.
    pub error: Option<LastError>,
    /// The operator of the MIS has yet to admit this device (miaf-v0 E7).
    pub admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    pub replace_lost_key: bool,
}

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// To execute now.
    pub action: Option<Action>,
    /// Time until the next step, if no event comes first. `None` only while an action is in flight.
    pub wake_in: Option<Duration>,
}

/// A source of random numbers, uniform in `0.0..1.0`.
pub type Jitter<'a> = &'a mut dyn FnMut() -> f64;

impl Memory {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.trust_domain == TrustDomainMemory::default()
            && self.identities.iter().all(|identity| *identity == IdentityMemory::default())
    }

    /// Ends of all Retry-After delays, in a fixed order.
    pub fn retry_after(&self) -> Vec<Option<BootTime>> {
        let TrustDomainMemory { discovery_retry_after, bundle_retry_after, .. } = self.trust_domain;
        let shared = [discovery_retry_after, bundle_retry_after].into_iter();
        shared.chain(self.identities.iter().map(|identity| identity.retry_after)).collect()
    }
}
