//! Software keys (rule K2): for devices without secure hardware, and only where the configuration
//! says so.
//!
//! A key is never stored in the clear. It is sealed, with an AEAD, under a key-encryption key (KEK)
//! from one of two sources, which determine its [`Protection`]:
//!
//! - the systemd credential `kek`, which systemd gives to this service alone: `software-isolated`.
//!   Whether the state's own medium opens the seal depends on what systemd encrypts the credential
//!   with: a TPM, or a key of the host;
//! - a file in the state directory, mode 0600, created at first need: `software-basic`.
//!
//! New keys are sealed under the credential where there is one. A seal says under which of the two
//! it was made: a key that was sealed under the credential needs the credential, and is not
//! replaced by one under the file while it is current. The key is in memory in the clear only while
//! it signs or is published.
//!
//! ```text
//! SealedKey ::= SEQUENCE {           -- PEM label MIAF SEALED PRIVATE KEY
//!     version     INTEGER,           -- 1: a P-256 key; 2: an installed key of another algorithm
//!     protection  INTEGER,           -- 1: the credential, 2: the file
//!     kek         OCTET STRING,      -- 8 bytes that identify the KEK: another one is told from damage
//!     publicKey   OCTET STRING,      -- 1: 04 || X || Y; 2: SubjectPublicKeyInfo
//!     nonce       OCTET STRING,      -- 12 bytes
//!     sealed      OCTET STRING }     -- 1: the scalar, 32 bytes; 2: PKCS#8; and the tag. All members before are
//!                                    -- authenticated
//! ```

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use der::asn1::OctetStringRef;
use der::{Decode as _, Encode as _, Sequence};
use p256::SecretKey;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::EncodePrivateKey as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::checked_signature::{checked, checked_of_message};
use super::error::REPLACE;
use super::installed_key::{self, InstalledKey};
use super::{
    ErrorKind, Key, KeyAlgorithm, KeyError, KeyFile, KeyFileError, Protection, Provider, ProviderKind,
    PublicKey,
};
use crate::hint::{Hint, Reason};
use crate::platform::{access, files};
use miaf_spiffe::digest::sha256;
use miaf_spiffe::pem;

/// The label of the PEM block.
pub const LABEL: &str = "MIAF SEALED PRIVATE KEY";

/// Name of the systemd credential that holds the KEK (systemd.exec(5), `LoadCredentialEncrypted=`).
pub const CREDENTIAL: &str = "kek";

/// Content of the credential where the device has none: `SetCredential=` of the unit. Without such
/// a default, systemd 254 and newer log a line about the missing credential at each start. Too
/// short to be a KEK.
const NO_CREDENTIAL: &[u8] = b"none";

/// Bytes: an RSA key of 4096 bits takes 3 KB with its public half.
const MAX_DER: usize = 6 * 1024;
const MAX_KEK: usize = 4 * 1024;
/// Bytes: a shorter KEK, in printable characters, cannot hold 128 bits of entropy.
const MIN_KEK: usize = 32;
/// Version of a seal around the scalar of a P-256 key.
const P256: u8 = 1;
/// Version of a seal around a key of another algorithm in PKCS#8.
const PKCS8: u8 = 2;

/// The provider of software keys. Cheap to clone; nothing is read before it is needed.
#[derive(Clone, Debug)]
pub struct Software {
    credential: Option<PathBuf>,
    file: PathBuf,
}

impl Software {
    /// `credentials` is the directory that systemd names in `CREDENTIALS_DIRECTORY`, if there is
    /// one; `file` is the path of the KEK where there is no credential `kek` in it.
    pub fn new(credentials: Option<&Path>, file: PathBuf) -> Self {
        let credential = credentials.map(|directory| directory.join(CREDENTIAL));
        // One that is there and cannot be read is not the same as none.
        let is_given = |path: &PathBuf| match files::read_secret(path, MAX_KEK) {
            Ok(content) => *content != NO_CREDENTIAL,
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        };
        Self { credential: credential.filter(is_given), file }
    }

