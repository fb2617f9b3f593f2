//! Keys that live in the TPM (rules K1, K3).
//!
//! A [`Tpm`] is a handle to one worker thread, which owns the connection and takes its jobs from a
//! queue: a TPM does one thing at a time, and a TSS context has one owner. Nothing stays in the TPM
//! between two operations. Each derives the owner's storage key, or uses the one that is kept in
//! the TPM ([`ParentChoice`]), creates or loads the key under it, signs, and flushes both, so
//! neither a crash nor another program can fill the few slots of a TPM.
//!
//! The connection is opened at first use. After any failure it is dropped, and the next operation
//! opens another; where the failure was the connection's own, or the TPM was reset, the operation
//! is repeated once at once.
//!
//! The modules, each using those above it: `error`, `attributes`, `tcti`; `response_code`; `auth`,
//! `lockout_guard`, `ops`; `parent`; `device_key`, `nv`; `connection`, `worker`; and
//! `external_key`, which uses the [`Tpm`] itself.
//!
//! Use the kernel's resource manager (`/dev/tpmrm0`). On a TPM without one, a process killed in the
//! middle of an operation leaves up to two slots taken.

mod attributes;
mod auth;
mod connection;
mod device_key;
mod error;
mod external_key;
mod lockout_guard;
mod nv;
mod ops;
mod parent;
mod response_code;
mod tcti;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

pub use attributes::KeyAttributes;
pub use auth::AuthValue;
pub use error::{NvLock, ParentFlaw, Subject, TpmError, Unfit, UnreachableCause};
pub(super) use external_key::{ExternalKey, rsa_name};
pub use parent::{BadParent, ParentChoice};
pub use tcti::Tcti;

use self::device_key::LoadableKey;
use self::parent::Storage;
use self::worker::Worker;
use super::checked_signature::checked;
use super::tss2::Parent;
use super::{Key, KeyError, KeyFile, Protection, Provider, ProviderKind, PublicKey};
use crate::platform::credentials::Secret;

/// A handle to the TPM. Clones share one worker thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Tpm {
    worker: Arc<Worker>,
    deadline: Duration,
    storage: Storage,
}

/// How long an operation may take, the wait in the queue included. A TPM takes at most a few
/// seconds to create a key.
const DEADLINE: Duration = Duration::from_secs(60);

impl Tpm {
    /// A handle to the TPM behind `tcti`. Nothing is opened yet, so this cannot fail.
    #[must_use]
    pub fn start(tcti: Tcti) -> Self {
        Self { worker: Arc::new(Worker::new(tcti)), deadline: DEADLINE, storage: Storage::default() }
    }

    /// Whether this is the TPM behind `tcti`.
    #[must_use]
    pub fn is_at(&self, tcti: &Tcti) -> bool {
        self.worker.tcti() == tcti.to_string()
    }

    /// The same TPM, with another limit on how long each operation may take (60 s by default).
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The same TPM, with another parent for new keys and the location of the owner password, which
    /// is read whenever the owner's primary is derived.
    #[must_use]
    pub fn with_parent(self, choice: ParentChoice, owner_auth: Option<Secret>) -> Self {
        let lockout_guard = self.storage.lockout_guard;
        Self { storage: Storage { choice, owner_auth, lockout_guard }, ..self }
    }

    /// Creates a P-256 key in the TPM, under the configured parent: non-exportable, for signing
    /// only, without a password and exempt from dictionary-attack lock-out (rules K1, K3). Blocks.
    ///
    /// # Errors
    /// See [`KeyError::kind`]; [`TpmError::Deviant`] if the TPM created something else.
    pub fn create_key(&self) -> Result<TpmKey, KeyError> {
        let storage = self.storage.clone();
        let key = self.worker.run(self.deadline, move |context| device_key::create(context, &storage))?;
        Ok(TpmKey { tpm: self.clone(), key: Arc::new(key) })
    }

