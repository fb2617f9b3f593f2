//! Authentication of a server (miaf-v0 T1, T4): chain, validity period and name, by anchors, by
//! pins, or by both.
//!
//! - **Anchors** (`ca_file`, `system_roots`): webpki finds and verifies a path to one of them. With
//!   pins configured too, both must hold: a pinned key must be on that path, as leaf, as
//!   intermediate or as anchor.
//! - **Pins alone**: the pinned key is what was provisioned. It is the leaf's; or it is that of a
//!   CA certificate in the presented chain, and webpki verifies a path from the leaf to it. That
//!   certificate came from the server and not from a provisioned file. So what is otherwise not
//!   checked of an anchor is checked of it: its validity period, that it is a CA, that it may sign
//!   certificates and for servers, and how long a path it allows. This finds mistakes, and does not
//!   stop an attacker who has a key certified by it: no signature covers that certificate, so it
//!   can be made anew with other dates around the same key.
//!
//! A pin trusts the holder of that key, who can choose any name in a chain of its own making. Where
//! a CA is to vouch for name and dates as well, anchors are configured in addition to the pins.

mod chain;
mod reasons;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use self::chain::{Anchors, Chain};
use super::server_trust::LoadedTrust;
use crate::hint::Reason;
use crate::x509::{SEQUENCE, wrap};
use miaf_spiffe::digest::sha256;
use miaf_spiffe::text::Excerpt;

/// Limit on the characters of a library's message, where this agent has no words of its own.
const MAX_UNKNOWN: usize = 120;

type Pin = [u8; 32];

/// Verifier of the servers of one call. What it finds is recorded in its [`HandshakeObservation`].
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<LoadedTrust>,
    algorithms: WebPkiSupportedAlgorithms,
    observation: Arc<HandshakeObservation>,
}

/// Observations of the handshakes of one call. They are apart from the result, since a TLS error
/// has no room for them.
#[derive(Debug, Default)]
pub(super) struct HandshakeObservation(Mutex<Observed>);

#[derive(Debug, Default)]
struct Observed {
    trust_source: Option<TrustSource>,
    untrusted: Option<Reason>,
    /// The server's certificate does not have its IP address, and a pin made up for it.
    unnamed_address: bool,
    request: ClientAuthRequest,
}

/// Whether a server requested a client certificate (RFC 8446 section 4.3.2), and what it was sent.
#[derive(Clone, Debug, Default)]
pub(super) enum ClientAuthRequest {
    /// It did not, or the handshake did not get so far.
    #[default]
    None,
    /// It did, and this call has none.
    NoCertificate,
    /// It did, and does not accept signatures of this device's key.
    OtherKeys,
    /// It did, and was sent this.
    Sent(Arc<CertifiedKey>),
}

/// The trust that authenticated a server (miaf-v0 D7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrustSource {
    /// Trust provisioned for this purpose: a CA in `ca_file`, or a pin.
    Provisioned,
    /// The operating system's store, and nothing else.
    PublicStore,
}

/// A server that is not trusted.
#[derive(Debug)]
struct UntrustedServer {
    reason: Reason,
    /// For TLS: it becomes the alert that is sent to the server.
    error: CertificateError,
}

impl HandshakeObservation {
    /// The trust that authenticated the server. Where nothing is known, the weaker is assumed.
    pub(super) fn trust_source(&self) -> TrustSource {
        self.observed().trust_source.unwrap_or(TrustSource::PublicStore)
    }

    /// Whether a server is trusted by a pin although its certificate does not have its IP address.
    pub(super) fn has_unnamed_address(&self) -> bool {
        self.observed().unnamed_address
    }

    /// Why the server is not trusted, if it is not.
    pub(super) fn untrusted(&self) -> Option<Reason> {
        self.observed().untrusted.clone()
    }

    /// The server's request for a client certificate.
    pub(super) fn request(&self) -> ClientAuthRequest {
        self.observed().request.clone()
    }

