//! Software keys (rule K2): for devices without secure hardware, and only where the configuration says so.
//!
//! A key is never at rest in the clear. It is sealed, with an AEAD, under a key-encryption key (KEK) that comes from
//! one of two places, which make its [`Protection`]:
//!
//! - the systemd credential `kek`, which systemd hands to this service alone: `software-isolated`. Whether the state's
//!   own medium opens the seal depends on what systemd keeps the credential under: a TPM, a key of the host elsewhere;
//! - a file beside the state, mode 0600, made at first need: `software-basic`.
//!
//! New keys are sealed under the credential where there is one. A seal says under which of the two it was made, so a
//! key that was sealed under the credential asks for it by name, and while it is held, no key under the file takes its
//! place. The key is in memory in the clear only while it signs or is published.
//!
//! ```text
//! SealedKey ::= SEQUENCE {           -- PEM label MIAF SEALED PRIVATE KEY
//!     version     INTEGER,           -- 1
//!     protection  INTEGER,           -- 1: the credential, 2: the file
//!     kek         OCTET STRING,      -- 8 octets that name the KEK: another one is told from damage
//!     publicKey   OCTET STRING,      -- 04 || X || Y
//!     nonce       OCTET STRING,      -- 12 octets
//!     sealed      OCTET STRING }     -- the scalar, 32 octets, and the tag; all members before are authenticated
//! ```

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use der::asn1::OctetStringRef;
use der::pem::LineEnding;
use der::{Decode as _, Encode as _, Sequence};
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::checked::checked;
use super::{ErrorKind, Key, KeyError, KeyFile, Protection, PublicKey};
use crate::pem;
use crate::platform::{access, files};

/// The label of the PEM block.
pub const LABEL: &str = "MIAF SEALED PRIVATE KEY";

/// Name of the systemd credential that holds the KEK (systemd.exec(5), `LoadCredentialEncrypted=`).
pub const CREDENTIAL: &str = "kek";

/// Content of the credential where the device has none: `SetCredential=` of the unit. Without such a default, systemd 254 and
/// newer write a line about the missing credential at each start. Too short to be a KEK.
const NO_CREDENTIAL: &[u8] = b"none";

const MAX_DER: usize = 3 * 1024;
const MAX_KEK: usize = 4 * 1024;
/// Whatever its form, a KEK of fewer octets cannot hold 128 bits of chance in print.
const MIN_KEK: usize = 32;
const VERSION: u8 = 1;

/// Where keys are made and their seals opened. Cheap to clone; nothing is read before it is needed.
#[derive(Clone, Debug)]
pub struct Software {
    credential: Option<PathBuf>,
    file: PathBuf,
}

impl Software {
    /// `credentials` is the folder that systemd names in `CREDENTIALS_DIRECTORY`, if there is one; `file` is where the
    /// KEK lies, or will, when there is no credential `kek` in it.
    pub fn new(credentials: Option<&Path>, file: PathBuf) -> Self {
        let credential = credentials.map(|folder| folder.join(CREDENTIAL));
        // One that is there and cannot be read is not the same as none.
        let is_given = |path: &PathBuf| match files::read_secret(path, MAX_KEK) {
            Ok(content) => *content != NO_CREDENTIAL,
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        };
        Self { credential: credential.filter(is_given), file }
    }

    /// Makes a new P-256 key (rule K3) and seals it. Blocks on the disk when the KEK is made with it.
    ///
    /// # Errors
    /// [`KeyError::Kek`] when there is none to seal it under.
    pub fn create_key(&self) -> Result<SoftwareKey, KeyError> {
        let protection = self.protection();
        let kek = match (protection, self.kek(protection)) {
            (Protection::SoftwareBasic, Err(KeyError::KekMissing { .. } | KeyError::KekDamaged { .. })) => {
                self.make_kek()?
            }
            (_, read) => read?,
        };
        let secret = new_secret()?;
        let key = SigningKey::from_slice(secret.as_slice()).map_err(|_| internal("a new key is not one"))?;
        let public = PublicKey::from_sec1(key.verifying_key().to_sec1_point(false).as_bytes())?;
        let sealed = Sealed::new(&kek, protection, &public, secret)?;
        Ok(SoftwareKey { software: self.clone(), sealed: Arc::new(sealed), public })
    }

