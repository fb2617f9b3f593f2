//! The certificates that a server presents. They come from an unauthenticated peer, so their number
//! is limited, and only those are offered to the path search that a trust anchor leads to: the
//! search is then as short as the chain, whatever else was sent.
//!
//! Two things that webpki refuses are processed here, as RFC 5280 says, and webpki is given the
//! certificate as it would read without them. Signatures are checked on what was sent.
//!
//! - **Policies** (section 6.1): every policy is acceptable, and none is required unless a
//!   certificate says so (`policyConstraints`). Then `certificatePolicies` and `inhibitAnyPolicy`
//!   decide nothing, and need not be refused for being critical. With `policyConstraints` anywhere
//!   they are.
//! - **Name constraints on directory names** (section 6.1.3 (b), (c)).

use std::borrow::Cow;

use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, TrustAnchor,
};
use webpki::VerifiedPath;

use crate::hint::Reason;
use crate::x509::{self, Certificate, ComparableName, SEQUENCE, extension};

/// Limit on the certificates of one server, its own included. Real chains have two to four.
pub(super) const MAX_CERTIFICATES: usize = 6;
/// Limit on the bytes of one of them.
pub(super) const MAX_CERTIFICATE: usize = 16 * 1024;

/// Content of the object identifiers of the policy qualifiers that RFC 5280 section 4.2.1.4
/// defines: a pointer to a text and a text, which decide nothing.
const KNOWN_QUALIFIERS: [&[u8]; 2] = [&[0x2b, 6, 1, 5, 5, 7, 2, 1], &[0x2b, 6, 1, 5, 5, 7, 2, 2]];
const DIRECTORY_NAME: u8 = 0xa4;
const PERMITTED: u8 = 0xa0;
const EXCLUDED: u8 = 0xa1;

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// The chain that a server presented, its own certificate first.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    certificates: Vec<Presented<'a>>,
    algorithms: Algorithms,
}

/// One certificate of it.
#[derive(Debug)]
pub(super) struct Presented<'a> {
    /// As it was sent. `None`: it is no certificate.
    pub(super) sent: Option<Certificate<'a>>,
    /// As webpki is given it.
    pub(super) reading: CertificateDer<'a>,
    /// What is signed according to the reading, where that is not what was sent.
    changed: Option<Vec<u8>>,
    directories: Option<Subtrees>,
}