    /// Creates a P-256 key (rule K3) and seals it. Blocks on the disk when the KEK is created with
    /// it.
    ///
    /// # Errors
    /// [`SoftwareError`] when there is no KEK to seal it under.
    pub fn create_key(&self) -> Result<SoftwareKey, KeyError> {
        let secret = new_secret()?;
        let key = SigningKey::from_slice(secret.as_slice()).map_err(|_| internal("a new key is not one"))?;
        let public = PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes())?;
        self.seal(public, secret)
    }

    /// Takes over the one private key of a PEM text and seals it. `origin` names the text in
    /// errors. Blocks on the disk when the KEK is created with it.
    ///
    /// # Errors
    /// [`KeyError::File`], which says what is wrong with the text; [`SoftwareError`] when there is
    /// no KEK to seal the key under.
    pub fn import_key(&self, pem: &[u8], origin: &str) -> Result<SoftwareKey, KeyError> {
        let InstalledKey { public, secret } = installed_key::read(pem, origin)?;
        let key = self.seal(public, secret)?;
        tracing::info!(
            protection = %key.protection(), algorithm = key.public.algorithm_name(), "key installed and sealed"
        );
        Ok(key)
    }

    fn seal(&self, public: PublicKey, secret: Zeroizing<Vec<u8>>) -> Result<SoftwareKey, KeyError> {
        let protection = self.protection();
        let kek = match (protection, self.kek(protection)) {
            (
                Protection::SoftwareBasic,
                Err(SoftwareError::KekMissing { .. } | SoftwareError::KekDamaged { .. }),
            ) => self.create_kek()?,
            (_, read) => read?,
        };
        let sealed = Sealed::new(&kek, protection, &public, secret)?;
        Ok(SoftwareKey { software: self.clone(), sealed: Arc::new(sealed), public })
    }

    /// A key stored as [`Key::to_pem`] wrote it. The seal is opened once to check that it can be.
    ///
    /// A KEK that is not available *now* is no error here: the key may be as good as ever. It is
    /// one when the key is used.
    ///
    /// # Errors
    /// [`KeyError::File`], and whatever makes it certain that nothing here will ever open the seal
    /// ([`ErrorKind::KeyUnusable`]).
    pub fn key_from_pem(&self, pem: &str) -> Result<SoftwareKey, KeyError> {
        let (sealed, public) = Sealed::from_pem(pem)?;
        let key = SoftwareKey { software: self.clone(), sealed: Arc::new(sealed), public };
        match key.open() {
            Err(why) if why.kind() == ErrorKind::KeyUnusable => Err(why),
            _ => Ok(key),
        }
    }

    /// The protection class of a key that is created now.
    fn protection(&self) -> Protection {
        match self.credential {
            Some(_) => Protection::SoftwareIsolated,
            None => Protection::SoftwareBasic,
        }
    }

    fn kek(&self, protection: Protection) -> Result<Kek, SoftwareError> {
        match (protection, &self.credential) {
            // systemd gives it a mode of its own, and to this service alone.
            (Protection::SoftwareIsolated, Some(path)) => match Kek::read(path, None) {
                Err(SoftwareError::KekMissing { .. }) => Err(SoftwareError::CredentialMissing),
                // The credential can be given anew.
                Err(SoftwareError::KekDamaged { path, length }) => {
                    Err(SoftwareError::CredentialTooShort { path, length })
                }
                read => read,
            },
            (Protection::SoftwareIsolated, None) => Err(SoftwareError::CredentialMissing),
            _ => Kek::read(&self.file, Some(0o600)),
        }
    }

    fn create_kek(&self) -> Result<Kek, KeyError> {
        let content = random_secret()?;
        let failed = |why: io::Error| {
            // The state directory, which holds everything that the agent stores.
            let dir = self.file.ancestors().nth(2).unwrap_or(Path::new("."));
            let why = access::unusable_own(dir, dir, &why);
            SoftwareError::KekNotCreated { path: self.file.clone(), why }
        };
        if let Some(directory) = self.file.parent() {
            files::make_dir(directory, 0o700, None).map_err(failed)?;
        }
        files::replace(&self.file, &content, 0o600).map_err(failed)?;
        tracing::info!(file = %self.file.display(), "key-encryption key for software keys created");
        Ok(Kek(content))
    }
}

