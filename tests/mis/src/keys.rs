//! Private keys of this server's own PKI: making, loading, signing.

use const_oid::db::{rfc5912, rfc8410};
use der::{Any, Decode, Encode, asn1::BitString};
use development_server::{Context, Error, Result};
use ring::rand::SystemRandom;
use ring::rsa;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use std::process::Command;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// The kinds of key that this server can make. K3 allows P-256 and RSA of 3072 bits with PSS for
/// anything that belongs to the Trust Domain; released Margo (N7) allows all but RSA of 2048 bits,
/// which exists for manufacturer PKI (K5) and for faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 3072 bits, which signs RSASSA-PSS.
    Rsa3072,
    /// RSA of 3072 bits, which signs PKCS#1 v1.5.
    Rsa3072Pkcs1,
    /// Ed25519.
    Ed25519,
}

enum Secret {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(Box<rsa::KeyPair>),
    Ed25519(Ed25519KeyPair),
}

/// A private key with its public half ready for a certificate.
pub struct KeyPair {
    secret: Secret,
    spki: Vec<u8>,
    /// An RSA key signs PKCS#1 v1.5 and not PSS.
    pkcs1: bool,
}

/// Bytes from the system's random number generator.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut bytes)?;
    Ok(bytes)
}

impl KeyPair {
    /// A new key, and its PKCS#8 form. RSA and Ed25519 keys come from the
    /// `openssl` command: ring makes no RSA keys, and others cannot read its form of Ed25519 keys.
    pub fn generate(kind: KeyKind) -> Result<(Self, Vec<u8>)> {
        let random = SystemRandom::new();
        let pkcs8 = match kind {
            KeyKind::P256 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?.as_ref().to_vec()
            }
            KeyKind::P384 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &random)?.as_ref().to_vec()
            }
            KeyKind::Rsa2048 => openssl_rsa(2048)?,
            KeyKind::Rsa3072 | KeyKind::Rsa3072Pkcs1 => openssl_rsa(3072)?,
            KeyKind::Ed25519 => openssl_key(&["ED25519"])?,
        };
        Ok((Self::from_pkcs8(&pkcs8)?.signing_as(kind), pkcs8))
    }

    /// Reads a PKCS#8 key of any kind that [`KeyPair::generate`] makes.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let random = SystemRandom::new();
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &random) {
            let spki = ec_spki(key.public_key().as_ref(), rfc5912::SECP_256_R_1)?;
            return Ok(Self { secret: Secret::P256(key), spki, pkcs1: false });
        }
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8, &random) {
            let spki = ec_spki(key.public_key().as_ref(), rfc5912::SECP_384_R_1)?;
            return Ok(Self { secret: Secret::P384(key), spki, pkcs1: false });
        }
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8) {
            let algorithm = AlgorithmIdentifierOwned { oid: rfc8410::ID_ED_25519, parameters: None };
            let spki = spki(algorithm, key.public_key().as_ref())?;
            return Ok(Self { secret: Secret::Ed25519(key), spki, pkcs1: false });
        }
        let key = rsa::KeyPair::from_pkcs8(pkcs8)?;
        let algorithm =
            AlgorithmIdentifierOwned { oid: rfc5912::RSA_ENCRYPTION, parameters: Some(Any::null()) };
        let spki = spki(algorithm, key.public().as_ref())?;
        Ok(Self { secret: Secret::Rsa(Box::new(key)), spki, pkcs1: false })
    }

    /// The same key; of the two RSA signatures, it makes that of `kind`.
    pub fn signing_as(self, kind: KeyKind) -> Self {
        Self { pkcs1: kind == KeyKind::Rsa3072Pkcs1, ..self }
    }

    /// DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The algorithm that [`KeyPair::sign`] uses, as certificates name it. RSA keys sign
    /// RSASSA-PSS with SHA-256 (K3), unless made for PKCS#1 v1.5 (N7).
    pub fn signature_algorithm(&self) -> Result<AlgorithmIdentifierOwned> {
        let (oid, parameters) = match &self.secret {
            Secret::P256(_) => (rfc5912::ECDSA_WITH_SHA_256, None),
            Secret::P384(_) => (rfc5912::ECDSA_WITH_SHA_384, None),
            Secret::Ed25519(_) => (rfc8410::ID_ED_25519, None),
            Secret::Rsa(_) if self.pkcs1 => (rfc5912::SHA_256_WITH_RSA_ENCRYPTION, Some(Any::null())),
            Secret::Rsa(_) => {
                (rfc5912::ID_RSASSA_PSS, Some(Any::from_der(&pss_sha256_parameters(true, true))?))
            }
        };
        Ok(AlgorithmIdentifierOwned { oid, parameters })
    }

    /// Signs a message (not a digest).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        match &self.secret {
            Secret::P256(key) | Secret::P384(key) => Ok(key.sign(&random, message)?.as_ref().to_vec()),
            Secret::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            Secret::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let padding: &dyn ring::signature::RsaEncoding =
                    if self.pkcs1 { &RSA_PKCS1_SHA256 } else { &RSA_PSS_SHA256 };
                key.sign(padding, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }
}

