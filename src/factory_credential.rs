//! The bootstrap credential: the certificate that the device's maker or operator gave it, and its key. It proves to the
//! MIS which device asks for an identity (miaf-v0 E1, K5), and says nothing about the MIS (T5).
//!
//! It can be replaced while the agent runs. A replacement that is no good does not take the place of what was good
//! before.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::config::{self, FactoryCertificate, FactoryKey};
use crate::keys::KeyError;
use crate::keys::factory::{self, Auth, Source};
use crate::keys::tpm::Tpm;
use crate::lifecycle::{LastError, Report};
use crate::pem;
use crate::platform::credentials::SecretError;
use crate::platform::{access, files};
use crate::time::Timestamp;
use crate::x509;

/// A certificate and the key that is seen to belong to it.
#[derive(Clone)]
pub struct Credential {
    certified: CertifiedKey,
    facts: Facts,
    /// Of its intermediates.
    ends: Vec<x509::End>,
    /// The key was seen to work, as far as that can be seen here.
    proven: bool,
}

/// Why the credential is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be shown to a MIS: a key in the TPM is asked for a signature.
    Use,
    /// To see how it stands: a key in the TPM is left alone, since a power cut after its use may count as a guess of its
    /// password.
    Look,
}

/// What people want to know of the credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate, in hex: what a MIS knows the device by (miaf-v0 E5).
    pub sha256: String,
    /// The key's algorithm, such as `ecdsa-p256`.
    pub algorithm: &'static str,
    /// The key is in the TPM.
    pub in_tpm: bool,
    /// What keeps nothing from working and should be corrected all the same.
    pub warnings: Vec<String>,
}

impl Credential {
    /// Reads certificate and key from where they are. Blocks, and asks the TPM where one of them is there.
    ///
    /// Of the certificate no more is read than the dates and the key. Whether it is any good is for the MIS to say, which
    /// may know extensions and forms that no library here does.
    ///
    /// # Errors
    /// [`BootstrapError`]. Validity is not looked at: see [`Credential::judge`].
    pub fn read(config: &config::Bootstrap, tpm: &Tpm, purpose: Purpose) -> Result<Self, BootstrapError> {
        let (chain, mut warnings) = read_chain(config, tpm)?;
        let auth = match &config.key_auth {
            Some(secret) => {
                secret.read()?; // that it cannot be had is said as such
                Some(Auth::kept_in(secret.clone()))
            }
            None => None,
        };
        let source = match &config.key {
            FactoryKey::File(path) => Source::File(path),
            FactoryKey::TpmHandle(handle) => Source::TpmHandle(*handle),
        };
        let key = match purpose {
            Purpose::Use => factory::open(source, auth.as_ref(), tpm)?,
            Purpose::Look => factory::look(source, auth.as_ref(), tpm)?,
        };
        let proven = purpose == Purpose::Use || !key.in_tpm;
        warnings.extend(key.warning);
        let facts = Facts { warnings, ..facts(config, &chain, key.algorithm, key.in_tpm)? };
        let ends = x509::ends_of_intermediates(&chain);
        let certified = CertifiedKey::new(chain, key.signing_key);
        if !x509::has_its_key(&certified) {
            let certificate = config.certificate.to_string();
            return Err(BootstrapError::Mismatch { certificate, key: config.key.to_string() });
        }
        Ok(Self { certified, facts, ends, proven })
    }

    /// Whether it can be shown to a MIS at `now`.
    ///
    /// # Errors
    /// [`BootstrapError::Expired`] and [`BootstrapError::NotYetValid`].
    pub fn judge(&self, now: Timestamp) -> Result<(), BootstrapError> {
        let Facts { not_before, not_after, .. } = self.facts;
        if now > not_after {
            Err(BootstrapError::Expired { not_after })
        } else if now < not_before {
            Err(BootstrapError::NotYetValid { not_before })
        } else {
            Ok(())
        }
    }

    /// First moment of its validity.
    pub fn not_before(&self) -> Timestamp {
        self.facts.not_before
    }