/// Checks that a text has the form of a sealed key. The seal is not opened.
///
/// # Errors
/// [`KeyError::File`], and [`KeyError::BadPublicKey`].
pub(super) fn check_form(pem: &str) -> Result<(), KeyError> {
    Sealed::from_pem(pem).map(drop)
}

/// A key in software, sealed (rules K2, K3).
#[derive(Clone)]
pub struct SoftwareKey {
    software: Software,
    sealed: Arc<Sealed>,
    public: PublicKey,
}

impl SoftwareKey {
    fn open(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        self.sealed.open(&self.software.kek(self.sealed.protection)?, &self.software)
    }
}

impl Provider for Software {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Software
    }

    fn create(&self) -> Result<Arc<dyn Key>, KeyError> {
        let key = self.create_key()?;
        tracing::info!(protection = %key.protection(), "key created in software and sealed");
        Ok(Arc::new(key))
    }

    fn open(&self, record: &str) -> Result<Arc<dyn Key>, KeyError> {
        Ok(Arc::new(self.key_from_pem(record)?))
    }

    /// Nothing to do: a sealed key is stored in its record only, and goes with it. The KEK stays
    /// for its successors.
    fn retire(&self, _key: &dyn Key) -> Result<(), KeyError> {
        Ok(())
    }
}

impl Key for SoftwareKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        self.public.check_p256()?;
        let key = SigningKey::from_slice(&self.open()?).map_err(|_| SoftwareError::BrokenSeal)?;
        let signature: Signature =
            key.sign_prehash(digest).map_err(|_| internal("a software key did not sign"))?;
        let signature = signature.to_der().as_bytes().to_vec();
        checked(&self.public, digest, signature, || "the software key".into())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match self.public.algorithm() {
            KeyAlgorithm::EcdsaP256 => self.sign_digest(&sha256(message)),
            other => {
                let signature = installed_key::sign(other, &self.open()?, message);
                let signature = signature.ok_or_else(|| internal("a software key did not sign"))?;
                checked_of_message(&self.public, message, signature, || "the software key".into())
            }
        }
    }

    fn protection(&self) -> Protection {
        self.sealed.protection
    }

    fn provider(&self) -> ProviderKind {
        ProviderKind::Software
    }

    fn check_available(&self) -> Result<(), KeyError> {
        self.open().map(drop)
    }

    fn to_pem(&self) -> Result<String, KeyError> {
        self.sealed.to_pem()
    }

    fn to_key_file(&self) -> Result<KeyFile, KeyError> {
        let secret = self.open()?;
        let der = match self.public.algorithm() {
            KeyAlgorithm::EcdsaP256 => {
                let key = SecretKey::from_slice(&secret).map_err(|_| SoftwareError::BrokenSeal)?;
                key.to_pkcs8_der().map(|der| der.to_bytes()).ok()
            }
            _ => Some(secret),
        };
        let both = der.and_then(|der| Some((pem::encode("PRIVATE KEY", &der)?, der)));
        both.map(|(pem, der)| KeyFile::Secret { der, pem })
            .ok_or_else(|| internal("a software key cannot be encoded"))
    }
}

impl fmt::Debug for SoftwareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protection = &self.sealed.protection;
        f.debug_struct("SoftwareKey")
            .field("public_key", &self.public)
            .field("protection", protection)
            .finish()
    }
}

