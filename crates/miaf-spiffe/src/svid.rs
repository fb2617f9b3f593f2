//! Validation of X.509-SVIDs: one pure function, [`validate`]. An issued chain must pass it before
//! anything current is replaced, wherever it comes from: the response of an MIS, or an operator
//! (miaf-v0 E4, K4; margo-now N2, N6, N7; SPIFFE X509-SVID sections 2 to 5).
//!
//! The chain itself is validated by rustls-webpki. What webpki leaves open is decided here: key
//! usage bits, the number of URI SANs, the leaf's own key, the size of RSA keys, what the anchor
//! says about itself, the identity.

use std::cell::Cell;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::VerifiedPath;
use x509_parser::certificate::{BasicExtension, X509Certificate};
use x509_parser::extensions::{GeneralName, KeyUsage, SubjectAlternativeName};
use x509_parser::oid_registry::{OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME};
use x509_parser::prelude::{FromDer as _, format_serial};
use x509_parser::x509::X509Version;

use crate::algorithms::key_is_allowed;
use crate::bundle::{AnchorFacts, Bundle, BundleContent};
use crate::chain::{MAX_CHAIN, parse};
use crate::encoding;
use crate::id::{MargoName, NameKind, SpiffeId, TrustDomain};
use crate::text::Excerpt;
use crate::time::Timestamp;

pub use crate::algorithms::Algorithms;
pub use crate::assembly::{CandidateIssuers, may_lead_to};
pub use crate::chain::{Chain, certificate_pem};
pub use crate::svid_error::SvidError;

/// Bytes of a serial number (RFC 5280 section 4.1.2.2), without the zero that keeps it positive.
const MAX_SERIAL: usize = 20;

/// Limit of how far ahead `notBefore` may lie: such an SVID is stored and used once it is valid:
/// the clock of the MIS, or of this device, is a little off. Beyond it, one of the two clocks is
/// wrong.
pub const MAX_AHEAD: Duration = Duration::from_secs(10 * 60);

/// The facts that an issued chain must match, and the rules that it must keep to.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    /// The trust domain of the discovery document, or of the configuration.
    pub trust_domain: &'a TrustDomain,
    /// The kind of name that an identity enrolled in this way has (margo-now N2).
    pub name: NameKind,
    /// The algorithms that its key, and the signatures on the chain, may have.
    pub algorithms: Algorithms,
    /// The WFM whose client the name must be, where the way of enrollment is bound to one (miaf-v0
    /// W4).
    pub wfm: Option<&'a SpiffeId>,
    /// The current identity, at renewal (miaf-v0 R3), or the one that the configuration demands.
    /// At an enrollment of any: none.
    pub spiffe_id: Option<&'a SpiffeId>,
    /// The subject public key info of the key that signed the request.
    pub spki_der: &'a [u8],
}

/// Validates an issued chain. `now` is the wall clock.
///
/// # Errors
/// The first rule that it breaks. Two of them are not final: [`SvidError::NotYetValid`] (store it
/// for later) and [`SvidError::UnknownIssuer`] (fetch the bundle once more, then validate again).
pub fn validate(
    chain: &Chain,
    expected: &Expectation<'_>,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<X509Svid, SvidError> {
    let leaf = parse(0, chain.leaf())?;
    for (index, der) in chain.certificates().iter().enumerate() {
        if let Some(why) = serial_fault(&parse(index, der)?) {
            return Err(SvidError::Serial { index, why });
        }
    }
    if leaf.version() != X509Version::V3 {
        return Err(SvidError::Version);
    }
    if leaf.public_key().raw != expected.spki_der {
        return Err(SvidError::OtherKey);
    }
    key_is_allowed(leaf.public_key(), expected.algorithms)?;
    extensions_are_sound(&leaf)?;
    is_no_authority(&leaf)?;
    // Before what it may do: so a CA that knows nothing of SPIFFE is told as such.
    let spiffe_id = identity(&leaf, expected)?;
    leaf_may_authenticate(&leaf)?;
    let (not_before, not_after) = validity(&leaf);
    if not_after <= not_before {
        return Err(SvidError::EmptyValidity { not_before, not_after });
    }
    if now > not_after {
        return Err(SvidError::Expired { not_after, now });
    }
    if now.after(MAX_AHEAD) < not_before {
        return Err(SvidError::FarFuture { not_before, now });
    }
    // A chain that is only early is validated as of the moment it becomes valid: a damaged one is
    // refused now.
    let path = Path::of(chain, expected.algorithms);
    let valid_from = path_validates_soon(path, bundle, now, not_before)?;
    if now < valid_from {
        return Err(SvidError::NotYetValid { not_before: valid_from });
    }
    let (serial, chain) = (serial(&leaf), chain.clone());
    let until = end_of_use(path, bundle, valid_from, not_after);
    Ok(X509Svid { spiffe_id, serial, not_before, not_after, until, chain, algorithms: expected.algorithms })
}