    /// A key kept as [`Key::to_pem`] wrote it. The seal is opened once to see that it can be.
    ///
    /// A KEK that cannot be had *now* is no error here: the key may be as good as ever. It comes up when the key is to
    /// be used.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], and whatever makes it certain that nothing here will ever open the seal
    /// ([`ErrorKind::KeyUnusable`]).
    pub fn key_from_pem(&self, pem: &str) -> Result<SoftwareKey, KeyError> {
        let sealed = Sealed::from_pem(pem)?;
        let public = PublicKey::from_sec1(&sealed.public)?;
        let key = SoftwareKey { software: self.clone(), sealed: Arc::new(sealed), public };
        match key.open() {
            Err(why) if why.kind() == ErrorKind::KeyUnusable => Err(why),
            _ => Ok(key),
        }
    }

    /// How a key made now would be protected.
    fn protection(&self) -> Protection {
        match self.credential {
            Some(_) => Protection::SoftwareIsolated,
            None => Protection::SoftwareBasic,
        }
    }

    fn kek(&self, protection: Protection) -> Result<Kek, KeyError> {
        match (protection, &self.credential) {
            // systemd gives it a mode of its own, and to this service alone.
            (Protection::SoftwareIsolated, Some(path)) => match Kek::read(path, None) {
                Err(KeyError::KekMissing { .. }) => Err(KeyError::KekCredentialMissing),
                // Whoever gave it can give another.
                Err(KeyError::KekDamaged { path, octets }) => {
                    let why =
                        format!("it has {octets} octets, and {MIN_KEK} random ones are wanted at least");
                    Err(KeyError::Kek { path, why: io::Error::other(why) })
                }
                read => read,
            },
            (Protection::SoftwareIsolated, None) => Err(KeyError::KekCredentialMissing),
            _ => Kek::read(&self.file, Some(0o600)),
        }
    }

    fn make_kek(&self) -> Result<Kek, KeyError> {
        let content = random_secret()?;
        let failed = |why: io::Error| {
            // Beside it, in the state directory, is all that the agent keeps.
            let advice = self.file.ancestors().nth(2).and_then(|dir| access::advice_on_own(dir, dir, &why));
            let why =
                advice.map(|advice| io::Error::new(why.kind(), format!("{why}. {advice}"))).unwrap_or(why);
            KeyError::Kek { path: self.file.clone(), why }
        };
        if let Some(folder) = self.file.parent() {
            files::make_dir(folder, 0o700, None).map_err(failed)?;
        }
        files::replace(&self.file, &content, 0o600).map_err(failed)?;
        tracing::info!(file = %self.file.display(), "a key-encryption key for software keys was made");
        Ok(Kek(content))
    }
}

/// Whether a text has the form of a sealed key. Its seal is not opened.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn check_form(pem: &str) -> Result<(), KeyError> {
    PublicKey::from_sec1(&Sealed::from_pem(pem)?.public).map(drop)
}

/// A P-256 key in software, sealed (rules K2, K3).
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

