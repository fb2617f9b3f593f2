//! Parser of certificates, as far as is needed to choose among them and to describe them. No
//! signature, date or name is validated here.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;

/// Limit on the characters of a distinguished name in a message.
const MAX_NAME: usize = 80;
/// Limit on the identifiers that a message lists.
const MAX_LISTED: usize = 4;

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SET: u8 = 0x31;
const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;

/// A DER element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// With tag and length.
    pub(crate) whole: &'a [u8],
}

/// Takes the next element off `input`. `None`: there is no whole one.
pub(crate) fn take<'a>(input: &mut &'a [u8]) -> Option<Element<'a>> {
    let all = *input;
    let (&tag, rest) = all.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x84 => {
            let (length, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            length.iter().try_fold(0usize, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))?
        }
        _ => return None, // indefinite, or larger than anything here
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    let whole = all.get(..all.len() - rest.len())?;
    Some(Element { tag, content, whole })
}

/// Takes the next element off `input`, if it has this tag.
pub(crate) fn take_tagged<'a>(input: &mut &'a [u8], tag: u8) -> Option<Element<'a>> {
    take(input).filter(|element| element.tag == tag)
}

/// All elements of a content. `None`: something in it is not one.
pub(crate) fn elements(mut content: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut elements = Vec::new();
    while !content.is_empty() {
        elements.push(take(&mut content)?);
    }
    Some(elements)
}

/// The element of this tag and content.
pub(crate) fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut der = Vec::with_capacity(content.len() + 6);
    der.push(tag);
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            der.push(0x80 | significant.len() as u8); // at most 8: the length of a usize
            der.extend(significant);
        }
    }
    der.extend(content);
    der
}

/// A certificate (RFC 5280 section 4.1) of any version.
#[derive(Clone, Debug)]
pub(crate) struct Certificate<'a> {
    /// What is signed, with tag and length.
    pub(crate) tbs: &'a [u8],
    /// Content of the signature's AlgorithmIdentifier.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
    /// 1, 2 or 3; larger ones as they stand.
    pub(crate) version: u8,
    /// Content of the issuer's name.
    pub(crate) issuer: &'a [u8],
    /// Content of the subject's name.
    pub(crate) subject: &'a [u8],
    /// Content of the SubjectPublicKeyInfo.
    pub(crate) spki: &'a [u8],
    pub(crate) extensions: Vec<Extension<'a>>,
    /// The fields of `tbs` before the extensions.
    fields: &'a [u8],
}

/// An extension of a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extension<'a> {
    /// Content of the object identifier.
    pub(crate) id: &'a [u8],
    pub(crate) critical: bool,
    pub(crate) value: &'a [u8],
    whole: &'a [u8],
}

/// Content of the identifiers of extensions (RFC 5280 section 4.2.1).
pub(crate) mod extension {
    pub(crate) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
    pub(crate) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
    pub(crate) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
    pub(crate) const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 30];
    pub(crate) const CRL_DISTRIBUTION_POINTS: &[u8] = &[0x55, 0x1d, 31];
    pub(crate) const CERTIFICATE_POLICIES: &[u8] = &[0x55, 0x1d, 32];
    pub(crate) const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 36];
    pub(crate) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
    pub(crate) const INHIBIT_ANY_POLICY: &[u8] = &[0x55, 0x1d, 54];

    /// What every TLS library processes.
    pub(crate) const COMMON: [&[u8]; 6] = [
        KEY_USAGE,
        SUBJECT_ALT_NAME,
        BASIC_CONSTRAINTS,
        NAME_CONSTRAINTS,
        CRL_DISTRIBUTION_POINTS,
        EXTENDED_KEY_USAGE,
    ];
}