    /// A key stored as a TSS2 PEM. The text is checked; the TPM is not involved until the key
    /// signs.
    ///
    /// # Errors
    /// [`KeyError::File`], which says what is wrong with the PEM.
    pub fn key_from_pem(&self, pem: &str) -> Result<TpmKey, KeyError> {
        let key = LoadableKey::from_pem(pem)?;
        Ok(TpmKey { tpm: self.clone(), key: Arc::new(key) })
    }

    /// The certificates in an NV index, where a device maker may store those of the factory key
    /// (rule K5): DER, one after the other, padded with 0x00 or 0xFF. At most 8, in at most 16 KiB.
    /// Blocks.
    ///
    /// # Errors
    /// [`TpmError::NvMissing`], [`TpmError::NvLocked`], [`TpmError::NvUnwritten`],
    /// [`TpmError::NvContent`]; otherwise see [`KeyError::kind`].
    pub fn certificates_in_nv(&self, index: u32) -> Result<Vec<CertificateDer<'static>>, KeyError> {
        // 0x01 stands for NV indices (TPM 2.0 specification, part 2, TPM_HT).
        if index >> 24 != 0x01 {
            return Err(TpmError::NvMissing { tcti: self.worker.tcti(), index }.into());
        }
        let storage = self.storage.clone();
        Ok(self.worker.run(self.deadline, move |context| nv::certificates(context, index, &storage))?)
    }

    /// Its name in errors.
    fn name(&self) -> String {
        format!("the TPM at {}", self.worker.tcti())
    }

    /// Manufacturer, model and firmware version, for people. Blocks.
    ///
    /// # Errors
    /// See [`KeyError::kind`].
    pub fn describe(&self) -> Result<String, KeyError> {
        Ok(self.worker.run(self.deadline, ops::describe)?)
    }
}

/// A P-256 key of the TPM (rules K1, K3).
///
/// It holds the two halves as the TPM returned them, the private one encrypted by the TPM: useless
/// without it.
#[derive(Clone)]
pub struct TpmKey {
    tpm: Tpm,
    key: Arc<LoadableKey>,
}

impl TpmKey {
    /// What the TPM allows with the key, by its public area. The TPM checks at every use that this
    /// area belongs to the private half, so a key whose area was changed does not sign.
    #[must_use]
    pub fn attributes(&self) -> KeyAttributes {
        self.key.attributes()
    }

    /// The key of the TPM that it was created under.
    #[must_use]
    pub fn parent(&self) -> Parent {
        self.key.parent()
    }
}

impl Provider for Tpm {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Tpm
    }

    fn create(&self) -> Result<Arc<dyn Key>, KeyError> {
        let key = self.create_key()?;
        tracing::info!(attributes = %key.attributes(), parent = %key.parent(), "key created in the TPM");
        Ok(Arc::new(key))
    }

    fn open(&self, record: &str) -> Result<Arc<dyn Key>, KeyError> {
        Ok(Arc::new(self.key_from_pem(record)?))
    }

    /// Nothing to do: the TPM holds no object of a key between two operations, and what is stored
    /// outside goes with the key's record.
    fn retire(&self, _key: &dyn Key) -> Result<(), KeyError> {
        Ok(())
    }
}

impl Key for TpmKey {
    fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        let (key, to_sign, storage) = (Arc::clone(&self.key), *digest, self.tpm.storage.clone());
        let signed = move |context: &mut _| device_key::sign(context, &key, &to_sign, &storage);
        let signature = self.tpm.worker.run(self.tpm.deadline, signed)?;
        checked(self.public_key(), digest, signature, || self.tpm.name())
    }

    fn protection(&self) -> Protection {
        Protection::Hardware
    }

    fn provider(&self) -> ProviderKind {
        ProviderKind::Tpm
    }

    fn to_pem(&self) -> Result<String, KeyError> {
        self.key.to_pem()
    }

    fn to_key_file(&self) -> Result<KeyFile, KeyError> {
        self.key.to_tss2()?.to_pem().map(KeyFile::Tss2)
    }
}

impl fmt::Debug for TpmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TpmKey")
            .field("public_key", self.public_key())
            .field("attributes", &self.attributes().to_string())
            .finish_non_exhaustive()
    }
}
