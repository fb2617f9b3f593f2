//! The judgement of an X.509-SVID: one pure function, [`judge`], that an answer of the MIS must pass before anything
//! that is held is replaced (miaf-v0 E4, K4; SPIFFE X509-SVID sections 2 to 5).
//!
//! The chain itself is validated by rustls-webpki. What webpki leaves open is decided here: key usage bits, the
//! number of URI SANs, the leaf's own key, the size of RSA keys, what the anchor says about itself, the identity.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime, alg_id,
};
use webpki::VerifiedPath;
use webpki::ring::{ECDSA_P256_SHA256, RSA_PSS_2048_8192_SHA256_LEGACY_KEY};
use x509_parser::certificate::{BasicExtension, X509Certificate};
use x509_parser::extensions::{GeneralName, KeyUsage, SubjectAlternativeName};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS,
    OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
};
use x509_parser::prelude::{FromDer as _, format_serial};
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use super::{AnchorFacts, Bundle, SpiffeId, SpiffeIdError, TrustDomain};
use crate::pem::{self, Pem};
use crate::text::Excerpt;
use crate::time::Timestamp;

mod encoding;

/// The two signature algorithms of MIAF, and no others (miaf-v0 K3, K4).
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    ECDSA_P256_SHA256,
    RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    &KeyForPssOnly(AlgorithmIdentifier::from_slice(&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 10])),
    &KeyForPssOnly(alg_id::RSA_PSS_SHA256),
];

/// The second of the two, with a key that says that it is for PSS alone (id-RSASSA-PSS of RFC 4055, without parameters
/// or with these): webpki has no name for such a key.
#[derive(Debug)]
struct KeyForPssOnly(AlgorithmIdentifier);

impl SignatureVerificationAlgorithm for KeyForPssOnly {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        RSA_PSS_2048_8192_SHA256_LEGACY_KEY.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::RSA_PSS_SHA256
    }
}

const MIN_RSA_BITS: usize = 3072;

/// webpki reads every certificate again for every way to order them: with eight of them of one name and 50 kB each, all
/// ways together are minutes. So a chain has no more than is believable, and neither has a certificate.
const MAX_CHAIN: usize = 6;
const MAX_CERTIFICATE: usize = 16 * 1024;

/// Octets of a serial number (RFC 5280 section 4.1.2.2), without the zero that keeps it positive.
const MAX_SERIAL: usize = 20;

/// An SVID whose `notBefore` lies at most this far ahead is kept and used when its time comes: the clock of the MIS,
/// or of this device, is a little off. Beyond it, one of the two clocks is wrong.
pub const MAX_AHEAD: Duration = Duration::from_secs(10 * 60);

/// What the answer must match.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    /// The trust domain of the discovery document.
    pub trust_domain: &'a TrustDomain,
    /// At renewal, the one identity that is acceptable (miaf-v0 R3); at enrollment, none.
    pub spiffe_id: Option<&'a SpiffeId>,
    /// The subject public key info of the key that signed the request.
    pub spki_der: &'a [u8],
}

/// Judges the chain that the MIS returned. `now` is the wall clock.
///
/// # Errors
/// The first rule that it breaks. Two of them are not final: [`Rejection::NotYetValid`] (keep it for later) and
/// [`Rejection::UnknownIssuer`] (fetch the bundle once more, judge again).
pub fn judge(
    chain: &Chain,
    expected: &Expectation<'_>,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<X509Svid, Rejection> {
    let leaf = parse(0, chain.leaf())?;
    for (index, der) in chain.certificates().iter().enumerate() {
        if let Some(why) = serial_fault(&parse(index, der)?) {
            return Err(Rejection::Serial { index, why });
        }
    }
    if leaf.version() != X509Version::V3 {
        return Err(Rejection::Version);
    }
    if leaf.public_key().raw != expected.spki_der {
        return Err(Rejection::OtherKey);
    }
    key_is_allowed(leaf.public_key())?;
    extensions_are_sound(&leaf)?;
    leaf_may_authenticate(&leaf)?;
    let spiffe_id = identity(&leaf, expected)?;
    let (not_before, not_after) = validity(&leaf);
    if not_after <= not_before {
        return Err(Rejection::EmptyValidity { not_before, not_after });
    }
    if now > not_after {
        return Err(Rejection::Expired { not_after, now });
    }
    if now.after(MAX_AHEAD) < not_before {
        return Err(Rejection::FarFuture { not_before, now });
    }
    // An answer that is only early is judged as of the moment it becomes valid: a damaged one is refused now.
    let valid_from = path_validates_soon(chain, bundle, now, not_before)?;
    if now < valid_from {
        return Err(Rejection::NotYetValid { not_before: valid_from });
    }
    let until = end_of_use(chain, bundle, valid_from, not_after);
    Ok(X509Svid { spiffe_id, serial: serial(&leaf), not_before, not_after, until, chain: chain.clone() })
}