/// Checks that a renewed SVID has a serial number that its issuer has not given to the current one
/// (RFC 5280, section 4.1.2.2). By it, programs name the SVID that they have the agent sign for.
/// The current SVID itself passes: an MIS may return it once more.
///
/// # Errors
/// [`SvidError::SerialInUse`].
pub fn check_new_serial(chain: &Chain, current: &X509Svid) -> Result<(), SvidError> {
    if chain.leaf() == current.chain.leaf() {
        return Ok(());
    }
    let (new, old) = (parse(0, chain.leaf())?, parse(0, current.chain.leaf())?);
    if new.issuer().as_raw() == old.issuer().as_raw() && serial(&new) == current.serial {
        return Err(SvidError::SerialInUse { serial: Excerpt::of(&current.serial, 64).into() });
    }
    Ok(())
}

/// Whether the current SVID chains to an anchor of the bundle: used to report, never to drop
/// (miaf-v0 B3, B5).
pub fn is_trusted(svid: &X509Svid, bundle: &BundleContent, now: Timestamp) -> bool {
    path_validates(svid.path(), bundle, now).is_ok()
}

/// The path from an SVID to an anchor at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustPath<'a> {
    /// The anchor at its end. Where there are several, one whose validity the moment is within.
    pub anchor: &'a AnchorFacts,
    /// The first end of validity among the leaf and the intermediates of the path to that anchor.
    pub path_not_after: Timestamp,
    /// The certificates between the leaf and the anchor. Only these may be published as further
    /// authorities: another intermediate of the chain may be of an anchor that was withdrawn.
    pub intermediates: Vec<CertificateDer<'static>>,
}

/// Returns the path from an SVID to an anchor of the bundle. `None`: there is none, and
/// [`is_trusted`] is false.
///
/// An anchor whose validity has ended counts here (miaf-v0 B5) and to peers that follow RFC 5280
/// section 6.1; to OpenSSL it does not.
pub fn trust_path<'a>(svid: &X509Svid, bundle: &'a BundleContent, at: Timestamp) -> Option<TrustPath<'a>> {
    let is_valid = |anchor: &AnchorFacts| anchor.is_valid(at);
    path_to_anchor(svid.path(), bundle, at, is_valid)
        .or_else(|_| path_to_anchor(svid.path(), bundle, at, |_| true))
        .ok()
}

/// The end of the time around `now` in which the chain leads to an anchor without a break; where it
/// does not do so now, of the first such time. With a cross-signed issuer the path that lasts
/// longest counts. `leaf_not_after` where the bundle has no anchor for it at all: then there is
/// nothing that could end sooner.
pub(crate) fn end_of_use(
    path: Path<'_>,
    bundle: &BundleContent,
    now: Timestamp,
    leaf_not_after: Timestamp,
) -> Timestamp {
    let certificates = path.intermediates.iter().filter_map(|der| parse(0, der).ok());
    let ends = certificates.map(|certificate| validity(&certificate).1);
    let mut ends: Vec<_> = ends.filter(|end| *end < leaf_not_after).collect();
    if ends.is_empty() {
        return leaf_not_after;
    }
    ends.sort_unstable();
    let path_end = |at| path_to_anchor(path, bundle, at, |_| true).ok().map(|path| path.path_not_after);
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

/// Resolution of the times in certificates.
const SECOND: Duration = Duration::from_secs(1);

/// An SVID that passed [`validate`], or that was stored after it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    spiffe_id: SpiffeId,
    serial: String,
    not_before: Timestamp,
    not_after: Timestamp,
    until: Timestamp,
    chain: Chain,
    algorithms: Algorithms,
}