/// Why a software key cannot be created or used.
///
/// Displays what failed, on what, and why; [`hint`](Hint::hint) says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoftwareError {
    /// There is no key-encryption key where it is expected.
    #[error("the key-encryption key {path} is gone, so the key sealed under it cannot be opened")]
    KekMissing {
        /// Where it is expected.
        path: PathBuf,
    },
    /// The file of the key-encryption key is there, and the key is not.
    #[error(
        "the key-encryption key {path} is damaged ({length} bytes), so the key sealed under it cannot be opened"
    )]
    KekDamaged {
        /// Where it is.
        path: PathBuf,
        /// What is left of it, in bytes.
        length: usize,
    },
    /// The key-encryption key cannot be read.
    #[error("the key-encryption key {path} cannot be read: {why}")]
    KekUnreadable {
        /// Where it is.
        path: PathBuf,
        /// Why, and what to do.
        why: Reason,
    },
    /// Other users may read the key-encryption key.
    #[error("the key-encryption key {path} has the mode {mode:o} and not 600: other users may have read it")]
    KekExposed {
        /// Where it is.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key-encryption key cannot be created.
    #[error("the key-encryption key {path} cannot be created: {why}")]
    KekNotCreated {
        /// Where it is to be.
        path: PathBuf,
        /// Why, and what to do.
        why: Reason,
    },
    /// The key is sealed under the systemd credential, and there is none.
    #[error("the key is sealed under the systemd credential \"kek\", which this service was not given")]
    CredentialMissing,
    /// The systemd credential is too short to be a key-encryption key.
    #[error(
        "the systemd credential {path} has {length} bytes, and at least {MIN_KEK} random ones are needed"
    )]
    CredentialTooShort {
        /// Where it is.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The key is sealed under another key-encryption key than the one that is here.
    #[error(
        "the key is sealed under another key-encryption key than {kek}: that one was replaced, or the state comes from \
         another device"
    )]
    ForeignSeal {
        /// The one that is here.
        kek: PathBuf,
    },
    /// The seal of a key is damaged.
    #[error("the seal of the key is damaged")]
    BrokenSeal,
}

impl SoftwareError {
    /// What the failure means for the key, as [`KeyError::kind`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::KekMissing { .. }
            | Self::KekDamaged { .. }
            | Self::ForeignSeal { .. }
            | Self::BrokenSeal => ErrorKind::KeyUnusable,
            Self::KekUnreadable { .. }
            | Self::KekExposed { .. }
            | Self::KekNotCreated { .. }
            | Self::CredentialMissing
            | Self::CredentialTooShort { .. } => ErrorKind::NeedsOperator,
        }
    }
}

impl Hint for SoftwareError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::KekMissing { path } | Self::KekDamaged { path, .. } => {
                format!("Restore {}, or {REPLACE}", path.display()).into()
            }
            Self::ForeignSeal { .. } => {
                format!("Restore the original key-encryption key, or {REPLACE}").into()
            }
            Self::BrokenSeal => "Replace the key with: miaf-agent retry --new-key".into(),
            Self::KekUnreadable { why, .. } | Self::KekNotCreated { why, .. } => return why.hint(),
            Self::KekExposed { path, .. } => format!(
                "Set the mode with: chmod 600 {path}. If other users may have read the key, remove it instead: the device then \
                 enrolls with a new one",
                path = access::shell_word(path)
            )
            .into(),
            Self::CredentialMissing => {
                "Restore LoadCredentialEncrypted=kek in the unit and restart the agent (with another credential, if that one \
                 is lost: the device then enrolls with a new key)"
                    .into()
            }
            Self::CredentialTooShort { .. } => "Give the service 32 random bytes as its credential \"kek\"".into(),
        })
    }
}

/// A key as it is stored.
struct Sealed {
    protection: Protection,
    kek: [u8; 8],
    version: u8,
    public: Vec<u8>,
    nonce: [u8; 12],
    sealed: Vec<u8>,
}

#[derive(Sequence)]
struct SealedKey<'a> {
    version: u8,
    protection: u8,
    kek: &'a OctetStringRef,
    public: &'a OctetStringRef,
    nonce: &'a OctetStringRef,
    sealed: &'a OctetStringRef,
}