/// Checks that the answer to a renewal has a serial number that its issuer has not given to the SVID held (RFC 5280,
/// section 4.1.2.2). Programs name the SVID that they have the agent sign for by it. The SVID held itself is no other
/// one: an MIS may give it once more.
///
/// # Errors
/// [`Rejection::SerialInUse`].
pub fn has_new_serial(chain: &Chain, held: &X509Svid) -> Result<(), Rejection> {
    if chain.leaf() == held.chain.leaf() {
        return Ok(());
    }
    let (new, old) = (parse(0, chain.leaf())?, parse(0, held.chain.leaf())?);
    if new.issuer().as_raw() == old.issuer().as_raw() && serial(&new) == held.serial {
        return Err(Rejection::SerialInUse { serial: Excerpt::of(&held.serial, 64).into() });
    }
    Ok(())
}

/// Whether the bundle vouches for an SVID that is held: used to report, never to drop (miaf-v0 B3, B5).
pub fn is_trusted(svid: &X509Svid, bundle: &Bundle, now: Timestamp) -> bool {
    path_validates(&svid.chain, bundle, now).is_ok()
}

/// What a bundle makes of an SVID at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouching<'a> {
    /// The anchor that leads to it; where there are several, one whose validity the moment is within.
    pub anchor: &'a AnchorFacts,
    /// The first end of validity among the leaf and the intermediates of the path to that anchor.
    pub path_not_after: Timestamp,
}

/// The anchor of the bundle that vouches for an SVID at a time. `None`: there is none, and
/// [`is_trusted`] says no.
///
/// An anchor whose validity has ended vouches here (miaf-v0 B5) and to peers that follow RFC 5280
/// section 6.1; to OpenSSL it does not.
pub fn vouching<'a>(svid: &X509Svid, bundle: &'a Bundle, at: Timestamp) -> Option<Vouching<'a>> {
    let is_valid = |anchor: &AnchorFacts| anchor.is_valid(at);
    path_to_anchor(&svid.chain, bundle, at, is_valid)
        .or_else(|_| path_to_anchor(&svid.chain, bundle, at, |_| true))
        .ok()
}

/// The end of the time around `now` in which the chain leads to an anchor without a break; where it does not do so now,
/// of the first such time. With a cross-signed issuer the path that lasts longest counts. `leaf_not_after` where the
/// bundle has no anchor for it at all: then there is nothing that could end sooner.
fn end_of_use(chain: &Chain, bundle: &Bundle, now: Timestamp, leaf_not_after: Timestamp) -> Timestamp {
    let certificates = chain.intermediates().iter().filter_map(|der| parse(0, der).ok());
    let ends = certificates.map(|certificate| validity(&certificate).1);
    let mut ends: Vec<_> = ends.filter(|end| *end < leaf_not_after).collect();
    if ends.is_empty() {
        return leaf_not_after;
    }
    ends.sort_unstable();
    let path_end = |at| path_to_anchor(chain, bundle, at, |_| true).ok().map(|path| path.path_not_after);
    let begun = std::iter::once(now).chain(ends).find_map(path_end);
    let mut end = begun.unwrap_or(leaf_not_after);
    // Each turn goes beyond the end of another certificate of a chain of a few.
    while end < leaf_not_after
        && let Some(later) = path_end(end.after(SECOND)).filter(|later| *later > end)
    {
        end = later;
    }
    end
}

/// What the times of certificates are in.
const SECOND: Duration = Duration::from_secs(1);

/// An SVID that passed [`judge`], or that is read back from where such a one was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    spiffe_id: SpiffeId,
    serial: String,
    not_before: Timestamp,
    not_after: Timestamp,
    until: Timestamp,
    chain: Chain,
}

