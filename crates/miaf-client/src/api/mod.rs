//! The JSON of the socket API, as the agent writes it and programs read it (docs/agent-api.yaml).
//! Times are RFC 3339 in UTC. States, protection classes and codes are words that a newer agent may
//! add to: see [`Open`].

mod est;
mod identity_name;
mod open;
mod problem_code;
mod state;

use serde::{Deserialize, Serialize};

pub use est::{EstAuthorization, EstStatus, EstUrlSource};
pub use identity_name::{IdentityName, NotAName};
pub use open::{Open, Word};
pub use problem_code::ProblemCode;
pub use state::{Protection, State};

use miaf_spiffe::time::{Timestamp, rfc3339};
use miaf_spiffe::{BundleDocument, json};

/// Limit on the bytes of a certificate chain, in PEM, that an operator installs.
pub const MAX_CHAIN_PEM: usize = 64 * 1024;
/// More certificates than any agent sends.
const MAX_CERTIFICATES: usize = 64;
/// More identities than any agent has.
const MAX_IDENTITIES: usize = 64;

/// `GET /v1/status`: what exists once on the device, and its identities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Status {
    pub trust_domain: Option<String>,
    pub bundle: Option<BundleStatus>,
    pub bootstrap: Option<BootstrapStatus>,
    pub initial_trust: Option<TrustStatus>,
    /// The error that concerns the device, and not one identity alone.
    pub last_error: Option<ErrorStatus>,
    /// At least one. The first is the default identity.
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_IDENTITIES>")]
    pub identities: Vec<IdentityStatus>,
}

impl Status {
    /// The identity with this name; without a name, the default identity.
    pub fn identity(&self, name: Option<&IdentityName>) -> Option<&IdentityStatus> {
        match name {
            Some(name) => self.identities.iter().find(|identity| identity.name == *name),
            None => self.identities.first(),
        }
    }
}

/// One identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct IdentityStatus {
    pub name: IdentityName,
    pub state: Open<State>,
    /// Whether a program can prove this identity now: its SVID is valid, its key is not lost, and
    /// the trust bundle vouches for it.
    pub ready: bool,
    pub spiffe_id: Option<String>,
    pub svid: Option<SvidStatus>,
    pub key: KeyStatus,
    /// The way to the identity, as `enroll` in the configuration has it. `None`: an older agent.
    #[serde(default)]
    pub enroll: Option<String>,
    /// How it enrolls over EST. `None`: it is obtained in another way, or the agent is older.
    #[serde(default)]
    pub est: Option<EstStatus>,
    /// The error that concerns this identity alone.
    pub last_error: Option<ErrorStatus>,
}

impl IdentityStatus {
    /// Whether an operator brings the SVIDs of this identity: the agent requests none.
    pub fn is_by_operator(&self) -> bool {
        matches!(self.enroll.as_deref(), Some("manual" | "installed"))
    }

    /// Whether an operator brings the enrollment tokens of this identity, which enrolls over EST.
    pub fn is_by_token(&self) -> bool {
        self.est.as_ref().is_some_and(|est| est.authorization == EstAuthorization::Token)
    }

    /// The error that keeps this identity from its next step: its own, or the device's (`shared`)
    /// where only that one needs a correction.
    pub fn error<'a>(&'a self, shared: Option<&'a ErrorStatus>) -> Option<&'a ErrorStatus> {
        let own = self.last_error.as_ref();
        let needs_correction = |error: &&ErrorStatus| error.permanent;
        own.filter(needs_correction).or(shared.filter(needs_correction)).or(own).or(shared)
    }
}

/// The current SVID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SvidStatus {
    pub serial: String,
    #[serde(with = "rfc3339")]
    pub not_before: Timestamp,
    /// End of its use: the first end among the certificate and the issuers that it needs.
    #[serde(with = "rfc3339")]
    pub not_after: Timestamp,
    /// `false`: valid by the clock, but the trust bundle does not vouch for it, so peers refuse it.
    #[serde(default = "unless_denied")]
    pub trusted: bool,
    /// End of the certificate itself, where that comes later.
    #[serde(default, with = "rfc3339::option")]
    pub leaf_not_after: Option<Timestamp>,
    /// A retry-after delay of the MIS lasts longer than this SVID: in between there is none.
    #[serde(default)]
    pub ends_while_waiting: bool,
    #[serde(default, with = "rfc3339::option")]
    pub renew_at: Option<Timestamp>,
    /// Interval from which `renew_at` is drawn, as long as nothing brings it forward.
    #[serde(default)]
    pub renewal_window: Option<WindowStatus>,
}

