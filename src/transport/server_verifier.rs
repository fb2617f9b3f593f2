//! Who a server is (miaf-v0 T1, T4): chain, validity period and name, by anchors, by pins, or by both.
//!
//! - **Anchors** (`ca_file`, `system_roots`): webpki finds and verifies a path to one of them. With pins configured
//!   too, both must hold: a pinned key must be on that path, as leaf, as intermediate or as anchor.
//! - **Pins alone**: the pinned key is what was provisioned. It is the leaf's; or it is that of a CA certificate in the
//!   chain presented, and webpki verifies a path from the leaf to it. That certificate came from the server and not from
//!   a file of ours, so what is otherwise not asked of an anchor is asked of it: its validity period, that it is a CA,
//!   that it may sign certificates and for servers, and how long a path it allows. This finds mistakes, and does not stop
//!   an attacker who has a key certified by it: nobody signs for that certificate, so it can be made anew with other
//!   dates around the same key.
//!
//! A pin trusts the holder of that key, and whoever holds it can name itself as it likes in a chain of its own making.
//! Whoever wants a CA's word for name and dates as well configures anchors beside the pins.

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
use super::server_trust::Loaded;
use crate::digest::sha256;
use crate::text::Excerpt;
use crate::x509::{SEQUENCE, wrap};

/// Characters of what a library says that there are no words for.
const MAX_UNKNOWN: usize = 120;

type Pin = [u8; 32];

/// Judges the servers of one call. What it finds is left in its [`Note`].
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<Loaded>,
    algorithms: WebPkiSupportedAlgorithms,
    note: Arc<Note>,
}

/// What the handshakes of one call showed. It travels beside the answer, since a TLS error has no room for it.
#[derive(Debug, Default)]
pub(super) struct Note(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    vouched_by: Option<VouchedBy>,
    refusal: Option<String>,
    request: Request,
}

/// Whether a server asked for a client certificate (RFC 8446 section 4.3.2), and what it was shown.
#[derive(Clone, Debug, Default)]
pub(super) enum Request {
    /// It did not, or has not got so far.
    #[default]
    None,
    /// It did, and this call has none.
    NothingToShow,
    /// It did, and does not accept signatures of this device's key.
    OtherKeys,
    /// It did, and was shown this.
    Shown(Arc<CertifiedKey>),
}

/// By whom a server was authenticated (miaf-v0 D7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VouchedBy {
    /// What was provisioned for this purpose: a CA in `ca_file`, or a pin.
    Provisioned,
    /// The operating system's store, and nothing else.
    PublicStore,
}

/// A server that is not trusted.
#[derive(Debug)]
struct Refusal {
    /// In words that a person can act on.
    why: String,
    /// For TLS: it becomes the alert that the server is sent.
    error: CertificateError,
}

impl Note {
    /// Where nothing is known, the weaker is assumed.
    pub(super) fn vouched_by(&self) -> VouchedBy {
        self.noted().vouched_by.unwrap_or(VouchedBy::PublicStore)
    }

    /// Why the server was refused, if it was.
    pub(super) fn refusal(&self) -> Option<String> {
        self.noted().refusal.clone()
    }

    /// What the server asked for.
    pub(super) fn request(&self) -> Request {
        self.noted().request.clone()
    }