impl X509Svid {
    /// Reads a chain that was judged when it was stored. Its time may have passed: it is still the identity held.
    ///
    /// # Errors
    /// [`Rejection`] when it is not a certificate with one SPIFFE ID.
    pub fn from_stored(chain: Chain) -> Result<Self, Rejection> {
        let leaf = parse(0, chain.leaf())?;
        let spiffe_id = only_spiffe_id(&leaf)?;
        let (not_before, not_after) = validity(&leaf);
        let serial = serial(&leaf);
        Ok(Self { spiffe_id, serial, not_before, not_after, until: not_after, chain })
    }

    /// The same under another bundle, whose anchors may be reached over other intermediates.
    #[must_use]
    pub fn under(&self, bundle: &Bundle, now: Timestamp) -> Self {
        let until = end_of_use(&self.chain, bundle, now, self.not_after);
        Self { until, ..self.clone() }
    }

    /// Who it names.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The serial number, in colon-separated hexadecimal as OpenSSL prints it.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// First moment of its validity.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Last moment of the leaf's own validity. Peers accept it no longer than [`until`](Self::until).
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Last moment at which it can be used: the first end among the leaf and the intermediates that lead to an anchor.
    ///
    /// The anchor's own end does not count. RFC 5280 section 6.1.1 takes an anchor for a name and a key, and peers on
    /// webpki or Java do so; that others (OpenSSL, Go) refuse it is reported apart.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Leaf, then intermediates, as the MIS returned them (miaf-v0 E3).
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// A certificate chain of believable size: leaf first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Vec<CertificateDer<'static>>);

impl Chain {
    /// Reads one certificate from each PEM text, whatever its line width (miaf-v0 E3).
    ///
    /// # Errors
    /// [`Rejection`]: no certificate, too many, or a text that is not exactly one certificate.
    pub fn from_pem<S: AsRef<str>>(texts: &[S]) -> Result<Self, Rejection> {
        if texts.is_empty() {
            return Err(Rejection::EmptyChain);
        }
        if texts.len() > MAX_CHAIN {
            return Err(Rejection::LongChain(texts.len()));
        }
        let chain: Result<Vec<_>, _> =
            texts.iter().enumerate().map(|(index, text)| one_certificate(index, text.as_ref())).collect();
        Ok(Self(chain?))
    }

    /// Leaf, then intermediates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// Each certificate as a PEM text of its own.
    pub fn to_pems(&self) -> Vec<String> {
        self.0.iter().map(certificate_pem).collect()
    }

    /// The certificate of the subject.
    #[must_use]
    pub fn leaf(&self) -> &CertificateDer<'static> {
        static NONE: CertificateDer<'static> = CertificateDer::from_slice(&[]);
        self.0.first().unwrap_or(&NONE) // never empty: `from_pem` saw to it
    }

    fn intermediates(&self) -> &[CertificateDer<'static>] {
        self.0.get(1..).unwrap_or_default()
    }
}

/// One certificate as PEM, wrapped at 64 columns (RFC 7468).
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let text = BASE64.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn one_certificate(index: usize, text: &str) -> Result<CertificateDer<'static>, Rejection> {
    let not_pem = |why: String| Rejection::NotPem { index, why };
    if text.contains('\0') {
        return Err(not_pem("it has a NUL character".into())); // a file may, in UTF-16
    }
    let Pem { blocks, commented_out } = pem::read(text.as_bytes()).map_err(|e| not_pem(e.to_string()))?;
    let der = match blocks.as_slice() {
        [block] if &*block.label == "CERTIFICATE" => &block.der,
        [block] => return Err(not_pem(format!("it is a {}", block.label))),
        [] => return Err(not_pem(pem::instead_of_blocks(text.as_bytes(), &commented_out).to_string())),
        [_, second, ..] => {
            return Err(not_pem(format!("it has {} blocks, the second a {}", blocks.len(), second.label)));
        }
    };
    if der.len() > MAX_CERTIFICATE || !encoding::is_der(der) {
        return Err(Rejection::Malformed { index });
    }
    let der = CertificateDer::from(der.to_vec());
    parse(index, &der)?;
    Ok(der)
}

fn parse<'a>(index: usize, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Rejection> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Rejection::Malformed { index }),
    }
}

