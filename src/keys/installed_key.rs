//! Installed keys: private keys that the operator brings in (rule N9 of Margo's released text), in
//! the algorithms that it takes (rule N7): ECDSA on P-256 and P-384, Ed25519, and RSA from 3072
//! bits.
//!
//! A file holds PKCS#8, SEC1 (also after the `EC PARAMETERS` block that `openssl ecparam` writes)
//! or PKCS#1, and perhaps certificates. What is kept is one form of it, whatever the file's: the
//! scalar of a P-256 key, like that of the agent's own keys; otherwise PKCS#8 of version 1
//! (RFC 5208) without attributes, which every program reads.
//!
//! Keys on other curves than P-256 sign with ring, which does not wipe its memory. Those on curves
//! lie on the stack while they sign, and that is overwritten afterwards. Numbers of an RSA key stay
//! in freed memory until that is used again.

use p256::SecretKey;
use p256::ecdsa::SigningKey;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PSS_SHA256, RsaKeyPair,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::factory_key::{at_line, private_key_block, rsa_bits_of_pkcs1};
use super::{KeyAlgorithm, KeyError, KeyFileError, KeyForm, PublicKey, tss2};
use crate::platform::credentials::wipe_stack;
use crate::x509::{INTEGER, OCTET_STRING, SEQUENCE, take_tagged, wrap};
use miaf_spiffe::pem::Block;

/// Limit on the file, in bytes: a key of RSA with 4096 bits takes 3.3 KB, a certificate 2 KB.
const MAX_FILE: usize = 32 * 1024;
/// Limit on the key, in bytes.
const MAX_KEY: usize = 4 * 1024;
/// Bits of an RSA key: rule N7, and what ring signs with.
const MIN_RSA: usize = 3072;
const MAX_RSA: usize = 4096;

/// A private key from a file, in memory in the clear.
pub(super) struct InstalledKey {
    /// Its public half.
    pub(super) public: PublicKey,
    /// The scalar of a P-256 key, otherwise PKCS#8.
    pub(super) secret: Zeroizing<Vec<u8>>,
}

/// Reads the one private key of a PEM text. `origin` names it in errors.
///
/// # Errors
/// [`KeyFileError`], which says what there is instead.
pub(super) fn read(pem: &[u8], origin: &str) -> Result<InstalledKey, KeyError> {
    if pem.len() > MAX_FILE {
        return Err(KeyFileError::malformed(origin, format!("it is larger than {MAX_FILE} bytes")));
    }
    let block = private_key_block(pem, origin)?;
    let key = read_block(&block, &at_line(origin, block.line));
    wipe_stack();
    key
}

#[inline(never)] // what it leaves on the stack is overwritten by its caller
fn read_block(block: &Block, origin: &str) -> Result<InstalledKey, KeyError> {
    let unsupported = |form| KeyFileError::unsupported(origin, form);
    let der = block.der.as_slice();
    if der.len() > MAX_KEY {
        return Err(KeyFileError::malformed(origin, "it is far too large for a private key"));
    }
    let key = match &*block.label {
        "PRIVATE KEY" => pkcs8_content(der).and_then(|(algorithm, inner)| {
            KeyAlgorithm::ALL.into_iter().find(|known| known.id() == algorithm).map(|known| (known, inner))
        }),
        "EC PRIVATE KEY" if p256_scalar(der).is_some() => Some((KeyAlgorithm::EcdsaP256, der)),
        "EC PRIVATE KEY" => Some((KeyAlgorithm::EcdsaP384, der)),
        tss2::LABEL => return Err(unsupported(KeyForm::InTpm)),
        _ => Some((KeyAlgorithm::Rsa, der)),
    };
    let (algorithm, inner) = key.ok_or_else(|| unsupported(KeyForm::InstalledAlgorithm))?;
    if algorithm == KeyAlgorithm::Rsa
        && let Some(bits) = rsa_bits_of_pkcs1(inner)
        && !(MIN_RSA..=MAX_RSA).contains(&bits)
    {
        return Err(unsupported(KeyForm::RsaSize { bits, least: MIN_RSA }));
    }
    InstalledKey::new(algorithm, inner).ok_or_else(|| unsupported(KeyForm::InstalledAlgorithm))
}

