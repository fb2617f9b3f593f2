//! The factory key: the device maker's, in a file or in the TPM (rule K5). It identifies the device
//! in TLS 1.3 until it has an SVID, and does nothing else.
//!
//! A file holds PKCS#8, SEC1 (also after the `EC PARAMETERS` block that `openssl ecparam` writes)
//! or PKCS#1; or a `TSS2 PRIVATE KEY`, which only the TPM can use; and certificates in addition to
//! the key.

use std::path::Path;
use std::sync::Arc;

use der::asn1::{AnyRef, OctetStringRef, UintRef};
use der::{Decode, Header, SliceReader, Tag};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{
    PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer, SubjectPublicKeyInfoDer,
};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use zeroize::Zeroizing;

use super::checked_signature::Checked;
use super::error::named;
use super::tpm::{AuthValue, ExternalKey, Tpm, TpmError, rsa_name};
use super::tss2::{self, Tss2Key};
use super::{KeyError, KeyFileError, KeyForm};
use crate::platform::{access, files};
use miaf_spiffe::pem::{self, Block, Pem};

/// Bits of an RSA key.
const MIN_RSA: usize = 2048;

/// Where the factory key is.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In a PEM file: PKCS#8, SEC1 or PKCS#1, or a `TSS2 PRIVATE KEY`, which the TPM then uses.
    File(&'a Path),
    /// In the TPM, at a persistent handle (`0x81……`).
    TpmHandle(u32),
}

/// The factory key, for TLS and for people.
#[derive(Debug, Clone)]
pub struct FactoryKey {
    /// The key for TLS 1.3. It knows its public half, so
    /// [`CertifiedKey::keys_match`](rustls::sign::CertifiedKey) notices a certificate of another
    /// key. A key of the TPM blocks the thread that it signs on.
    pub signing_key: Arc<dyn SigningKey>,
    /// `ecdsa-p256`, `ecdsa-p384`, `ed25519`, `rsa-2048`, `rsa-3072`, `rsa-4096`, or `rsa` for
    /// sizes in between.
    pub algorithm: &'static str,
    /// Whether the key lives in the TPM.
    pub in_tpm: bool,
    /// What should be corrected about its file, though the key can be used.
    pub warning: Option<String>,
}

/// Opens the factory key to use it. Blocks.
///
/// A key of the TPM makes one signature at once, so an error is found with its reason: in the
/// middle of a handshake it would look like a network that is down.
///
/// # Errors
/// As [`inspect`]; and [`TpmError::AuthRefused`], [`TpmError::PssSalt`], and whatever keeps the TPM
/// from working.
pub fn open(source: Source<'_>, auth: Option<&AuthValue>, tpm: &Tpm) -> Result<FactoryKey, KeyError> {
    let (key, in_tpm) = find(source, auth, tpm)?;
    in_tpm.map_or(Ok(()), |key| key.sign(b"miaf-agent: can this key sign?").map(drop))?;
    Ok(key)
}

/// Opens the factory key without using it: with a key of the TPM that is guarded against guessing,
/// a power cut after a use counts as a guess. Blocks.
///
/// # Errors
/// [`KeyFileError`] for files; [`TpmError::Unfit`] for keys of the TPM that cannot do TLS 1.3;
/// [`TpmError::HandleMissing`]; [`TpmError::AuthMissing`] and [`KeyFileError::AuthNotTaken`] for
/// passwords; for a handle, whatever keeps the TPM from working.
pub fn inspect(source: Source<'_>, auth: Option<&AuthValue>, tpm: &Tpm) -> Result<FactoryKey, KeyError> {
    find(source, auth, tpm).map(|(key, _)| key)
}