/// RFC 5280 section 4.2: at most one of each, also of those that nobody here looks at, and those of
/// the standard in DER. A peer may well refuse such a certificate as a whole. Private extensions
/// are sometimes plain text.
fn extensions_are_sound(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    const STANDARD: &[u8] = &[0x55, 0x1d]; // id-ce, 2.5.29
    let all = certificate.extensions_map().map_err(|_| Rejection::Extension)?;
    let mut of_the_standard = all.values().filter(|found| found.oid.as_bytes().starts_with(STANDARD));
    if of_the_standard.any(|found| !encoding::is_der(found.value)) {
        return Err(Rejection::Extension);
    }
    Ok(())
}

/// What keeps the parsers of peers from reading a certificate that x509-parser and webpki read: an
/// anchor like that would make a whole bundle unreadable to them.
pub(super) fn unreadable_to_peers(der: &[u8], certificate: &X509Certificate<'_>) -> Option<&'static str> {
    if !encoding::is_der(der) {
        return Some("its certificate is not encoded in DER");
    }
    if extensions_are_sound(certificate).is_err() {
        return Some("an extension of its certificate is there twice, or is not encoded in DER");
    }
    negative_serial(certificate)
}

/// What RFC 5280 section 4.1.2.2 forbids an issuer. Zero is passed over: all parsers that we know read it.
fn serial_fault(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    negative_serial(certificate).or_else(|| long_serial(certificate))
}

/// A serial number that Go does not read since 1.23.
fn negative_serial(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    matches!(certificate.raw_serial(), [0x80..=0xff, ..]).then_some("its serial number is negative")
}

/// A serial number longer than every program has to read (RFC 5280 section 4.1.2.2). OpenSSL and Go read it.
pub(super) fn long_serial(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    let serial = certificate.raw_serial();
    let magnitude = serial.strip_prefix(&[0]).unwrap_or(serial);
    (magnitude.len() > MAX_SERIAL).then_some("its serial number is longer than 20 octets")
}

/// SPIFFE X509-SVID section 4: what the leaf may be used for.
fn leaf_may_authenticate(leaf: &X509Certificate<'_>) -> Result<(), Rejection> {
    let unreadable = |_| Rejection::Extension;
    if leaf.basic_constraints().map_err(unreadable)?.is_some_and(|bc| bc.value.ca) {
        return Err(Rejection::CertificateAuthority);
    }
    let (critical, usage) = key_usage(leaf)?.ok_or(Rejection::NoKeyUsage)?;
    if !critical {
        return Err(Rejection::KeyUsageNotCritical);
    }
    if !usage.digital_signature() {
        return Err(Rejection::NoDigitalSignature);
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(Rejection::MaySignCertificates);
    }
    if let Some(extended) = leaf.extended_key_usage().map_err(unreadable)? {
        if !extended.value.server_auth {
            return Err(Rejection::NoServerAuth);
        }
        if !extended.value.client_auth {
            return Err(Rejection::NoClientAuth);
        }
    }
    Ok(())
}

/// The key usage, and whether it is critical. x509-parser passes over bytes that follow the bits and webpki does not
/// look at this extension at all, but a peer's parser may well refuse such a certificate.
fn key_usage(certificate: &X509Certificate<'_>) -> Result<Option<(bool, KeyUsage)>, Rejection> {
    let found =
        certificate.get_extension_unique(&OID_X509_EXT_KEY_USAGE).map_err(|_| Rejection::Extension)?;
    let Some(extension) = found else { return Ok(None) };
    match KeyUsage::from_der(extension.value) {
        Ok(([], usage)) => Ok(Some((extension.critical, usage))),
        _ => Err(Rejection::Extension),
    }
}

fn identity(leaf: &X509Certificate<'_>, expected: &Expectation<'_>) -> Result<SpiffeId, Rejection> {
    let id = only_spiffe_id(leaf)?;
    let critical = subject_alternative_name(leaf)?.is_some_and(|san| san.critical);
    if !critical && leaf.subject().iter().next().is_none() {
        return Err(Rejection::NamesNotCritical);
    }
    if id.trust_domain() != expected.trust_domain {
        return Err(Rejection::OtherTrustDomain { got: id, want: expected.trust_domain.clone() });
    }
    if id.device_uuid().is_none() {
        return Err(Rejection::NotADevice(id));
    }
    if let Some(want) = expected.spiffe_id.filter(|want| **want != id) {
        return Err(Rejection::OtherIdentity { got: id, want: want.clone() });
    }
    Ok(id)
}

fn only_spiffe_id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, Rejection> {
    let names = subject_alternative_name(leaf)?.map(|san| san.value.general_names.as_slice());
    let names = names.unwrap_or_default();
    // A URI whose bytes are no text is a second name all the same, for a peer that reads bytes.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(Rejection::Extension);
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [uri] => SpiffeId::parse(uri)
            .map_err(|why| Rejection::NotASpiffeId { uri: Excerpt::of(uri, 128).into(), why }),
        more => Err(Rejection::UriCount(more.len())),
    }
}

