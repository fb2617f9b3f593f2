//! Where the keys of SVIDs are made and found again.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::software::{self, Software};
use super::tpm::Tpm;
use super::{Key, KeyError, tss2};

/// `key.provider` in the configuration: where keys are made. The agent never chooses (rule K1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// In a TPM 2.0.
    Tpm,
    /// In software, sealed at rest.
    Software,
}

impl ProviderKind {
    /// As it is written in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tpm => "tpm",
            Self::Software => "software",
        }
    }
}

/// Makes keys where the configuration says, and nowhere else (rules K1, K2); opens those of both kinds, so that a device
/// whose configuration was changed keeps the identity it holds until it has renewed.
#[derive(Clone, Debug)]
pub struct Provider {
    makes: ProviderKind,
    tpm: Tpm,
    software: Software,
}

impl Provider {
    /// Nothing is opened or read yet. `private` is the private part of the state folder; `credentials` what systemd
    /// names in `CREDENTIALS_DIRECTORY`.
    pub fn new(makes: ProviderKind, tpm: Tpm, private: &Path, credentials: Option<&Path>) -> Self {
        Self { makes, tpm, software: Software::new(credentials, private.join("kek")) }
    }

    /// Makes a new key. Blocks.
    ///
    /// # Errors
    /// As [`Tpm::create_key`] and [`Software::create_key`] have it.
    pub fn create_key(&self) -> Result<Arc<dyn Key>, KeyError> {
        match self.makes {
            ProviderKind::Tpm => {
                let key = self.tpm.create_key()?;
                tracing::info!(attributes = %key.attributes(), parent = %key.parent(), "a new key was made in the TPM");
                Ok(Arc::new(key))
            }
            ProviderKind::Software => {
                let key = self.software.create_key()?;
                tracing::info!(protection = %key.protection(), "a new key was made in software and sealed");
                Ok(Arc::new(key))
            }
        }
    }

    /// A key as [`Key::to_pem`] wrote it. The TPM is not asked before it signs.
    ///
    /// # Errors
    /// As [`Tpm::key_from_pem`] and [`Software::key_from_pem`] have it: this key is of no use here.
    pub fn key_from_pem(&self, pem: &str) -> Result<Arc<dyn Key>, KeyError> {
        if is_sealed(pem) {
            Ok(Arc::new(self.software.key_from_pem(pem)?))
        } else {
            Ok(Arc::new(self.tpm.key_from_pem(pem)?))
        }
    }

    /// Whether a key is of the kind that is made now.
    pub fn would_make(&self, key: &dyn Key) -> bool {
        key.provider() == self.makes
    }

    /// The TPM, where other keys may live too.
    pub fn tpm(&self) -> &Tpm {
        &self.tpm
    }
}

/// Whether a text has the form of a key at rest, of either kind.
///
/// # Errors
/// What is wrong with it.
pub fn check_form(pem: &str) -> Result<(), KeyError> {
    if is_sealed(pem) { software::check_form(pem) } else { tss2::Tss2Key::from_pem(pem).map(drop) }
}

fn is_sealed(pem: &str) -> bool {
    pem.contains(software::LABEL)
}
