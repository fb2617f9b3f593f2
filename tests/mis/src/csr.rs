//! Certificate signing requests, validated strictly (E1, K3).

use crate::keys::pss_sha256_parameters;
use crate::wire::Problem;
use crate::x509;
use base64::{Engine, engine::general_purpose::STANDARD};
use const_oid::db::rfc5912;
use der::asn1::{ObjectIdentifier, UintRef};
use der::{Decode, Encode, Reader, SliceReader};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_cert::request::CertReq;
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
        let request = CertReq::from_der(&der)
            .map_err(|error| refuse(&format!("not a DER PKCS#10 request: {error}")))?;
        let signed = signed_part(&der).map_err(|error| refuse(&error.to_string()))?;
        let algorithm =
            verification(&request.info.public_key, &request.algorithm).map_err(|why| refuse(&why))?;
        let signature = request.signature.as_bytes().ok_or_else(|| refuse("a signature of odd bits"))?;
        UnparsedPublicKey::new(algorithm, request.info.public_key.subject_public_key.raw_bytes())
            .verify(signed, signature)
            .map_err(|_| refuse("its own signature is not right"))?;
        let spki = request.info.public_key.to_der().map_err(|error| refuse(&error.to_string()))?;
        Ok(Self { spki })
    }

    /// SHA-256 of the key, lowercase hexadecimal.
    pub fn digest(&self) -> String {
        x509::hex(&x509::sha256(&self.spki))
    }
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

fn is_pss_sha256(algorithm: &AlgorithmIdentifierOwned) -> bool {
    let Some(Ok(parameters)) = algorithm.parameters.as_ref().map(Encode::to_der) else {
        return false;
    };
    [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .any(|(hash, mgf)| parameters == pss_sha256_parameters(hash, mgf))
}

fn modulus_bits(key: &[u8]) -> der::Result<usize> {
    let modulus = SliceReader::new(key)?.sequence(|body| {
        let modulus = UintRef::decode(body)?.as_bytes().to_vec();
        UintRef::decode(body)?;
        Ok(modulus)
    })?;
    let leading = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    Ok((modulus.len() * 8).saturating_sub(leading))
}
