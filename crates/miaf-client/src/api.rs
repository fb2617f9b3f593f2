//! The JSON of the socket API, as the agent writes it and programs read it (docs/agent-api.yaml). Times are
//! RFC 3339 in UTC.

use serde::{Deserialize, Serialize};

use miaf_spiffe::{BundleDocument, json};

/// More than any agent sends.
const MAX_CERTIFICATES: usize = 64;

/// `GET /v1/status`. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Status {
    pub state: String,
    pub trust_domain: Option<String>,
    pub spiffe_id: Option<String>,
    pub svid: Option<SvidStatus>,
    pub key: KeyStatus,
    pub bundle: Option<BundleStatus>,
    pub bootstrap: Option<BootstrapStatus>,
    pub initial_trust: Option<TrustStatus>,
    pub last_error: Option<ErrorStatus>,
}

/// The current SVID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SvidStatus {
    pub serial: String,
    pub not_before: String,
    /// End of its use: the first end among the certificate and the issuers that it needs.
    pub not_after: String,
    /// End of the certificate itself, where that comes later.
    #[serde(default)]
    pub leaf_not_after: Option<String>,
    /// A retry-after delay of the MIS lasts longer than this SVID: in between there is none.
    #[serde(default)]
    pub ends_while_waiting: bool,
    pub renew_at: Option<String>,
    /// Interval from which `renew_at` is drawn, as long as nothing brings it forward.
    #[serde(default)]
    pub renewal_window: Option<WindowStatus>,
}

/// Start and end of an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct WindowStatus {
    pub from: String,
    pub to: String,
}

/// The key of the SVID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KeyStatus {
    pub provider: String,
    pub protection: Option<String>,
    pub algorithm: Option<String>,
    /// It cannot be used any more, since its TPM was replaced or cleared: a local program cannot
    /// prove the device's identity.
    #[serde(default)]
    pub lost: bool,
}

/// The current trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BundleStatus {
    pub sequence: Option<u64>,
    pub fetched_at: String,
    pub refresh_at: Option<String>,
}

/// The factory certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct BootstrapStatus {
    pub not_before: String,
    pub not_after: String,
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

/// The last error: the members of Problem Details (RFC 9457), and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ErrorStatus {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: Option<u16>,
    pub detail: Option<String>,
    pub instance: Option<String>,
    pub at: String,
    pub retry_at: Option<String>,
    /// End of a retry-after delay of the MIS. The agent sends no request for an SVID before.
    #[serde(default)]
    pub waits_until: Option<String>,
    /// What to do, where the agent cannot continue by itself.
    #[serde(default)]
    pub hint: Option<String>,
    pub permanent: bool,
}

/// `GET /v1/svid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct SvidDocument {
    pub spiffe_id: String,
    /// Serial number of the leaf, by which `POST /v1/sign` identifies the SVID.
    pub serial: String,
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_CERTIFICATES>")]
    pub certificate_chain_pem: Vec<String>,
    pub not_before: String,
    pub not_after: String,
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
    /// As `GET /v1/svid` has it. `None` before the first enrollment.
    pub svid: Option<SvidDocument>,
    /// As `GET /v1/bundle` has it. `None` while there is none.
    pub bundle: Option<BundleDocument>,
}