fn subject_alternative_name<'a>(
    leaf: &'a X509Certificate<'_>,
) -> Result<Option<BasicExtension<&'a SubjectAlternativeName<'a>>>, Rejection> {
    let found =
        leaf.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME).map_err(|_| Rejection::Extension)?;
    // x509-parser tells names apart by the number of their tag alone: a constructed [6] is a URI to
    // it and to nobody else.
    if found.is_some_and(|san| !encoding::are_general_names(san.value)) {
        return Err(Rejection::Extension);
    }
    leaf.subject_alternative_name().map_err(|_| Rejection::Extension)
}

/// The moment from which the chain is valid: `now`, or a later one when a certificate of the path is only a little
/// early. An issuer made a minute ago may well begin after a leaf that is dated back.
fn path_validates_soon(
    chain: &Chain,
    bundle: &Bundle,
    now: Timestamp,
    not_before: Timestamp,
) -> Result<Timestamp, Rejection> {
    let mut at = now.max(not_before);
    loop {
        match path_validates(chain, bundle, at) {
            Err(Rejection::FarFuture { not_before, .. }) if not_before > now.after(MAX_AHEAD) => {
                return Err(Rejection::FarFuture { not_before, now });
            }
            // Later than `at`, or it would be no error: each turn waits for one certificate more of a chain of a few.
            Err(Rejection::FarFuture { not_before, .. }) => at = not_before,
            other => return other.map(|()| at),
        }
    }
}

fn path_validates(chain: &Chain, bundle: &Bundle, at: Timestamp) -> Result<(), Rejection> {
    path_to_anchor(chain, bundle, at, |_| true).map(|_| ())
}

/// The path to one of the `eligible` anchors.
fn path_to_anchor<'a>(
    chain: &Chain,
    bundle: &'a Bundle,
    at: Timestamp,
    eligible: impl Fn(&AnchorFacts) -> bool,
) -> Result<Vouching<'a>, Rejection> {
    let sources = bundle.anchors().iter().zip(bundle.anchor_facts()).filter(|(_, facts)| eligible(facts));
    let readable = |source: (&'a CertificateDer<'static>, &'a AnchorFacts)| {
        webpki::anchor_from_trusted_cert(source.0).ok().map(|anchor| (anchor, source))
    };
    let (anchors, sources): (Vec<_>, Vec<_>) = sources.filter_map(readable).unzip();
    let leaf = webpki::EndEntityCert::try_from(chain.leaf()).map_err(Rejection::from)?;
    // A path that MIAF forbids is passed over, and not the last word: with a cross-signed issuer there are others.
    let (forbidden, found) = (Cell::new(None), Cell::new(None));
    let allowed = |path: &VerifiedPath<'_>| {
        // Two anchors may differ only in what webpki does not keep of them: which one it was, its place tells.
        let source = anchors.iter().zip(&sources).find(|(anchor, _)| std::ptr::eq(*anchor, path.anchor()));
        let (_, (anchor, facts)) = source.ok_or(webpki::Error::UnknownIssuer)?;
        let path_not_after = path_is_allowed(path, anchor).map_err(|why| {
            forbidden.set(Some(why));
            webpki::Error::UnknownIssuer
        })?;
        found.set(Some(Vouching { anchor: facts, path_not_after }));
        Ok(())
    };
    let verified = leaf.verify_for_usage(
        ALGORITHMS,
        &anchors,
        chain.intermediates(),
        UnixTime::since_unix_epoch(at.unix_duration()),
        webpki::KeyUsage::client_auth(),
        None,
        Some(&allowed),
    );
    match verified {
        Ok(_) => {
            let leaf_not_after = validity(&parse(0, chain.leaf())?).1;
            let found = found.take().ok_or(Rejection::UnknownIssuer)?;
            Ok(Vouching { path_not_after: found.path_not_after.min(leaf_not_after), ..found })
        }
        Err(e) => Err(forbidden.take().unwrap_or_else(|| e.into())),
    }
}

