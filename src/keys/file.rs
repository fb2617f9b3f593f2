//! Private keys in files, for the factory key (rule K5): PKCS#8, SEC1 (also after the `EC PARAMETERS` block that `openssl
//! ecparam` writes) or PKCS#1. A file may hold a `TSS2 PRIVATE KEY` instead, which only the TPM can use. Certificates
//! beside the key are passed over.

use std::path::Path;
use std::sync::Arc;

use der::asn1::{AnyRef, OctetStringRef, UintRef};
use der::{Decode, Header, SliceReader, Tag};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use super::pem::{self, Block};
use super::{KeyError, KeyForm, tss2};
use crate::system::files;

/// A file larger than this holds no single private key.
const MAX_FILE: usize = 64 * 1024;

/// What a key file turned out to hold.
pub(super) enum Found {
    /// The key itself.
    Plain { signing_key: Arc<dyn SigningKey>, algorithm: &'static str },
    /// The text of a file with a `TSS2 PRIVATE KEY`.
    Tss2(Zeroizing<String>),
}

/// Reads a key file; `origin` is what errors call it. [`KeyError::Unreadable`] if the file cannot be read;
/// [`KeyError::Malformed`] if it is damaged; [`KeyError::Unsupported`] if it is something else, which the error names.
pub(super) fn open(path: &Path, origin: &str) -> Result<Found, KeyError> {
    let text = read(path)?;
    let block = private_key_block(&text).map_err(|form| match form {
        Some(form) => KeyError::Unsupported { origin: origin.into(), form },
        None => KeyError::Malformed { origin: origin.into(), why: "it has no complete PEM block".into() },
    })?;
    if block.label == tss2::LABEL {
        return Ok(Found::Tss2(text));
    }
    plain(&block, origin)
}

/// Reads a small text file into memory that is wiped after use.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let content = files::read_secret(path, MAX_FILE)
        .map_err(|source| KeyError::Unreadable { path: path.to_owned(), source })?;
    match std::str::from_utf8(&content) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(KeyError::Malformed {
            origin: format!("the key file {}", path.display()),
            why: "it is not text; a PEM file is wanted".into(),
        }),
    }
}

fn plain(block: &Block<'_>, origin: &str) -> Result<Found, KeyError> {
    let der = block.decode().ok_or_else(|| KeyError::Malformed {
        origin: origin.into(),
        why: "it is not PEM: not Base64".into(),
    })?;
    let der = der.as_slice();
    let unsupported = |form| KeyError::Unsupported { origin: origin.into(), form };
    let (rsa_bits, der) = match block.label {
        "PRIVATE KEY" => (rsa_bits_of_pkcs8(der), PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der))),
        "EC PRIVATE KEY" => (None, PrivateKeyDer::from(PrivateSec1KeyDer::from(der))),
        _ => (rsa_bits_of_pkcs1(der), PrivateKeyDer::from(PrivatePkcs1KeyDer::from(der))),
    };
    if let Some(bits) = rsa_bits.filter(|bits| !(2048..=4096).contains(bits)) {
        return Err(unsupported(KeyForm::RsaSize(bits)));
    }
    let key = any_supported_type(&der).map_err(|why| unsupported(KeyForm::Algorithm(why.to_string())))?;
    let algorithm = rsa_bits.map_or_else(|| name_of_curve(key.as_ref()), rsa_name);
    Ok(Found::Plain { signing_key: key, algorithm })
}

/// The name of an RSA key, for people.
pub(super) fn rsa_name(bits: usize) -> &'static str {
    match bits {
        2048 => "rsa-2048",
        3072 => "rsa-3072",
        4096 => "rsa-4096",
        _ => "rsa",
    }
}

/// A key on a curve signs in one way, which tells the curve.
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

/// How large the key in a `PrivateKeyInfo` (RFC 5208 section 5) is, if it is an RSA key.
fn rsa_bits_of_pkcs8(der: &[u8]) -> Option<usize> {
    let inner = || -> der::Result<OctetStringRef<'_>> {
        let mut reader = sequence(der)?;
        UintRef::decode(&mut reader)?;
        AnyRef::decode(&mut reader)?;
        OctetStringRef::decode(&mut reader)
    };
    rsa_bits_of_pkcs1(inner().ok()?.as_bytes())
}

/// How large an `RSAPrivateKey` (RFC 8017 appendix A.1.2) is: it begins with a version and the modulus.
fn rsa_bits_of_pkcs1(der: &[u8]) -> Option<usize> {
    let modulus = || -> der::Result<UintRef<'_>> {
        let mut reader = sequence(der)?;
        UintRef::decode(&mut reader)?;
        UintRef::decode(&mut reader)
    };
    let modulus = modulus().ok()?;
    let octets = modulus.as_bytes();
    Some(octets.len() * 8 - octets.first()?.leading_zeros() as usize)
}

/// The inside of a SEQUENCE.
fn sequence(der: &[u8]) -> der::Result<SliceReader<'_>> {
    let mut reader = SliceReader::new(der)?;
    Header::decode(&mut reader)?.tag.assert_eq(Tag::Sequence)?;
    Ok(reader)
}

/// The one private key in the text; or what there is instead, if it is anything.
fn private_key_block(text: &str) -> Result<Block<'_>, Option<KeyForm>> {
    let mut found = None;
    let mut instead = None;
    for block in pem::blocks(text) {
        let block = block.map_err(|pem::Torn| None)?;
        match block.label {
            "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" if block.text.contains("Proc-Type:") => {
                return Err(Some(KeyForm::Encrypted));
            }
            "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" | tss2::LABEL => {
                if found.replace(block).is_some() {
                    return Err(Some(KeyForm::Several));
                }
            }
            "EC PARAMETERS" => {}
            "ENCRYPTED PRIVATE KEY" => return Err(Some(KeyForm::Encrypted)),
            "CERTIFICATE" => instead = Some(KeyForm::Certificate),
            "PUBLIC KEY" => instead = Some(KeyForm::PublicKey),
            label => instead = Some(KeyForm::Other(label.to_owned())),
        }
    }
    found.ok_or(instead)
}
