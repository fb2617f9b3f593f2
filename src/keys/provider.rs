//! Key providers: where keys are created, opened again and retired.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::software::{self, Software};
use super::tpm::Tpm;
use super::{Key, KeyError, KeyFileError, KeyForm, Protection, tss2};
use miaf_spiffe::pem;

/// A place where keys live. A further provider is a type with this trait, a variant of
/// [`ProviderKind`], and a field of [`Providers`].
pub trait Provider {
    /// The provider's name, which the records of its keys carry.
    fn kind(&self) -> ProviderKind;

    /// Creates a key. Blocks.
    ///
    /// # Errors
    /// See [`KeyError::kind`]. No key of another protection class takes its place (rule K1).
    fn create(&self) -> Result<Arc<dyn Key>, KeyError>;

    /// Opens a key from its record, as [`Key::to_pem`] wrote it. A provider that is not available
    /// now is no error, but one of the key when it is used.
    ///
    /// # Errors
    /// The record is damaged, or it is certain that this key cannot be used on this device.
    fn open(&self, record: &str) -> Result<Arc<dyn Key>, KeyError>;

    /// Has what the provider itself holds of a replaced key destroyed, such as the object in a
    /// token.
    ///
    /// The other handles of the key still sign, for handshakes that are under way: an object is
    /// destroyed when the last handle is dropped. Called when the replacement is durable, and safe
    /// to repeat; a power cut before the call leaves the object behind. Blocks.
    ///
    /// # Errors
    /// The object will not be destroyed. The replacement is in use all the same.
    fn retire(&self, key: &dyn Key) -> Result<(), KeyError>;
}

/// `key.provider` in the configuration: where the keys of an identity are created. The agent never
/// chooses (rule K1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// In a TPM 2.0.
    Tpm,
    /// In software, sealed at rest.
    Software,
}

impl ProviderKind {
    const ALL: [Self; 2] = [Self::Tpm, Self::Software];

    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tpm => "tpm",
            Self::Software => "software",
        }
    }

    /// The label of the PEM block by which a record names its provider.
    fn record_label(self) -> &'static str {
        match self {
            Self::Tpm => tss2::LABEL,
            Self::Software => software::LABEL,
        }
    }

    /// The provider that a record names: that of its one block which is a key's.
    ///
    /// # Errors
    /// [`KeyError::File`]: it is no PEM, or names none or several.
    pub fn of_record(record: &str) -> Result<Self, KeyError> {
        let blocks = pem::read(record.as_bytes()).map_err(|why| KeyFileError::not_pem(ORIGIN, &why))?.blocks;
        let kind_of = |label: &str| Self::ALL.into_iter().find(|kind| kind.record_label() == label);
        let mut kinds = blocks.iter().filter_map(|block| kind_of(&block.label));
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(kind),
            (Some(_), Some(_)) => Err(KeyFileError::unsupported(ORIGIN, KeyForm::Several)),
            (None, _) => Err(match blocks.first() {
                Some(block) => KeyFileError::unsupported(ORIGIN, KeyForm::Other(block.label.to_string())),
                None => KeyFileError::malformed(ORIGIN, "it has no PEM block"),
            }),
        }
    }
}

const ORIGIN: &str = "the record of the key";

/// `key.require` in the configuration: the least protection that the key of any identity may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyFloor {
    /// In the TPM, from which it cannot be exported.
    Tpm,
}

impl KeyFloor {
    /// Whether the keys that a provider creates are protected well enough. Installed keys are those
    /// of [`ProviderKind::Software`].
    #[must_use]
    pub fn admits(self, provider: ProviderKind) -> bool {
        match self {
            Self::Tpm => provider == ProviderKind::Tpm,
        }
    }

    /// Checks that a key is protected well enough.
    ///
    /// # Errors
    /// [`KeyError::TooWeak`].
    pub fn check(self, protection: Protection) -> Result<(), KeyError> {
        match (self, protection) {
            (Self::Tpm, Protection::Hardware) => Ok(()),
            (Self::Tpm, protection) => Err(KeyError::TooWeak { protection }),
        }
    }
}

/// All providers: creates each key with the one that its identity asks for and no other (rules K1,
/// K2), and opens keys with the one that they name, so that an identity whose configuration was
/// changed keeps its SVID until that is renewed.
#[derive(Clone, Debug)]
pub struct Providers {
    tpm: Tpm,
    software: Software,
}

impl Providers {
    /// Opens and reads nothing yet. `private` is the private part of the state directory;
    /// `credentials` what systemd names in `CREDENTIALS_DIRECTORY`.
    pub fn new(tpm: Tpm, private: &Path, credentials: Option<&Path>) -> Self {
        Self { tpm, software: Software::new(credentials, private.join("kek")) }
    }

    /// Creates a key with the provider of this kind. Blocks.
    ///
    /// # Errors
    /// As [`Provider::create`].
    pub fn create(&self, kind: ProviderKind) -> Result<Arc<dyn Key>, KeyError> {
        self.provider(kind).create()
    }

