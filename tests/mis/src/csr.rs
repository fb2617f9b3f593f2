//! Certificate signing requests, validated strictly (E1, K3).

use crate::keys::pss_sha256_parameters;
use crate::wire::Problem;
use crate::x509;
use base64::{Engine, engine::general_purpose::STANDARD};
use const_oid::AssociatedOid;
use const_oid::db::{rfc5912, rfc8410};
use der::asn1::{ObjectIdentifier, UintRef};
use der::{Decode, Encode, Reader, SliceReader};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::{CertReq, ExtensionReq};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// The smallest RSA modulus (K3).
const RSA_BITS: usize = 3072;

/// What issuance takes from a request: the key. Subject and SANs are ignored (E5).
#[derive(Debug, Clone)]
pub struct CsrKey {
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl CsrKey {
    /// Reads `csr`: base64 in the standard alphabet, on one line, of a DER PKCS#10 request with a
    /// correct self-signature by a permitted key with its one permitted signature algorithm.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let refuse = |why: &str| Problem::invalid_request(format!("csr: {why}"));
        let der = STANDARD
            .decode(text)
            .map_err(|error| refuse(&format!("not base64 of the standard alphabet on one line: {error}")))?;
        let request = verified(&der, verification).map_err(|why| refuse(&why))?;
        let spki = request.info.public_key.to_der().map_err(|error| refuse(&error.to_string()))?;
        Ok(Self { spki })
    }

    /// SHA-256 of the key, lowercase hexadecimal.
    pub fn digest(&self) -> String {
        x509::hex(&x509::sha256(&self.spki))
    }
}

/// A request brought by the operator (N9), with the algorithms of N7.
#[derive(Debug, Clone)]
pub struct Csr {
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    names: Vec<GeneralName>,
}

impl Csr {
    /// Reads one PEM block, or DER.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let der = match CertificateSigningRequestDer::from_pem_slice(text) {
            Ok(der) => der.to_vec(),
            Err(_) => text.to_vec(),
        };
        let request = verified(&der, released_verification)?;
        let mut names = Vec::new();
        for attribute in request.info.attributes.iter().filter(|one| one.oid == ExtensionReq::OID) {
            for value in attribute.values.iter() {
                let ExtensionReq(extensions) =
                    value.decode_as().map_err(|error| format!("its extension request: {error}"))?;
                for extension in extensions.iter().filter(|one| one.extn_id == SubjectAltName::OID) {
                    let SubjectAltName(found) = SubjectAltName::from_der(extension.extn_value.as_bytes())
                        .map_err(|error| format!("its subject alternative name: {error}"))?;
                    names.extend(found);
                }
            }
        }
        let spki = request.info.public_key.to_der().map_err(|error| error.to_string())?;
        Ok(Self { spki, names })
    }

    /// Its one URI SAN, where it has any.
    pub fn spiffe_id(&self) -> Result<Option<String>, String> {
        let mut uris = self.names.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (_, Some(_)) => Err("it has more than one URI SAN".to_owned()),
            (first, None) => Ok(first),
        }
    }
}

pub(crate) type Permitted = fn(
    &SubjectPublicKeyInfoOwned,
    &AlgorithmIdentifierOwned,
) -> Result<&'static dyn VerificationAlgorithm, String>;

/// A request whose own signature is right, with algorithms that are permitted.
pub(crate) fn verified(der: &[u8], permitted: Permitted) -> Result<CertReq, String> {
    let request = CertReq::from_der(der).map_err(|error| format!("not a DER PKCS#10 request: {error}"))?;
    let signed = signed_part(der).map_err(|error| error.to_string())?;
    let algorithm = permitted(&request.info.public_key, &request.algorithm)?;
    let signature = request.signature.as_bytes().ok_or("a signature of odd bits")?;
    UnparsedPublicKey::new(algorithm, request.info.public_key.subject_public_key.raw_bytes())
        .verify(signed, signature)
        .map_err(|_| "its own signature is not right".to_owned())?;
    Ok(request)
}

/// The digest of the key in a request body, if there is a valid CSR where one belongs: for the
/// journal, which also notes requests that get no thought at all.
pub fn peek(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let csr = body.pointer("/svidRequest/csr")?.as_str()?;
    Some(CsrKey::parse(csr).ok()?.digest())
}