/// What webpki leaves open of a path whose signatures fit. It takes an anchor for a name and a key, as RFC 5280
/// section 6.1.1 allows; the certificate that the bundle holds says more, and the parsers of peers heed it. Returns the
/// first end of validity among the intermediates.
fn path_is_allowed(path: &VerifiedPath<'_>, anchor: &CertificateDer<'_>) -> Result<Timestamp, Rejection> {
    let (mut below_anchor, mut first_end) = (0, Timestamp::from_millis(i64::MAX));
    for issuer in path.intermediate_certificates() {
        let der = issuer.der();
        let parsed = parse(0, &der)?;
        issuer_may_issue(&parsed)?;
        first_end = first_end.min(validity(&parsed).1);
        // RFC 5280 section 4.2.1.9: a CA's certificate for its own next key does not count.
        below_anchor += u32::from(issuer.subject() != issuer.issuer());
    }
    let anchor = parse(0, anchor)?;
    let constraints = anchor.basic_constraints().map_err(|_| Rejection::Extension)?.map(|found| found.value);
    // Certificates from before version 3 have no way to say it.
    if !constraints.map_or(anchor.version() != X509Version::V3, |says| says.ca) {
        return Err(Rejection::IssuerIsNoAuthority);
    }
    if constraints.and_then(|says| says.path_len_constraint).is_some_and(|most| most < below_anchor) {
        return Err(Rejection::PathTooLong);
    }
    issuer_may_issue(&anchor)?;
    Ok(first_end)
}

/// SPIFFE X509-SVID section 3.2 and 4: what each issuer of a path must allow, the anchor included.
fn issuer_may_issue(issuer: &X509Certificate<'_>) -> Result<(), Rejection> {
    extensions_are_sound(issuer)?;
    if key_usage(issuer)?.is_some_and(|(_, usage)| !usage.key_cert_sign()) {
        return Err(Rejection::IssuerMayNotSign);
    }
    key_is_allowed(issuer.public_key())?;
    Ok(())
}

/// P-256, or RSA from 3072 bits: webpki takes RSA from 2048, and leaves the leaf's own key open (miaf-v0 K4).
fn key_is_allowed(key: &SubjectPublicKeyInfo<'_>) -> Result<(), Rejection> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_rsa = [OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS].contains(&key.algorithm.algorithm);
    if is_rsa {
        let (_, rsa) =
            RSAPublicKey::from_der(&key.subject_public_key.data).map_err(|_| Rejection::Algorithm)?;
        if rsa.key_size() < MIN_RSA_BITS {
            return Err(Rejection::WeakRsa(rsa.key_size()));
        }
    } else if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(Rejection::Algorithm);
    }
    Ok(())
}

pub(super) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = certificate.validity();
    (
        Timestamp::from_secs(validity.not_before.timestamp()),
        Timestamp::from_secs(validity.not_after.timestamp()),
    )
}

/// Without the zero byte in front that only says "not negative": an operator searches for what OpenSSL shows.
fn serial(certificate: &X509Certificate<'_>) -> String {
    match certificate.raw_serial() {
        [0, magnitude @ ..] if !magnitude.is_empty() => format_serial(magnitude),
        whole => format_serial(whole),
    }
}