impl X509Svid {
    /// Reads a chain that was validated when it was stored. It may have expired: it is still the
    /// current identity. Which algorithms count for its path follows from its kind of name, as the
    /// way in which it was enrolled did: miaf-v0's, but those of released Margo for a WFM Client.
    ///
    /// # Errors
    /// [`SvidError`] when it is not a certificate with one SPIFFE ID.
    pub fn from_stored(chain: Chain) -> Result<Self, SvidError> {
        let leaf = parse(0, chain.leaf())?;
        let spiffe_id = only_spiffe_id(&leaf)?;
        let (not_before, not_after) = validity(&leaf);
        let serial = serial(&leaf);
        let algorithms = match spiffe_id.margo_name() {
            Some(MargoName::WfmClient { .. }) => Algorithms::Released,
            _ => Algorithms::MiafV0,
        };
        Ok(Self { spiffe_id, serial, not_before, not_after, until: not_after, chain, algorithms })
    }

    /// Whether its names are critical, or it has a subject (RFC 5280 section 4.1.2.6). There are peers
    /// that refuse an SVID for which that is not so.
    #[must_use]
    pub fn names_are_critical(&self) -> bool {
        parse(0, self.chain.leaf()).is_ok_and(|leaf| names_are_critical(&leaf).is_ok())
    }

    /// The same SVID, whose path has these algorithms: where its kind of name does not tell.
    #[must_use]
    pub fn by(self, algorithms: Algorithms) -> Self {
        Self { algorithms, ..self }
    }

    /// The same SVID under another bundle, whose anchors may be reached over other intermediates.
    #[must_use]
    pub fn under(&self, bundle: &BundleContent, now: Timestamp) -> Self {
        let until = end_of_use(self.path(), bundle, now, self.not_after);
        Self { until, ..self.clone() }
    }

    /// Whether an anchor of the bundle signed the leaf itself. There are clients that consider no
    /// intermediate (the WFM client of Margo's sandbox, when it starts).
    #[must_use]
    pub fn is_signed_by_anchor(&self, bundle: &BundleContent) -> bool {
        let alone = Path { intermediates: &[], ..self.path() };
        path_validates(alone, bundle, self.not_before).is_ok()
    }

    fn path(&self) -> Path<'_> {
        Path::of(&self.chain, self.algorithms)
    }

    /// The identity that it names.
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

    /// Last moment of the leaf's own validity. Peers accept it no longer than
    /// [`until`](Self::until).
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Last moment at which it can be used: the first end among the leaf and the intermediates that
    /// lead to an anchor.
    ///
    /// The anchor's own end does not count. RFC 5280 section 6.1.1 takes an anchor for a name and a
    /// key, and peers on webpki or Java do so; that others (OpenSSL, Go) refuse it is reported
    /// apart.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Leaf, then intermediates, as the MIS returned them (miaf-v0 E3).
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// RFC 5280 section 4.2: at most one of each, also of those that are not read here, and those of
/// the standard in DER. A peer may well refuse such a certificate as a whole. Private extensions
/// are sometimes plain text.
pub(crate) fn extensions_are_sound(certificate: &X509Certificate<'_>) -> Result<(), SvidError> {
    const STANDARD: &[u8] = &[0x55, 0x1d]; // id-ce, 2.5.29
    let all = certificate.extensions_map().map_err(|_| SvidError::Extension)?;
    let mut of_the_standard = all.values().filter(|found| found.oid.as_bytes().starts_with(STANDARD));
    if of_the_standard.any(|found| !encoding::is_der(found.value)) {
        return Err(SvidError::Extension);
    }
    Ok(())
}