impl Key for SoftwareKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        let key = SigningKey::from_slice(&self.open()?).map_err(|_| KeyError::BrokenSeal)?;
        let signature: Signature =
            key.sign_prehash(digest).map_err(|_| internal("a software key did not sign"))?;
        let signature = signature.to_der().as_bytes().to_vec();
        checked(&self.public, digest, signature, || "the software key".into())
    }

    fn protection(&self) -> Protection {
        self.sealed.protection
    }

    fn is_within_reach(&self) -> Result<(), KeyError> {
        self.open().map(drop)
    }

    fn to_pem(&self) -> Result<String, KeyError> {
        self.sealed.to_pem()
    }

    fn for_programs(&self) -> Result<KeyFile, KeyError> {
        let der = Zeroizing::new(
            [PKCS8_PREFIX, self.open()?.as_slice(), PKCS8_MIDDLE, self.public.sec1()].concat(),
        );
        let pem = der::pem::encode_string("PRIVATE KEY", LineEnding::LF, &der)
            .map_err(|_| internal("a software key cannot be put in PEM"))?;
        Ok(KeyFile::Secret(Zeroizing::new(pem)))
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

/// `PrivateKeyInfo` (RFC 5208) of `id-ecPublicKey` on `prime256v1`, around an `ECPrivateKey` (RFC 5915), up to where
/// the scalar begins; and what stands between the scalar and the point.
const PKCS8_PREFIX: &[u8] = &[
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01,
    0x04, 0x20,
];
const PKCS8_MIDDLE: &[u8] = &[0xa1, 0x44, 0x03, 0x42, 0x00];

/// A key as it is at rest.
struct Sealed {
    protection: Protection,
    kek: [u8; 8],
    public: [u8; 65],
    nonce: [u8; 12],
    sealed: Vec<u8>,
}

#[derive(Sequence)]
struct SealedKey<'a> {
    version: u8,
    protection: u8,
    kek: OctetStringRef<'a>,
    public: OctetStringRef<'a>,
    nonce: OctetStringRef<'a>,
    sealed: OctetStringRef<'a>,
}

impl Sealed {
    fn new(
        kek: &Kek,
        protection: Protection,
        public: &PublicKey,
        mut secret: Zeroizing<Vec<u8>>,
    ) -> Result<Self, KeyError> {
        let mut new = Self {
            protection,
            kek: kek.name()?,
            public: *public.sec1(),
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
            return Err(KeyError::ForeignSeal { kek: place.unwrap_or_else(|| software.file.clone()) });
        }
        let mut sealed = Zeroizing::new(self.sealed.clone());
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let length = match kek.aead()?.open_in_place(nonce, self.header(), &mut sealed) {
            Ok(secret) => secret.len(),
            Err(_) => return Err(KeyError::BrokenSeal),
        };
        sealed.truncate(length);
        Ok(sealed)
    }

    /// What stands in the clear is authenticated with the secret.
    fn header(&self) -> Aad<Vec<u8>> {
        Aad::from([&[VERSION, number(self.protection)], self.kek.as_slice(), self.public.as_slice()].concat())
    }

    fn to_pem(&self) -> Result<String, KeyError> {
        let encode = || {
            SealedKey {
                version: VERSION,
                protection: number(self.protection),
                kek: OctetStringRef::new(&self.kek)?,
                public: OctetStringRef::new(&self.public)?,
                nonce: OctetStringRef::new(&self.nonce)?,
                sealed: OctetStringRef::new(&self.sealed)?,
            }
            .to_der()
        };
        let der = encode().map_err(|_| internal("a sealed key cannot be written"))?;
        der::pem::encode_string(LABEL, LineEnding::LF, &der)
            .map_err(|_| internal("a sealed key cannot be written"))
    }

