//! Request bodies of EST: base64 of a PKCS#10 request, read strictly (X49, X51).

use crate::csr::{self, CsrKey};
use crate::x509::Der;
use base64::{Engine, engine::general_purpose::STANDARD};
use const_oid::AssociatedOid;
use const_oid::db::{rfc5280, rfc5912};
use der::asn1::ObjectIdentifier;
use der::{Decode, Encode, Reader, SliceReader};
use ring::signature::VerificationAlgorithm;
use x509_cert::Certificate;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::request::ExtensionReq;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

const CHALLENGE_PASSWORD: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.7");
/// An empty `Name`.
const EMPTY_NAME: &[u8] = &[0x30, 0x00];
/// Requested extensions that may be critical.
const KNOWN: [ObjectIdentifier; 4] = [
    rfc5280::ID_CE_SUBJECT_ALT_NAME,
    rfc5280::ID_CE_KEY_USAGE,
    rfc5280::ID_CE_EXT_KEY_USAGE,
    rfc5280::ID_CE_BASIC_CONSTRAINTS,
];

/// Subject alternative names, as they are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Raw DER of the subject.
    pub subject: Vec<u8>,
    /// `extnValue` of the subject alternative name, where there is one.
    pub san: Option<Vec<u8>>,
    /// Its criticality.
    pub critical: bool,
}

/// How a request's base64 is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Without a line break, but perhaps at the end.
    OneLine,
    /// With line breaks.
    Lines,
}

/// A request whose own signature is right.
#[derive(Debug, Clone)]
pub struct Request {
    /// The key.
    pub key: CsrKey,
    /// The names that it asks for.
    pub names: Names,
}

impl Request {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for the `400`.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let der = decode(body)?;
        let request = csr::verified(&der, permitted)?;
        let mut san = None;
        let mut requests = 0;
        for attribute in request.info.attributes.iter() {
            if attribute.oid == CHALLENGE_PASSWORD {
                return Err("challengePassword is not permitted".to_owned());
            }
            if attribute.oid != ExtensionReq::OID {
                continue;
            }
            for value in attribute.values.iter() {
                requests += 1;
                let ExtensionReq(extensions) =
                    value.decode_as().map_err(|error| format!("extension request: {error}"))?;
                for extension in extensions {
                    take(extension, &mut san)?;
                }
            }
        }
        if requests > 1 {
            return Err("more than one extension request".to_owned());
        }
        let spki = request.info.public_key.to_der().map_err(|error| error.to_string())?;
        let critical = san.as_ref().is_some_and(|san: &Extension| san.critical);
        let san = san.map(|san| san.extn_value.as_bytes().to_vec());
        let subject = subject_of_request(&der).map_err(|error| error.to_string())?;
        Ok(Self { key: CsrKey { spki }, names: Names { subject, san, critical } })
    }

    /// How a body is written.
    pub fn form(body: &[u8]) -> Form {
        if body.trim_ascii_end().contains(&b'\n') { Form::Lines } else { Form::OneLine }
    }

    /// The names that a first request must not have.
    pub fn claims_a_name(&self) -> bool {
        self.names.subject != EMPTY_NAME || self.names.san.is_some()
    }
}

impl Names {
    /// Those of a certificate.
    pub fn of_certificate(certificate: &Der) -> Result<Self, String> {
        let parsed = Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let san = parsed.tbs_certificate.extensions.unwrap_or_default();
        let san = san.into_iter().find(|one| one.extn_id == SubjectAltName::OID);
        Ok(Self {
            subject: subject_of_certificate(certificate).map_err(|error| error.to_string())?,
            critical: san.as_ref().is_some_and(|san| san.critical),
            san: san.map(|san| san.extn_value.as_bytes().to_vec()),
        })
    }
}

fn take(extension: Extension, san: &mut Option<Extension>) -> Result<(), String> {
    if extension.critical && !KNOWN.contains(&extension.extn_id) {
        return Err(format!("a critical extension that is not known here: {}", extension.extn_id));
    }
    if extension.extn_id != SubjectAltName::OID {
        return Ok(());
    }
    SubjectAltName::from_der(extension.extn_value.as_bytes())
        .map_err(|error| format!("subject alternative name: {error}"))?;
    if san.replace(extension).is_some() {
        return Err("two subject alternative name extensions".to_owned());
    }
    Ok(())
}

/// Base64 in the standard alphabet with padding; CR, LF, space and tab are passed over.
fn decode(body: &[u8]) -> Result<Vec<u8>, String> {
    let white = |byte: &u8| matches!(byte, b'\r' | b'\n' | b' ' | b'\t');
    let text: Vec<u8> = body.iter().copied().filter(|byte| !white(byte)).collect();
    STANDARD
        .decode(text)
        .map_err(|error| format!("not base64 of the standard alphabet with padding: {error}"))
}

/// The algorithms of X45: those of released Margo, RSA with SHA-256 only.
fn permitted(
    key: &SubjectPublicKeyInfoOwned,
    signature: &AlgorithmIdentifierOwned,
) -> Result<&'static dyn VerificationAlgorithm, String> {
    if [rfc5912::SHA_384_WITH_RSA_ENCRYPTION, rfc5912::SHA_512_WITH_RSA_ENCRYPTION].contains(&signature.oid) {
        return Err("an RSA key signs with SHA-256 only".to_owned());
    }
    csr::released_verification(key, signature)
}

/// The raw subject: what comes after the version in the inner SEQUENCE.
fn subject_of_request(der: &[u8]) -> der::Result<Vec<u8>> {
    inner(der, 1)
}

/// After version, serial number, signature algorithm, issuer and validity.
fn subject_of_certificate(der: &[u8]) -> der::Result<Vec<u8>> {
    inner(der, 5)
}

/// The element after so many others in the first element of a SEQUENCE.
fn inner(der: &[u8], skip: usize) -> der::Result<Vec<u8>> {
    let first = SliceReader::new(der)?.sequence(|outer| {
        let first = outer.tlv_bytes()?;
        rest(outer)?;
        Ok(first)
    })?;
    SliceReader::new(first)?.sequence(|body| {
        for _ in 0..skip {
            body.tlv_bytes()?;
        }
        let found = body.tlv_bytes()?.to_vec();
        rest(body)?;
        Ok(found)
    })
}

fn rest<'a>(reader: &mut impl Reader<'a>) -> der::Result<()> {
    while !reader.is_finished() {
        reader.tlv_bytes()?;
    }
    Ok(())
}