/// The fault that keeps the parsers of peers from reading a certificate that x509-parser and webpki
/// read: an anchor like that would make a whole bundle unreadable to them.
pub(super) fn unreadable_to_peers(der: &[u8], certificate: &X509Certificate<'_>) -> Option<&'static str> {
    if !encoding::is_der(der) {
        return Some("its certificate is not encoded in DER");
    }
    if extensions_are_sound(certificate).is_err() {
        return Some("an extension of its certificate is there twice, or is not encoded in DER");
    }
    negative_serial(certificate)
}

/// The fault of a serial number (RFC 5280 section 4.1.2.2). Zero is allowed: all known parsers read
/// it.
pub(crate) fn serial_fault(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    negative_serial(certificate).or_else(|| long_serial(certificate))
}

/// A serial number that Go does not read since 1.23.
fn negative_serial(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    matches!(certificate.raw_serial(), [0x80..=0xff, ..]).then_some("its serial number is negative")
}

/// A serial number longer than every program has to read (RFC 5280 section 4.1.2.2). OpenSSL and Go
/// read it.
pub(super) fn long_serial(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    let serial = certificate.raw_serial();
    let magnitude = serial.strip_prefix(&[0]).unwrap_or(serial);
    (magnitude.len() > MAX_SERIAL).then_some("its serial number is longer than 20 bytes")
}

/// SPIFFE X509-SVID section 4: what the leaf may be used for.
pub(crate) fn leaf_may_authenticate(leaf: &X509Certificate<'_>) -> Result<(), SvidError> {
    is_no_authority(leaf)?;
    let unreadable = |_| SvidError::Extension;
    let (critical, usage) = key_usage(leaf)?.ok_or(SvidError::NoKeyUsage)?;
    if !critical {
        return Err(SvidError::KeyUsageNotCritical);
    }
    if !usage.digital_signature() {
        return Err(SvidError::NoDigitalSignature);
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(SvidError::MaySignCertificates);
    }
    if let Some(extended) = leaf.extended_key_usage().map_err(unreadable)? {
        if !extended.value.server_auth {
            return Err(SvidError::NoServerAuth);
        }
        if !extended.value.client_auth {
            return Err(SvidError::NoClientAuth);
        }
    }
    Ok(())
}

fn is_no_authority(leaf: &X509Certificate<'_>) -> Result<(), SvidError> {
    let constraints = leaf.basic_constraints().map_err(|_| SvidError::Extension)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(SvidError::CertificateAuthority);
    }
    Ok(())
}

/// The key usage, and whether it is critical. x509-parser passes over bytes that follow the bits
/// and webpki does not read this extension at all, but a peer's parser may well refuse such a
/// certificate.
fn key_usage(certificate: &X509Certificate<'_>) -> Result<Option<(bool, KeyUsage)>, SvidError> {
    let found =
        certificate.get_extension_unique(&OID_X509_EXT_KEY_USAGE).map_err(|_| SvidError::Extension)?;
    let Some(extension) = found else { return Ok(None) };
    match KeyUsage::from_der(extension.value) {
        Ok(([], usage)) => Ok(Some((extension.critical, usage))),
        _ => Err(SvidError::Extension),
    }
}

fn identity(leaf: &X509Certificate<'_>, expected: &Expectation<'_>) -> Result<SpiffeId, SvidError> {
    let id = only_spiffe_id(leaf)?;
    // Several CAs that are no MIS by v0 got it wrong until 2026 (see `names_are_critical` of the SVID).
    if expected.algorithms == Algorithms::MiafV0 {
        names_are_critical(leaf)?;
    }
    if id.trust_domain() != expected.trust_domain {
        return Err(SvidError::OtherTrustDomain { got: id, want: expected.trust_domain.clone() });
    }
    if !expected.name.includes(&id) {
        return Err(SvidError::OtherKindOfName { got: id, want: expected.name });
    }
    if let Some(want) = expected.wfm.filter(|want| id.wfm_of_client().as_ref() != Some(*want)) {
        return Err(SvidError::OtherWfm { got: id, want: want.clone() });
    }
    if let Some(want) = expected.spiffe_id.filter(|want| **want != id) {
        return Err(SvidError::OtherIdentity { got: id, want: want.clone() });
    }
    Ok(id)
}

/// SPIFFE X509-SVID section 3.1, RFC 5280 section 4.1.2.6: names are critical where there is no
/// subject.
pub(crate) fn names_are_critical(leaf: &X509Certificate<'_>) -> Result<(), SvidError> {
    let critical = subject_alternative_name(leaf)?.is_some_and(|san| san.critical);
    if !critical && leaf.subject().iter().next().is_none() {
        return Err(SvidError::NamesNotCritical);
    }
    Ok(())
}

/// The SPIFFE ID of a leaf: the one URI among its names (SPIFFE X509-SVID section 2).
pub(crate) fn only_spiffe_id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let names = subject_alternative_name(leaf)?.map(|san| san.value.general_names.as_slice());
    let names = names.unwrap_or_default();
    // A URI whose bytes are no text is a second name nevertheless, for a peer that reads bytes.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(SvidError::Extension);
    }
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris.as_slice() {
        [uri] => SpiffeId::parse(uri)
            .map_err(|why| SvidError::NotASpiffeId { uri: Excerpt::of(uri, 128).into(), why }),
        more => Err(SvidError::UriCount(more.len())),
    }
}