/// The bytes that the signature covers, exactly as they came.
fn signed_part(der: &[u8]) -> der::Result<&[u8]> {
    SliceReader::new(der)?.sequence(|body| {
        let signed = body.tlv_bytes()?;
        while !body.is_finished() {
            body.tlv_bytes()?;
        }
        Ok(signed)
    })
}

fn verification(
    key: &SubjectPublicKeyInfoOwned,
    signature: &AlgorithmIdentifierOwned,
) -> Result<&'static dyn VerificationAlgorithm, String> {
    match key.algorithm.oid {
        rfc5912::ID_EC_PUBLIC_KEY => {
            let curve = key
                .algorithm
                .parameters
                .as_ref()
                .and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
            if curve != Some(rfc5912::SECP_256_R_1) {
                return Err("an elliptic curve other than P-256".to_owned());
            }
            if signature.oid != rfc5912::ECDSA_WITH_SHA_256 || signature.parameters.is_some() {
                return Err("a P-256 key signs with ECDSA and SHA-256 only".to_owned());
            }
            Ok(&ECDSA_P256_SHA256_ASN1)
        }
        rfc5912::RSA_ENCRYPTION => {
            let bits = modulus_bits(key.subject_public_key.raw_bytes())
                .map_err(|error| format!("RSA key: {error}"))?;
            if bits < RSA_BITS {
                return Err(format!("an RSA key of {bits} bits, {RSA_BITS} are the least"));
            }
            if signature.oid != rfc5912::ID_RSASSA_PSS || !is_pss_sha256(signature) {
                return Err("an RSA key signs with RSASSA-PSS, SHA-256, MGF1 with SHA-256 and a \
                            salt of 32 bytes only"
                    .to_owned());
            }
            Ok(&RSA_PSS_2048_8192_SHA256)
        }
        other => Err(format!("a key of a kind that is not permitted: {other}")),
    }
}

/// N7: what v0 permits, and P-384, Ed25519, and PKCS#1 v1.5 with RSA keys that are long enough.
pub(crate) fn released_verification(
    key: &SubjectPublicKeyInfoOwned,
    signature: &AlgorithmIdentifierOwned,
) -> Result<&'static dyn VerificationAlgorithm, String> {
    let curve = || key.algorithm.parameters.as_ref()?.decode_as::<ObjectIdentifier>().ok();
    match (key.algorithm.oid, signature.oid) {
        (rfc5912::ID_EC_PUBLIC_KEY, rfc5912::ECDSA_WITH_SHA_384)
            if curve() == Some(rfc5912::SECP_384_R_1) =>
        {
            Ok(&ECDSA_P384_SHA384_ASN1)
        }
        (rfc8410::ID_ED_25519, rfc8410::ID_ED_25519) => Ok(&ED25519),
        (rfc5912::RSA_ENCRYPTION, algorithm) if algorithm != rfc5912::ID_RSASSA_PSS => {
            let bits = modulus_bits(key.subject_public_key.raw_bytes())
                .map_err(|error| format!("RSA key: {error}"))?;
            if bits < RSA_BITS {
                return Err(format!("an RSA key of {bits} bits, {RSA_BITS} are the least"));
            }
            match algorithm {
                rfc5912::SHA_256_WITH_RSA_ENCRYPTION => Ok(&RSA_PKCS1_2048_8192_SHA256),
                rfc5912::SHA_384_WITH_RSA_ENCRYPTION => Ok(&RSA_PKCS1_2048_8192_SHA384),
                rfc5912::SHA_512_WITH_RSA_ENCRYPTION => Ok(&RSA_PKCS1_2048_8192_SHA512),
                other => Err(format!("a signature algorithm that is not permitted: {other}")),
            }
        }
        _ => verification(key, signature),
    }
}

fn is_pss_sha256(algorithm: &AlgorithmIdentifierOwned) -> bool {
    let Some(Ok(parameters)) = algorithm.parameters.as_ref().map(Encode::to_der) else {
        return false;
    };
    [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .any(|(hash, mgf)| parameters == pss_sha256_parameters(hash, mgf))
}

/// The length of an RSA key, a DER RSAPublicKey.
pub(crate) fn modulus_bits(key: &[u8]) -> der::Result<usize> {
    let modulus = SliceReader::new(key)?.sequence(|body| {
        let modulus = UintRef::decode(body)?.as_bytes().to_vec();
        UintRef::decode(body)?;
        Ok(modulus)
    })?;
    let leading = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    Ok((modulus.len() * 8).saturating_sub(leading))
}