impl<'a> Chain<'a> {
    /// Parses the chain.
    ///
    /// # Errors
    /// It is over the limits. Nothing of it has been parsed then.
    pub(super) fn read(
        own: &'a CertificateDer<'a>,
        others: &'a [CertificateDer<'a>],
        algorithms: Algorithms,
    ) -> Result<Self, Reason> {
        let count = others.len() + 1;
        if count > MAX_CERTIFICATES {
            return Err(Reason::from(format!(
                "it presented {count} certificates, and no more than {MAX_CERTIFICATES} are read"
            ))
            .with_hint_text(
                "Have it present its own and the intermediates on the way to its CA, and nothing else",
            ));
        }
        let all = || std::iter::once(own).chain(others);
        if let Some(large) = all().map(|certificate| certificate.len()).find(|size| *size > MAX_CERTIFICATE) {
            return Err(format!(
                "it presented a certificate of {large} bytes, and no more than {MAX_CERTIFICATE} are read"
            )
            .into());
        }
        let sent: Vec<_> = all().map(|certificate| (certificate, Certificate::read(certificate))).collect();
        let required = |sent: &Certificate<'_>| sent.extension(extension::POLICY_CONSTRAINTS).is_some();
        let any_policy = !sent.iter().any(|(_, sent)| sent.as_ref().is_some_and(required));
        let certificates =
            sent.into_iter().map(|(der, sent)| Presented::read(der, sent, any_policy)).collect();
        Ok(Self { certificates, algorithms })
    }

    /// The server's own certificate.
    pub(super) fn own(&self) -> Option<&Presented<'a>> {
        self.certificates.first()
    }

    /// The certificates after its own.
    pub(super) fn others(&self) -> &[Presented<'a>] {
        self.certificates.get(1..).unwrap_or_default()
    }

    pub(super) fn all(&self) -> &[Presented<'a>] {
        &self.certificates
    }

    /// The readings of those that a path to an anchor can lead over: signed with the key of an
    /// anchor, or with that of another of them. Each signature is checked with a key that an anchor
    /// vouches for.
    pub(super) fn certified(&self, anchors: &[TrustAnchor<'_>]) -> Vec<CertificateDer<'_>> {
        let mut waiting: Vec<(&Certificate<'_>, &CertificateDer<'_>)> = Vec::new();
        for other in self.others() {
            if let Some(sent) = &other.sent
                && !waiting.iter().any(|(one, _)| (one.tbs, one.signature) == (sent.tbs, sent.signature))
            {
                waiting.push((sent, &other.reading));
            }
        }
        let mut certified: Vec<CertificateDer<'_>> = Vec::new();
        let mut issuers: Vec<(&[u8], &[u8])> = anchors
            .iter()
            .map(|anchor| (anchor.subject.as_ref(), anchor.subject_public_key_info.as_ref()))
            .collect();
        while !issuers.is_empty() && !waiting.is_empty() {
            let (found, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(sent, _)| {
                issuers.iter().any(|(name, key)| *name == sent.issuer && self.has_signed(key, sent))
            });
            issuers = found.iter().map(|(sent, _)| (sent.subject, sent.spki)).collect();
            certified.extend(found.into_iter().map(|(_, reading)| CertificateDer::from(reading.as_ref())));
            waiting = rest;
        }
        certified
    }

    /// Whether this key (content of a SubjectPublicKeyInfo) signed that certificate.
    fn has_signed(&self, spki: &[u8], certificate: &Certificate<'_>) -> bool {
        let Some((algorithm, key)) = x509::key_of(spki) else { return false };
        self.algorithms
            .iter()
            .filter(|a| a.signature_alg_id().as_ref() == certificate.algorithm)
            .filter(|a| a.public_key_alg_id().as_ref() == algorithm)
            .any(|a| a.verify_signature(key, certificate.tbs, certificate.signature).is_ok())
    }

    /// Whether certificates signed like this one can be verified at all.
    pub(super) fn knows_signature_of(&self, certificate: &Certificate<'_>) -> bool {
        self.algorithms.iter().any(|a| a.signature_alg_id().as_ref() == certificate.algorithm)
    }

    /// The algorithms, such that a signature is checked on the certificate as it was sent.
    pub(super) fn algorithms(&self) -> Vec<AsSent<'_>> {
        self.algorithms
            .iter()
            .map(|algorithm| AsSent { algorithm: *algorithm, certificates: &self.certificates })
            .collect()
    }

    /// Whether the directory names on a path are within what the CAs above them may certify.
    pub(super) fn keeps_to_its_directories(&self, path: &VerifiedPath<'_>, anchors: &Anchors<'_>) -> bool {
        let Some(own) = self.own() else { return false };
        let mut below = vec![own];
        for issuer in path.intermediate_certificates() {
            let reading = issuer.der();
            // Of several that read the same, each counts: one may have been made to hide the
            // constraints of another.
            let mut alike = self.others().iter().filter(|other| other.reading == reading);
            let Some(first) = alike.next() else { return false };
            let allow = |one: &Presented<'_>| one.directories.as_ref().is_none_or(|s| s.allow_all(&below));
            if !allow(first) || !alike.all(allow) {
                return false;
            }
            below.push(first);
        }
        anchors.directories_of(path.anchor()).is_none_or(|subtrees| subtrees.allow_all(&below))
    }
}

impl<'a> Presented<'a> {
    fn read(der: &'a CertificateDer<'a>, sent: Option<Certificate<'a>>, any_policy: bool) -> Self {
        let mut directories = None;
        let mut is_changed = false;
        let extensions: Vec<Vec<u8>> = sent
            .iter()
            .flat_map(|sent| &sent.extensions)
            .map(|e| {
                let changed = match e.id {
                    extension::CERTIFICATE_POLICIES
                        if e.critical && any_policy && has_known_qualifiers(e.value) =>
                    {
                        Some(e.changed(false, e.value))
                    }
                    extension::INHIBIT_ANY_POLICY if e.critical && any_policy => {
                        Some(e.changed(false, e.value))
                    }
                    // A second one is for webpki to refuse.
                    extension::NAME_CONSTRAINTS if directories.is_none() => {
                        let mut value = e.value;
                        x509::take(&mut value).and_then(|sequence| without_directories(sequence.content)).map(
                            |(rest, subtrees)| {
                                directories = Some(subtrees);
                                e.changed(e.critical, &x509::wrap(SEQUENCE, &rest))
                            },
                        )
                    }
                    _ => None,
                };
                is_changed |= changed.is_some();
                changed.unwrap_or_else(|| e.whole())
            })
            .collect();
        let changed =
            sent.as_ref().filter(|_| is_changed).and_then(|sent| sent.with_extensions(der, &extensions));
        match changed {
            Some((reading, tbs)) => Self { sent, reading: reading.into(), changed: Some(tbs), directories },
            None => {
                Self { sent, reading: CertificateDer::from(der.as_ref()), changed: None, directories: None }
            }
        }
    }

    pub(super) fn directories(&self) -> Option<&Subtrees> {
        self.directories.as_ref()
    }
}

fn has_known_qualifiers(mut value: &[u8]) -> bool {
    let mut read = || {
        let policies = x509::elements(x509::take(&mut value)?.content)?;
        for policy in policies {
            let [_policy, qualifiers @ ..] = &*x509::elements(policy.content)? else { return None };
            for list in qualifiers {
                for qualifier in x509::elements(list.content)? {
                    let mut content = qualifier.content;
                    let id = x509::take(&mut content)?.content;
                    KNOWN_QUALIFIERS.contains(&id).then_some(())?;
                }
            }
        }
        Some(())
    };
    read().is_some()
}

