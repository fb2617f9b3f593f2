//! The factory key: a private key that the device maker left in a file (rule K5).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use super::pem::{self, Block};
use super::{KeyError, KeyForm, tss2};

/// A file larger than this holds no single private key.
const MAX_FILE: usize = 64 * 1024;

/// Reads a private key for TLS from a PEM file: PKCS#8, SEC1 (also after the `EC PARAMETERS` block that `openssl
/// ecparam` writes) or PKCS#1. Certificates beside the key are passed over (rule K5).
///
/// # Errors
/// [`KeyError::Unreadable`] if the file cannot be read; [`KeyError::Malformed`] if it is damaged;
/// [`KeyError::Unsupported`] if it is something else, which the error names. For a [`KeyForm::Tss2`] try
/// [`Tpm::key_from_pem_file`](super::tpm::Tpm::key_from_pem_file).
pub fn from_pem_file(path: impl AsRef<Path>) -> Result<Arc<dyn SigningKey>, KeyError> {
    let path = path.as_ref();
    from_pem(&read(path)?, &format!("the key file {}", path.display()))
}

/// Reads a small text file into memory that is wiped after use.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };

    // Only a regular file: to open a pipe would wait for its other end.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    // One buffer that never grows, so that no copy is left behind.
    let mut buffer = Zeroizing::new(vec![0; MAX_FILE + 1]);
    let mut file = File::open(path).map_err(unreadable)?;
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    let text = buffer.get(..length).filter(|_| length <= MAX_FILE).map(std::str::from_utf8);
    let malformed = |why: &str| KeyError::Malformed {
        origin: format!("the key file {}", path.display()),
        why: why.into(),
    };
    match text {
        Some(Ok(text)) => Ok(Zeroizing::new(text.to_owned())),
        Some(Err(_)) => Err(malformed("it is not text; a PEM file is wanted")),
        None => Err(malformed("it is larger than 64 KiB")),
    }
}

fn from_pem(text: &str, origin: &str) -> Result<Arc<dyn SigningKey>, KeyError> {
    let block = private_key_block(text).map_err(|form| match form {
        Some(form) => KeyError::Unsupported { origin: origin.into(), form },
        None => KeyError::Malformed { origin: origin.into(), why: "it has no complete PEM block".into() },
    })?;

    let mut buffer = Zeroizing::new(vec![0; block.text.len()]);
    let (label, der) = der::pem::decode(block.text.as_bytes(), &mut buffer)
        .map_err(|why| KeyError::Malformed { origin: origin.into(), why: format!("PEM: {why}") })?;
    let der = match label {
        "PRIVATE KEY" => PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der)),
        "EC PRIVATE KEY" => PrivateKeyDer::from(PrivateSec1KeyDer::from(der)),
        _ => PrivateKeyDer::from(PrivatePkcs1KeyDer::from(der)),
    };
    any_supported_type(&der).map_err(|why| {
        let form = KeyForm::Algorithm(why.to_string());
        KeyError::Unsupported { origin: origin.into(), form }
    })
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
            "PRIVATE KEY" | "EC PRIVATE KEY" | "RSA PRIVATE KEY" => {
                if found.replace(block).is_some() {
                    return Err(Some(KeyForm::Several));
                }
            }
            "EC PARAMETERS" => {}
            "ENCRYPTED PRIVATE KEY" => return Err(Some(KeyForm::Encrypted)),
            tss2::LABEL => return Err(Some(KeyForm::Tss2)),
            "CERTIFICATE" => instead = Some(KeyForm::Certificate),
            "PUBLIC KEY" => instead = Some(KeyForm::PublicKey),
            label => instead = Some(KeyForm::Other(label.to_owned())),
        }
    }
    found.ok_or(instead)
}