/// Why an SVID is not accepted. What was held stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No certificate at all.
    #[error("the answer holds no certificate")]
    EmptyChain,
    /// Longer than any believable path.
    #[error("the chain has {0} certificates, more than the {MAX_CHAIN} that are believable")]
    LongChain(usize),
    /// An element that is not exactly one PEM certificate (miaf-v0 E3).
    #[error("element {index} of the chain is not exactly one PEM certificate: {why}")]
    NotPem {
        /// Position in the chain, from 0.
        index: usize,
        /// What it is.
        why: String,
    },
    /// An element that is PEM, and not of a certificate in DER.
    #[error("element {index} of the chain is PEM, but what is in it is not an X.509 certificate in DER")]
    Malformed {
        /// Position in the chain, from 0.
        index: usize,
    },
    /// A serial number that is negative, or longer than 20 octets.
    #[error("certificate {index} of the chain cannot be read by all programs: {why}")]
    Serial {
        /// Position in the chain, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// X.509 version 1 or 2.
    #[error("the certificate is not X.509 version 3")]
    Version,
    /// An extension that matters is damaged or there twice.
    #[error("an extension of the certificate cannot be read, or is there twice")]
    Extension,
    /// Issued for another key than the one that asked.
    #[error("the certificate is for another public key than the one in the request")]
    OtherKey,
    /// An issuer that numbers its certificates all the same.
    #[error(
        "the new certificate has the serial number {serial} of the SVID that it is to replace, and an issuer must not give \
         one twice (RFC 5280, section 4.1.2.2). Have the MIS's operator correct how it numbers certificates"
    )]
    SerialInUse {
        /// The serial number, shortened.
        serial: String,
    },
    /// `cA` is true.
    #[error("the certificate is a certificate authority (basicConstraints cA is true), not an SVID")]
    CertificateAuthority,
    /// No key usage.
    #[error("the certificate has no keyUsage extension")]
    NoKeyUsage,
    /// Key usage that a verifier may ignore.
    #[error("the keyUsage extension of the certificate is not marked critical")]
    KeyUsageNotCritical,
    /// Cannot sign a handshake.
    #[error("the keyUsage of the certificate lacks digitalSignature")]
    NoDigitalSignature,
    /// Could sign certificates or CRLs.
    #[error("the keyUsage of the certificate allows keyCertSign or cRLSign, which an SVID must not")]
    MaySignCertificates,
    /// Extended key usage without `serverAuth`.
    #[error("the extended key usage of the certificate lacks serverAuth")]
    NoServerAuth,
    /// Extended key usage without `clientAuth`.
    #[error("the extended key usage of the certificate lacks clientAuth")]
    NoClientAuth,
    /// None, or several.
    #[error("the certificate has {0} URI names where an SVID has exactly one")]
    UriCount(usize),
    /// The one URI is not a SPIFFE ID.
    #[error("the certificate names \"{uri}\", which is not a SPIFFE ID: {why}")]
    NotASpiffeId {
        /// What was found, shortened.
        uri: String,
        /// The rule it breaks.
        why: SpiffeIdError,
    },
    /// A name that a verifier may overlook, where there is no other.
    #[error("the certificate has no subject, and its names (subjectAltName) are not marked critical")]
    NamesNotCritical,
    /// A name of another domain.
    #[error("the certificate names {got}, which is not in the trust domain \"{want}\"")]
    OtherTrustDomain {
        /// What was found.
        got: SpiffeId,
        /// What the discovery document says.
        want: TrustDomain,
    },
    /// A name outside `/margo/device/<uuid>`.
    #[error("the certificate names {0}, which is not a device (/margo/device/<lowercase uuid>)")]
    NotADevice(SpiffeId),
    /// A renewal that would change who the device is.
    #[error("the new certificate names {got}, but this device is {want}")]
    OtherIdentity {
        /// What was found.
        got: SpiffeId,
        /// Who the device is.
        want: SpiffeId,
    },
    /// `notAfter` not later than `notBefore`.
    #[error("the certificate is valid for no time at all ({not_before} to {not_after})")]
    EmptyValidity {
        /// First moment.
        not_before: Timestamp,
        /// Last moment.
        not_after: Timestamp,
    },
    /// Over already.
    #[error("the certificate expired at {not_after}, and it is {now} here")]
    Expired {
        /// Last moment of validity.
        not_after: Timestamp,
        /// The device's clock.
        now: Timestamp,
    },
    /// An intermediate whose time is over.
    #[error("an issuer of the chain expired at {not_after}, and it is {now} here")]
    IssuerExpired {
        /// Last moment of its validity.
        not_after: Timestamp,
        /// The device's clock.
        now: Timestamp,
    },
    /// Later than a little clock difference explains, be it the leaf or an intermediate.
    #[error("the chain is valid only from {not_before}, and it is {now} here: compare the two clocks")]
    FarFuture {
        /// First moment of validity.
        not_before: Timestamp,
        /// The device's clock.
        now: Timestamp,
    },
    /// Good, but early: to be judged again at `not_before`.
    #[error("the certificate becomes valid at {not_before}")]
    NotYetValid {
        /// First moment of validity.
        not_before: Timestamp,
    },
    /// No path to an anchor of the bundle.
    #[error("the certificate does not chain to an anchor of the trust bundle")]
    UnknownIssuer,
    /// A signature with another algorithm than the two of MIAF.
    #[error("a signature or key of the chain is neither ECDSA P-256 with SHA-256 nor RSA-PSS with SHA-256")]
    Algorithm,
    /// An RSA key under 3072 bits.
    #[error("the chain has an RSA key of {0} bits; at least {MIN_RSA_BITS} are required")]
    WeakRsa(usize),
    /// An intermediate whose key usage forbids it to issue.
    #[error("an issuer of the chain may not sign certificates (its keyUsage lacks keyCertSign)")]
    IssuerMayNotSign,
    /// An issuer, or the anchor itself, that is an end entity.
    #[error("an issuer of the chain is no certificate authority (its basicConstraints lack cA)")]
    IssuerIsNoAuthority,
    /// An intermediate that is limited to other purposes.
    #[error("an issuer of the chain may not issue for clientAuth (its extended key usage)")]
    IssuerPurpose,
    /// More intermediates than an issuer allows.
    #[error("the chain is longer than one of its issuers allows (pathLenConstraint)")]
    PathTooLong,
    /// Everything else that path validation finds (RFC 5280 section 6).
    #[error("the chain does not validate: {}", in_words(.0))]
    Path(webpki::Error),
}

