//! SVIDs: what a leaf says, and signing it (E4).

use crate::policy::{LONGEST_LIFETIME, Policy};
use crate::x509::{self, CLIENT_AUTH, Ca, Der, SERVER_AUTH, Template};
use der::asn1::ObjectIdentifier;
use der::flagset::FlagSet;
use development_server::Result;
use std::time::SystemTime;
use x509_cert::ext::pkix::KeyUsages;

/// An SVID before it is signed. [`LeafSpec::new`] makes a good one; only a fault changes it.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    /// URI SANs: the SPIFFE ID.
    pub uris: Vec<String>,
    /// DNS names in addition.
    pub dns: Vec<String>,
    /// The key of the CSR, DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// Basic constraints.
    pub ca: bool,
    /// Key usage; `None` leaves the extension out.
    pub key_usage: Option<FlagSet<KeyUsages>>,
    /// Whether key usage is critical.
    pub key_usage_critical: bool,
    /// Extended key usage.
    pub extended: Vec<ObjectIdentifier>,
    /// The common name of the subject; empty where it is `None`.
    pub subject: Option<String>,
    /// Whether the SAN is critical, as it must be with an empty subject (RFC 5280).
    pub names_critical: bool,
    /// Serial number; a random one where it is `None`.
    pub serial: Option<Vec<u8>>,
}

impl LeafSpec {
    /// An SVID for this identity and key, valid from now (less the back-dating) as policy says.
    pub fn new(spiffe_id: &str, spki: &[u8], policy: &Policy) -> Self {
        let now = SystemTime::now();
        let not_before = now - policy.backdate.min(LONGEST_LIFETIME);
        Self {
            uris: vec![spiffe_id.to_owned()],
            dns: Vec::new(),
            spki: spki.to_vec(),
            not_before,
            not_after: (now + policy.svid_lifetime.min(LONGEST_LIFETIME)).min(not_before + LONGEST_LIFETIME),
            ca: false,
            key_usage: Some(KeyUsages::DigitalSignature.into()),
            key_usage_critical: true,
            extended: vec![SERVER_AUTH, CLIENT_AUTH],
            subject: None,
            names_critical: true,
            serial: None,
        }
    }

    /// Signs it.
    pub fn sign(&self, issuer: &Ca) -> Result<Der> {
        let mut extensions = vec![x509::basic_constraints(self.ca)?];
        if let Some(usage) = self.key_usage {
            extensions.push(x509::key_usage(usage, self.key_usage_critical)?);
        }
        extensions.push(x509::extended_key_usage(&self.extended)?);
        if !self.uris.is_empty() || !self.dns.is_empty() {
            extensions.push(x509::svid_names(&self.uris, &self.dns, self.names_critical)?);
        }
        issuer.issue(&Template {
            subject: x509::common_name(self.subject.as_deref().unwrap_or_default())?,
            spki: self.spki.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            extensions,
            serial: self.serial.clone(),
        })
    }
}