fn subject_alternative_name<'a>(
    leaf: &'a X509Certificate<'_>,
) -> Result<Option<BasicExtension<&'a SubjectAlternativeName<'a>>>, SvidError> {
    let found =
        leaf.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME).map_err(|_| SvidError::Extension)?;
    // x509-parser tells names apart by the number of their tag alone: a constructed [6] is a URI to
    // it and to no other parser.
    if found.is_some_and(|san| !encoding::are_general_names(san.value)) {
        return Err(SvidError::Extension);
    }
    leaf.subject_alternative_name().map_err(|_| SvidError::Extension)
}

/// Certificates that may form a path to an anchor, and the rules by which it is searched for.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    pub(crate) leaf: &'a CertificateDer<'a>,
    pub(crate) intermediates: &'a [CertificateDer<'a>],
    pub(crate) algorithms: Algorithms,
    /// What the issuers must be allowed to issue for.
    pub(crate) usage: webpki::KeyUsage,
}

impl<'a> Path<'a> {
    /// The path of this device's own SVID, with which it authenticates as a client.
    fn of(chain: &'a Chain, algorithms: Algorithms) -> Self {
        let (leaf, intermediates) = (chain.leaf(), chain.intermediates());
        Self { leaf, intermediates, algorithms, usage: webpki::KeyUsage::client_auth() }
    }
}

/// The moment from which the chain is valid: `now`, or a later one when a certificate of the path
/// is only a little early. An issuer made a minute ago may well begin after a leaf that is dated
/// back.
pub(crate) fn path_validates_soon(
    path: Path<'_>,
    bundle: &BundleContent,
    now: Timestamp,
    not_before: Timestamp,
) -> Result<Timestamp, SvidError> {
    let mut at = now.max(not_before);
    loop {
        match path_validates(path, bundle, at) {
            Err(SvidError::FarFuture { not_before, .. }) if not_before > now.after(MAX_AHEAD) => {
                return Err(SvidError::FarFuture { not_before, now });
            }
            // Later than `at`, or it would be no error: each turn waits for one certificate more of
            // a chain of a few.
            Err(SvidError::FarFuture { not_before, .. }) => at = not_before,
            other => return other.map(|()| at),
        }
    }
}

pub(crate) fn path_validates(path: Path<'_>, bundle: &BundleContent, at: Timestamp) -> Result<(), SvidError> {
    path_to_anchor(path, bundle, at, |_| true).map(|_| ())
}

/// The path to one of the `eligible` anchors.
pub(crate) fn path_to_anchor<'a>(
    path: Path<'_>,
    bundle: &'a BundleContent,
    at: Timestamp,
    eligible: impl Fn(&AnchorFacts) -> bool,
) -> Result<TrustPath<'a>, SvidError> {
    let sources = bundle.anchors().iter().zip(bundle.anchor_facts()).filter(|(_, facts)| eligible(facts));
    let readable = |source: (&'a CertificateDer<'static>, &'a AnchorFacts)| {
        webpki::anchor_from_trusted_cert(source.0).ok().map(|anchor| (anchor, source))
    };
    let (anchors, sources): (Vec<_>, Vec<_>) = sources.filter_map(readable).unzip();
    let of_path = |why| SvidError::of_path(why, path.algorithms);
    let leaf = webpki::EndEntityCert::try_from(path.leaf).map_err(of_path)?;
    // A path that MIAF forbids is passed over, and not the last word: with a cross-signed issuer
    // there are others.
    let (forbidden, found) = (Cell::new(None), Cell::new(None));
    let allowed = |verified: &VerifiedPath<'_>| {
        // Two anchors may differ only in what webpki drops of them: the place tells which one it
        // was.
        let source =
            anchors.iter().zip(&sources).find(|(anchor, _)| std::ptr::eq(*anchor, verified.anchor()));
        let (_, (anchor, facts)) = source.ok_or(webpki::Error::UnknownIssuer)?;
        // The anchor is not part of the chain.
        let below_anchor = verified.intermediate_certificates().count();
        if below_anchor >= MAX_CHAIN {
            forbidden.set(Some(SvidError::LongChain(below_anchor + 1)));
            return Err(webpki::Error::UnknownIssuer);
        }
        let path_not_after = path_is_allowed(verified, anchor, path.algorithms).map_err(|why| {
            forbidden.set(Some(why));
            webpki::Error::UnknownIssuer
        })?;
        let intermediates = verified.intermediate_certificates().map(|issuer| issuer.der().into_owned());
        let intermediates = intermediates.collect();
        found.set(Some(TrustPath { anchor: facts, path_not_after, intermediates }));
        Ok(())
    };
    let verified = leaf.verify_for_usage(
        path.algorithms.signatures(),
        &anchors,
        path.intermediates,
        UnixTime::since_unix_epoch(at.unix_duration()),
        path.usage,
        None,
        Some(&allowed),
    );
    match verified {
        Ok(_) => {
            let leaf_not_after = validity(&parse(0, path.leaf)?).1;
            let found = found.take().ok_or(SvidError::UnknownIssuer)?;
            Ok(TrustPath { path_not_after: found.path_not_after.min(leaf_not_after), ..found })
        }
        Err(e) => Err(forbidden.take().unwrap_or_else(|| of_path(e))),
    }
}