impl<'a> Certificate<'a> {
    /// Parses a certificate. `None`: it is none, or has trailing data.
    pub(crate) fn read(der: &'a [u8]) -> Option<Self> {
        let mut outer = der;
        let mut certificate = take_tagged(&mut outer, SEQUENCE).filter(|_| outer.is_empty())?.content;
        let tbs = take_tagged(&mut certificate, SEQUENCE)?;
        let algorithm = take_tagged(&mut certificate, SEQUENCE)?.content;
        let (_unused_bits, signature) = take_tagged(&mut certificate, BIT_STRING)
            .filter(|_| certificate.is_empty())?
            .content
            .split_first()?;

        let mut rest = tbs.content;
        let version = match rest.first() {
            Some(0xa0) => {
                let mut explicit = take(&mut rest)?.content;
                take_tagged(&mut explicit, INTEGER)?.content.last()?.saturating_add(1)
            }
            _ => 1,
        };
        take_tagged(&mut rest, INTEGER)?; // serial number
        take_tagged(&mut rest, SEQUENCE)?; // the algorithm again
        let issuer = take_tagged(&mut rest, SEQUENCE)?.content;
        take_tagged(&mut rest, SEQUENCE)?; // validity
        let subject = take_tagged(&mut rest, SEQUENCE)?.content;
        let spki = take_tagged(&mut rest, SEQUENCE)?.content;
        let mut fields = tbs.content.get(..tbs.content.len() - rest.len())?;
        let mut extensions = Vec::new();
        while !rest.is_empty() {
            let before = rest;
            let field = take(&mut rest)?;
            if field.tag == 0xa3 {
                let mut explicit = field.content;
                let list = take_tagged(&mut explicit, SEQUENCE)?;
                extensions =
                    elements(list.content)?.into_iter().map(Extension::read).collect::<Option<_>>()?;
                break;
            }
            // issuerUniqueID and subjectUniqueID, which are not used.
            fields = tbs.content.get(..tbs.content.len() - before.len() + field.whole.len())?;
        }
        let tbs = tbs.whole;
        Some(Self { tbs, algorithm, signature, version, issuer, subject, spki, extensions, fields })
    }

    pub(crate) fn extension(&self, id: &[u8]) -> Option<&Extension<'a>> {
        self.extensions.iter().find(|extension| extension.id == id)
    }

    /// The public key's AlgorithmIdentifier (its content) and the key's bits.
    pub(crate) fn key(&self) -> Option<(&'a [u8], &'a [u8])> {
        key_of(self.spki)
    }

    /// Whether this is its public key (a DER SubjectPublicKeyInfo), in whatever form the
    /// certificate has it.
    pub(crate) fn has_key(&self, mut spki: &[u8]) -> bool {
        let other = take_tagged(&mut spki, SEQUENCE).and_then(|spki| key_of(spki.content));
        let (Some((_, own)), Some((_, other))) = (self.key(), other) else { return false };
        own == other || (self.has_compressed_point() && compressed(other).is_some_and(|point| point == own))
    }

    /// Whether its public key is a point on a curve in compressed form (SEC 1 section 2.3.3), which
    /// RFC 8422 section 5.1.1 takes out of TLS.
    pub(crate) fn has_compressed_point(&self) -> bool {
        self.key().is_some_and(|(algorithm, key)| {
            identifier(algorithm) == "1.2.840.10045.2.1" && matches!(key.first(), Some(2 | 3))
        })
    }

    pub(crate) fn subject_name(&self) -> Excerpt {
        name(self.subject)
    }

    pub(crate) fn issuer_name(&self) -> Excerpt {
        name(self.issuer)
    }

    /// Names of the critical extensions that `known` does not have, for a message.
    pub(crate) fn critical_extensions_beyond(&self, known: &[&[u8]]) -> Option<String> {
        let beyond = self.extensions.iter().filter(|e| e.critical && !known.contains(&e.id));
        listed(beyond.map(|extension| extension_name(extension.id)))
    }

    /// Names of the extensions that occur more than once (RFC 5280 section 4.2 forbids it).
    pub(crate) fn repeated_extensions(&self) -> Option<String> {
        let again = |index: usize, id: &[u8]| self.extensions.iter().take(index).any(|e| e.id == id);
        // What is compared with what came before is limited: a certificate has a dozen.
        let repeated = self.extensions.iter().take(64).enumerate().filter(|(index, e)| again(*index, e.id));
        listed(repeated.map(|(_, extension)| extension_name(extension.id)))
    }

    /// The certificate with other extensions: as it would read if it had been made so. Its
    /// signature is the one that it had.
    pub(crate) fn with_extensions(
        &self,
        der: &'a [u8],
        extensions: &[Vec<u8>],
    ) -> Option<(Vec<u8>, Vec<u8>)> {
        let list = wrap(0xa3, &wrap(SEQUENCE, &extensions.concat()));
        let tbs = wrap(SEQUENCE, &[self.fields, &list].concat());
        let mut outer = der;
        let mut inner = take_tagged(&mut outer, SEQUENCE)?.content;
        take(&mut inner)?;
        Some((wrap(SEQUENCE, &[&tbs, inner].concat()), tbs))
    }
}

/// The AlgorithmIdentifier (its content) and the bits of a SubjectPublicKeyInfo's content.
pub(crate) fn key_of(mut spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let algorithm = take_tagged(&mut spki, SEQUENCE)?.content;
    let (_unused_bits, key) = take_tagged(&mut spki, BIT_STRING)?.content.split_first()?;
    Some((algorithm, key))
}