impl Sealed {
    fn new(
        kek: &Kek,
        protection: Protection,
        public: &PublicKey,
        mut secret: Zeroizing<Vec<u8>>,
    ) -> Result<Self, KeyError> {
        let (version, public) = match public.algorithm() {
            KeyAlgorithm::EcdsaP256 => (P256, public.as_bytes().to_vec()),
            _ => (PKCS8, public.spki_der()),
        };
        let mut new = Self {
            protection,
            kek: kek.name()?,
            version,
            public,
            nonce: random_nonce()?,
            sealed: Vec::new(),
        };
        let tag = kek
            .aead()?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(new.nonce), new.header(), &mut secret)
            .map_err(|_| internal("a software key cannot be sealed"))?;
        new.sealed = [secret.as_slice(), tag.as_ref()].concat();
        Ok(new)
    }

    fn open(&self, kek: &Kek, software: &Software) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if kek.name()? != self.kek {
            let place =
                software.credential.clone().filter(|_| self.protection == Protection::SoftwareIsolated);
            return Err(
                SoftwareError::ForeignSeal { kek: place.unwrap_or_else(|| software.file.clone()) }.into()
            );
        }
        let mut sealed = Zeroizing::new(self.sealed.clone());
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let length = match kek.aead()?.open_in_place(nonce, self.header(), &mut sealed) {
            Ok(secret) => secret.len(),
            Err(_) => return Err(SoftwareError::BrokenSeal.into()),
        };
        sealed.truncate(length);
        Ok(sealed)
    }

    /// What stands in the clear is authenticated with the secret.
    fn header(&self) -> Aad<Vec<u8>> {
        let first = [self.version, number(self.protection)];
        Aad::from([&first[..], &self.kek, &self.public].concat())
    }

    fn to_pem(&self) -> Result<String, KeyError> {
        let encode = || {
            SealedKey {
                version: self.version,
                protection: number(self.protection),
                kek: OctetStringRef::new(&self.kek)?,
                public: OctetStringRef::new(&self.public)?,
                nonce: OctetStringRef::new(&self.nonce)?,
                sealed: OctetStringRef::new(&self.sealed)?,
            }
            .to_der()
        };
        let der = encode().ok().and_then(|der| pem::encode(LABEL, &der));
        der.map(|pem| pem.to_string()).ok_or_else(|| internal("a sealed key cannot be encoded"))
    }

    /// The seal, and the public half that it names.
    fn from_pem(text: &str) -> Result<(Self, PublicKey), KeyError> {
        let blocks = pem::read(text.as_bytes()).map_err(|why| KeyFileError::not_pem(ORIGIN, &why))?.blocks;
        let block = blocks.into_iter().find(|block| &*block.label == LABEL);
        let der = block.ok_or_else(|| malformed("it has no PEM block of a sealed key"))?.der;
        if der.len() > MAX_DER {
            return Err(malformed("it is far too large for one"));
        }
        let key =
            SealedKey::from_der(&der).map_err(|_| malformed("its ASN.1 is not that of a sealed key"))?;
        let public = key.public.as_bytes();
        let public_key = match key.version {
            P256 => PublicKey::from_sec1(public)?,
            // A P-256 key has one form, the other one.
            PKCS8 => match PublicKey::from_spki(public)? {
                key if key.algorithm() == KeyAlgorithm::EcdsaP256 => {
                    return Err(malformed("it holds a P-256 key in the form of another one"));
                }
                key => key,
            },
            other => {
                let why = format!("it is of version {other}, and this agent reads {P256} and {PKCS8}");
                return Err(malformed(why));
            }
        };
        let protection = match key.protection {
            1 => Protection::SoftwareIsolated,
            2 => Protection::SoftwareBasic,
            other => return Err(malformed(format!("it names an unknown protection {other}"))),
        };
        let length = |_| malformed("one of its parts has a wrong length");
        let sealed = Self {
            protection,
            kek: key.kek.as_bytes().try_into().map_err(length)?,
            version: key.version,
            public: public.to_vec(),
            nonce: key.nonce.as_bytes().try_into().map_err(length)?,
            sealed: key.sealed.as_bytes().to_vec(),
        };
        Ok((sealed, public_key))
    }
}

