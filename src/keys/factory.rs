//! The factory key: the device maker's, in a file or in the TPM (rule K5). It identifies the device in TLS 1.3 until it
//! has an SVID, and does nothing else.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use zeroize::Zeroizing;

use super::KeyError;
use super::file::{self, Found};
use super::tpm::{MadeElsewhere, Tpm};
use super::tss2::Tss2Key;
use crate::platform::credentials::Secret;

/// Where the factory key is.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In a PEM file: PKCS#8, SEC1 or PKCS#1, or a `TSS2 PRIVATE KEY`, which the TPM then uses.
    File(&'a Path),
    /// In the TPM, at a persistent handle (`0x81……`).
    TpmHandle(u32),
}

/// Where the password of a TPM key is, an "auth value" in the words of the TPM 2.0 specification. It is read anew for each
/// use and wiped after it, and never shown.
#[derive(Clone)]
pub struct Auth(Password);

#[derive(Clone)]
enum Password {
    Given(Zeroizing<Vec<u8>>),
    KeptIn(Secret),
}

impl Auth {
    /// Takes a password as it is, to the last octet. An empty one is the password of a key that has none. It stays in memory.
    ///
    /// # Errors
    /// [`KeyError::AuthTooLong`], as for [`Auth::kept_in`].
    pub fn new(password: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let auth = Self(Password::Given(password));
        auth.read().map(|_| auth)
    }

    /// The password in a file or a credential.
    pub fn kept_in(secret: Secret) -> Self {
        Self(Password::KeptIn(secret))
    }

    /// The password, to the last octet.
    ///
    /// [`KeyError::AuthUnreadable`], and [`KeyError::AuthTooLong`] if no TPM could have it: a password is no longer than the
    /// digest that the key's name is made with (TPM 2.0 specification, part 1, "Authorization Values"), and SHA-512 is the
    /// longest.
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let password = match &self.0 {
            Password::Given(password) => password.clone(),
            Password::KeptIn(secret) => secret.read()?,
        };
        fits(&password, 64, "a TPM").map(|()| password)
    }
}

pub(super) fn fits(password: &[u8], limit: usize, taker: &str) -> Result<(), KeyError> {
    let length = password.len();
    if length > limit {
        return Err(KeyError::AuthTooLong { length, taker: taker.into(), limit });
    }
    Ok(())
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(..)")
    }
}

/// What was opened, for TLS and for people.
#[derive(Debug, Clone)]
pub struct FactoryKey {
    /// The key for TLS 1.3. It knows its public half, so [`CertifiedKey::keys_match`](rustls::sign::CertifiedKey)
    /// notices a certificate of another key. A key of the TPM blocks the thread that it signs on.
    pub signing_key: Arc<dyn SigningKey>,
    /// `ecdsa-p256`, `ecdsa-p384`, `ed25519`, `rsa-2048`, `rsa-3072`, `rsa-4096`, or `rsa` for sizes in between.
    pub algorithm: &'static str,
    /// Whether the key lives in the TPM.
    pub in_tpm: bool,
    /// What should be corrected, though the key can be used.
    pub warning: Option<String>,
}

/// Opens the factory key to use it. Blocks.
///
/// A key of the TPM is asked for one signature here and now: whatever keeps it from working is found out with its reason,
/// where in the middle of a handshake it would look like a network that is down.
///
/// # Errors
/// As [`look`]; and [`KeyError::AuthRefused`], [`KeyError::PssSalt`], and whatever keeps the TPM from working.
pub fn open(source: Source<'_>, auth: Option<&Auth>, tpm: &Tpm) -> Result<FactoryKey, KeyError> {
    let (key, in_tpm) = find(source, auth, tpm)?;
    in_tpm.map_or(Ok(()), |key| key.sign(b"miaf-agent: can this key sign?").map(drop))?;
    Ok(key)
}

/// What there is to see of the factory key without using it. A key of the TPM that is guarded against guessing had
/// better not be used for nothing: a power cut after a use counts as a guess. Blocks.
///
/// # Errors
/// [`KeyError::Unreadable`], [`KeyError::Malformed`] and [`KeyError::Unsupported`] for files; [`KeyError::Unfit`] for keys
/// of the TPM that cannot do TLS 1.3; [`KeyError::HandleMissing`]; [`KeyError::AuthMissing`] and
/// [`KeyError::AuthNotTaken`] for passwords; for a handle, whatever keeps the TPM from working.
pub fn look(source: Source<'_>, auth: Option<&Auth>, tpm: &Tpm) -> Result<FactoryKey, KeyError> {
    find(source, auth, tpm).map(|(key, _)| key)
}

fn find(
    source: Source<'_>,
    auth: Option<&Auth>,
    tpm: &Tpm,
) -> Result<(FactoryKey, Option<Arc<MadeElsewhere>>), KeyError> {
    let key = match source {
        Source::File(path) => {
            let origin = format!("the key file {}", path.display());
            match file::open(path, &origin)? {
                Found::Plain { signing_key, algorithm } if auth.is_none() => {
                    let warning = file::warning(path);
                    return Ok((FactoryKey { signing_key, algorithm, in_tpm: false, warning }, None));
                }
                Found::Plain { .. } => {
                    return Err(KeyError::AuthNotTaken { origin });
                }
                Found::Tss2(der) => {
                    let (key, has_password) =
                        Tss2Key::from_der(&der).map_err(|error| named(error, &origin))?;
                    if has_password && auth.is_none() {
                        return Err(KeyError::AuthMissing { origin });
                    }
                    // The other way round the file is not believed: `tpm2_encodeobject -p` says of a key with a
                    // password that it has none.
                    tpm.key_made_elsewhere(&key, auth, origin)?
                }
            }
        }
        Source::TpmHandle(handle) => tpm.key_at_handle(handle, auth)?,
    };
    let key = Arc::new(key);
    let signing_key = Arc::new(TpmSigningKey(key.clone()));
    let algorithm = key.algorithm();
    Ok((FactoryKey { algorithm, signing_key, in_tpm: true, warning: None }, Some(key)))
}

/// The error with the name of the file it is about.
pub(super) fn named(error: KeyError, origin: &str) -> KeyError {
    let origin = origin.to_owned();
    match error {
        KeyError::Malformed { why, .. } => KeyError::Malformed { origin, why },
        KeyError::Unsupported { form, .. } => KeyError::Unsupported { origin, form },
        other => other,
    }
}

/// A factory key of the TPM, at work in TLS.
#[derive(Debug, Clone)]
struct TpmSigningKey(Arc<MadeElsewhere>);

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_password_has_a_limit_and_does_not_show() {
        let auth = |length| Auth::new(Zeroizing::new(vec![b'x'; length]));
        assert_eq!(format!("{:?}", auth(64).unwrap()), "Auth(..)");
        assert!(auth(0).is_ok());
        let error = auth(65).unwrap_err();
        assert!(matches!(error, KeyError::AuthTooLong { length: 65, limit: 64, .. }), "{error:?}");
        assert!(!error.to_string().contains("xx"), "{error}");
    }
}