/// Whether the leaf of a chain is the certificate of its key. `true` where that cannot be checked,
/// because the key does not export its public half or the certificate is malformed: the server that
/// gets it finds out.
pub(crate) fn has_its_key(certified: &CertifiedKey) -> bool {
    match (certified.cert.first(), certified.key.public_key()) {
        (Some(own), Some(public)) => Certificate::read(own).is_none_or(|own| own.has_key(&public)),
        _ => true,
    }
}

/// A point `04 ‖ X ‖ Y` in compressed form (SEC 1 section 2.3.3).
fn compressed(point: &[u8]) -> Option<Vec<u8>> {
    let (4, coordinates) = point.split_first()? else { return None };
    let (x, y) = coordinates.split_at_checked(coordinates.len() / 2)?;
    let parity = 2 | (y.last()? & 1);
    Some([&[parity], x].concat())
}

impl<'a> Extension<'a> {
    fn read(element: Element<'a>) -> Option<Self> {
        let mut content = Some(element).filter(|element| element.tag == SEQUENCE)?.content;
        let id = take_tagged(&mut content, OBJECT_IDENTIFIER)?.content;
        let mut value = take(&mut content)?;
        let mut critical = false;
        if value.tag == BOOLEAN {
            critical = value.content != [0];
            value = take(&mut content)?;
        }
        (value.tag == OCTET_STRING && content.is_empty()).then_some(Self {
            id,
            critical,
            value: value.content,
            whole: element.whole,
        })
    }

    /// The extension as it is in the certificate.
    pub(crate) fn whole(&self) -> Vec<u8> {
        self.whole.to_vec()
    }

    /// The same with another criticality and value.
    pub(crate) fn changed(&self, critical: bool, value: &[u8]) -> Vec<u8> {
        extension_of(self.id, critical, value)
    }
}

/// An extension of these parts. `id`: content of the object identifier.
pub(crate) fn extension_of(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { wrap(BOOLEAN, &[0xff]) } else { Vec::new() };
    wrap(SEQUENCE, &[wrap(OBJECT_IDENTIFIER, id), critical, wrap(OCTET_STRING, value)].concat())
}

/// A distinguished name for people, from its content.
pub(crate) fn name(content: &[u8]) -> Excerpt {
    let der = wrap(SEQUENCE, content);
    match X509Name::from_der(&der) {
        _ if content.is_empty() => Excerpt::of("(empty)", MAX_NAME),
        Ok((_, name)) => Excerpt::of(name, MAX_NAME),
        Err(_) => Excerpt::of("(unreadable)", MAX_NAME),
    }
}

/// Unusual properties of a certificate, because of which some servers cannot read it or do not
/// accept it. It is no validation: the MIS decides.
pub(crate) fn peculiarities(der: &[u8]) -> Vec<String> {
    let Some(certificate) = Certificate::read(der) else { return vec!["it is not well-formed".into()] };
    let mut found = Vec::new();
    if certificate.version != 3 {
        found.push(format!("it is of X.509 version {}", certificate.version));
    }
    if certificate.has_compressed_point() {
        found.push(
            "its key is a point in compressed form, which TLS 1.3 does not have (RFC 8422 section 5.1.1)"
                .into(),
        );
    }
    if certificate.key().is_some_and(|(algorithm, _)| identifier(algorithm) == "1.2.840.113549.1.1.10") {
        found.push(
            "its key is for RSA-PSS alone (id-RSASSA-PSS), and is used as an ordinary RSA key here".into(),
        );
    }
    if let Some(names) = certificate.critical_extensions_beyond(&extension::COMMON) {
        found.push(format!("it has critical extensions that few servers process: {names}"));
    }
    if let Some(names) = certificate.repeated_extensions() {
        found.push(format!("it has an extension more than once: {names}"));
    }
    found
}

/// An intermediate and the last moment of its validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) subject: Excerpt,
    pub(crate) not_after: Timestamp,
}

/// The ends of the intermediates that lead up from the first certificate of a chain by their names,
/// from the bottom on. Of several with the same subject the one that lasts longest counts; a
/// self-signed one, which every server has itself, does not.
pub(crate) fn ends_of_intermediates(chain: &[CertificateDer<'_>]) -> Vec<End> {
    let read = |der| Some((Certificate::read(der)?, not_after(der)?));
    let mut others: Vec<(Certificate<'_>, Timestamp)> =
        chain.iter().skip(1).filter_map(|der| read(der)).collect();
    others.retain(|(other, _)| other.issuer != other.subject);
    let mut ends = Vec::new();
    let mut issuer = chain.first().and_then(|own| Certificate::read(own)).map(|own| own.issuer);
    while let Some(name) = issuer {
        let (found, rest): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(other, _)| other.subject == name);
        others = rest;
        let longest = found.into_iter().max_by_key(|(_, not_after)| *not_after);
        issuer = longest.map(|(other, not_after)| {
            ends.push(End { subject: other.subject_name(), not_after });
            other.issuer
        });
    }
    ends
}

fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Timestamp::from_secs(certificate.validity().not_after.timestamp()))
}

