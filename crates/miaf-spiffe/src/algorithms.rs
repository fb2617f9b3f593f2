//! The two sets of algorithms that Margo has for SVIDs: those of miaf-v0, and those as released.

use std::fmt;

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use webpki::ring::{
    ECDSA_P256_SHA256, ECDSA_P384_SHA384, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS, RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::svid_error::SvidError;

/// Minimum size of an RSA key (miaf-v0 K4, margo-now N7).
pub(crate) const MIN_RSA_BITS: usize = 3072;

/// The algorithms that an SVID's key, and the signatures on it and its intermediates, may have. The
/// signature of an anchor on itself does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithms {
    /// ECDSA P-256 and RSASSA-PSS, both with SHA-256 (miaf-v0 K4).
    MiafV0,
    /// In addition ECDSA P-384 with SHA-384, Ed25519, and RSA PKCS#1 v1.5 with SHA-256, since the
    /// CAs of operators use it (margo-now N7).
    Released,
}

impl Algorithms {
    /// The signatures that are verified. How large an RSA key must be is not part of this.
    pub(crate) fn signatures(self) -> &'static [&'static dyn SignatureVerificationAlgorithm] {
        match self {
            Self::MiafV0 => MIAF_V0,
            Self::Released => RELEASED,
        }
    }
}

impl fmt::Display for Algorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MiafV0 => "neither ECDSA P-256 with SHA-256 nor RSA-PSS with SHA-256",
            Self::Released => {
                "none of ECDSA P-256 with SHA-256, ECDSA P-384 with SHA-384, Ed25519, and RSA (PSS or \
                 PKCS#1 v1.5) with SHA-256"
            }
        })
    }
}

const MIAF_V0: &[&dyn SignatureVerificationAlgorithm] =
    &[ECDSA_P256_SHA256, RSA_PSS_2048_8192_SHA256_LEGACY_KEY, PSS_KEY, PSS_SHA256_KEY];

const RELEASED: &[&dyn SignatureVerificationAlgorithm] = &[
    ECDSA_P256_SHA256,
    ECDSA_P384_SHA384,
    ED25519,
    RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    PSS_KEY,
    PSS_SHA256_KEY,
    RSA_PKCS1_2048_8192_SHA256,
    // RFC 4055 section 5: parameters that are absent must be accepted as well.
    RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
];

const PSS_KEY: &KeyForPssOnly =
    &KeyForPssOnly(AlgorithmIdentifier::from_slice(&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 10]));
const PSS_SHA256_KEY: &KeyForPssOnly = &KeyForPssOnly(alg_id::RSA_PSS_SHA256);

/// RSASSA-PSS with a key that says that it is for PSS alone (id-RSASSA-PSS of RFC 4055, without
/// parameters or with those of SHA-256): webpki has no name for such a key.
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

/// Whether a key of the chain is of an allowed kind and size: webpki takes RSA from 2048 bits, and
/// leaves the leaf's own key open.
pub(crate) fn key_is_allowed(key: &SubjectPublicKeyInfo<'_>, rules: Algorithms) -> Result<(), SvidError> {
    let (kind, is_released) = (&key.algorithm.algorithm, rules == Algorithms::Released);
    if [OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS].contains(kind) {
        let (_, rsa) =
            RSAPublicKey::from_der(&key.subject_public_key.data).map_err(|_| SvidError::Algorithm(rules))?;
        if rsa.key_size() < MIN_RSA_BITS {
            return Err(SvidError::WeakRsa(rsa.key_size()));
        }
        return Ok(());
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_allowed = if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        curve == Some(OID_EC_P256) || is_released && curve == Some(OID_NIST_EC_P384)
    } else {
        is_released && *kind == OID_SIG_ED25519
    };
    if is_allowed { Ok(()) } else { Err(SvidError::Algorithm(rules)) }
}