fn number(protection: Protection) -> u8 {
    match protection {
        Protection::SoftwareIsolated => 1,
        Protection::SoftwareBasic | Protection::Hardware => 2,
    }
}

/// A key-encryption key, of any form and length: what is used is derived from it (HKDF, RFC 5869).
struct Kek(Zeroizing<Vec<u8>>);

impl Kek {
    /// `most`: the mode bits that the file may have at most, where the agent determines them.
    fn read(path: &Path, most: Option<u32>) -> Result<Self, SoftwareError> {
        let unusable = |why| {
            let why = access::unreadable(path, &why);
            SoftwareError::KekUnreadable { path: path.to_owned(), why }
        };
        let metadata = match path.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(SoftwareError::KekMissing { path: path.to_owned() });
            }
            other => other.map_err(unusable)?,
        };
        if !metadata.is_file() {
            return Err(unusable(io::Error::other("it is not a regular file")));
        }
        if most.is_some_and(|most| metadata.mode() & 0o7777 & !most != 0) {
            let mode = metadata.mode() & 0o7777;
            return Err(SoftwareError::KekExposed { path: path.to_owned(), mode });
        }
        let content = files::read_secret(path, MAX_KEK).map_err(unusable)?;
        if content.len() < MIN_KEK {
            return Err(SoftwareError::KekDamaged { path: path.to_owned(), length: content.len() });
        }
        Ok(Self(content))
    }

    fn aead(&self) -> Result<LessSafeKey, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(b"miaf-agent sealed key v1: seal", key.as_mut_slice())?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_slice());
        key.map(LessSafeKey::new).map_err(|_| internal("a sealing key cannot be derived"))
    }

    /// Distinguishes one KEK from another and reveals nothing about it.
    fn name(&self) -> Result<[u8; 8], KeyError> {
        let mut name = [0; 8];
        self.derive(b"miaf-agent sealed key v1: name", &mut name)?;
        Ok(name)
    }

    fn derive(&self, purpose: &[u8], into: &mut [u8]) -> Result<(), KeyError> {
        let prk = Salt::new(HKDF_SHA256, &[]).extract(&self.0);
        let derived = prk.expand(&[purpose], Length(into.len())).and_then(|okm| okm.fill(into));
        derived.map_err(|_| internal("a sealing key cannot be derived"))
    }
}

struct Length(usize);