/// An older agent does not tell.
fn unless_denied() -> bool {
    true
}

/// Start and end of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WindowStatus {
    #[serde(with = "rfc3339")]
    pub from: Timestamp,
    #[serde(with = "rfc3339")]
    pub to: Timestamp,
}

/// The key of the SVID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KeyStatus {
    pub provider: String,
    pub protection: Option<Open<Protection>>,
    pub algorithm: Option<String>,
    /// It cannot be used any more, since what it is bound to is gone: a program cannot prove the
    /// identity.
    #[serde(default)]
    pub lost: bool,
    /// When its first SVID was adopted, if that is known.
    #[serde(default, with = "rfc3339::option")]
    pub since: Option<Timestamp>,
    /// How many renewals have kept it.
    #[serde(default)]
    pub renewals: u32,
}

/// The current trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BundleStatus {
    pub sequence: Option<u64>,
    #[serde(with = "rfc3339")]
    pub fetched_at: Timestamp,
    #[serde(default, with = "rfc3339::option")]
    pub refresh_at: Option<Timestamp>,
    /// It is older than `bundle.max_age` allows.
    #[serde(default)]
    pub stale: bool,
    /// When it becomes so, or did. `None`: there is no limit.
    #[serde(default, with = "rfc3339::option")]
    pub stale_at: Option<Timestamp>,
}

/// The factory certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BootstrapStatus {
    #[serde(with = "rfc3339")]
    pub not_before: Timestamp,
    #[serde(with = "rfc3339")]
    pub not_after: Timestamp,
    /// SHA-256 of the certificate, in hex, by which the MIS identifies the device (miaf-v0 E5).
    pub sha256: String,
    pub key: BootstrapKeyStatus,
}

/// The factory certificate's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BootstrapKeyStatus {
    pub algorithm: String,
    pub in_tpm: bool,
}

/// The initial trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct TrustStatus {
    pub ca_file: Option<String>,
    /// Certificates in `ca_file`.
    pub anchors: usize,
    pub pins: usize,
    pub system_roots: bool,
}

/// An error, and what follows from it. `title`, `detail`, `status`, `type` and `instance` are as in
/// Problem Details (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ErrorStatus {
    pub code: Open<ProblemCode>,
    pub title: String,
    /// What failed, on what, and why.
    pub detail: Option<String>,
    /// What to do, where the agent cannot continue by itself.
    #[serde(default)]
    pub hint: Option<String>,
    /// HTTP status of the MIS's response.
    pub status: Option<u16>,
    /// Type of the MIS's Problem Details.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The occurrence, as the MIS names it for its operator.
    pub instance: Option<String>,
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    #[serde(default, with = "rfc3339::option")]
    pub retry_at: Option<Timestamp>,
    /// End of a retry-after delay of the MIS. The agent sends no request for an SVID before.
    #[serde(default, with = "rfc3339::option")]
    pub waits_until: Option<Timestamp>,
    pub permanent: bool,
}

/// `GET /v1/identities/{name}/svid`; `GET /v1/svid` is that of the default identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SvidDocument {
    /// The name of the identity.
    pub identity: IdentityName,
    pub spiffe_id: String,
    /// Serial number of the leaf, by which a request for a signature identifies the SVID.
    pub serial: String,
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_CERTIFICATES>")]
    pub certificate_chain_pem: Vec<String>,
    #[serde(with = "rfc3339")]
    pub not_before: Timestamp,
    #[serde(with = "rfc3339")]
    pub not_after: Timestamp,
    pub generation: Option<u64>,
}

/// Body of a `202`: the command is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Always true: for programs that read the body only.
    pub accepted: bool,
    /// What will happen, as a sentence.
    pub detail: String,
}

/// Body of a response with a certificate signing request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsrResponse {
    /// The name of the identity.
    pub identity: IdentityName,
    /// The PKCS#10, in PEM.
    pub csr: String,
}

/// Body of a response with a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignResponse {
    /// ECDSA signature in DER, in Base64.
    pub signature: String,
    /// Serial number of the SVID whose key has signed.
    pub serial: String,
    /// The generation of published files with this SVID; none for the previous SVID.
    pub generation: Option<u64>,
}

/// Data of an event called `state`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateEvent {
    /// As `GET /v1/status` has it.
    pub status: Status,
    /// As `GET /v1/identities/{name}/svid` has them: of each identity that has one.
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_IDENTITIES>")]
    pub svids: Vec<SvidDocument>,
    /// As `GET /v1/bundle` has it. `None` while there is none.
    pub bundle: Option<BundleDocument>,
}