/// Checks what webpki leaves open of a path whose signatures fit. webpki takes an anchor for a name
/// and a key, as RFC 5280 section 6.1.1 allows; the certificate in the bundle says more, and the
/// parsers of peers heed it. Returns the first end of validity among the intermediates.
fn path_is_allowed(
    path: &VerifiedPath<'_>,
    anchor: &CertificateDer<'_>,
    algorithms: Algorithms,
) -> Result<Timestamp, SvidError> {
    let (mut below_anchor, mut first_end) = (0, Timestamp::from_millis(i64::MAX));
    for issuer in path.intermediate_certificates() {
        let der = issuer.der();
        let parsed = parse(0, &der)?;
        issuer_may_issue(&parsed, algorithms)?;
        first_end = first_end.min(validity(&parsed).1);
        // RFC 5280 section 4.2.1.9: a CA's certificate for its own next key does not count.
        below_anchor += u32::from(issuer.subject() != issuer.issuer());
    }
    anchor_may_issue(&parse(0, anchor)?, below_anchor, algorithms)?;
    Ok(first_end)
}

/// What an anchor must allow, as the certificate that it is. `below_anchor`: the intermediates of the
/// path that count for its length.
pub(crate) fn anchor_may_issue(
    anchor: &X509Certificate<'_>,
    below_anchor: u32,
    algorithms: Algorithms,
) -> Result<(), SvidError> {
    let constraints = anchor.basic_constraints().map_err(|_| SvidError::Extension)?.map(|found| found.value);
    // Certificates from before version 3 have no way to say it.
    if !constraints.map_or(anchor.version() != X509Version::V3, |says| says.ca) {
        return Err(SvidError::IssuerIsNoAuthority);
    }
    if constraints.and_then(|says| says.path_len_constraint).is_some_and(|most| most < below_anchor) {
        return Err(SvidError::PathTooLong);
    }
    issuer_may_issue(anchor, algorithms)
}

/// SPIFFE X509-SVID section 3.2 and 4: what each issuer of a path must allow, the anchor included.
pub(crate) fn issuer_may_issue(
    issuer: &X509Certificate<'_>,
    algorithms: Algorithms,
) -> Result<(), SvidError> {
    extensions_are_sound(issuer)?;
    if key_usage(issuer)?.is_some_and(|(_, usage)| !usage.key_cert_sign()) {
        return Err(SvidError::IssuerMayNotSign);
    }
    key_is_allowed(issuer.public_key(), algorithms)
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = certificate.validity();
    (
        Timestamp::from_secs(validity.not_before.timestamp()),
        Timestamp::from_secs(validity.not_after.timestamp()),
    )
}

/// The serial number without the zero byte in front that only says "not negative": an operator
/// searches for what OpenSSL shows.
fn serial(certificate: &X509Certificate<'_>) -> String {
    match certificate.raw_serial() {
        [0, magnitude @ ..] if !magnitude.is_empty() => format_serial(magnitude),
        whole => format_serial(whole),
    }
}

#[cfg(test)]
mod tests;