impl Rejection {
    /// Whether a newer bundle could lead to another judgement: path validation reports the most telling of several
    /// errors, so an unknown issuer may hide behind another one (miaf-v0 E4: the bundle is fetched once more).
    pub fn may_lie_in_the_bundle(&self) -> bool {
        matches!(
            self,
            Self::UnknownIssuer
                | Self::Algorithm
                | Self::WeakRsa(_)
                | Self::IssuerMayNotSign
                | Self::IssuerIsNoAuthority
                | Self::IssuerPurpose
                | Self::PathTooLong
                | Self::IssuerExpired { .. }
                | Self::Path(_)
        )
    }
}

/// webpki's errors are the names of its variants, with all that they carry.
fn in_words(error: &webpki::Error) -> Cow<'static, str> {
    use webpki::Error as E;
    let words = match error {
        E::BadDer
        | E::BadDerTime
        | E::TrailingData(_)
        | E::MalformedExtensions
        | E::ExtensionValueInvalid => "a part of a certificate cannot be decoded",
        E::InvalidCertValidity => "a certificate ends before it begins",
        E::InvalidSerialNumber => "a serial number cannot be read",
        E::MalformedDnsIdentifier => "a DNS name of a certificate cannot be read",
        E::MalformedNameConstraint | E::InvalidNetworkMaskConstraint | E::UnsupportedNameType => {
            "the name constraints of an issuer cannot be read"
        }
        E::NameConstraintViolation => "an issuer may not issue for this name (its name constraints)",
        E::SignatureAlgorithmMismatch => "a certificate names two different signature algorithms",
        E::UnsupportedCertVersion => "an issuer is not X.509 version 3",
        E::UnsupportedCriticalExtension => "a critical extension of a certificate is not known",
        E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => "there are too many ways from it to an anchor",
        other => return Cow::Owned(Excerpt::of(format_args!("{other:?}"), 64).into()),
    };
    Cow::Borrowed(words)
}

impl From<webpki::Error> for Rejection {
    fn from(e: webpki::Error) -> Self {
        use webpki::Error as E;
        let moment = |t: UnixTime| Timestamp::from_secs(i64::try_from(t.as_secs()).unwrap_or(i64::MAX));
        let of_miaf = |key: &[u8]| ALGORITHMS.iter().any(|a| a.public_key_alg_id().as_ref() == key);
        match e {
            // A CA that changed its key and kept its name shows as a bad signature, or, where it went from one
            // of the two algorithms to the other, as a signature that does not fit the key.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            E::UnsupportedSignatureAlgorithmForPublicKeyContext(c) if of_miaf(&c.public_key_algorithm_id) => {
                Self::UnknownIssuer
            }
            E::UnsupportedSignatureAlgorithmContext(_)
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::Algorithm,
            // Of intermediates: the leaf's own validity is looked at first.
            E::CertExpired { time, not_after } => {
                Self::IssuerExpired { not_after: moment(not_after), now: moment(time) }
            }
            E::CertNotValidYet { time, not_before } => {
                Self::FarFuture { not_before: moment(not_before), now: moment(time) }
            }
            // Of issuers too: the leaf was held against stricter rules before.
            E::EndEntityUsedAsCa => Self::IssuerIsNoAuthority,
            E::PathLenConstraintViolated => Self::PathTooLong,
            E::EmptyEkuExtension | E::RequiredEkuNotFoundContext(_) => Self::IssuerPurpose,
            other => Self::Path(other),
        }
    }
}

#[cfg(test)]
mod tests;