fn listed(names: impl Iterator<Item = String>) -> Option<String> {
    let mut names: Vec<String> = names.take(MAX_LISTED + 1).collect();
    if names.len() > MAX_LISTED {
        names.truncate(MAX_LISTED);
        names.push("others".into());
    }
    (!names.is_empty()).then(|| names.join(", "))
}

/// An object identifier in dots, from its content. Of a long one, the beginning.
pub(crate) fn dotted(content: &[u8]) -> String {
    let (mut arcs, mut arc) = (Vec::new(), 0u64);
    for byte in content.iter().take(32) {
        arc = (arc << 7) | u64::from(byte & 0x7f); // of an arc beyond 64 bits, the end
        if byte & 0x80 == 0 {
            if arcs.is_empty() {
                let first = (arc / 40).min(2);
                arcs.extend([first, arc - first * 40]);
            } else {
                arcs.push(arc);
            }
            arc = 0;
        }
    }
    let arcs: Vec<String> = arcs.iter().map(u64::to_string).collect();
    arcs.join(".")
}

/// The name of an extension, from the content of its identifier; those without one, in dots.
pub(crate) fn extension_name(id: &[u8]) -> String {
    let dotted = dotted(id);
    let name = match dotted.as_str() {
        "2.5.29.9" => "subjectDirectoryAttributes",
        "2.5.29.14" => "subjectKeyIdentifier",
        "2.5.29.15" => "keyUsage",
        "2.5.29.16" => "privateKeyUsagePeriod",
        "2.5.29.17" => "subjectAltName",
        "2.5.29.18" => "issuerAltName",
        "2.5.29.19" => "basicConstraints",
        "2.5.29.30" => "nameConstraints",
        "2.5.29.31" => "cRLDistributionPoints",
        "2.5.29.32" => "certificatePolicies",
        "2.5.29.33" => "policyMappings",
        "2.5.29.35" => "authorityKeyIdentifier",
        "2.5.29.36" => "policyConstraints",
        "2.5.29.37" => "extKeyUsage",
        "2.5.29.46" => "freshestCRL",
        "2.5.29.54" => "inhibitAnyPolicy",
        "1.3.6.1.5.5.7.1.1" => "authorityInfoAccess",
        "1.3.6.1.5.5.7.1.3" => "qcStatements",
        "1.3.6.1.5.5.7.1.11" => "subjectInfoAccess",
        "1.3.6.1.5.5.7.1.24" => "tlsFeature",
        "1.3.6.1.4.1.311.20.2" => "Microsoft certificate template name",
        "1.3.6.1.4.1.311.21.7" => "Microsoft certificate template",
        "1.3.6.1.4.1.311.21.10" => "Microsoft application policies",
        "1.3.6.1.4.1.11129.2.4.3" => "Certificate Transparency poison",
        "2.16.840.1.113730.1.1" => "netscapeCertType",
        "2.23.133.5.4.1" => "TCG DICE TcbInfo",
        "2.23.133.5.4.4" => "TCG DICE Ueid",
        "2.23.133.5.4.5" => "TCG DICE MultiTcbInfo",
        other if other.starts_with("2.23.133.") => return format!("TCG {other}"),
        other => return other.to_owned(),
    };
    name.to_owned()
}

