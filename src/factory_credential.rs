//! The factory credential: the certificate that the device's maker or operator gave it, and its
//! key. It proves to the MIS which device requests an identity (miaf-v0 E1, K5), and does not
//! authenticate the MIS (T5).
//!
//! It can be replaced while the agent runs. A bad replacement does not take the place of the last
//! good one.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::config::{self, CredentialKind, FactoryCertificateLocation, FactoryKeyLocation};
use crate::hint::{Hint, Reason};
use crate::keys::KeyError;
use crate::keys::factory_key::{self, Source};
use crate::keys::tpm::{AuthValue, Tpm};
use crate::platform::credentials::SecretError;
use crate::platform::{access, files};
use crate::problem::{LastError, ProblemCode, Report};
use crate::x509;
use miaf_spiffe::digest::{Hex, sha256};
use miaf_spiffe::pem;
use miaf_spiffe::time::Timestamp;

/// Factory certificate with its intermediates, and the key, which is checked to be the
/// certificate's.
#[derive(Clone)]
pub struct FactoryCredential {
    certified: CertifiedKey,
    facts: CredentialFacts,
    /// Ends of validity of its intermediates.
    ends: Vec<x509::End>,
    /// The key is known to work, as far as that can be checked.
    proven: bool,
}

/// Why the credential is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To authenticate to an MIS: a key in the TPM makes a signature.
    Use,
    /// To check it: a key in the TPM is not used, since a power cut after its use may count as a
    /// guess of its password.
    Check,
}

/// Properties of the credential, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFacts {
    /// What it is called.
    pub kind: CredentialKind,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate, in hex, by which an MIS identifies the device (miaf-v0 E5).
    pub sha256: String,
    /// The key's algorithm, such as `ecdsa-p256`.
    pub algorithm: &'static str,
    /// The key is in the TPM.
    pub in_tpm: bool,
    /// Faults that do not prevent its use and should be corrected.
    pub warnings: Vec<String>,
}

impl FactoryCredential {
    /// Reads certificate and key. Blocks, and uses the TPM where one of them is in it.
    ///
    /// Only the dates and the key of the certificate are parsed. Its acceptance is decided by the
    /// MIS, which may know extensions and forms that no library here does.
    ///
    /// # Errors
    /// [`CredentialError`]. Validity is not checked: see [`FactoryCredential::check_validity`].
    pub fn read(
        config: &config::BootstrapConfig,
        tpm: &Tpm,
        purpose: Purpose,
    ) -> Result<Self, CredentialError> {
        let (chain, mut warnings) = read_chain(config, tpm)?;
        let auth = match &config.key_auth {
            Some(secret) => {
                // An unreadable secret has an error of its own.
                secret.read().map_err(|why| CredentialError::Auth { kind: config.kind, why })?;
                Some(AuthValue::from_secret(secret.clone()))
            }
            None => None,
        };
        let source = match &config.key {
            FactoryKeyLocation::File(path) => Source::File(path),
            FactoryKeyLocation::TpmHandle(handle) => Source::TpmHandle(*handle),
        };
        let key = match purpose {
            Purpose::Use => factory_key::open(source, auth.as_ref(), tpm)?,
            Purpose::Check => factory_key::inspect(source, auth.as_ref(), tpm)?,
        };
        let proven = purpose == Purpose::Use || !key.in_tpm;
        warnings.extend(key.warning);
        let facts = CredentialFacts { warnings, ..facts(config, &chain, key.algorithm, key.in_tpm)? };
        let ends = x509::ends_of_intermediates(&chain);
        let certified = CertifiedKey::new(chain, key.signing_key);
        if !x509::has_its_key(&certified) {
            let certificate = config.certificate.to_string();
            let key = config.key.to_string();
            return Err(CredentialError::Mismatch { kind: config.kind, certificate, key });
        }
        Ok(Self { certified, facts, ends, proven })
    }

    /// Checks that `now` is within the validity of the certificate.
    ///
    /// # Errors
    /// [`CredentialError::Expired`] and [`CredentialError::NotYetValid`].
    pub fn check_validity(&self, now: Timestamp) -> Result<(), CredentialError> {
        let CredentialFacts { not_before, not_after, .. } = self.facts;
        if now > not_after {
            Err(CredentialError::Expired { kind: self.facts.kind, not_after })
        } else if now < not_before {
            Err(CredentialError::NotYetValid { kind: self.facts.kind, not_before })
        } else {
            Ok(())
        }
    }

