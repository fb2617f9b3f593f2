//! What goes into the lifecycle and what comes out of it.

use std::time::Duration;

use super::backoff::Backoff;
use super::clock_trust::KnownTime;
use super::retry_gate::{Failure, LastError, Report};
use crate::time::{BootTime, Timestamp};

/// The parts of the configuration that decide when things happen.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Renewal moment, as fractions of the lifetime (miaf-v0 R2).
    pub window: (f64, f64),
    /// Backoff between attempts (miaf-v0 R7).
    pub retry: Backoff,
    /// Longest time between two looks at the bundle where the MIS gives no hint (miaf-v0 B4).
    pub bundle_refresh: Duration,
    /// Whether to ask with a new key at every renewal (miaf-v0 R4).
    pub rotate: bool,
}

/// What to carry out. Exactly one is under way at a time; its outcome comes back as an [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch or revalidate the discovery document (miaf-v0 D1).
    FetchDiscovery,
    /// Fetch or revalidate the trust bundle (miaf-v0 B4).
    FetchBundle,
    /// Generate a key and make it durable, before any request is sent with it (miaf-v0 E6).
    CreateKey,
    /// Send a request for an SVID and make the answer durable.
    Request(Request, KeyChoice),
    /// See whether the key of the SVID held can be used: its chip may have been replaced or cleared while the device was
    /// off.
    ProveKey,
    /// Judge the durable answer, and publish it if it is good.
    Adopt {
        /// The bundle has been fetched since the answer came: an unknown issuer is now a refusal.
        bundle_is_fresh: bool,
    },
}

/// The two ways to an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// With the factory certificate (miaf-v0 E).
    Enroll,
    /// With the SVID that is held (miaf-v0 R).
    Renew,
}

/// The key that a request is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChoice {
    /// The one made for the next SVID.
    Pending,
    /// The one of the SVID that is held.
    Current,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time has passed, or the wall clock was set: nothing else is known.
    Wake,
    /// The operator wants something.
    Command(Command),
    /// [`Action::FetchDiscovery`] ended.
    Discovery(Result<DiscoveryFacts, Failure>),
    /// [`Action::FetchBundle`] ended.
    Bundle(Result<BundleFacts, Failure>),
    /// [`Action::CreateKey`] ended.
    KeyCreated(Result<(), Failure>),
    /// [`Action::ProveKey`] ended.
    KeyProven(Result<(), Failure>),
    /// [`Action::Request`] ended. `Ok`: an answer is durable.
    Issued(Result<(), Failure>),
    /// [`Action::Adopt`] ended. `Ok`: the SVID is published, and the pending key, if it was its key, is now current.
    Adopted(Result<SvidFacts, NotAdopted>),
}

/// What an operator can have done at once. No order makes the agent ask an MIS that wants to be left alone (miaf-v0 E8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Everything that was refused, or is waited for, is tried again; the wall clock is right as it is.
    Retry,
    /// The SVID is renewed now.
    Renew,
    /// As [`Backoff`](Self::Retry), and should the key of the SVID held be lost, another takes its place.
    ReplaceKey,
}

/// What the lifecycle needs to know of a discovery document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryFacts {
    /// It differs from the one held before: a correction in the sense of miaf-v0 P2.
    pub changed: bool,
    /// Why no enrollment is possible under it, if so (miaf-v0 D5).
    pub cannot_enroll: Option<Report>,
    /// Why no renewal is possible under it, if so.
    pub cannot_renew: Option<Report>,
}

/// What the lifecycle needs to know of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleFacts {
    /// The MIS's wish for the next look.
    pub refresh_hint: Option<Duration>,
    /// Whether an anchor of it leads to the SVID held. `None` where none is held, or where the bundle is empty: then no
    /// other SVID would be better.
    pub vouches: Option<bool>,
    /// It holds no anchor: no SVID of the trust domain is trusted (miaf-v0 B3).
    pub is_empty: bool,
    /// It is not the one that was held.
    pub is_new: bool,
    /// Under it, the last moment at which the SVID held can be used. `None` where none is held.
    pub svid_ends: Option<Timestamp>,
    /// When the validity of the anchor that leads to the SVID held begins, if that is still to come, or ends. Some peers
    /// accept it no longer, and another bundle helps.
    pub anchor_changes: Option<Timestamp>,
}

/// What the lifecycle needs to know of an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidFacts {
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment at which it can be used: the first end among the leaf and the issuers that it needs.
    pub not_after: Timestamp,
    /// The renewal moment drawn for it, where one was stored.
    pub renew_at: Option<Timestamp>,
    /// Whether its key was the pending one.
    pub key: KeyChoice,
    /// The key is of the kind that would be made now: in the TPM, say, where the configuration wants it there.
    pub key_fits: bool,
}

/// Why an answer was not adopted.
#[derive(Clone, Debug)]
pub enum NotAdopted {
    /// It becomes valid at this moment; it is kept until then (miaf-v0 E4).
    Early(Timestamp),
    /// The bundle held does not vouch for it; it is kept until the bundle has been fetched once more (miaf-v0 E4).
    UnknownIssuer,
    /// An issuer of it has expired, under a bundle that was just fetched. It is kept until there is another bundle, or
    /// until it is asked for anew, slowly: the MIS would issue another like it.
    IssuerExpired(Failure),
    /// It could not be judged or published now (disk full, say); it is kept.
    Kept(Failure),
    /// It is not acceptable, and has been discarded. What was held stays.
    Refused(Failure),
}

/// What was found on disk at start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// A cached discovery document.
    pub discovery: Option<DiscoveryFacts>,
    /// Whether there is a cached bundle, and whether it holds no anchor.
    pub bundle: bool,
    /// See [`bundle`](Self::bundle).
    pub bundle_is_empty: bool,
    /// What its MIS wished for the next look at it.
    pub bundle_refresh_hint: Option<Duration>,
    /// The SVID held.
    pub svid: Option<SvidFacts>,
    /// Whether a key is pending: it may already have been sent.
    pub pending_key: bool,
    /// Whether an answer waits to be adopted.
    pub answer: bool,
    /// What was to be remembered.
    pub memory: Memory,
    /// What is known of the time.
    pub time: KnownTime,
}

/// What a restart must not make the lifecycle forget, beside what is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Waits that the MIS asked for and that are not over (miaf-v0 E8).
    pub waits: Waits,
    /// Why discovery has to wait.
    pub discovery_waits_because: Option<LastError>,
    /// Why enrollment or renewal has to wait.
    pub waits_because: Option<LastError>,
    /// The device waits for the operator of the MIS to admit it (miaf-v0 E7).
    pub admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    pub replace_lost_key: bool,
}

/// Until when the MIS asked not to be asked again, by kind of work. Survives a restart (miaf-v0 E8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Discovery.
    pub discovery: Option<BootTime>,
    /// Bundle.
    pub bundle: Option<BootTime>,
    /// Enrollment and renewal.
    pub identity: Option<BootTime>,
}

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// To carry out now.
    pub action: Option<Action>,
    /// When to look again if nothing happens before. `None` only while an action is under way.
    pub wake_in: Option<Duration>,
}

/// A source of random numbers, uniform in `0.0..1.0`.
pub type Draw<'a> = &'a mut dyn FnMut() -> f64;