    /// Records that the server requested a client certificate.
    pub(super) fn requested(&self, request: ClientAuthRequest) {
        self.observed().request = request;
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verifier {
    pub(super) fn new(
        trust: Arc<LoadedTrust>,
        algorithms: WebPkiSupportedAlgorithms,
        observation: Arc<HandshakeObservation>,
    ) -> Self {
        Self { trust, algorithms, observation }
    }

    fn validate(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<TrustSource, UntrustedServer> {
        let too_much =
            |reason| UntrustedServer { reason, error: CertificateError::ApplicationVerificationFailure };
        let chain = Chain::read(end_entity, others, self.algorithms.all).map_err(too_much)?;
        let untrusted = |e| self.untrusted(e, &chain);
        let own = chain.own().map_or(end_entity, |own| &own.reading);
        let leaf = EndEntityCert::try_from(own).map_err(untrusted)?;
        let anchors = !self.trust.provisioned.is_empty() || !self.trust.system.is_empty();
        let trust_source = if self.trust.certificates.iter().any(|provisioned| provisioned == end_entity) {
            self.by_itself(&leaf, own, now)?
        } else if anchors {
            self.by_anchors(&leaf, &chain, now)?
        } else {
            self.by_pins_alone(&leaf, &chain, own, now)?
        };
        // An IP address is only matched by an iPAddress SAN, a name only by a dNSName (RFC 9525;
        // T4).
        match ParsedCertificate::try_from(own).and_then(|parsed| verify_server_name(&parsed, name)) {
            Ok(()) => Ok(trust_source),
            Err(Error::InvalidCertificate(
                error @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            )) => {
                // With a pin, an address needs no name in the certificate (N8): the pin says whose
                // key it is. Every chain that comes this far has one of the pinned keys.
                if matches!(name, ServerName::IpAddress(_)) && !self.trust.pins.is_empty() {
                    self.observation.observed().unnamed_address = true;
                    return Ok(trust_source);
                }
                Err(UntrustedServer { reason: reasons::other_names(&chain).into(), error })
            }
            Err(error) => Err(UntrustedServer::from(error)),
        }
    }

    /// Validates a certificate that is in `ca_file` itself. It needs no issuer, whether it is
    /// marked as a CA's or not: common tools make such certificates for a single server (`openssl
    /// req -x509`).
    fn by_itself(
        &self,
        leaf: &EndEntityCert<'_>,
        own: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<TrustSource, UntrustedServer> {
        let key = pin_of(&leaf.subject_public_key_info());
        if !self.trust.pins.is_empty() && !self.trust.pins.contains(&key) {
            return Err(UntrustedServer::unpinned("of its certificate, which is in ca_file,", &[key]));
        }
        Properties::read(own)
            .and_then(|properties| properties.check_server(now))
            .map_err(UntrustedServer::provisioned_leaf)?;
        Ok(TrustSource::Provisioned)
    }

    /// Validates a chain by the anchors. Those of `ca_file` come first: a CA that is in it counts
    /// as provisioned, also where the operating system knows it too.
    fn by_anchors(
        &self,
        leaf: &EndEntityCert<'_>,
        chain: &Chain<'_>,
        now: UnixTime,
    ) -> Result<TrustSource, UntrustedServer> {
        let pins = &self.trust.pins;
        let unpinned = RefCell::new(None);
        let pinned = |path: &VerifiedPath<'_>| {
            let keys = keys_on(path);
            if pins.is_empty() || keys.iter().any(|key| pins.contains(key)) {
                return Ok(());
            }
            unpinned.borrow_mut().get_or_insert(keys);
            Err(webpki::Error::UnknownIssuer) // webpki tries another path
        };
        let mut failure = webpki::Error::UnknownIssuer;
        let stores = [
            (&self.trust.provisioned, TrustSource::Provisioned),
            (&self.trust.system, TrustSource::PublicStore),
        ];
        for (anchors, trust_source) in stores {
            match self.path(leaf, &Anchors::of(anchors), chain, now, &pinned) {
                Ok(()) if pins.is_empty() => return Ok(trust_source),
                Ok(()) => return Ok(TrustSource::Provisioned),
                // Of two reasons the one that is not "unknown issuer" says more.
                Err(e) if is_unknown_issuer(&failure) => failure = e,
                Err(_) => {}
            }
        }
        match unpinned.take() {
            Some(keys) => Err(UntrustedServer::unpinned("on the path from its certificate to the CA", &keys)),
            None => Err(self.untrusted(failure, chain)),
        }
    }

    fn by_pins_alone(
        &self,
        leaf: &EndEntityCert<'_>,
        chain: &Chain<'_>,
        own: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<TrustSource, UntrustedServer> {
        let pins = &self.trust.pins;
        let key = pin_of(&leaf.subject_public_key_info());
        if pins.contains(&key) {
            Properties::read(own)
                .and_then(|properties| properties.check_server(now))
                .map_err(UntrustedServer::pinned_leaf)?;
            return Ok(TrustSource::Provisioned);
        }

        let mut keys = vec![key];
        let (mut anchors, mut properties) = (Vec::new(), Vec::new());
        let mut fault = None;
        for other in chain.others() {
            // As strictly as any certificate that is not from a provisioned file: a critical
            // extension must be understood.
            let Ok(parsed) = EndEntityCert::try_from(&other.reading) else { continue };
            let key = pin_of(&parsed.subject_public_key_info());
            keys.push(key);
            if !pins.contains(&key) {
                continue;
            }
            let issuer = Properties::read(&other.reading).and_then(|properties| {
                properties.check_issuer(now)?;
                let anchor = webpki::anchor_from_trusted_cert(&other.reading);
                Ok((anchor.map_err(|_| CertificateFault::Damaged)?, properties))
            });
            match issuer {
                Ok((anchor, issuer)) => {
                    anchors.push((anchor, other.directories().cloned()));
                    properties.push(issuer);
                }
                Err(why) => fault = Some((key, why)),
            }
        }
        if anchors.is_empty() {
            return Err(match fault {
                Some((key, why)) => UntrustedServer::pinned_issuer(&key, why),
                None => UntrustedServer::unpinned("in the chain it presented", &keys),
            });
        }

        let anchors = Anchors::presented(anchors);
        let allowed = |path: &VerifiedPath<'_>| {
            let issuer = anchors.position(path.anchor()).and_then(|index| properties.get(index));
            let length = path.intermediate_certificates().count();
            match issuer.and_then(|issuer| issuer.path_length) {
                Some(longest) if length > longest as usize => Err(webpki::Error::PathLenConstraintViolated),
                _ => Ok(()),
            }
        };
        self.path(leaf, &anchors, chain, now, &allowed).map_err(|e| self.untrusted(e, chain))?;
        Ok(TrustSource::Provisioned)
    }

    fn path(
        &self,
        leaf: &EndEntityCert<'_>,
        anchors: &Anchors<'_>,
        chain: &Chain<'_>,
        now: UnixTime,
        accept: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error>,
    ) -> Result<(), webpki::Error> {
        let algorithms = chain.algorithms();
        let algorithms: Vec<&dyn SignatureVerificationAlgorithm> =
            algorithms.iter().map(|algorithm| algorithm as _).collect();
        let certified = chain.certified(&anchors.list);
        let accept = |path: &VerifiedPath<'_>| {
            // What webpki leaves open (RFC 5280 section 6.1.4 (n)).
            if !path.intermediate_certificates().all(|issuer| may_sign_certificates(&issuer.der())) {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
            if !chain.keeps_to_its_directories(path, anchors) {
                return Err(webpki::Error::NameConstraintViolation);
            }
            accept(path)
        };
        let usage = KeyUsage::server_auth();
        leaf.verify_for_usage(&algorithms, &anchors.list, &certified, now, usage, None, Some(&accept))
            .map(drop)
    }

    fn untrusted(&self, error: webpki::Error, chain: &Chain<'_>) -> UntrustedServer {
        if !is_unknown_issuer(&error) {
            let (reason, error) = reasons::of(&error, chain);
            return UntrustedServer { reason, error };
        }
        let error = CertificateError::UnknownIssuer;
        if let Some(reason) = reasons::unverifiable(chain) {
            return UntrustedServer { reason, error };
        }
        let named = reasons::issuer(chain).map(|name| format!(": it names \"{name}\"")).unwrap_or_default();
        let authorities = self.trust.authorities();
        let why = format!("its certificate was not issued by {authorities} (unknown issuer){named}");
        UntrustedServer { reason: why.into(), error }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.validate(end_entity, intermediates, server_name, now) {
            Ok(trust_source) => {
                let mut observed = self.observation.observed();
                // Should a call ever need a second connection, the weaker of the two counts.
                if observed.trust_source != Some(TrustSource::PublicStore) {
                    observed.trust_source = Some(trust_source);
                }
                Ok(ServerCertVerified::assertion())
            }
            Err(untrusted) => {
                self.observation.observed().untrusted = Some(untrusted.reason);
                Err(untrusted.error.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // As it was validated: extensions that are processed here must not fail in rustls.
        let chain = Chain::read(certificate, &[], self.algorithms.all);
        let own = chain.as_ref().ok().and_then(Chain::own).map_or(certificate, |own| &own.reading);
        verify_tls13_signature(message, own, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn may_sign_certificates(issuer: &CertificateDer<'_>) -> bool {
    let usage = |certificate: &X509Certificate<'_>| {
        certificate.key_usage().map(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
    };
    X509Certificate::from_der(issuer).is_ok_and(|(_, certificate)| usage(&certificate).unwrap_or(false))
}

/// SHA-256 of the DER of a SubjectPublicKeyInfo (RFC 7469 section 2.4).
pub(super) fn pin_of(spki: &[u8]) -> Pin {
    sha256(spki)
}

/// The pins of the keys on a path: from the leaf to the anchor, both included, without certificates
/// that were merely presented.
fn keys_on(path: &VerifiedPath<'_>) -> Vec<Pin> {
    let mut keys = vec![pin_of(&path.end_entity().subject_public_key_info())];
    keys.extend(path.intermediate_certificates().map(|issuer| pin_of(&issuer.subject_public_key_info())));
    // A trust anchor holds what is inside the SEQUENCE of its SubjectPublicKeyInfo; a pin is of the
    // whole.
    keys.push(pin_of(&wrap(SEQUENCE, &path.anchor().subject_public_key_info)));
    keys
}

/// Properties of a pinned certificate that webpki does not check.
#[derive(Debug)]
struct Properties {
    not_before: i64,
    not_after: i64,
    /// `Some`: it is a CA.
    path_length: Option<u32>,
    is_ca: bool,
    signs_certificates: bool,
    is_for_servers: bool,
}

/// Why a pinned certificate cannot be used.
#[derive(Debug)]
enum CertificateFault {
    Expired,
    NotYetValid,
    NotForServers,
    NoCa,
    MayNotSign,
    Damaged,
}

impl Properties {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, CertificateFault> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|_| CertificateFault::Damaged)?;
        let constraints = certificate.basic_constraints().map_err(|_| CertificateFault::Damaged)?;
        let usage = certificate.key_usage().map_err(|_| CertificateFault::Damaged)?;
        let extended = certificate.extended_key_usage().map_err(|_| CertificateFault::Damaged)?;
        Ok(Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            path_length: constraints.as_ref().and_then(|c| c.value.path_len_constraint),
            is_ca: constraints.is_some_and(|c| c.value.ca),
            // Where the extension is absent, nothing is forbidden (RFC 5280 section 6.1.4 (n)).
            signs_certificates: usage.is_none_or(|usage| usage.value.key_cert_sign()),
            is_for_servers: extended.is_none_or(|extended| extended.value.server_auth),
        })
    }

    /// Checks the certificate as a server's own. Whether it is marked as a CA does not matter, as
    /// with the self-signed ones that common tools make: it is this very key that was provisioned.
    fn check_server(&self, now: UnixTime) -> Result<(), CertificateFault> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < self.not_before {
            return Err(CertificateFault::NotYetValid);
        }
        if now > self.not_after {
            return Err(CertificateFault::Expired);
        }
        if self.is_for_servers { Ok(()) } else { Err(CertificateFault::NotForServers) }
    }

    /// Checks the certificate as the end of a path from a server's certificate.
    fn check_issuer(&self, now: UnixTime) -> Result<(), CertificateFault> {
        match self {
            Self { is_ca: false, .. } => Err(CertificateFault::NoCa),
            Self { signs_certificates: false, .. } => Err(CertificateFault::MayNotSign),
            _ => self.check_server(now),
        }
    }
}

impl CertificateFault {
    fn why(&self) -> &'static str {
        match self {
            Self::Expired => "has expired, or this device's clock is wrong",
            Self::NotYetValid => "is not valid yet, or this device's clock is wrong",
            Self::NotForServers => "is not meant for servers (its extended key usage lacks serverAuth)",
            Self::NoCa => "is not a CA's, and cannot issue other certificates",
            Self::MayNotSign => "may not sign certificates (its key usage lacks keyCertSign)",
            Self::Damaged => "is damaged: an extension in it cannot be read, or occurs more than once",
        }
    }

    fn error(&self) -> CertificateError {
        match self {
            Self::Expired => CertificateError::Expired,
            Self::NotYetValid => CertificateError::NotValidYet,
            Self::NotForServers => CertificateError::InvalidPurpose,
            Self::NoCa | Self::MayNotSign => CertificateError::UnknownIssuer,
            Self::Damaged => CertificateError::BadEncoding,
        }
    }
}

impl UntrustedServer {
    fn pinned_leaf(fault: CertificateFault) -> Self {
        let why = format!("its key is pinned, but its certificate {}", fault.why());
        Self { reason: why.into(), error: fault.error() }
    }

    fn provisioned_leaf(fault: CertificateFault) -> Self {
        let why = format!("its certificate is in ca_file itself, but it {}", fault.why());
        Self { reason: why.into(), error: fault.error() }
    }

    fn pinned_issuer(key: &Pin, fault: CertificateFault) -> Self {
        let pin = BASE64.encode(key);
        let why = format!("the pinned certificate in the chain it presented ({pin}) {}", fault.why());
        Self { reason: why.into(), error: fault.error() }
    }

    fn unpinned(place: &str, keys: &[Pin]) -> Self {
        let mut why = format!("no key {place} is pinned in spki_sha256. From the leaf on, they are");
        for key in keys {
            let _ = write!(why, " {}", BASE64.encode(key)); // to a String: it cannot fail
        }
        let reason =
            Reason::from(why).with_hint_text("Pin one of them only if the operator of the MIS confirms it");
        Self { reason, error: CertificateError::ApplicationVerificationFailure }
    }
}

impl From<Error> for UntrustedServer {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self { reason: reasons::describe(&error), error },
            other => {
                let why = format!("its certificate is not acceptable ({})", Excerpt::of(other, MAX_UNKNOWN));
                Self { reason: why.into(), error: CertificateError::ApplicationVerificationFailure }
            }
        }
    }
}

/// Whether the issuer is unknown. A CA of the same name with another key shows as a bad signature.
fn is_unknown_issuer(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey)
}

/// Describes TLS's error about a server's certificate.
pub(super) fn describe(why: &CertificateError) -> Reason {
    reasons::describe(why)
}

#[cfg(test)]
mod tests;