/// The name of a signature or key algorithm, from the content of an AlgorithmIdentifier.
pub(crate) fn algorithm_name(content: &[u8]) -> String {
    let dotted = identifier(content);
    let name = match dotted.as_str() {
        "1.2.840.113549.1.1.1" => "RSA",
        "1.2.840.113549.1.1.4" => "RSA with MD5",
        "1.2.840.113549.1.1.5" => "RSA with SHA-1",
        "1.2.840.113549.1.1.10" => "RSA-PSS",
        "1.2.840.113549.1.1.11" => "RSA with SHA-256",
        "1.2.840.113549.1.1.12" => "RSA with SHA-384",
        "1.2.840.113549.1.1.13" => "RSA with SHA-512",
        "1.2.840.113549.1.1.14" => "RSA with SHA-224",
        "1.2.840.10040.4.1" | "1.2.840.10040.4.3" | "2.16.840.1.101.3.4.3.2" => "DSA",
        "1.2.840.10045.2.1" => return curve_name(content),
        "1.2.840.10045.4.1" => "ECDSA with SHA-1",
        "1.2.840.10045.4.3.1" => "ECDSA with SHA-224",
        "1.2.840.10045.4.3.2" => "ECDSA with SHA-256",
        "1.2.840.10045.4.3.3" => "ECDSA with SHA-384",
        "1.2.840.10045.4.3.4" => "ECDSA with SHA-512",
        "1.3.101.112" => "Ed25519",
        "1.3.101.113" => "Ed448",
        "1.2.156.10197.1.501" => "SM2",
        "2.16.840.1.101.3.4.3.17" => "ML-DSA-44",
        "2.16.840.1.101.3.4.3.18" => "ML-DSA-65",
        "2.16.840.1.101.3.4.3.19" => "ML-DSA-87",
        other => return format!("the algorithm {other}"),
    };
    name.to_owned()
}

fn curve_name(algorithm: &[u8]) -> String {
    let curve = elements(algorithm).and_then(|elements| Some(dotted(elements.get(1)?.content)));
    match curve.as_deref() {
        Some("1.2.840.10045.3.1.7") => "ECDSA on P-256".into(),
        Some("1.3.132.0.34") => "ECDSA on P-384".into(),
        Some("1.3.132.0.35") => "ECDSA on P-521".into(),
        Some("1.3.132.0.10") => "ECDSA on secp256k1".into(),
        Some("1.3.36.3.3.2.8.1.1.7") => "ECDSA on brainpoolP256r1".into(),
        Some("1.3.36.3.3.2.8.1.1.11") => "ECDSA on brainpoolP384r1".into(),
        Some("1.3.36.3.3.2.8.1.1.13") => "ECDSA on brainpoolP512r1".into(),
        Some(other) => format!("ECDSA on the curve {other}"),
        None => "ECDSA".into(),
    }
}

/// The object identifier of an AlgorithmIdentifier's content, in dots.
fn identifier(mut algorithm: &[u8]) -> String {
    take_tagged(&mut algorithm, OBJECT_IDENTIFIER).map(|id| dotted(id.content)).unwrap_or_default()
}

/// A distinguished name as it is compared (RFC 5280 section 7.1): per RDN its attributes, letters
/// small, white space single. From its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComparableName(Vec<Vec<(Vec<u8>, Vec<u8>)>>);

impl ComparableName {
    /// `None`: it cannot be compared.
    pub(crate) fn read(content: &[u8]) -> Option<Self> {
        elements(content)?.into_iter().map(comparable_rdn).collect::<Option<_>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it lies in the subtree of `base`.
    pub(crate) fn is_within(&self, base: &Self) -> bool {
        self.0.starts_with(&base.0)
    }
}

fn comparable_rdn(rdn: Element<'_>) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let attributes = elements(Some(rdn).filter(|rdn| rdn.tag == SET)?.content)?.into_iter();
    let mut attributes = attributes
        .map(|attribute| {
            let mut content = Some(attribute).filter(|a| a.tag == SEQUENCE)?.content;
            let id = take_tagged(&mut content, OBJECT_IDENTIFIER)?.content.to_vec();
            let value = take(&mut content).filter(|_| content.is_empty())?;
            Some((id, comparable_value(value)?))
        })
        .collect::<Option<Vec<_>>>()?;
    attributes.sort();
    Some(attributes)
}

fn comparable_value(value: Element<'_>) -> Option<Vec<u8>> {
    let bytes = value.content;
    let text = match value.tag {
        0x0c | 0x12 | 0x13 | 0x16 | 0x1a => std::str::from_utf8(bytes).ok()?.to_owned(),
        0x14 => bytes.iter().copied().map(char::from).collect(), // T61String, as it is read everywhere
        0x1e => {
            let units: Vec<u16> =
                bytes.chunks(2).map(|pair| pair.iter().fold(0, |u, b| u << 8 | u16::from(*b))).collect();
            String::from_utf16(&units).ok().filter(|_| bytes.len().is_multiple_of(2))?
        }
        0x1c => {
            let code = |quad: &[u8]| char::from_u32(quad.iter().fold(0, |u, b| u << 8 | u32::from(*b)));
            bytes.chunks(4).map(code).collect::<Option<String>>().filter(|_| bytes.len().is_multiple_of(4))?
        }
        _ => return Some(value.whole.to_vec()),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    Some(words.join(" ").to_lowercase().into_bytes())
}