fn find(
    source: Source<'_>,
    auth: Option<&AuthValue>,
    tpm: &Tpm,
) -> Result<(FactoryKey, Option<Arc<ExternalKey>>), KeyError> {
    let key = match source {
        Source::File(path) => {
            let origin = format!("the key file {}", path.display());
            match open_file(path, &origin)? {
                Found::Plain { signing_key, algorithm } if auth.is_none() => {
                    let warning = warning(path);
                    return Ok((FactoryKey { signing_key, algorithm, in_tpm: false, warning }, None));
                }
                Found::Plain { .. } => {
                    return Err(KeyFileError::AuthNotTaken { origin }.into());
                }
                Found::Tss2(der) => {
                    let (key, has_password) =
                        Tss2Key::from_der(&der).map_err(|error| named(error, &origin))?;
                    if has_password && auth.is_none() {
                        return Err(TpmError::AuthMissing { origin }.into());
                    }
                    // A file that says that there is no password is not believed:
                    // `tpm2_encodeobject -p` says so of a key with one.
                    tpm.external_key_from_file(&key, auth, origin)?
                }
            }
        }
        Source::TpmHandle(handle) => tpm.external_key_at_handle(handle, auth)?,
    };
    let key = Arc::new(key);
    let signing_key = Arc::new(TpmSigningKey(key.clone()));
    let algorithm = key.algorithm();
    Ok((FactoryKey { algorithm, signing_key, in_tpm: true, warning: None }, Some(key)))
}

/// A factory key of the TPM, for TLS.
#[derive(Debug, Clone)]
struct TpmSigningKey(Arc<ExternalKey>);

impl SigningKey for TpmSigningKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.0.scheme()).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    /// Given, so that rustls can tell when a certificate belongs to another key.
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0.scheme() {
            SignatureScheme::ECDSA_NISTP256_SHA256 | SignatureScheme::ECDSA_NISTP384_SHA384 => {
                SignatureAlgorithm::ECDSA
            }
            _ => SignatureAlgorithm::RSA,
        }
    }
}

impl Signer for TpmSigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|error| rustls::Error::Other(rustls::OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

/// Bytes; a larger file holds no single private key.
const MAX_FILE: usize = 64 * 1024;

/// The content of a key file.
enum Found {
    /// The key itself.
    Plain { signing_key: Arc<dyn SigningKey>, algorithm: &'static str },
    /// The content of a `TSS2 PRIVATE KEY`.
    Tss2(Zeroizing<Vec<u8>>),
}

/// Reads a key file; `origin` is its name in errors.
fn open_file(path: &Path, origin: &str) -> Result<Found, KeyError> {
    let content = files::read_secret(path, MAX_FILE)
        .map_err(|e| KeyFileError::Unreadable { path: path.to_owned(), why: access::unreadable(path, &e) })?;
    let block = private_key_block(&content, origin)?;
    if &*block.label == tss2::LABEL {
        return Ok(Found::Tss2(block.der));
    }
    plain(&block, &at_line(origin, block.line))
}

/// What should be corrected about the file of a private key that can be used.
fn warning(path: &Path) -> Option<String> {
    let mode = access::open_to_all(path)?;
    Some(format!(
        "the key file {file} has the mode {mode:04o}: every user of this device can {what} the factory key; correct it \
         with: chmod o= {command}",
        file = path.display(),
        what = if mode & 0o004 == 0 { "replace" } else { "copy" },
        command = access::shell_word(path),
    ))
}

/// The name in errors of a block in a file.
pub(super) fn at_line(origin: &str, line: usize) -> String {
    format!("{origin}, line {line},")
}

fn plain(block: &Block, origin: &str) -> Result<Found, KeyError> {
    let der = &block.der;
    let der = der.as_slice();
    let unsupported = |form| KeyFileError::unsupported(origin, form);
    let (rsa_bits, der) = match &*block.label {
        "PRIVATE KEY" => (rsa_bits_of_pkcs8(der), PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der))),
        "EC PRIVATE KEY" => (None, PrivateKeyDer::from(PrivateSec1KeyDer::from(der))),
        _ => (rsa_bits_of_pkcs1(der), PrivateKeyDer::from(PrivatePkcs1KeyDer::from(der))),
    };
    if let Some(bits) = rsa_bits.filter(|bits| !(MIN_RSA..=4096).contains(bits)) {
        return Err(unsupported(KeyForm::RsaSize { bits, least: MIN_RSA }));
    }
    let key = any_supported_type(&der).map_err(|_| unsupported(KeyForm::Algorithm))?;
    let algorithm = rsa_bits.map_or_else(|| name_of_curve(key.as_ref()), rsa_name);
    Ok(Found::Plain { signing_key: Arc::new(Checked::new(key, origin)), algorithm })
}