    fn from_pem(text: &str) -> Result<Self, KeyError> {
        let blocks = pem::read(text.as_bytes()).map_err(|why| malformed(why.to_string()))?.blocks;
        let block = blocks.into_iter().find(|block| &*block.label == LABEL);
        let der = block.ok_or_else(|| malformed("it has no PEM block of a sealed key"))?.der;
        if der.len() > MAX_DER {
            return Err(malformed("it is far too large for one"));
        }
        let key = SealedKey::from_der(&der).map_err(|why| malformed(format!("ASN.1: {why}")))?;
        if key.version != VERSION {
            return Err(malformed(format!(
                "it is of version {}, and this agent reads {VERSION}",
                key.version
            )));
        }
        let protection = match key.protection {
            1 => Protection::SoftwareIsolated,
            2 => Protection::SoftwareBasic,
            other => return Err(malformed(format!("it names a protection {other} that there is not"))),
        };
        let length = |_| malformed("one of its parts has a wrong length");
        Ok(Self {
            protection,
            kek: key.kek.as_bytes().try_into().map_err(length)?,
            public: key.public.as_bytes().try_into().map_err(length)?,
            nonce: key.nonce.as_bytes().try_into().map_err(length)?,
            sealed: key.sealed.as_bytes().to_vec(),
        })
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
    /// `most`: the mode bits that the file may have at most, if that is ours to ask.
    fn read(path: &Path, most: Option<u32>) -> Result<Self, KeyError> {
        let unusable = |why| KeyError::Kek { path: path.to_owned(), why };
        let metadata = match path.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::KekMissing { path: path.to_owned() });
            }
            other => other.map_err(unusable)?,
        };
        if !metadata.is_file() {
            return Err(unusable(io::Error::other("it is not a regular file")));
        }
        if most.is_some_and(|most| metadata.mode() & 0o7777 & !most != 0) {
            let why = format!(
                "its mode is {:o} and not 600; set it with: chmod 600 {}. If others may have read it, remove it: the \
                 device then enrolls anew with another key",
                metadata.mode() & 0o7777,
                path.display()
            );
            return Err(unusable(io::Error::other(why)));
        }
        let content = files::read_secret(path, MAX_KEK).map_err(unusable)?;
        if content.len() < MIN_KEK {
            return Err(KeyError::KekDamaged { path: path.to_owned(), octets: content.len() });
        }
        Ok(Self(content))
    }

    fn aead(&self) -> Result<LessSafeKey, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(b"miaf-agent sealed key v1: seal", key.as_mut_slice())?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_slice());
        key.map(LessSafeKey::new).map_err(|_| internal("a sealing key cannot be derived"))
    }

    /// Tells one KEK from another and nothing about it.
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