/// The directory names that a CA may certify, and those that it may not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subtrees {
    permitted: Vec<ComparableName>,
    excluded: Vec<ComparableName>,
}

/// Takes the directory names out of NameConstraints (both as content of their SEQUENCE). `None`:
/// there are none, or there is something about them that is not understood; webpki refuses it then.
fn without_directories(constraints: &[u8]) -> Option<(Vec<u8>, Subtrees)> {
    let (mut rest, mut subtrees) = (Vec::new(), Subtrees::default());
    for kind in x509::elements(constraints)? {
        let names = match kind.tag {
            PERMITTED => &mut subtrees.permitted,
            EXCLUDED => &mut subtrees.excluded,
            _ => return None,
        };
        let mut others = Vec::new();
        for subtree in x509::elements(kind.content)? {
            let mut content = subtree.content;
            let base = x509::take(&mut content)?;
            if base.tag != DIRECTORY_NAME {
                others.extend(subtree.whole);
                continue;
            }
            let mut name = base.content;
            let name = x509::take(&mut name)?.content;
            // Neither minimum nor maximum (section 4.2.1.10).
            names.push(ComparableName::read(name).filter(|_| content.is_empty())?);
        }
        if !others.is_empty() {
            rest.extend(x509::wrap(kind.tag, &others));
        }
    }
    (subtrees != Subtrees::default()).then_some((rest, subtrees))
}

impl Subtrees {
    fn allow_all(&self, certificates: &[&Presented<'_>]) -> bool {
        certificates.iter().all(|certificate| {
            certificate
                .sent
                .as_ref()
                .and_then(directory_names)
                .is_some_and(|names| names.iter().all(|n| self.allow(n)))
        })
    }

    fn allow(&self, name: &ComparableName) -> bool {
        let within = |bases: &[ComparableName]| bases.iter().any(|base| name.is_within(base));
        !within(&self.excluded) && (self.permitted.is_empty() || within(&self.permitted))
    }
}

/// The subject, unless it is empty, and the directory names of the subjectAltName. `None`: one
/// cannot be compared.
fn directory_names(certificate: &Certificate<'_>) -> Option<Vec<ComparableName>> {
    let mut names = vec![ComparableName::read(certificate.subject)?];
    names.retain(|name| !name.is_empty());
    if let Some(alternatives) = certificate.extension(extension::SUBJECT_ALT_NAME) {
        let mut value = alternatives.value;
        for alternative in x509::elements(x509::take(&mut value)?.content)? {
            if alternative.tag == DIRECTORY_NAME {
                let mut name = alternative.content;
                names.push(ComparableName::read(x509::take(&mut name)?.content)?);
            }
        }
    }
    Some(names)
}

/// Trust anchors in the form for webpki, and their name constraints that are processed here.
#[derive(Debug)]
pub(super) struct Anchors<'a> {
    pub(super) list: Cow<'a, [TrustAnchor<'a>]>,
    /// By position in the list.
    directories: Vec<(usize, Subtrees)>,
}

impl<'a> Anchors<'a> {
    pub(super) fn of(anchors: &'a [TrustAnchor<'static>]) -> Self {
        let mut list: Cow<'a, [TrustAnchor<'a>]> = Cow::Borrowed(anchors);
        let mut directories = Vec::new();
        for (index, anchor) in anchors.iter().enumerate() {
            let constraints = anchor.name_constraints.as_ref().and_then(|der| without_directories(der));
            if let Some((rest, subtrees)) = constraints
                && let Some(anchor) = list.to_mut().get_mut(index)
            {
                anchor.name_constraints = (!rest.is_empty()).then(|| rest.into());
                directories.push((index, subtrees));
            }
        }
        Self { list, directories }
    }

    /// Creates the anchors from certificates that a server presented.
    pub(super) fn presented(anchors: Vec<(TrustAnchor<'a>, Option<Subtrees>)>) -> Self {
        let (list, directories): (Vec<_>, Vec<_>) = anchors.into_iter().unzip();
        let directories =
            directories.into_iter().enumerate().filter_map(|(index, s)| Some((index, s?))).collect();
        Self { list: Cow::Owned(list), directories }
    }

    pub(super) fn position(&self, anchor: &TrustAnchor<'_>) -> Option<usize> {
        self.list.iter().position(|one| std::ptr::eq(one, anchor))
    }

    fn directories_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Subtrees> {
        let position = self.position(anchor)?;
        self.directories.iter().find(|(index, _)| *index == position).map(|(_, subtrees)| subtrees)
    }
}

/// A signature algorithm that sees certificates as they were sent.
#[derive(Debug)]
pub(super) struct AsSent<'a> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    certificates: &'a [Presented<'a>],
}

impl SignatureVerificationAlgorithm for AsSent<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let sent = self.certificates.iter().find(|one| one.changed.as_deref() == Some(message));
        let message = sent.and_then(|one| one.sent.as_ref()).map_or(message, |sent| sent.tbs);
        self.algorithm.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}
