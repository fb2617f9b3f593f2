//! What the operator decides. Everything here can be changed while the server runs.

use crate::wire::{BINDING_METHOD, FACTORY_METHOD, X509_PROFILE};
use crate::x509;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The longest validity of a device SVID: five years.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(5 * 365 * 86_400);
/// The shortest that the command line takes; a test may go below.
pub const SHORTEST_LIFETIME: Duration = Duration::from_secs(60);

/// The form of the public documents, and so of what this server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Documents {
    /// MIAF v0: discovery with five members, a Bundle Map, enrollment and renewal.
    V0,
    /// Released Margo (N3, N4, N13): discovery with two members, a plain bundle, its Problem
    /// Details. Nothing is issued over the network: the operator mints.
    Released,
}

/// The operator's decisions.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The form of the public documents.
    pub documents: Documents,
    /// Whether there is a discovery document; it is optional in released Margo (N3).
    pub discovery: bool,
    /// From issuance to `notAfter`; at most [`LONGEST_LIFETIME`] from `notBefore`.
    pub svid_lifetime: Duration,
    /// How far before issuance `notBefore` lies.
    pub backdate: Duration,
    /// Whether a new device gets an identity at once.
    pub admission: Admission,
    /// A known device may enroll again with a new key (E6). The SVIDs it had are then invalid.
    pub rotation_at_enrollment: bool,
    /// A renewal may bring a new key (R4).
    pub rotation_at_renewal: bool,
    /// Successful re-enrollments per identity.
    pub enrollment_limit: Option<Limit>,
    /// Successful renewals per identity (R5). The SUP recommends 5 in 24 hours; the default here
    /// is 60 a minute, so that short lifetimes can be shown.
    pub renewal_limit: Option<Limit>,
    /// `supportedBootstrapMethods`; anything else gets `422`.
    pub methods: Vec<String>,
    /// The WFMs whose binding assertions count, by `wfmId` (W5). Each signs for itself; the value
    /// has the SPIFFE IDs of further signers. [`Policy::accept_wfm`] adds one.
    pub wfms: BTreeMap<String, Vec<String>>,
    /// `svidProfilesSupported`; anything else gets `422`.
    pub profiles: Vec<String>,
    /// `spiffe_refresh_hint` in seconds (B4).
    pub refresh_hint: Option<u64>,
    /// Refuse a bad client certificate in the TLS handshake, as many real servers do, and not with
    /// a `401`.
    pub refuse_in_handshake: bool,
    /// Whether the handshake asks for a client certificate.
    pub client_certificates: ClientCertificates,
    /// TLS 1.2 and nothing newer (X26).
    pub tls12_only: bool,
    /// EST.
    pub est: EstPolicy,
}

/// Whether the handshake asks for a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Of everyone; a client may have none.
    Requested,
    /// Of no one (X29).
    NotRequested,
    /// Of everyone; a handshake without one fails.
    Required,
}

/// `estBaseUri` in the discovery document (X13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EstBaseUri {
    /// None.
    Absent,
    /// That of this server and its own Trust Domain.
    Own,
    /// Another, whatever it is (X18).
    Other(String),
}

/// The operator's decisions about EST.
#[derive(Debug, Clone)]
pub struct EstPolicy {
    /// `estBaseUri` in the discovery document.
    pub base_uri: EstBaseUri,
    /// `crlUris` in the discovery document (X13); `None` leaves it out.
    pub crl_uris: Option<Vec<String>>,
    /// How many intermediates issue below the authority of the Trust Domain, one after the other;
    /// `/cacerts` has them (X61).
    pub intermediates: usize,
    /// Issue for `/margo/device/<uuid>` too, which is not standardized (X7).
    pub device_ids: bool,
    /// Accept tokens at `/simpleenroll` (X33).
    pub token_form: bool,
    /// Accept registered certificates at `/simpleenroll` (X33).
    pub certificate_form: bool,
    /// Hold each first enrollment until its SPIFFE ID is released (X55).
    pub review: bool,
    /// `Retry-After` of enrollments that are held, in seconds.
    pub retry_after: u64,
    /// How long after the first issuance a single-use token serves its key again (X38).
    pub window: Duration,
    /// Whether a renewal has to repeat subject and SAN byte for byte (X65).
    pub compare_names: bool,
    /// Permit a subject and a SAN in the first CSR (X46, X49); they are overridden.
    pub names_in_csr: bool,
    /// A common name for SVIDs; their subject is empty without.
    pub subject: Option<String>,
    /// Attempts of each authorization (X89).
    pub attempts: Option<Limit>,
}