    /// First moment of its validity.
    pub fn not_before(&self) -> Timestamp {
        self.facts.not_before
    }

    /// Certificate chain and key for the TLS handshake.
    pub fn certified_key(&self) -> &CertifiedKey {
        &self.certified
    }
}

impl fmt::Debug for FactoryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FactoryCredential").field(&self.facts).finish()
    }
}

/// The credential in use, and the problem that the last check found.
#[derive(Clone, Debug, Default)]
pub struct CurrentCredential {
    kind: CredentialKind,
    good: Option<Arc<FactoryCredential>>,
    seen: Option<CredentialFacts>,
    problem: Option<CredentialProblem>,
    /// How many of [`WARN_AT_DAYS`] have been logged.
    warned: usize,
    /// The same for the intermediate that ends first.
    warned_of_intermediate: usize,
}

#[derive(Clone, Debug)]
struct CredentialProblem {
    found_in: Purpose,
    error: LastError,
}

impl CurrentCredential {
    /// That of an enrollment over EST.
    pub fn for_est() -> Self {
        Self { kind: CredentialKind::Est, ..Self::default() }
    }

    /// Title of the report of a bad credential.
    pub fn title(&self) -> &'static str {
        match self.kind {
            CredentialKind::Factory => "The factory credential cannot be used",
            CredentialKind::Est => "The certificate that authorizes the enrollment cannot be used",
        }
    }

    /// Report of a bad credential.
    pub fn report(&self, why: &CredentialError) -> Report {
        Report::of(ProblemCode::FactoryCredential, self.title(), why)
    }

    /// Updates the credential by the outcome of a read, and returns the one to use: the one that
    /// was read, or the one before if that is still good and the new one is not. Logs what has
    /// changed.
    ///
    /// # Errors
    /// Why there is none.
    pub fn update(
        &mut self,
        found: Result<FactoryCredential, CredentialError>,
        purpose: Purpose,
        now: Timestamp,
    ) -> Result<Arc<FactoryCredential>, CredentialError> {
        let facts = found.as_ref().ok().map(|credential| credential.facts.clone());
        match found.and_then(|credential| credential.check_validity(now).map(|()| Arc::new(credential))) {
            Ok(credential) => {
                self.log_replacement(&credential.facts);
                self.warn_of_expiry(&credential.facts, now);
                self.warn_of_intermediates(&credential.ends, now);
                self.seen = facts;
                self.clear_problem();
                // One that was merely checked does not take the place of one that is known to work.
                if credential.proven || self.good.as_ref().is_none_or(|good| !good.proven) {
                    self.good = Some(credential.clone());
                }
                Ok(credential)
            }
            Err(why) => {
                if matches!(why, CredentialError::NotConfigured) {
                    self.good = None; // removed from the configuration, and not replaced by a bad one
                }
                let good = self.good.clone().filter(|good| good.check_validity(now).is_ok());
                self.seen = match &good {
                    Some(good) => Some(good.facts.clone()),
                    None => facts.or(self.seen.take()),
                };
                self.record_problem(&why, purpose, good.is_some(), now);
                good.ok_or(why)
            }
        }
    }

    /// Properties of the credential in use, or of the last one that was read where none can be
    /// used.
    pub fn facts(&self) -> Option<&CredentialFacts> {
        self.seen.as_ref()
    }

    /// What is wrong with the provisioned credential.
    pub fn problem(&self) -> Option<&LastError> {
        self.problem.as_ref().map(|problem| &problem.error)
    }

    /// Purpose of the next periodic read. A mere check would not show that a use which failed works
    /// now.
    pub fn next_purpose(&self) -> Purpose {
        self.problem.as_ref().map_or(Purpose::Check, |problem| problem.found_in)
    }

    fn log_replacement(&self, facts: &CredentialFacts) {
        let CredentialFacts { not_after, sha256, algorithm, in_tpm, .. } = facts;
        match &self.seen {
            None => {
                tracing::info!(%not_after, sha256, algorithm, in_tpm, "{} certificate read", self.kind)
            }
            Some(before) if before.sha256 != *sha256 => tracing::warn!(
                %not_after, sha256, algorithm, in_tpm,
                "{} certificate replaced: the next enrollment uses it", self.kind
            ),
            Some(_) => {}
        }
        if self.seen.as_ref().is_none_or(|before| before.warnings != facts.warnings) {
            for warning in &facts.warnings {
                tracing::warn!("{warning}");
            }
        }
    }

    fn clear_problem(&mut self) {
        if self.problem.take().is_some() {
            tracing::info!("{} credential recovered", self.kind);
        }
    }

    fn record_problem(&mut self, why: &CredentialError, found_in: Purpose, has_another: bool, at: Timestamp) {
        let consequence =
            if has_another { "The one before it stays in use" } else { "No enrollment is possible for now" };
        let report = self.report(why).with_consequence(consequence);
        if let Some(problem) = self.problem.as_mut().filter(|problem| problem.error.report == report) {
            problem.found_in = found_in;
            return;
        }
        tracing::error!(code = report.code.as_str(), hint = report.hint(), "{}", report.message());
        self.problem = Some(CredentialProblem { found_in, error: LastError { report, at, permanent: true } });
    }

    fn warn_of_expiry(&mut self, facts: &CredentialFacts, now: Timestamp) {
        let passed = warnings_due(now.until(facts.not_after));
        if passed > self.warned {
            let (not_after, days) = (facts.not_after, now.until(facts.not_after).as_secs() / DAY.as_secs());
            tracing::warn!(
                %not_after, days,
                "{} certificate expires soon: replace it, or this device cannot enroll again", self.kind
            );
        }
        self.warned = passed;
    }

    /// Warns of the intermediate that expires first. It is no error when one has expired: an MIS
    /// may have newer ones itself.
    fn warn_of_intermediates(&mut self, ends: &[x509::End], now: Timestamp) {
        let first = ends.iter().min_by_key(|end| end.not_after);
        let passed = first.map_or(0, |end| warnings_due(now.until(end.not_after)));
        if let Some(x509::End { subject, not_after }) = first
            && passed > self.warned_of_intermediate
        {
            if now > *not_after {
                tracing::warn!(
                    %subject, %not_after,
                    "an intermediate of the {} certificate has expired: replace it in cert_file or \
                     intermediates_file, or an MIS that has no newer one refuses this device", self.kind
                );
            } else {
                let days = now.until(*not_after).as_secs() / DAY.as_secs();
                tracing::warn!(
                    %subject, %not_after, days,
                    "an intermediate of the {} certificate expires soon: replace it in cert_file or \
                     intermediates_file, or this device may not be able to enroll again", self.kind
                );
            }
        }
        self.warned_of_intermediate = passed;
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Days before the end at which a warning is logged.
const WARN_AT_DAYS: [u32; 12] = [90, 60, 30, 21, 14, 7, 6, 5, 4, 3, 2, 1];

/// Number of warnings that are due when this much is left.
fn warnings_due(left: Duration) -> usize {
    WARN_AT_DAYS.into_iter().filter(|days| left < DAY * *days).count()
}

/// Certificates, leaf first, and warnings about their files.
type Chain = (Vec<CertificateDer<'static>>, Vec<String>);

fn read_chain(config: &config::BootstrapConfig, tpm: &Tpm) -> Result<Chain, CredentialError> {
    let (mut chain, mut warnings) = match &config.certificate {
        FactoryCertificateLocation::File(path) => certificates_in(config.kind, path)?,
        FactoryCertificateLocation::TpmNv(index) => (tpm.certificates_in_nv(*index)?, Vec::new()),
    };
    if let Some(path) = &config.intermediates_file {
        let (intermediates, more) = certificates_in(config.kind, path)?;
        chain.extend(intermediates);
        warnings.extend(more);
    }
    Ok((chain, warnings))
}

fn certificates_in(kind: CredentialKind, path: &Path) -> Result<Chain, CredentialError> {
    let unusable =
        |why: Reason| CredentialError::Certificate { kind, place: path.display().to_string(), why };
    let content = files::read_limited(path).map_err(|e| {
        let why = access::unreadable(path, &e);
        unusable(Reason { what: format!("it cannot be read: {why}"), ..why })
    })?;
    let mut read = pem::certificates(&content).map_err(|e| unusable(Reason::of(&e)))?;
    read.others.retain(|(_, label)| !label.is_of_a_private_key()); // its key may be in the same file
    let unused = read
        .unused()
        .map(|unused| format!("{}: blocks ignored that are no certificates: {unused}", path.display()));
    let certificates = read.certificates.into_iter().map(|(_, certificate)| certificate);
    Ok((certificates.collect(), unused.into_iter().collect()))
}

fn facts(
    config: &config::BootstrapConfig,
    chain: &[CertificateDer<'static>],
    algorithm: &'static str,
    in_tpm: bool,
) -> Result<CredentialFacts, CredentialError> {
    let damaged = |why: &str| {
        let place = config.certificate.to_string();
        CredentialError::Certificate { kind: config.kind, place, why: why.into() }
    };
    let leaf = chain.first().ok_or_else(|| damaged("it holds no certificate"))?;
    for certificate in chain {
        X509Certificate::from_der(certificate).map_err(|_| damaged("a certificate in it is damaged"))?;
    }
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|_| damaged("a certificate in it is damaged"))?;
    let validity = parsed.validity();
    Ok(CredentialFacts {
        kind: config.kind,
        not_before: Timestamp::from_secs(validity.not_before.timestamp()),
        not_after: Timestamp::from_secs(validity.not_after.timestamp()),
        sha256: Hex(&sha256(leaf)).to_string(),
        algorithm,
        in_tpm,
        warnings: Vec::new(),
    })
}

/// Why a bootstrap credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// There is none.
    #[error("none is configured")]
    NotConfigured,
    /// The certificate cannot be used.
    #[error("the {kind} certificate {place}: {why}")]
    Certificate {
        /// What it is called.
        kind: CredentialKind,
        /// Where it is.
        place: String,
        /// What is wrong with it, and what to do.
        why: Reason,
    },
    /// The key cannot be used, or an NV index of the TPM cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key's password cannot be read.
    #[error("the password of the {kind} key (key_auth): {why}")]
    Auth {
        /// What it is called.
        kind: CredentialKind,
        /// What is wrong with the secret.
        why: SecretError,
    },
    /// The key is not the certificate's.
    #[error("the key {key} does not belong to the {kind} certificate {certificate}")]
    Mismatch {
        /// What they are called.
        kind: CredentialKind,
        /// Where the certificate is.
        certificate: String,
        /// Where the key is.
        key: String,
    },
    /// The certificate has expired.
    #[error("the {kind} certificate expired at {not_after}, or this device's clock is wrong")]
    Expired {
        /// What it is called.
        kind: CredentialKind,
        /// Its last moment.
        not_after: Timestamp,
    },
    /// The certificate is not valid yet.
    #[error("the {kind} certificate is not valid before {not_before}, or this device's clock is wrong")]
    NotYetValid {
        /// What it is called.
        kind: CredentialKind,
        /// Its first moment.
        not_before: Timestamp,
    },
}

impl Hint for CredentialError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::NotConfigured => "Set cert_file and key under [bootstrap]",
            Self::Mismatch { kind, .. } => {
                return Some(format!("Correct cert_file (or cert) or key under {}", kind.section()).into());
            }
            Self::Expired { .. } => "Check the clock; then ask the issuer of the certificate for a new one",
            Self::NotYetValid { .. } => "Check the clock of this device",
            Self::Certificate { why, .. } => return why.hint(),
            Self::Key(why) => return why.hint(),
            Self::Auth { kind, why } => {
                // What is wrong with the file says more.
                let correct =
                    || format!("Correct key_auth under {}, or what it names", kind.section()).into();
                return why.hint().or_else(|| Some(correct()));
            }
        };
        Some(fixed.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;
    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    const FACTORY: CredentialKind = CredentialKind::Factory;
    const DAYS: i64 = 24 * 3600;
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// A credential whose validity begins and ends so many days from now.
    fn credential(from: i64, to: i64) -> FactoryCredential {
        named("", from, to)
    }

    fn named(name: &str, from: i64, to: i64) -> FactoryCredential {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["device".into()]).unwrap();
        let der = params.self_signed(&pair).unwrap().der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let signing_key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        FactoryCredential {
            facts: CredentialFacts {
                kind: CredentialKind::Factory,
                not_before: Timestamp::from_secs(1_800_000_000 + from * DAYS),
                not_after: Timestamp::from_secs(1_800_000_000 + to * DAYS),
                sha256: format!("{name} {from} {to}"),
                algorithm: "ecdsa-p256",
                in_tpm: false,
                warnings: Vec::new(),
            },
            certified: CertifiedKey::new(vec![der], signing_key),
            ends: Vec::new(),
            proven: true,
        }
    }

    #[test]
    fn validity_is_checked_to_the_second() {
        let day = credential(0, 1);
        assert!(day.check_validity(NOW).is_ok());
        assert!(day.check_validity(NOW.after(DAY)).is_ok());
        assert!(matches!(
            day.check_validity(NOW.after(DAY + Duration::from_secs(1))),
            Err(CredentialError::Expired { .. })
        ));
        assert!(matches!(
            day.check_validity(Timestamp::from_secs(1_799_999_999)),
            Err(CredentialError::NotYetValid { .. })
        ));
    }

    #[test]
    fn bad_replacement_keeps_the_last_good_credential() {
        let mut credentials = CurrentCredential::default();
        let good = credentials.update(Ok(credential(-1, 1)), Purpose::Use, NOW).unwrap();
        for bad in [
            Err(CredentialError::Certificate { kind: FACTORY, place: "a".into(), why: "gone".into() }),
            Err(CredentialError::Mismatch { kind: FACTORY, certificate: "a".into(), key: "b".into() }),
            Ok(credential(-2, -1)),
            Ok(credential(1, 2)),
        ] {
            let used = credentials.update(bad, Purpose::Use, NOW).unwrap();
            assert_eq!(used.facts, good.facts);
            assert!(credentials.problem().is_some());
            assert_eq!(credentials.facts(), Some(&good.facts));
        }
        let newer = credentials.update(Ok(credential(-1, 5)), Purpose::Use, NOW).unwrap();
        assert_eq!(credentials.facts(), Some(&newer.facts));
        assert!(credentials.problem().is_none());
    }

    #[test]
    fn credential_removed_from_the_configuration_is_not_used() {
        let mut credentials = CurrentCredential::default();
        credentials.update(Ok(credential(-1, 1)), Purpose::Use, NOW).unwrap();
        credentials.update(Err(CredentialError::NotConfigured), Purpose::Check, NOW).unwrap_err();
        let mismatch = CredentialError::Mismatch { kind: FACTORY, certificate: "a".into(), key: "b".into() };
        assert!(credentials.update(Err(mismatch), Purpose::Use, NOW).is_err());
    }

    #[test]
    fn checked_credential_does_not_replace_one_that_works() {
        let mut credentials = CurrentCredential::default();
        let works = credentials.update(Ok(named("works", -1, 1)), Purpose::Use, NOW).unwrap();
        let checked = || FactoryCredential { proven: false, ..named("new", -1, 1) };
        credentials.update(Ok(checked()), Purpose::Check, NOW).unwrap();
        assert_eq!(credentials.facts().unwrap().sha256, "new -1 1");

        // Its password turns out to be wrong.
        let wrong = CredentialError::Certificate { kind: FACTORY, place: "a".into(), why: "wrong".into() };
        let used = credentials.update(Err(wrong), Purpose::Use, NOW).unwrap();
        assert_eq!(used.facts, works.facts);
        assert_eq!(credentials.facts(), Some(&works.facts), "the one in use is shown");
        assert_eq!(credentials.next_purpose(), Purpose::Use, "another check would not show it to be right");
        credentials.update(Ok(named("new", -1, 1)), Purpose::Use, NOW).unwrap();
        assert!(credentials.problem().is_none());
        assert_eq!(credentials.next_purpose(), Purpose::Check);
    }

    #[test]
    fn last_good_credential_is_not_used_after_its_expiry() {
        let mut credentials = CurrentCredential::default();
        credentials.update(Ok(credential(-1, 1)), Purpose::Use, NOW).unwrap();
        let later = NOW.after(DAY * 2);
        let mismatch =
            || CredentialError::Mismatch { kind: FACTORY, certificate: "a".into(), key: "b".into() };
        let detail =
            |credentials: &CurrentCredential| credentials.problem().unwrap().report.detail.clone().unwrap();
        credentials.update(Err(mismatch()), Purpose::Use, NOW).unwrap();
        assert!(detail(&credentials).ends_with("The one before it stays in use"));
        assert!(credentials.update(Err(mismatch()), Purpose::Use, later).is_err());
        assert!(detail(&credentials).ends_with("No enrollment is possible for now"));
        let expired = credentials.update(Ok(credential(-1, 1)), Purpose::Use, later);
        assert!(matches!(expired, Err(CredentialError::Expired { .. })));
        assert!(credentials.facts().is_some(), "people see until when it was valid");
    }

    #[test]
    fn error_has_one_hint_apart_from_its_message() {
        let text = || "/factory.pem".to_owned();
        let denied = || Reason::from("permission denied").with_hint_text("Let it in: chmod u+r /it");
        let secret = |why| CredentialError::Auth { kind: FACTORY, why: SecretError { what: text(), why } };
        let hint = |error: CredentialError| {
            assert_apart(&error);
            error.hint().map(Cow::into_owned)
        };
        let lost = crate::keys::software::SoftwareError::BrokenSeal;
        for (error, expected) in [
            (CredentialError::NotConfigured, Some("Set cert_file and key under [bootstrap]")),
            (
                CredentialError::Certificate { kind: FACTORY, place: text(), why: denied() },
                Some("Let it in: chmod u+r /it"),
            ),
            (
                CredentialError::Certificate { kind: FACTORY, place: text(), why: "it is damaged".into() },
                None,
            ),
            (CredentialError::Key(lost.into()), Some("Replace the key with: miaf-agent retry --new-key")),
            (secret(denied()), Some("Let it in: chmod u+r /it")),
            (secret("it is too large".into()), Some("Correct key_auth under [bootstrap], or what it names")),
            (
                CredentialError::Mismatch { kind: FACTORY, certificate: text(), key: text() },
                Some("Correct cert_file (or cert) or key under [bootstrap]"),
            ),
            (
                CredentialError::Expired { kind: FACTORY, not_after: NOW },
                Some("Check the clock; then ask the issuer of the certificate for a new one"),
            ),
            (
                CredentialError::NotYetValid { kind: FACTORY, not_before: NOW },
                Some("Check the clock of this device"),
            ),
        ] {
            assert_eq!(hint(error).as_deref(), expected);
        }
    }

    #[test]
    fn expiry_warnings_begin_90_days_ahead_and_become_frequent() {
        for (days, due) in [(4000, 0), (90, 0), (89, 1), (60, 1), (59, 2), (29, 3), (1, 11), (0, 12)] {
            assert_eq!(warnings_due(DAY * days), due, "{days} days left");
        }
        let mut credentials = CurrentCredential::default();
        credentials.update(Ok(credential(-1, 80)), Purpose::Use, NOW).unwrap();
        assert_eq!(credentials.warned, 1);
        credentials.update(Ok(credential(-1, 4000)), Purpose::Use, NOW).unwrap();
        assert_eq!(credentials.warned, 0, "a new one has warnings of its own");
    }

    #[test]
    fn intermediates_have_expiry_warnings_of_their_own() {
        let mut credentials = CurrentCredential::default();
        let mut with_intermediate = |days: i64| {
            let not_after = Timestamp::from_secs(1_800_000_000 + days * DAYS);
            let end = x509::End { subject: miaf_spiffe::text::Excerpt::of("CN=line 4", 80), not_after };
            let credential = FactoryCredential { ends: vec![end], ..credential(-1, 4000) };
            credentials.update(Ok(credential), Purpose::Check, NOW).unwrap();
            credentials.warned_of_intermediate
        };
        for (days, due) in [(4000, 0), (80, 1), (80, 1), (20, 4), (-1, 12), (4000, 0)] {
            assert_eq!(with_intermediate(days), due, "{days}");
        }
    }
}