fn ec_spki(point: &[u8], curve: der::asn1::ObjectIdentifier) -> Result<Vec<u8>> {
    let algorithm =
        AlgorithmIdentifierOwned { oid: rfc5912::ID_EC_PUBLIC_KEY, parameters: Some(Any::from(&curve)) };
    spki(algorithm, point)
}

fn spki(algorithm: AlgorithmIdentifierOwned, key: &[u8]) -> Result<Vec<u8>> {
    let spki = SubjectPublicKeyInfoOwned { algorithm, subject_public_key: BitString::from_bytes(key)? };
    Ok(spki.to_der()?)
}

fn openssl_rsa(bits: u32) -> Result<Vec<u8>> {
    openssl_key(&["RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")])
}

/// A PKCS#8 key of this algorithm and its options.
fn openssl_key(algorithm: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm"])
        .args(algorithm)
        .output()
        .context("cannot run `openssl genpkey`, needed for RSA and Ed25519 keys")?;
    if !output.status.success() {
        return Err(Error::new(format!(
            "openssl genpkey failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    // In PEM: the DER form that openssl writes is not PKCS#8.
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(&output.stdout).context("openssl genpkey")?;
    Ok(pkcs8.secret_pkcs8_der().to_vec())
}

/// `RSASSA-PSS-params` for SHA-256, MGF1 with SHA-256 and a salt of 32 bytes. RFC 4055 lets the two
/// hash identifiers carry NULL parameters or none, so there are four spellings; certificates issued
/// here use NULL in both.
pub fn pss_sha256_parameters(hash_null: bool, mgf_null: bool) -> Vec<u8> {
    fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        // Every length here is below 128.
        let mut out = vec![tag, body.len() as u8];
        out.extend(body);
        out
    }
    fn sha256(null: bool) -> Vec<u8> {
        let oid = wrap(0x06, &[rfc5912::ID_SHA_256.as_bytes()]);
        wrap(0x30, &[&oid, if null { &[0x05, 0x00] } else { &[] }])
    }
    let mgf1 = wrap(0x06, &[rfc5912::ID_MGF_1.as_bytes()]);
    let mask = wrap(0x30, &[&mgf1, &sha256(mgf_null)]);
    wrap(
        0x30,
        &[&wrap(0xa0, &[&sha256(hash_null)]), &wrap(0xa1, &[&mask]), &wrap(0xa2, &[&wrap(0x02, &[&[32]])])],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pss_parameters_are_those_that_path_validators_know() {
        let key = AlgorithmIdentifierOwned {
            oid: rfc5912::ID_RSASSA_PSS,
            parameters: Some(Any::from_der(&pss_sha256_parameters(true, true)).unwrap()),
        };
        let body = Any::from_der(&key.to_der().unwrap()).unwrap();
        assert_eq!(body.value(), &*rustls::pki_types::alg_id::RSA_PSS_SHA256);
    }

    #[test]
    fn keys_survive_their_pkcs8_form() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Rsa3072, KeyKind::Rsa3072Pkcs1, KeyKind::Ed25519]
        {
            let (key, pkcs8) = KeyPair::generate(kind).unwrap();
            assert_eq!(KeyPair::from_pkcs8(&pkcs8).unwrap().spki(), key.spki());
            assert!(!key.sign(b"message").unwrap().is_empty());
        }
    }
}