impl ring::hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// A scalar between 1 and the order of the group: all but one in four thousand million random ones
/// are.
fn new_secret() -> Result<Zeroizing<Vec<u8>>, KeyError> {
    loop {
        let candidate = random_secret()?;
        if SigningKey::from_slice(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
}

/// Created where it stays, so that no copy is left behind.
fn random_secret() -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut secret = Zeroizing::new(vec![0; 32]);
    fill(&mut secret).map(|()| secret)
}

fn random_nonce() -> Result<[u8; 12], KeyError> {
    let mut nonce = [0; 12];
    fill(&mut nonce).map(|()| nonce)
}

fn fill(bytes: &mut [u8]) -> Result<(), KeyError> {
    SystemRandom::new().fill(bytes).map_err(|_| internal("the system has no random numbers"))
}

/// Name of a sealed key in errors.
const ORIGIN: &str = "the sealed key";

fn malformed(why: impl Into<Reason>) -> KeyError {
    KeyFileError::malformed(ORIGIN, why)
}

fn internal(why: &str) -> KeyError {
    KeyError::Internal(why.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::keys::ErrorKind;
    use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn basic(&self) -> Software {
            Software::new(None, self.kek())
        }

        fn isolated(&self) -> Software {
            fs::write(self.0.path().join(CREDENTIAL), [7; 32]).unwrap();
            Software::new(Some(self.0.path()), self.kek())
        }

        fn kek(&self) -> PathBuf {
            self.0.path().join("private/kek")
        }
    }

    fn der_of(key: &SoftwareKey) -> Vec<u8> {
        pem::read(key.to_pem().unwrap().as_bytes()).unwrap().blocks[0].der.to_vec()
    }

    fn assert_signs(key: &dyn Key) {
        let signature = key.sign(b"message").unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_bytes());
        public.verify(b"message", &signature).unwrap();
    }

    #[test]
    fn kek_default_of_the_unit_counts_as_no_credential() {
        let place = Place::new();
        let credential = place.0.path().join(CREDENTIAL);
        let protection = || Software::new(Some(place.0.path()), place.kek()).protection();
        assert_eq!(protection(), Protection::SoftwareBasic); // there is no file
        let unit = include_str!("../../systemd/miaf-agent.service");
        let default = unit.lines().find_map(|line| line.strip_prefix("SetCredential=kek:")).unwrap();
        fs::write(&credential, default).unwrap();
        assert_eq!(protection(), Protection::SoftwareBasic);
        // A credential that is no KEK is an error when it is used, and not the same as none.
        for content in [&b""[..], b"none\n", &[7; 32], &[7; MAX_KEK + 1]] {
            fs::write(&credential, content).unwrap();
            assert_eq!(protection(), Protection::SoftwareIsolated);
        }
        fs::remove_file(&credential).unwrap();
        fs::create_dir(&credential).unwrap(); // cannot be read, not even by root
        assert_eq!(protection(), Protection::SoftwareIsolated);
    }

    #[test]
    fn sealed_key_is_opened_again_and_signs() {
        let place = Place::new();
        for (software, protection) in
            [(place.basic(), Protection::SoftwareBasic), (place.isolated(), Protection::SoftwareIsolated)]
        {
            let key = software.create_key().unwrap();
            assert_signs(&key);
            let again = software.key_from_pem(&key.to_pem().unwrap()).unwrap();
            assert_signs(&again);
            assert_eq!((again.public_key(), again.protection()), (key.public_key(), protection));
        }
        assert_eq!(fs::metadata(place.kek()).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn secret_is_shown_by_neither_seal_nor_debug() {
        let place = Place::new();
        let key = place.basic().create_key().unwrap();
        let secret = key.open().unwrap();
        let der = der_of(&key);
        assert!(!der.windows(8).any(|window| secret.windows(8).any(|part| part == window)));
        let hex = miaf_spiffe::digest::Hex(&secret).to_string();
        assert!(!format!("{key:?}").contains(&hex[..16]), "{key:?}");
        assert_ne!(key.to_pem().unwrap(), place.basic().create_key().unwrap().to_pem().unwrap());
    }

    #[test]
    fn key_file_is_pkcs8_of_the_same_key() {
        let place = Place::new();
        let key = place.basic().create_key().unwrap();
        let KeyFile::Secret { der, pem } = key.to_key_file().unwrap() else {
            panic!("a software key is a secret")
        };
        assert_eq!(*pem::read(pem.as_bytes()).unwrap().blocks[0].der, *der);
        // PrivateKeyInfo (RFC 5208) of id-ecPublicKey on prime256v1, around an ECPrivateKey (RFC
        // 5915).
        let before_the_scalar = [
            0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
            0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02,
            0x01, 0x01, 0x04, 0x20,
        ];
        let before_the_point = [0xa1, 0x44, 0x03, 0x42, 0x00];
        let (scalar, point) = (key.open().unwrap(), key.public_key().as_bytes());
        assert_eq!(*der, [&before_the_scalar[..], &scalar, &before_the_point, point].concat());
        let pair = rcgen::KeyPair::from_pem(&pem).unwrap();
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&pair), key.public_key().spki_der());
    }

    #[test]
    fn foreign_seal_is_told_from_a_damaged_one() {
        let (here, there) = (Place::new(), Place::new());
        let key = there.basic().create_key().unwrap();
        here.basic().create_key().unwrap();
        let foreign = here.basic().key_from_pem(&key.to_pem().unwrap()).unwrap_err();
        assert!(matches!(foreign, KeyError::Software(SoftwareError::ForeignSeal { .. })), "{foreign}");
        assert_eq!(foreign.kind(), ErrorKind::KeyUnusable);

        let der = der_of(&key);
        let mut damaged = der.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let damaged = pem::encode(LABEL, &damaged).unwrap();
        let broken = there.basic().key_from_pem(&damaged).unwrap_err();
        assert!(matches!(broken, KeyError::Software(SoftwareError::BrokenSeal)), "{broken}");
    }

    #[test]
    fn clear_members_of_a_seal_are_authenticated() {
        let place = Place::new();
        let (one, other) = (place.basic().create_key().unwrap(), place.basic().create_key().unwrap());
        let copy = |protection, public| Sealed {
            protection,
            version: P256,
            public,
            sealed: one.sealed.sealed.clone(),
            nonce: one.sealed.nonce,
            kek: one.sealed.kek,
        };
        let refused = |sealed: Sealed, software: Software| {
            matches!(
                software.key_from_pem(&sealed.to_pem().unwrap()),
                Err(KeyError::Software(SoftwareError::BrokenSeal))
            )
        };
        let basic = Protection::SoftwareBasic;
        assert!(refused(copy(basic, other.public_key().as_bytes().to_vec()), place.basic()));
        // The same bytes as the file's, given as the credential.
        fs::copy(place.kek(), place.0.path().join(CREDENTIAL)).unwrap();
        let isolated = Software::new(Some(place.0.path()), place.kek());
        assert!(refused(copy(Protection::SoftwareIsolated, one.public_key().as_bytes().to_vec()), isolated));
    }

    #[test]
    fn missing_credential_is_not_substituted_by_the_file() {
        let place = Place::new();
        let pem = place.isolated().create_key().unwrap().to_pem().unwrap();
        let key = place.basic().key_from_pem(&pem).unwrap(); // no error: the credential may come back
        let why = key.sign(b"message").unwrap_err();
        assert!(matches!(why, KeyError::Software(SoftwareError::CredentialMissing)), "{why}");
        assert_eq!(why.kind(), ErrorKind::NeedsOperator);
        assert_signs(&place.isolated().key_from_pem(&pem).unwrap());
    }

    #[test]
    fn key_sealed_before_there_was_a_credential_still_signs() {
        let place = Place::new();
        let pem = place.basic().create_key().unwrap().to_pem().unwrap();
        let key = place.isolated().key_from_pem(&pem).unwrap();
        assert_signs(&key);
        assert_eq!(key.protection(), Protection::SoftwareBasic);
    }

    #[test]
    fn kek_that_is_exposed_or_too_short_is_not_used() {
        let place = Place::new();
        let key = place.basic().create_key().unwrap();
        fs::set_permissions(place.kek(), fs::Permissions::from_mode(0o640)).unwrap();
        let why = key.sign(b"message").unwrap_err();
        assert!(why.to_string().contains("640") && why.kind() == ErrorKind::NeedsOperator, "{why}");

        fs::set_permissions(place.kek(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(place.kek(), [0; 31]).unwrap();
        assert_eq!(key.sign(b"message").unwrap_err().kind(), ErrorKind::KeyUnusable);
        assert_signs(&place.basic().create_key().unwrap());

        let short = Place::new();
        fs::write(short.0.path().join(CREDENTIAL), "secret").unwrap();
        let why = Software::new(Some(short.0.path()), short.kek()).create_key().unwrap_err();
        assert!(why.to_string().contains("6 bytes"), "{why}");
    }

    #[test]
    fn sealed_key_with_any_byte_changed_never_signs() {
        let place = Place::new();
        let software = place.basic();
        let der = der_of(&software.create_key().unwrap());
        for at in 0..der.len() {
            for to in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = der.clone();
                *changed.get_mut(at).unwrap() = to;
                if changed == der {
                    continue;
                }
                for bad in [changed.as_slice(), der.get(..at).unwrap()] {
                    let pem = pem::encode(LABEL, bad).unwrap();
                    let key = software.key_from_pem(&pem);
                    // Either it is refused, or it asks for another KEK: it never signs.
                    assert!(key.is_err() || key.unwrap().sign(b"message").is_err(), "byte {at} = {to:#x}");
                }
            }
        }
    }
}