/// The algorithm name of a key on a curve, by the one scheme that it signs with.
fn name_of_curve(key: &dyn SigningKey) -> &'static str {
    let all = [
        (SignatureScheme::ECDSA_NISTP256_SHA256, "ecdsa-p256"),
        (SignatureScheme::ECDSA_NISTP384_SHA384, "ecdsa-p384"),
        (SignatureScheme::ED25519, "ed25519"),
    ];
    all.into_iter()
        .find(|(scheme, _)| key.choose_scheme(&[*scheme]).is_some())
        .map_or("unknown", |(_, name)| name)
}

/// The size in bits of the key in a `PrivateKeyInfo` (RFC 5208 section 5), if it is an RSA key.
fn rsa_bits_of_pkcs8(der: &[u8]) -> Option<usize> {
    let inner = || -> der::Result<&OctetStringRef> {
        let mut reader = sequence(der)?;
        UintRef::decode(&mut reader)?;
        AnyRef::decode(&mut reader)?;
        <&OctetStringRef>::decode(&mut reader)
    };
    rsa_bits_of_pkcs1(inner().ok()?.as_bytes())
}

/// The size in bits of an `RSAPrivateKey` (RFC 8017 appendix A.1.2), which begins with a version
/// and the modulus.
pub(super) fn rsa_bits_of_pkcs1(der: &[u8]) -> Option<usize> {
    let modulus = || -> der::Result<UintRef<'_>> {
        let mut reader = sequence(der)?;
        UintRef::decode(&mut reader)?;
        UintRef::decode(&mut reader)
    };
    let modulus = modulus().ok()?;
    let bytes = modulus.as_bytes();
    Some(bytes.len() * 8 - bytes.first()?.leading_zeros() as usize)
}

/// A reader of the content of a SEQUENCE.
fn sequence(der: &[u8]) -> der::Result<SliceReader<'_>> {
    let mut reader = SliceReader::new(der)?;
    Header::decode(&mut reader)?.tag().assert_eq(Tag::Sequence)?;
    Ok(reader)
}

/// The only private key in a file, or the error for what there is instead.
pub(super) fn private_key_block(content: &[u8], origin: &str) -> Result<Block, KeyError> {
    let mut found = None;
    let mut instead = None;
    let Pem { blocks, commented_out } =
        pem::read(content).map_err(|why| KeyFileError::not_pem(origin, &why))?;
    for block in blocks {
        let other = |form| KeyFileError::unsupported(&at_line(origin, block.line), form);
        match &*block.label {
            "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" if block.encrypted => {
                return Err(other(KeyForm::Encrypted));
            }
            "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" | tss2::LABEL => {
                let several = other(KeyForm::Several);
                if found.replace(block).is_some() {
                    return Err(several);
                }
            }
            "EC PARAMETERS" => {}
            "ENCRYPTED PRIVATE KEY" => return Err(other(KeyForm::Encrypted)),
            // It might be the key that is meant, in addition to one that is read.
            label if label.ends_with("PRIVATE KEY") => {
                return Err(other(KeyForm::Other(block.label.to_string())));
            }
            _ if block.label.is_certificate() => instead = Some(other(KeyForm::Certificate)),
            "PUBLIC KEY" => instead = Some(other(KeyForm::PublicKey)),
            _ => instead = Some(other(KeyForm::Other(block.label.to_string()))),
        }
    }
    found.ok_or_else(|| instead.unwrap_or_else(|| without_a_key(content, &commented_out, origin)))
}

fn without_a_key(content: &[u8], commented_out: &[usize], origin: &str) -> KeyError {
    match pem::instead_of_blocks(content, commented_out) {
        pem::Content::Der => KeyFileError::Binary { origin: origin.into() }.into(),
        instead => KeyFileError::malformed(origin, format!("it holds no PEM block: {instead}")),
    }
}
