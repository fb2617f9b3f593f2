//! Private keys in files, for the factory key (rule K5): PKCS#8, SEC1 (also after the `EC PARAMETERS` block that `openssl
//! ecparam` writes) or PKCS#1. A file may hold a `TSS2 PRIVATE KEY` instead, which only the TPM can use, and certificates
//! in addition to the key.

use std::path::Path;
use std::sync::Arc;

use der::asn1::{AnyRef, OctetStringRef, UintRef};
use der::{Decode, Header, SliceReader, Tag};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use super::checked::Checked;
use super::{KeyError, KeyForm, tss2};
use crate::pem::{self, Block, Pem};
use crate::platform::{access, files};

/// A file larger than this holds no single private key.
const MAX_FILE: usize = 64 * 1024;

/// What a key file turned out to hold.
pub(super) enum Found {
    /// The key itself.
    Plain { signing_key: Arc<dyn SigningKey>, algorithm: &'static str },
    /// The content of a `TSS2 PRIVATE KEY`.
    Tss2(Zeroizing<Vec<u8>>),
}

/// Reads a key file; `origin` is what errors call it. [`KeyError::Unreadable`] if the file cannot be read;
/// [`KeyError::Malformed`] if it is damaged; [`KeyError::Unsupported`] if it is something else, which the error names.
pub(super) fn open(path: &Path, origin: &str) -> Result<Found, KeyError> {
    let content = files::read_secret(path, MAX_FILE)
        .map_err(|source| KeyError::Unreadable { path: path.to_owned(), source })?;
    let block = private_key_block(&content, origin)?;
    if &*block.label == tss2::LABEL {
        return Ok(Found::Tss2(block.der));
    }
    plain(&block, &at_line(origin, block.line))
}

/// What should be corrected about the file of a private key that can be used.
pub(super) fn warning(path: &Path) -> Option<String> {
    let mode = access::open_to_all(path)?;
    Some(format!(
        "the key file {file} has the mode {mode:04o}: every user of this device can {what} the factory key; correct it \
         with: chmod o= {command}",
        file = path.display(),
        what = if mode & 0o004 == 0 { "replace" } else { "copy" },
        command = access::shell_word(path),
    ))
}

/// What errors call a block in a file.
fn at_line(origin: &str, line: usize) -> String {
    format!("{origin}, line {line},")
}

fn plain(block: &Block, origin: &str) -> Result<Found, KeyError> {
    let der = &block.der;
    let der = der.as_slice();
    let unsupported = |form| KeyError::Unsupported { origin: origin.into(), form };
    let (rsa_bits, der) = match &*block.label {
        "PRIVATE KEY" => (rsa_bits_of_pkcs8(der), PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der))),
        "EC PRIVATE KEY" => (None, PrivateKeyDer::from(PrivateSec1KeyDer::from(der))),
        _ => (rsa_bits_of_pkcs1(der), PrivateKeyDer::from(PrivatePkcs1KeyDer::from(der))),
    };
    if let Some(bits) = rsa_bits.filter(|bits| !(2048..=4096).contains(bits)) {
        return Err(unsupported(KeyForm::RsaSize(bits)));
    }
    let key = any_supported_type(&der).map_err(|_| unsupported(KeyForm::Algorithm))?;
    let algorithm = rsa_bits.map_or_else(|| name_of_curve(key.as_ref()), rsa_name);
    Ok(Found::Plain { signing_key: Arc::new(Checked::new(key, origin)), algorithm })
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

/// The one private key in a file; or what there is in its place.
fn private_key_block(content: &[u8], origin: &str) -> Result<Block, KeyError> {
    let malformed = |why: String| KeyError::Malformed { origin: origin.into(), why };
    let mut found = None;
    let mut instead = None;
    let Pem { blocks, commented_out } = pem::read(content).map_err(|why| malformed(why.to_string()))?;
    for block in blocks {
        let other = |form| KeyError::Unsupported { origin: at_line(origin, block.line), form };
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
            // A second key that is none of the above might be the one that is meant.
            label if label.ends_with("PRIVATE KEY") => {
                return Err(other(KeyForm::Other(block.label.to_string())));
            }
            _ if block.label.is_certificate() => instead = Some(other(KeyForm::Certificate)),
            "PUBLIC KEY" => instead = Some(other(KeyForm::PublicKey)),
            _ => instead = Some(other(KeyForm::Other(block.label.to_string()))),
        }
    }
    found.ok_or_else(|| instead.unwrap_or_else(|| malformed(without_a_key(content, &commented_out))))
}

fn without_a_key(content: &[u8], commented_out: &[usize]) -> String {
    match pem::instead_of_blocks(content, commented_out) {
        pem::Content::Der => {
            "it is binary (DER) and not PEM; convert it with: openssl pkey -inform DER -in FILE -out NEWFILE (a PKCS #12, \
             .p12 or .pfx, with: openssl pkcs12 -nocerts -nodes -in FILE -out NEWFILE)"
                .into()
        }
        instead => format!("it holds no PEM block: {instead}"),
    }
}
