//! The certification request: what the agent sends to have a key certified.

use std::cell::Cell;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SignatureAlgorithm,
};

use rustls_pki_types::CertificateDer;

use super::{Key, KeyError};
use crate::x509::{
    BIT_STRING, Certificate, INTEGER, OBJECT_IDENTIFIER, SEQUENCE, SET, extension, extension_of, take_tagged,
    wrap,
};
use miaf_spiffe::{SpiffeId, pem};

/// The subject of every request. It is without meaning: the identity service decides on the
/// identity.
const COMMON_NAME: &str = "margo-device";

/// Tag of the attributes of a request (RFC 2986 section 4.1).
const ATTRIBUTES: u8 = 0xa0;
/// Tag of a URI among names (RFC 5280 section 4.2.1.6).
const URI: u8 = 0x86;
const UTF8_STRING: u8 = 0x0c;
/// extensionRequest, 1.2.840.113549.1.9.14 (RFC 2985 section 5.4.2).
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
/// ecdsa-with-SHA256, 1.2.840.10045.4.3.2.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME_ID: &[u8] = &[0x55, 4, 3];

/// Label of a request in PEM (RFC 7468 section 7).
const LABEL: &str = "CERTIFICATE REQUEST";

/// A PKCS#10 request in DER for `key`, signed by it: subject `CN=margo-device`, ECDSA with SHA-256
/// (rule K3). With a SPIFFE ID there is one extension, a SAN with that URI and nothing else, which
/// the released MIS signs; without one there is no extension.
///
/// # Errors
/// [`KeyError::NotP256`]; the error of the key, if it cannot sign; otherwise
/// [`KeyError::Internal`].
pub fn certification_request(key: &dyn Key, spiffe_id: Option<&SpiffeId>) -> Result<Vec<u8>, KeyError> {
    key.public_key().check_p256()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    if let Some(id) = spiffe_id {
        let uri = id.to_string().try_into();
        let uri = uri.map_err(|_| KeyError::Internal("a SPIFFE ID is not ASCII".into()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
    }

    let subject = Subject { key, failure: Cell::new(None) };
    match params.serialize_request(&subject) {
        Ok(request) => Ok(request.der().to_vec()),
        Err(error) => Err(subject.failure.take().unwrap_or_else(|| {
            KeyError::Internal(format!("a certification request cannot be encoded: {error}"))
        })),
    }
}

/// What a request says of the identity that it is for (miaf-est X46, X65).
#[derive(Clone, Copy, Debug)]
pub enum CsrContent<'a> {
    /// Nothing: the identity service decides.
    Empty,
    /// What a general EST server wants to read.
    Named {
        /// The CN of the subject.
        common_name: Option<&'a str>,
        /// The one URI among the names.
        spiffe_id: Option<&'a SpiffeId>,
    },
    /// What the certificate that is to be renewed says: its subject and its names, byte for byte.
    Renewal(&'a CertificateDer<'a>),
}

/// Encodes the content of a PKCS#10 request for `key`, in DER: what is signed. It has no attribute
/// but the extension with the names, where there are any.
///
/// # Errors
/// [`KeyError::NotP256`]; [`KeyError::Internal`] if the certificate to be renewed cannot be read.
pub fn request_info(key: &dyn Key, content: &CsrContent<'_>) -> Result<Vec<u8>, KeyError> {
    key.public_key().check_p256()?;
    let (subject, names) = match content {
        CsrContent::Empty => (wrap(SEQUENCE, &[]), None),
        CsrContent::Named { common_name, spiffe_id } => {
            // RFC 5280 section 4.1.2.6: names are critical where there is no subject.
            let is_critical = common_name.is_none();
            let names = spiffe_id.map(|id| {
                let uri = wrap(SEQUENCE, &wrap(URI, id.to_string().as_bytes()));
                extension_of(extension::SUBJECT_ALT_NAME, is_critical, &uri)
            });
            (subject(*common_name), names)
        }
        CsrContent::Renewal(certificate) => {
            let unreadable =
                || KeyError::Internal("the certificate that is to be renewed cannot be read".into());
            let certificate = Certificate::read(certificate).ok_or_else(unreadable)?;
            let names = certificate.extension(extension::SUBJECT_ALT_NAME);
            let names = names.map(|names| names.changed(names.critical, names.value));
            (wrap(SEQUENCE, certificate.subject), names)
        }
    };
    let attribute = names.map(|names| {
        let extensions = wrap(SET, &wrap(SEQUENCE, &names));
        wrap(SEQUENCE, &[wrap(OBJECT_IDENTIFIER, EXTENSION_REQUEST), extensions].concat())
    });
    let attributes = wrap(ATTRIBUTES, &attribute.unwrap_or_default());
    let version = wrap(INTEGER, &[0]);
    Ok(wrap(SEQUENCE, &[version, subject, key.public_key().spki_der(), attributes].concat()))
}

/// Signs the content of a request, as [`request_info`] encodes it: a PKCS#10 request in DER, with
/// ECDSA and SHA-256.
///
/// # Errors
/// [`KeyError::NotP256`]; the error of the key, if it cannot sign.
pub fn sign_request(key: &dyn Key, info: &[u8]) -> Result<Vec<u8>, KeyError> {
    key.public_key().check_p256()?;
    let signature = key.sign(info)?;
    let algorithm = wrap(SEQUENCE, &wrap(OBJECT_IDENTIFIER, ECDSA_WITH_SHA256));
    let bits = wrap(BIT_STRING, &[&[0], &signature[..]].concat()); // no unused bits
    Ok(wrap(SEQUENCE, &[info, &algorithm, &bits].concat()))
}

/// Returns the request that was sent before, if it is for this key and says the same, or a new one
/// (miaf-est X48). The key signs in either case: one that is lost is noticed before an SVID is issued
/// for it.
///
/// # Errors
/// As [`request_info`] and [`sign_request`].
pub fn repeat_request(
    key: &dyn Key,
    content: &CsrContent<'_>,
    sent: Option<Vec<u8>>,
) -> Result<Vec<u8>, KeyError> {
    let info = request_info(key, content)?;
    let signed = sign_request(key, &info)?;
    Ok(sent.filter(|sent| info_of(sent) == Some(&info[..])).unwrap_or(signed))
}

/// The content of a request in DER, as it was signed. `None`: it is no request.
pub fn info_of(csr: &[u8]) -> Option<&[u8]> {
    let mut outer = csr;
    let mut parts = take_tagged(&mut outer, SEQUENCE).filter(|_| outer.is_empty())?.content;
    let info = take_tagged(&mut parts, SEQUENCE)?;
    take_tagged(&mut parts, SEQUENCE)?; // algorithm
    take_tagged(&mut parts, BIT_STRING).filter(|_| parts.is_empty())?;
    Some(info.whole)
}

/// A subject of one CN, or none.
fn subject(common_name: Option<&str>) -> Vec<u8> {
    let name = common_name.map(|name| {
        let attribute =
            [wrap(OBJECT_IDENTIFIER, COMMON_NAME_ID), wrap(UTF8_STRING, name.as_bytes())].concat();
        wrap(SET, &wrap(SEQUENCE, &attribute))
    });
    wrap(SEQUENCE, &name.unwrap_or_default())
}

/// A request in DER as PEM.
///
/// # Errors
/// [`KeyError::Internal`] if it cannot be encoded.
pub fn to_pem(der: &[u8]) -> Result<String, KeyError> {
    let pem = pem::encode(LABEL, der).map(|pem| pem.to_string());
    pem.ok_or_else(|| KeyError::Internal("a certification request cannot be encoded".into()))
}

/// A key for rcgen, which cannot return our error: that is kept here.
struct Subject<'a> {
    key: &'a dyn Key,
    failure: Cell<Option<KeyError>>,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.public_key().as_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Subject<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message).map_err(|error| {
            self.failure.set(Some(error));
            rcgen::Error::RemoteKeyError
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::software::Software;
    use crate::keys::{KeyFile, ProviderKind, PublicKey};
    use miaf_client::api::Protection;
    use rcgen::{CustomExtension, KeyPair};
    use x509_parser::extensions::ParsedExtension;
    use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

    /// A key, which needs its directory.
    fn key() -> (tempfile::TempDir, impl Key) {
        let directory = tempfile::tempdir().unwrap();
        let key = Software::new(None, directory.path().join("kek")).create_key().unwrap();
        (directory, key)
    }

    /// The request in DER, after its signature was verified.
    fn request(key: &dyn Key, content: &CsrContent<'_>) -> Vec<u8> {
        let info = request_info(key, content).unwrap();
        let der = sign_request(key, &info).unwrap();
        let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(rest.is_empty());
        request.verify_signature().unwrap();
        assert_eq!(request.certification_request_info.subject_pki.raw, key.public_key().spki_der());
        assert_eq!(info_of(&der), Some(&info[..]));
        der
    }

    #[test]
    fn csr_without_content_claims_nothing() {
        let (_directory, key) = key();
        let der = request(&key, &CsrContent::Empty);
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        let info = &request.certification_request_info;
        assert_eq!(info.subject.as_raw(), [0x30, 0]);
        assert_eq!(info.attributes().len(), 0);
        assert!(info.raw.ends_with(&[0xa0, 0]), "the attributes are there, and none");
        // The same content, so that the same request can be repeated.
        assert_eq!(request_info(&key, &CsrContent::Empty).unwrap(), info.raw);
    }

    #[test]
    fn csr_has_the_names_that_are_configured() {
        let (_directory, key) = key();
        let id = SpiffeId::parse("spiffe://margo.org/margo/wfm/wfm-1/client/dev-1").unwrap();
        for (common_name, spiffe_id) in
            [(Some("dev 1 é"), None), (None, Some(&id)), (Some("dev-1"), Some(&id))]
        {
            let der = request(&key, &CsrContent::Named { common_name, spiffe_id });
            let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
            let info = &request.certification_request_info;
            let subject = common_name.map(|name| format!("CN={name}")).unwrap_or_default();
            assert_eq!(info.subject.to_string(), subject);
            let names: Vec<_> = request.requested_extensions().into_iter().flatten().collect();
            match (&names[..], spiffe_id) {
                ([], None) => {}
                ([ParsedExtension::SubjectAlternativeName(names)], Some(id)) => {
                    assert_eq!(
                        names.general_names,
                        [x509_parser::extensions::GeneralName::URI(&id.to_string())]
                    );
                }
                other => panic!("{other:?}"),
            }
            let critical = [0x55, 29, 17, 1, 1, 0xff];
            let is_critical = der.windows(critical.len()).any(|part| part == critical);
            assert_eq!(is_critical, common_name.is_none() && spiffe_id.is_some(), "{common_name:?}");
        }
    }

    #[test]
    fn csr_of_a_renewal_repeats_subject_and_names() {
        let (_directory, key) = key();
        let pair = KeyPair::generate().unwrap();
        // Names of several kinds, in an order and with bytes of their own.
        let names =
            [&[0x30, 34, 0x82, 5][..], b"a.Net", &[0x86, 21], b"spiffe://margo.org/x0", &[0x88, 2, 0x2a, 3]]
                .concat();
        for (is_critical, has_names, subject) in [
            (false, true, Some("x")),
            (true, true, None),
            (true, true, Some("ü, \"x\"")),
            (false, false, Some("x")),
        ] {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            if let Some(subject) = subject {
                params.distinguished_name.push(DnType::OrganizationName, subject);
                params
                    .distinguished_name
                    .push(DnType::CommonName, rcgen::DnValue::TeletexString("t".try_into().unwrap()));
            }
            if has_names {
                let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], names.clone());
                extension.set_criticality(is_critical);
                params.custom_extensions = vec![extension];
            }
            let certificate = params.self_signed(&pair).unwrap();
            let der = request(&key, &CsrContent::Renewal(certificate.der()));
            let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
            let certificate = Certificate::read(certificate.der()).unwrap();
            assert_eq!(
                request.certification_request_info.subject.as_raw(),
                wrap(SEQUENCE, certificate.subject)
            );
            let extension = certificate.extension(extension::SUBJECT_ALT_NAME);
            let is_repeated = extension.is_some_and(|extension| {
                let whole = extension.whole();
                der.windows(whole.len()).any(|part| part == whole)
            });
            assert_eq!(is_repeated, has_names, "{is_critical}");
            assert_eq!(request.certification_request_info.attributes().len(), usize::from(has_names));
        }
        let broken = CertificateDer::from_slice(&[0x30, 3, 2, 1, 0]);
        let error = request_info(&key, &CsrContent::Renewal(&broken)).unwrap_err();
        assert!(matches!(error, KeyError::Internal(_)), "{error:?}");
    }

    /// A key that a TPM has forgotten: what is public of it is known still.
    #[derive(Debug)]
    struct Lost<K>(K);

    impl<K: Key> Key for Lost<K> {
        fn public_key(&self) -> &PublicKey {
            self.0.public_key()
        }
        fn sign_digest(&self, _digest: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
            Err(KeyError::Internal("lost".into()))
        }
        fn protection(&self) -> Protection {
            self.0.protection()
        }
        fn provider(&self) -> ProviderKind {
            self.0.provider()
        }
        fn to_pem(&self) -> Result<String, KeyError> {
            self.0.to_pem()
        }
        fn to_key_file(&self) -> Result<KeyFile, KeyError> {
            self.0.to_key_file()
        }
    }

    #[test]
    fn csr_is_repeated_as_long_as_its_key_works() {
        let (_directory, key) = key();
        let sent = request(&key, &CsrContent::Empty);
        let repeat =
            |key: &dyn Key, content: &CsrContent<'_>| repeat_request(key, content, Some(sent.clone()));
        assert_eq!(repeat(&key, &CsrContent::Empty).unwrap(), sent);
        let named = CsrContent::Named { common_name: Some("line-7"), spiffe_id: None };
        assert_ne!(repeat(&key, &named).unwrap(), sent);
        let other = self::key();
        assert_ne!(repeat(&other.1, &CsrContent::Empty).unwrap(), sent);
        let lost = repeat(&Lost(key), &CsrContent::Empty);
        assert!(matches!(lost, Err(KeyError::Internal(_))), "{lost:?}");
    }

    #[test]
    fn csr_that_is_none_has_no_content() {
        let (_directory, key) = key();
        let der = request(&key, &CsrContent::Empty);
        let more = [&der[..], &[0]].concat();
        let inner = info_of(&der).unwrap();
        for other in [&der[..der.len() - 1], &more, inner, &[], &[0x30, 0]] {
            assert_eq!(info_of(other), None, "{other:02x?}");
        }
    }
}