impl InstalledKey {
    /// `inner` is the content of the private key in PKCS#8. `None`: it is not one of this
    /// algorithm, or its halves do not belong together.
    fn new(algorithm: KeyAlgorithm, inner: &[u8]) -> Option<Self> {
        if algorithm == KeyAlgorithm::EcdsaP256 {
            let secret = p256_scalar(inner)?;
            let key = SigningKey::from_slice(&secret).ok()?;
            let public = PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes()).ok()?;
            return Some(Self { public, secret });
        }
        let secret = to_pkcs8(algorithm, inner);
        let bits = match Pair::open(algorithm, &secret)? {
            Pair::P384(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
        };
        Some(Self { public: PublicKey::new(algorithm, &bits).ok()?, secret })
    }
}

#[cfg(any(test, fuzzing))]
#[allow(clippy::expect_used, clippy::panic)]
impl InstalledKey {
    /// Checks that the form in which the key is kept is that of the same key.
    ///
    /// # Panics
    /// It is not.
    pub(super) fn check(&self) {
        let Self { public, secret } = self;
        assert!(PublicKey::from_spki(&public.spki_der()).expect("a public key that was written") == *public);
        let algorithm = public.algorithm();
        if algorithm == KeyAlgorithm::EcdsaP256 {
            assert_eq!(secret.len(), 32);
            return;
        }
        let (id, inner) = pkcs8_content(secret).expect("PKCS#8 that was written");
        assert_eq!(id, algorithm.id());
        assert!(Self::new(algorithm, inner).expect("a key that was written").public == *public);
        sign(algorithm, secret, b"message").expect("a key that was accepted");
    }
}

/// Signs a message with a PKCS#8 key of another algorithm than P-256, in the one scheme of TLS 1.3
/// that [`KeyAlgorithm::scheme`] names. `None`: it is no such key.
pub(super) fn sign(algorithm: KeyAlgorithm, pkcs8: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    let signature = sign_with_pair(algorithm, pkcs8, message);
    wipe_stack();
    signature
}

#[inline(never)] // what it leaves on the stack is overwritten by its caller
fn sign_with_pair(algorithm: KeyAlgorithm, pkcs8: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    let random = SystemRandom::new();
    match Pair::open(algorithm, pkcs8)? {
        Pair::P384(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
        Pair::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
        Pair::Rsa(pair) => {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(&RSA_PSS_SHA256, &random, message, &mut signature).ok().map(|()| signature)
        }
    }
}

/// A key pair of ring.
#[allow(clippy::large_enum_variant)] // on the stack, where it can be overwritten
enum Pair {
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl Pair {
    fn open(algorithm: KeyAlgorithm, pkcs8: &[u8]) -> Option<Self> {
        match algorithm {
            KeyAlgorithm::EcdsaP256 => None,
            KeyAlgorithm::EcdsaP384 => {
                let random = SystemRandom::new();
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8, &random);
                pair.ok().map(Self::P384)
            }
            KeyAlgorithm::Ed25519 => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok().map(Self::Ed25519)
            }
            KeyAlgorithm::Rsa => RsaKeyPair::from_pkcs8(pkcs8).ok().map(Self::Rsa),
        }
    }
}

/// The scalar of an `ECPrivateKey` (RFC 5915) on P-256. If it names its curve or holds its public
/// half, they have to fit.
fn p256_scalar(sec1: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut scalar = SecretKey::from_sec1_der(sec1).ok()?.to_bytes();
    let secret = Zeroizing::new(scalar.to_vec());
    scalar.as_mut_slice().zeroize();
    Some(secret)
}

/// The content of the AlgorithmIdentifier and the private key of a `PrivateKeyInfo` (RFC 5208), or
/// a `OneAsymmetricKey` (RFC 5958). Attributes and a public key after them are not read.
fn pkcs8_content(mut der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut info = take_tagged(&mut der, SEQUENCE)?.content;
    take_tagged(&mut info, INTEGER)?;
    let algorithm = take_tagged(&mut info, SEQUENCE)?.content;
    let inner = take_tagged(&mut info, OCTET_STRING)?.content;
    der.is_empty().then_some((algorithm, inner))
}

/// PKCS#8 of version 1. Each part is created where it stays, so that no copy is left behind.
fn to_pkcs8(algorithm: KeyAlgorithm, inner: &[u8]) -> Zeroizing<Vec<u8>> {
    let version = [INTEGER, 1, 0];
    let key = Zeroizing::new(wrap(OCTET_STRING, inner));
    let content = Zeroizing::new([&version[..], &wrap(SEQUENCE, algorithm.id()), &key].concat());
    Zeroizing::new(wrap(SEQUENCE, &content))
}