    /// The server asked for a client certificate.
    pub(super) fn requested(&self, request: Request) {
        self.noted().request = request;
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verifier {
    pub(super) fn new(trust: Arc<Loaded>, algorithms: WebPkiSupportedAlgorithms, note: Arc<Note>) -> Self {
        Self { trust, algorithms, note }
    }

    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<VouchedBy, Refusal> {
        let too_much = |why| Refusal { why, error: CertificateError::ApplicationVerificationFailure };
        let chain = Chain::read(end_entity, others, self.algorithms.all).map_err(too_much)?;
        let refused = |e| self.refused(e, &chain);
        let own = chain.own().map_or(end_entity, |own| &own.reading);
        let leaf = EndEntityCert::try_from(own).map_err(refused)?;
        let anchors = !self.trust.provisioned.is_empty() || !self.trust.system.is_empty();
        let vouched_by = if self.trust.certificates.iter().any(|provisioned| provisioned == end_entity) {
            self.by_itself(&leaf, own, now)?
        } else if anchors {
            self.by_anchors(&leaf, &chain, now)?
        } else {
            self.by_pins_alone(&leaf, &chain, own, now)?
        };
        // An IP address is only matched by an iPAddress SAN, a name only by a dNSName (RFC 9525; T4).
        match ParsedCertificate::try_from(own).and_then(|parsed| verify_server_name(&parsed, name)) {
            Ok(()) => Ok(vouched_by),
            Err(Error::InvalidCertificate(
                error @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            )) => Err(Refusal { why: reasons::other_names(&chain), error }),
            Err(error) => Err(Refusal::from(error)),
        }
    }

    /// The very certificate stands in `ca_file`: it needs nobody else's word, whether it is marked as a CA's or not.
    /// Common tools make such certificates for a server alone (`openssl req -x509`).
    fn by_itself(
        &self,
        leaf: &EndEntityCert<'_>,
        own: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<VouchedBy, Refusal> {
        let key = pin_of(&leaf.subject_public_key_info());
        if !self.trust.pins.is_empty() && !self.trust.pins.contains(&key) {
            return Err(Refusal::unpinned("of its certificate, which is in ca_file,", &[key]));
        }
        Properties::read(own)
            .and_then(|properties| properties.serve(now))
            .map_err(Refusal::provisioned_leaf)?;
        Ok(VouchedBy::Provisioned)
    }

    /// What was provisioned comes first: a CA that is in `ca_file` is not a merely public one because the operating
    /// system knows it too.
    fn by_anchors(
        &self,
        leaf: &EndEntityCert<'_>,
        chain: &Chain<'_>,
        now: UnixTime,
    ) -> Result<VouchedBy, Refusal> {
        let pins = &self.trust.pins;
        let unpinned = RefCell::new(None);
        let pinned = |path: &VerifiedPath<'_>| {
            let keys = keys_on(path);
            if pins.is_empty() || keys.iter().any(|key| pins.contains(key)) {
                return Ok(());
            }
            unpinned.borrow_mut().get_or_insert(keys);
            Err(webpki::Error::UnknownIssuer) // webpki looks for another path
        };
        let mut failure = webpki::Error::UnknownIssuer;
        let stores =
            [(&self.trust.provisioned, VouchedBy::Provisioned), (&self.trust.system, VouchedBy::PublicStore)];
        for (anchors, vouched_by) in stores {
            match self.path(leaf, &Anchors::of(anchors), chain, now, &pinned) {
                Ok(()) if pins.is_empty() => return Ok(vouched_by),
                Ok(()) => return Ok(VouchedBy::Provisioned),
                // Of two reasons the one that is not "somebody else's" says more.
                Err(e) if is_unknown_issuer(&failure) => failure = e,
                Err(_) => {}
            }
        }
        match unpinned.take() {
            Some(keys) => Err(Refusal::unpinned("on the way from its certificate to the CA", &keys)),
            None => Err(self.refused(failure, chain)),
        }
    }

    fn by_pins_alone(
        &self,
        leaf: &EndEntityCert<'_>,
        chain: &Chain<'_>,
        own: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<VouchedBy, Refusal> {
        let pins = &self.trust.pins;
        let key = pin_of(&leaf.subject_public_key_info());
        if pins.contains(&key) {
            Properties::read(own)
                .and_then(|properties| properties.serve(now))
                .map_err(Refusal::pinned_leaf)?;
            return Ok(VouchedBy::Provisioned);
        }

        let mut keys = vec![key];
        let (mut anchors, mut properties) = (Vec::new(), Vec::new());
        let mut unfit = None;
        for other in chain.others() {
            // As strictly as any certificate that is not from a file of ours: a critical extension must be understood.
            let Ok(parsed) = EndEntityCert::try_from(&other.reading) else { continue };
            let key = pin_of(&parsed.subject_public_key_info());
            keys.push(key);
            if !pins.contains(&key) {
                continue;
            }
            let issuer = Properties::read(&other.reading).and_then(|properties| {
                properties.issue(now)?;
                let anchor = webpki::anchor_from_trusted_cert(&other.reading);
                Ok((anchor.map_err(|_| Unfit::Damaged)?, properties))
            });
            match issuer {
                Ok((anchor, issuer)) => {
                    anchors.push((anchor, other.directories().cloned()));
                    properties.push(issuer);
                }
                Err(why) => unfit = Some((key, why)),
            }
        }
        if anchors.is_empty() {
            return Err(match unfit {
                Some((key, why)) => Refusal::pinned_issuer(&key, why),
                None => Refusal::unpinned("in the chain it presented", &keys),
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
        self.path(leaf, &anchors, chain, now, &allowed).map_err(|e| self.refused(e, chain))?;
        Ok(VouchedBy::Provisioned)
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

    fn refused(&self, error: webpki::Error, chain: &Chain<'_>) -> Refusal {
        if !is_unknown_issuer(&error) {
            let (why, error) = reasons::of(&error, chain);
            return Refusal { why, error };
        }
        let error = CertificateError::UnknownIssuer;
        if let Some(why) = reasons::unverifiable(chain) {
            return Refusal { why, error };
        }
        let named = reasons::issuer(chain).map(|name| format!(": it names \"{name}\"")).unwrap_or_default();
        let authorities = self.trust.authorities();
        let why = format!("its certificate was not issued by {authorities} (unknown issuer){named}");
        Refusal { why, error }
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
        match self.judge(end_entity, intermediates, server_name, now) {
            Ok(vouched_by) => {
                let mut noted = self.note.noted();
                // Should a call ever need a second connection, the weaker of the two counts.
                if noted.vouched_by != Some(VouchedBy::PublicStore) {
                    noted.vouched_by = Some(vouched_by);
                }
                Ok(ServerCertVerified::assertion())
            }
            Err(refusal) => {
                self.note.noted().refusal = Some(refusal.why);
                Err(refusal.error.into())
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
        // As it was judged: what is processed here stands in the way of nobody.
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

/// From the leaf to the anchor, both included, and nothing that was merely presented.
fn keys_on(path: &VerifiedPath<'_>) -> Vec<Pin> {
    let mut keys = vec![pin_of(&path.end_entity().subject_public_key_info())];
    keys.extend(path.intermediate_certificates().map(|issuer| pin_of(&issuer.subject_public_key_info())));
    // A trust anchor holds what is inside the SEQUENCE of its SubjectPublicKeyInfo; a pin is of the whole.
    keys.push(pin_of(&wrap(SEQUENCE, &path.anchor().subject_public_key_info)));
    keys
}

/// What a certificate says of itself, where webpki is not asked: of a pinned one.
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

/// Why a pinned certificate does not do.
#[derive(Debug)]
enum Unfit {
    Expired,
    NotYetValid,
    NotForServers,
    NoCa,
    MayNotSign,
    Damaged,
}

impl Properties {
    fn read(certificate: &CertificateDer<'_>) -> Result<Self, Unfit> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| Unfit::Damaged)?;
        let constraints = certificate.basic_constraints().map_err(|_| Unfit::Damaged)?;
        let usage = certificate.key_usage().map_err(|_| Unfit::Damaged)?;
        let extended = certificate.extended_key_usage().map_err(|_| Unfit::Damaged)?;
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

    /// As a server's own certificate. Whether it is marked as a CA does not matter, as with the self-signed ones that
    /// common tools make: it is this very key that was provisioned.
    fn serve(&self, now: UnixTime) -> Result<(), Unfit> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < self.not_before {
            return Err(Unfit::NotYetValid);
        }
        if now > self.not_after {
            return Err(Unfit::Expired);
        }
        if self.is_for_servers { Ok(()) } else { Err(Unfit::NotForServers) }
    }

    /// As the end of a path from a server's certificate.
    fn issue(&self, now: UnixTime) -> Result<(), Unfit> {
        match self {
            Self { is_ca: false, .. } => Err(Unfit::NoCa),
            Self { signs_certificates: false, .. } => Err(Unfit::MayNotSign),
            _ => self.serve(now),
        }
    }
}

impl Unfit {
    fn why(&self) -> &'static str {
        match self {
            Self::Expired => "has expired, or this device's clock is wrong",
            Self::NotYetValid => "is not valid yet, or this device's clock is wrong",
            Self::NotForServers => "is not meant for servers (its extended key usage lacks serverAuth)",
            Self::NoCa => "is not a CA's, and vouches for no other certificate",
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

impl Refusal {
    fn pinned_leaf(unfit: Unfit) -> Self {
        Self { why: format!("its key is pinned, but its certificate {}", unfit.why()), error: unfit.error() }
    }

    fn provisioned_leaf(unfit: Unfit) -> Self {
        Self {
            why: format!("its certificate is in ca_file itself, but it {}", unfit.why()),
            error: unfit.error(),
        }
    }

    fn pinned_issuer(key: &Pin, unfit: Unfit) -> Self {
        let pin = BASE64.encode(key);
        let why = format!("the pinned certificate in the chain it presented ({pin}) {}", unfit.why());
        Self { why, error: unfit.error() }
    }

    fn unpinned(place: &str, keys: &[Pin]) -> Self {
        let mut why = format!("no key {place} is pinned in spki_sha256. From the leaf on, they are");
        for key in keys {
            let _ = write!(why, " {}", BASE64.encode(key)); // to a String: it cannot fail
        }
        why.push_str(". Pin one of them only if the operator of the MIS confirms it");
        Self { why, error: CertificateError::ApplicationVerificationFailure }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self { why: reasons::describe(&error), error },
            other => {
                let why = format!("its certificate is not acceptable ({})", Excerpt::of(other, MAX_UNKNOWN));
                Self { why, error: CertificateError::ApplicationVerificationFailure }
            }
        }
    }
}

/// A CA of the same name with another key shows as a bad signature.
fn is_unknown_issuer(error: &webpki::Error) -> bool {
    matches!(error, webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey)
}

/// What TLS says of a server's certificate, for people.
pub(super) fn describe(why: &CertificateError) -> String {
    reasons::describe(why)
}

#[cfg(test)]
mod tests;