    /// Takes over a private key that the operator brought in (`enroll = "installed"`): as a
    /// software key, sealed like any other. `pem` is the content of its file, and `origin` the
    /// file's name in errors, such as `the key file /etc/…`. Blocks.
    ///
    /// # Errors
    /// [`KeyError::File`] for what is not one private key that can be used;
    /// [`SoftwareError`](software::SoftwareError) when there is no key-encryption key to seal it
    /// under.
    pub fn import(&self, pem: &Zeroizing<Vec<u8>>, origin: &str) -> Result<Arc<dyn Key>, KeyError> {
        Ok(Arc::new(self.software.import_key(pem, origin)?))
    }

    /// Opens a key with the provider that its record names.
    ///
    /// # Errors
    /// As [`Provider::open`] and [`ProviderKind::of_record`].
    pub fn open(&self, record: &str) -> Result<Arc<dyn Key>, KeyError> {
        self.provider(ProviderKind::of_record(record)?).open(record)
    }

    /// Retires a key that was replaced with its provider.
    ///
    /// # Errors
    /// As [`Provider::retire`].
    pub fn retire(&self, key: &dyn Key) -> Result<(), KeyError> {
        self.provider(key.provider()).retire(key)
    }

    /// The TPM, which may also hold external keys.
    pub fn tpm(&self) -> &Tpm {
        &self.tpm
    }

    fn provider(&self, kind: ProviderKind) -> &dyn Provider {
        match kind {
            ProviderKind::Tpm => &self.tpm,
            ProviderKind::Software => &self.software,
        }
    }
}

/// Checks that a text has the form of a key's record. Nothing is opened.
///
/// # Errors
/// [`KeyError::File`], and [`KeyError::BadPublicKey`].
pub fn check_record(record: &str) -> Result<(), KeyError> {
    match ProviderKind::of_record(record)? {
        ProviderKind::Tpm => tss2::Tss2Key::from_pem(record).map(drop),
        ProviderKind::Software => software::check_form(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn providers(directory: &Path) -> Providers {
        let tpm = Tpm::start("device:/nonexistent/tpmrm0".parse().unwrap());
        Providers::new(tpm, directory, None)
    }

    /// The record of a key in a TPM.
    const TSS2: &str = include_str!("../../hw-tests/another-tpm.pem");

    #[test]
    fn provider_is_named_by_the_block_of_the_record() {
        let directory = tempfile::tempdir().unwrap();
        let providers = providers(directory.path());
        let sealed = providers.create(ProviderKind::Software).unwrap().to_pem().unwrap();
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (record, expected) in [
            (TSS2.to_owned(), ProviderKind::Tpm),
            (sealed.clone(), ProviderKind::Software),
            // Text around the block says nothing of who created the key.
            (format!("# not a MIAF SEALED PRIVATE KEY\n{TSS2}"), ProviderKind::Tpm),
            (format!("MIAF SEALED PRIVATE KEY before {certificate}{TSS2}"), ProviderKind::Tpm),
            (format!("instead of a TSS2 PRIVATE KEY:\n{sealed}"), ProviderKind::Software),
            (format!("#-----BEGIN MIAF SEALED PRIVATE KEY-----\n{TSS2}"), ProviderKind::Tpm),
        ] {
            assert_eq!(ProviderKind::of_record(&record).unwrap(), expected, "{record}");
            check_record(&record).unwrap();
            assert_eq!(providers.open(&record).unwrap().provider(), expected, "{record}");
        }
        for record in
            [String::new(), "text".into(), certificate.into(), format!("{TSS2}{sealed}"), TSS2.repeat(2)]
        {
            let error = providers.open(&record).unwrap_err();
            assert!(matches!(error, KeyError::File(_)), "{record}: {error:?}");
            assert!(check_record(&record).is_err(), "{record}");
        }
    }

    #[test]
    fn key_floor_admits_only_what_is_in_the_tpm() {
        assert!(KeyFloor::Tpm.admits(ProviderKind::Tpm) && !KeyFloor::Tpm.admits(ProviderKind::Software));
        KeyFloor::Tpm.check(Protection::Hardware).unwrap();
        for protection in [Protection::SoftwareIsolated, Protection::SoftwareBasic] {
            let refused = KeyFloor::Tpm.check(protection).unwrap_err();
            assert!(refused.to_string().contains(protection.as_str()), "{refused}");
            assert!(!refused.is_of_a_lost_key(), "one of the right kind takes its place");
        }
        // With a key of a provider, what the provider says of it decides.
        let directory = tempfile::tempdir().unwrap();
        let key = providers(directory.path()).create(ProviderKind::Software).unwrap();
        assert!(KeyFloor::Tpm.check(key.protection()).is_err());
    }

    #[test]
    fn retired_key_still_signs_for_handshakes_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let providers = providers(directory.path());
        let key = providers.create(ProviderKind::Software).unwrap();
        for _ in 0..2 {
            providers.retire(&*key).unwrap();
        }
        assert!(key.sign(b"message").is_ok());
        providers.retire(&*providers.open(TSS2).unwrap()).unwrap(); // without asking the TPM
    }
}