    /// For the TLS handshake.
    pub fn certified_key(&self) -> &CertifiedKey {
        &self.certified
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credential").field(&self.facts).finish()
    }
}

/// The credential that is in use, and what was wrong with the last look at it.
#[derive(Clone, Debug, Default)]
pub struct Bootstrap {
    good: Option<Arc<Credential>>,
    seen: Option<Facts>,
    trouble: Option<Trouble>,
    /// How many of [`WARN_AT_DAYS`] have been warned of.
    warned: usize,
    /// The same for the intermediate that ends first.
    warned_of_intermediate: usize,
}

#[derive(Clone, Debug)]
struct Trouble {
    met: Purpose,
    error: LastError,
}

/// The kind of problem that a bad credential is.
pub const PROBLEM: &str = "factory-credential";
/// The same for people.
pub const TITLE: &str = "The factory credential cannot be used";

impl Bootstrap {
    /// Takes what was found, and gives back the credential to use: the one found, or the one before if that is still
    /// good and the one found is not. Says in the log what is news.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(
        &mut self,
        found: Result<Credential, BootstrapError>,
        purpose: Purpose,
        now: Timestamp,
    ) -> Result<Arc<Credential>, BootstrapError> {
        let facts = found.as_ref().ok().map(|credential| credential.facts.clone());
        match found.and_then(|credential| credential.judge(now).map(|()| Arc::new(credential))) {
            Ok(credential) => {
                self.announce(&credential.facts);
                self.warn_of_expiry(&credential.facts, now);
                self.warn_of_intermediates(&credential.ends, now);
                self.seen = facts;
                self.recover();
                // What was merely looked at does not take the place of what is known to work.
                if credential.proven || self.good.as_ref().is_none_or(|good| !good.proven) {
                    self.good = Some(credential.clone());
                }
                Ok(credential)
            }
            Err(why) => {
                if matches!(why, BootstrapError::NotConfigured) {
                    self.good = None; // taken away, and not replaced by something bad
                }
                let good = self.good.clone().filter(|good| good.judge(now).is_ok());
                self.seen = match &good {
                    Some(good) => Some(good.facts.clone()),
                    None => facts.or(self.seen.take()),
                };
                self.complain(&why, purpose, good.is_some(), now);
                good.ok_or(why)
            }
        }
    }

    /// Of the credential in use; of the last one seen, where none can be used.
    pub fn facts(&self) -> Option<&Facts> {
        self.seen.as_ref()
    }

    /// What is wrong with the credential that is provisioned.
    pub fn trouble(&self) -> Option<&LastError> {
        self.trouble.as_ref().map(|trouble| &trouble.error)
    }

    /// For what it is to be read next, if nothing else calls for it: a mere look would not show that what failed in use
    /// works now.
    pub fn next_purpose(&self) -> Purpose {
        self.trouble.as_ref().map_or(Purpose::Look, |trouble| trouble.met)
    }

    fn announce(&self, facts: &Facts) {
        let Facts { not_after, sha256, algorithm, in_tpm, .. } = facts;
        match &self.seen {
            None => {
                tracing::info!(%not_after, sha256, algorithm, in_tpm, "the factory certificate has been read")
            }
            Some(before) if before.sha256 != *sha256 => tracing::warn!(
                %not_after, sha256, algorithm, in_tpm,
                "the factory certificate has been replaced; the next enrollment uses it"
            ),
            Some(_) => {}
        }
        if self.seen.as_ref().is_none_or(|before| before.warnings != facts.warnings) {
            for warning in &facts.warnings {
                tracing::warn!("{warning}");
            }
        }
    }

    fn recover(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("the factory credential is good again");
        }
    }

    fn complain(&mut self, why: &BootstrapError, met: Purpose, has_another: bool, at: Timestamp) {
        let consequence =
            if has_another { "the one before it stays in use" } else { "no enrollment is possible for now" };
        let report = Report::of_agent(PROBLEM, TITLE, &format!("{why}; {consequence}"));
        if let Some(trouble) = self.trouble.as_mut().filter(|trouble| trouble.error.report == report) {
            trouble.met = met;
            return;
        }
        tracing::error!("{TITLE}: {}", report.detail.as_deref().unwrap_or_default());
        self.trouble = Some(Trouble { met, error: LastError { report, at, permanent: true } });
    }

    fn warn_of_expiry(&mut self, facts: &Facts, now: Timestamp) {
        let passed = warnings_due(now.until(facts.not_after));
        if passed > self.warned {
            let (not_after, days) = (facts.not_after, now.until(facts.not_after).as_secs() / DAY.as_secs());
            tracing::warn!(
                %not_after, days,
                "the factory certificate expires soon, and without it this device cannot enroll again: replace it in time"
            );
        }
        self.warned = passed;
    }

    /// A MIS may have newer ones itself, so that it is no error when one has ended.
    fn warn_of_intermediates(&mut self, ends: &[x509::End], now: Timestamp) {
        let first = ends.iter().min_by_key(|end| end.not_after);
        let passed = first.map_or(0, |end| warnings_due(now.until(end.not_after)));
        if let Some(x509::End { subject, not_after }) = first
            && passed > self.warned_of_intermediate
        {
            if now > *not_after {
                tracing::warn!(
                    %subject, %not_after,
                    "an intermediate of the factory certificate has expired: a MIS that has no newer one refuses this \
                     device. Put the new one in its place, in cert_file or intermediates_file"
                );
            } else {
                let days = now.until(*not_after).as_secs() / DAY.as_secs();
                tracing::warn!(
                    %subject, %not_after, days,
                    "an intermediate of the factory certificate expires soon, and without it this device may not be able \
                     to enroll again: put the new one in its place, in cert_file or intermediates_file"
                );
            }
        }
        self.warned_of_intermediate = passed;
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Days before the end at which a warning is logged.
const WARN_AT_DAYS: [u32; 12] = [90, 60, 30, 21, 14, 7, 6, 5, 4, 3, 2, 1];

/// How many warnings are due when this much is left.
fn warnings_due(left: Duration) -> usize {
    WARN_AT_DAYS.into_iter().filter(|days| left < DAY * *days).count()
}

/// The certificates, leaf first, and warnings about the files that they are in.
type Chain = (Vec<CertificateDer<'static>>, Vec<String>);

fn read_chain(config: &config::Bootstrap, tpm: &Tpm) -> Result<Chain, BootstrapError> {
    let (mut chain, mut warnings) = match &config.certificate {
        FactoryCertificate::File(path) => certificates_in(path)?,
        FactoryCertificate::TpmNv(index) => (tpm.certificates_in_nv(*index)?, Vec::new()),
    };
    if let Some(path) = &config.intermediates_file {
        let (intermediates, more) = certificates_in(path)?;
        chain.extend(intermediates);
        warnings.extend(more);
    }
    Ok((chain, warnings))
}

fn certificates_in(path: &Path) -> Result<Chain, BootstrapError> {
    let unusable = |why: String| BootstrapError::Certificate { place: path.display().to_string(), why };
    let content = files::read_limited(path)
        .map_err(|e| unusable(format!("it cannot be read: {}", access::why_unreadable(path, &e))))?;
    let mut read = pem::certificates(&content).map_err(|e| unusable(e.to_string()))?;
    read.others.retain(|(_, label)| !label.is_of_a_private_key()); // its key may well be in the same file
    let unused = read.unused().map(|unused| {
        format!("{}: blocks of it are not used, as they are no certificates: {unused}", path.display())
    });
    let certificates = read.certificates.into_iter().map(|(_, certificate)| certificate);
    Ok((certificates.collect(), unused.into_iter().collect()))
}

fn facts(
    config: &config::Bootstrap,
    chain: &[CertificateDer<'static>],
    algorithm: &'static str,
    in_tpm: bool,
) -> Result<Facts, BootstrapError> {
    let damaged =
        |why: &str| BootstrapError::Certificate { place: config.certificate.to_string(), why: why.into() };
    let leaf = chain.first().ok_or_else(|| damaged("it holds no certificate"))?;
    for certificate in chain {
        X509Certificate::from_der(certificate).map_err(|_| damaged("a certificate in it is damaged"))?;
    }
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|_| damaged("a certificate in it is damaged"))?;
    let validity = parsed.validity();
    Ok(Facts {
        not_before: Timestamp::from_secs(validity.not_before.timestamp()),
        not_after: Timestamp::from_secs(validity.not_after.timestamp()),
        sha256: digest(&SHA256, leaf).as_ref().iter().map(|octet| format!("{octet:02x}")).collect(),
        algorithm,
        in_tpm,
        warnings: Vec::new(),
    })
}

/// Why a bootstrap credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// There is none.
    #[error("none is configured: set cert_file and key under [bootstrap]")]
    NotConfigured,
    /// The certificate cannot be used.
    #[error("the factory certificate {place}: {why}")]
    Certificate {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key cannot be used, or an NV index of the TPM not be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key's password cannot be had.
    #[error("the password of the factory key (key_auth): {0}")]
    Auth(#[from] SecretError),
    /// The two do not belong together.
    #[error(
        "the factory certificate {certificate} and the key {key} do not belong together: the key is another than the \
         certificate's"
    )]
    Mismatch {
        /// Where the certificate is.
        certificate: String,
        /// Where the key is.
        key: String,
    },
    /// It is over.
    #[error(
        "the factory certificate expired at {not_after}, or this device's clock is wrong; ask whoever issued it for a \
         new one"
    )]
    Expired {
        /// Its last moment.
        not_after: Timestamp,
    },
    /// It has not begun.
    #[error("the factory certificate is not valid before {not_before}; is this device's clock right?")]
    NotYetValid {
        /// Its first moment.
        not_before: Timestamp,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    const DAYS: i64 = 24 * 3600;
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// A credential that is valid from and to so many days from now.
    fn credential(from: i64, to: i64) -> Credential {
        named("", from, to)
    }

    fn named(name: &str, from: i64, to: i64) -> Credential {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["device".into()]).unwrap();
        let der = params.self_signed(&pair).unwrap().der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let signing_key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        Credential {
            facts: Facts {
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
    fn validity_is_judged_to_the_second() {
        let day = credential(0, 1);
        assert!(day.judge(NOW).is_ok());
        assert!(day.judge(NOW.after(DAY)).is_ok());
        assert!(matches!(
            day.judge(NOW.after(DAY + Duration::from_secs(1))),
            Err(BootstrapError::Expired { .. })
        ));
        assert!(matches!(
            day.judge(Timestamp::from_secs(1_799_999_999)),
            Err(BootstrapError::NotYetValid { .. })
        ));
    }

    #[test]
    fn a_bad_replacement_keeps_the_one_before_and_says_so() {
        let mut bootstrap = Bootstrap::default();
        let good = bootstrap.take(Ok(credential(-1, 1)), Purpose::Use, NOW).unwrap();
        for bad in [
            Err(BootstrapError::Certificate { place: "a".into(), why: "gone".into() }),
            Err(BootstrapError::Mismatch { certificate: "a".into(), key: "b".into() }),
            Ok(credential(-2, -1)),
            Ok(credential(1, 2)),
        ] {
            let kept = bootstrap.take(bad, Purpose::Use, NOW).unwrap();
            assert_eq!(kept.facts, good.facts);
            assert!(bootstrap.trouble().is_some());
            assert_eq!(bootstrap.facts(), Some(&good.facts));
        }
        let newer = bootstrap.take(Ok(credential(-1, 5)), Purpose::Use, NOW).unwrap();
        assert_eq!(bootstrap.facts(), Some(&newer.facts));
        assert!(bootstrap.trouble().is_none());
    }

    #[test]
    fn one_that_is_taken_away_is_not_used_any_more() {
        let mut bootstrap = Bootstrap::default();
        bootstrap.take(Ok(credential(-1, 1)), Purpose::Use, NOW).unwrap();
        bootstrap.take(Err(BootstrapError::NotConfigured), Purpose::Look, NOW).unwrap_err();
        let mismatch = BootstrapError::Mismatch { certificate: "a".into(), key: "b".into() };
        assert!(bootstrap.take(Err(mismatch), Purpose::Use, NOW).is_err());
    }

    #[test]
    fn what_was_merely_looked_at_does_not_take_the_place_of_what_works() {
        let mut bootstrap = Bootstrap::default();
        let works = bootstrap.take(Ok(named("works", -1, 1)), Purpose::Use, NOW).unwrap();
        let looked_at = || Credential { proven: false, ..named("new", -1, 1) };
        bootstrap.take(Ok(looked_at()), Purpose::Look, NOW).unwrap();
        assert_eq!(bootstrap.facts().unwrap().sha256, "new -1 1");

        // Its password turns out to be wrong.
        let wrong = BootstrapError::Certificate { place: "a".into(), why: "wrong".into() };
        let kept = bootstrap.take(Err(wrong), Purpose::Use, NOW).unwrap();
        assert_eq!(kept.facts, works.facts);
        assert_eq!(bootstrap.facts(), Some(&works.facts), "the one in use is shown");
        assert_eq!(bootstrap.next_purpose(), Purpose::Use, "another look would not show it to be right");
        bootstrap.take(Ok(named("new", -1, 1)), Purpose::Use, NOW).unwrap();
        assert!(bootstrap.trouble().is_none());
        assert_eq!(bootstrap.next_purpose(), Purpose::Look);
    }

    #[test]
    fn the_one_before_is_no_help_once_it_has_expired() {
        let mut bootstrap = Bootstrap::default();
        bootstrap.take(Ok(credential(-1, 1)), Purpose::Use, NOW).unwrap();
        let later = NOW.after(DAY * 2);
        let mismatch = || BootstrapError::Mismatch { certificate: "a".into(), key: "b".into() };
        let said = |bootstrap: &Bootstrap| bootstrap.trouble().unwrap().report.detail.clone().unwrap();
        bootstrap.take(Err(mismatch()), Purpose::Use, NOW).unwrap();
        assert!(said(&bootstrap).ends_with("the one before it stays in use"));
        assert!(bootstrap.take(Err(mismatch()), Purpose::Use, later).is_err());
        assert!(said(&bootstrap).ends_with("no enrollment is possible for now"));
        let expired = bootstrap.take(Ok(credential(-1, 1)), Purpose::Use, later);
        assert!(matches!(expired, Err(BootstrapError::Expired { .. })));
        assert!(bootstrap.facts().is_some(), "people see until when it was valid");
    }

    #[test]
    fn warnings_begin_90_days_before_the_end_and_come_closer_together() {
        for (days, due) in [(4000, 0), (90, 0), (89, 1), (60, 1), (59, 2), (29, 3), (1, 11), (0, 12)] {
            assert_eq!(warnings_due(DAY * days), due, "{days} days left");
        }
        let mut bootstrap = Bootstrap::default();
        bootstrap.take(Ok(credential(-1, 80)), Purpose::Use, NOW).unwrap();
        assert_eq!(bootstrap.warned, 1);
        bootstrap.take(Ok(credential(-1, 4000)), Purpose::Use, NOW).unwrap();
        assert_eq!(bootstrap.warned, 0, "a new one is warned of in its own time");
    }

    #[test]
    fn intermediates_are_warned_of_in_their_own_time() {
        let mut bootstrap = Bootstrap::default();
        let mut with_intermediate = |days: i64| {
            let not_after = Timestamp::from_secs(1_800_000_000 + days * DAYS);
            let end = x509::End { subject: crate::text::Excerpt::of("CN=line 4", 80), not_after };
            let credential = Credential { ends: vec![end], ..credential(-1, 4000) };
            bootstrap.take(Ok(credential), Purpose::Look, NOW).unwrap();
            bootstrap.warned_of_intermediate
        };
        for (days, due) in [(4000, 0), (80, 1), (80, 1), (20, 4), (-1, 12), (4000, 0)] {
            assert_eq!(with_intermediate(days), due, "{days}");
        }
    }
}