impl Default for EstPolicy {
    fn default() -> Self {
        Self {
            base_uri: EstBaseUri::Absent,
            crl_uris: None,
            intermediates: 1,
            device_ids: false,
            token_form: true,
            certificate_form: true,
            review: false,
            retry_after: 300,
            window: Duration::from_secs(600),
            compare_names: true,
            names_in_csr: false,
            subject: None,
            attempts: Some(Limit { successes: 60, window: Duration::from_secs(60) }),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let limit = Some(Limit { successes: 60, window: Duration::from_secs(60) });
        Self {
            documents: Documents::V0,
            discovery: true,
            svid_lifetime: Duration::from_secs(86_400),
            backdate: Duration::from_secs(30),
            admission: Admission::Open,
            rotation_at_enrollment: true,
            rotation_at_renewal: true,
            enrollment_limit: limit,
            renewal_limit: limit,
            methods: vec![FACTORY_METHOD.to_owned()],
            wfms: BTreeMap::new(),
            profiles: vec![X509_PROFILE.to_owned()],
            refresh_hint: Some(300),
            refuse_in_handshake: false,
            client_certificates: ClientCertificates::Requested,
            tls12_only: false,
            est: EstPolicy::default(),
        }
    }
}

impl Policy {
    /// Discovery and validation agree: a method counts if it is listed and this server knows it.
    pub fn knows_method(&self, method: &str) -> bool {
        [FACTORY_METHOD, BINDING_METHOD].contains(&method) && self.methods.iter().any(|known| known == method)
    }

    /// Takes binding assertions of this WFM, and offers the method for them.
    pub fn accept_wfm(&mut self, wfm_id: &str) {
        self.wfms.entry(wfm_id.to_owned()).or_default();
        if !self.methods.iter().any(|known| known == BINDING_METHOD) {
            self.methods.push(BINDING_METHOD.to_owned());
        }
    }

    /// The same for profiles.
    pub fn knows_profile(&self, profile: &str) -> bool {
        profile == X509_PROFILE && self.profiles.iter().any(|known| known == profile)
    }
}

/// Who admits new devices (E7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Every device with a good credential.
    Open,
    /// The operator, one by one; until then `409 enrollment-pending`.
    Pending {
        /// `Retry-After` in seconds.
        retry_after: u64,
        /// Admitted, by ESI (lowercase hexadecimal).
        admitted: BTreeSet<String>,
        /// Admit by itself so long after the first request.
        after: Option<Duration>,
    },
}

impl Admission {
    /// No device is admitted yet.
    pub fn pending(retry_after: u64) -> Self {
        Self::Pending { retry_after, admitted: BTreeSet::new(), after: None }
    }

    /// Admits the device with this leaf certificate (DER).
    pub fn admit(&mut self, leaf: &[u8]) {
        if let Self::Pending { admitted, .. } = self {
            admitted.insert(esi(leaf));
        }
    }
}

/// So many successes in so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many; for EST, attempts.
    pub successes: usize,
    /// In how long.
    pub window: Duration,
}

/// Enrollment Subject Identifier: SHA-256 of the DER leaf certificate (E5), lowercase hexadecimal.
pub fn esi(leaf: &[u8]) -> String {
    x509::hex(&x509::sha256(leaf))
}