/// A scalar between 1 and the order of the group: all but one in four thousand million of what chance gives.
fn new_secret() -> Result<Zeroizing<Vec<u8>>, KeyError> {
    loop {
        let candidate = random_secret()?;
        if SigningKey::from_slice(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
}

/// Made where it stays, so that no copy is left behind.
fn random_secret() -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut secret = Zeroizing::new(vec![0; 32]);
    fill(&mut secret).map(|()| secret)
}

fn random_nonce() -> Result<[u8; 12], KeyError> {
    let mut nonce = [0; 12];
    fill(&mut nonce).map(|()| nonce)
}

fn fill(octets: &mut [u8]) -> Result<(), KeyError> {
    SystemRandom::new().fill(octets).map_err(|_| internal("the system has no random numbers"))
}

fn malformed(why: impl Into<String>) -> KeyError {
    KeyError::Malformed { origin: "the sealed key".into(), why: why.into() }
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

    fn assert_signs(key: &dyn Key) {
        let signature = key.sign(b"message").unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().sec1());
        public.verify(b"message", &signature).unwrap();
    }

    #[test]
    fn default_of_the_unit_counts_as_no_credential() {
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
        fs::create_dir(&credential).unwrap(); // cannot be read, whoever reads
        assert_eq!(protection(), Protection::SoftwareIsolated);
    }

    #[test]
    fn a_key_comes_back_from_its_seal_and_signs() {
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
    fn the_seal_does_not_show_the_secret_and_nor_does_debug() {
        let place = Place::new();
        let key = place.basic().create_key().unwrap();
        let secret = key.open().unwrap();
        let (_, der) = der::pem::decode_vec(key.to_pem().unwrap().as_bytes()).unwrap();
        assert!(!der.windows(8).any(|window| secret.windows(8).any(|part| part == window)));
        let hex: String = secret.iter().map(|octet| format!("{octet:02x}")).collect();
        assert!(!format!("{key:?}").contains(&hex[..16]), "{key:?}");
        assert_ne!(key.to_pem().unwrap(), place.basic().create_key().unwrap().to_pem().unwrap());
    }

    #[test]
    fn programs_get_a_pkcs8_file_of_the_same_key() {
        let place = Place::new();
        let key = place.basic().create_key().unwrap();
        let KeyFile::Secret(pem) = key.for_programs().unwrap() else { panic!("a software key is a secret") };
        let pair = rcgen::KeyPair::from_pem(&pem).unwrap();
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&pair), key.public_key().spki_der());
    }

    #[test]
    fn a_seal_of_another_device_is_told_from_a_damaged_one() {
        let (here, there) = (Place::new(), Place::new());
        let key = there.basic().create_key().unwrap();
        here.basic().create_key().unwrap();
        let foreign = here.basic().key_from_pem(&key.to_pem().unwrap()).unwrap_err();
        assert!(matches!(foreign, KeyError::ForeignSeal { .. }), "{foreign}");
        assert_eq!(foreign.kind(), ErrorKind::KeyUnusable);

        let (_, der) = der::pem::decode_vec(key.to_pem().unwrap().as_bytes()).unwrap();
        let mut damaged = der.clone();
        *damaged.last_mut().unwrap() ^= 1;
        let damaged = der::pem::encode_string(LABEL, LineEnding::LF, &damaged).unwrap();
        let broken = there.basic().key_from_pem(&damaged).unwrap_err();
        assert!(matches!(broken, KeyError::BrokenSeal), "{broken}");
    }

    #[test]
    fn what_stands_in_the_clear_cannot_be_changed() {
        let place = Place::new();
        let (one, other) = (place.basic().create_key().unwrap(), place.basic().create_key().unwrap());
        let copy = |protection, public| Sealed {
            protection,
            public,
            sealed: one.sealed.sealed.clone(),
            nonce: one.sealed.nonce,
            kek: one.sealed.kek,
        };
        let refused = |sealed: Sealed, software: Software| {
            matches!(software.key_from_pem(&sealed.to_pem().unwrap()), Err(KeyError::BrokenSeal))
        };
        let basic = Protection::SoftwareBasic;
        assert!(refused(copy(basic, *other.public_key().sec1()), place.basic()));
        // The same octets as the file's, handed over as the credential.
        fs::copy(place.kek(), place.0.path().join(CREDENTIAL)).unwrap();
        let isolated = Software::new(Some(place.0.path()), place.kek());
        assert!(refused(copy(Protection::SoftwareIsolated, *one.public_key().sec1()), isolated));
    }

    #[test]
    fn a_missing_credential_is_asked_for_and_the_file_is_no_substitute() {
        let place = Place::new();
        let pem = place.isolated().create_key().unwrap().to_pem().unwrap();
        let key = place.basic().key_from_pem(&pem).unwrap(); // kept: the credential may come back
        let why = key.sign(b"message").unwrap_err();
        assert!(matches!(why, KeyError::KekCredentialMissing), "{why}");
        assert_eq!(why.kind(), ErrorKind::NeedsOperator);
        assert_signs(&place.isolated().key_from_pem(&pem).unwrap());
    }

    #[test]
    fn a_key_sealed_before_there_was_a_credential_is_still_good() {
        let place = Place::new();
        let pem = place.basic().create_key().unwrap().to_pem().unwrap();
        let key = place.isolated().key_from_pem(&pem).unwrap();
        assert_signs(&key);
        assert_eq!(key.protection(), Protection::SoftwareBasic);
    }

    #[test]
    fn a_kek_that_others_may_read_or_that_is_too_short_is_not_used() {
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
        assert!(why.to_string().contains("6 octets"), "{why}");
    }

    #[test]
    fn no_octet_can_make_it_panic() {
        let place = Place::new();
        let software = place.basic();
        let (_, der) =
            der::pem::decode_vec(software.create_key().unwrap().to_pem().unwrap().as_bytes()).unwrap();
        for at in 0..der.len() {
            for to in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = der.clone();
                *changed.get_mut(at).unwrap() = to;
                if changed == der {
                    continue;
                }
                for bad in [changed.as_slice(), der.get(..at).unwrap()] {
                    let pem = der::pem::encode_string(LABEL, LineEnding::LF, bad).unwrap();
                    let key = software.key_from_pem(&pem);
                    // Either it is refused, or it asks for another KEK: it never signs.
                    assert!(key.is_err() || key.unwrap().sign(b"message").is_err(), "octet {at} = {to:#x}");
                }
            }
        }
    }
}
