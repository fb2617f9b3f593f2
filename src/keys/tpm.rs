//! Keys that live in the TPM (rules K1, K3).
//!
//! A [`Tpm`] is a handle to one worker thread, which owns the connection and takes its jobs from a queue: a TPM does one
//! thing at a time, and TSS contexts want one owner. The chip keeps nothing between two operations. Each derives the
//! owner's storage key, or takes the one that is kept in the TPM ([`ParentChoice`]), makes or loads the key under it,
//! signs, and flushes both, so neither a crash nor a neighbour can fill the few slots a TPM has.
//!
//! The connection is opened at first use. After any failure it is thrown away, and the next operation opens another;
//! where the failure was the connection's own, or the TPM was reset, the operation is repeated once on the spot.
//!
//! Use the kernel's resource manager (`/dev/tpmrm0`). On a TPM without one, a process killed in the middle of an
//! operation leaves up to two slots taken.

mod chip;
mod elsewhere;
mod failure;
mod guard;
mod nv;
mod parent;
mod tcti;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

pub(super) use elsewhere::MadeElsewhere;
pub use parent::{BadParent, ParentChoice};
pub use tcti::Tcti;

use self::chip::LoadableKey;
use self::parent::Storage;
use self::worker::Worker;
use super::checked::checked;
use super::tss2::Parent;
use super::{Key, KeyError, KeyFile, Protection, PublicKey};
use crate::platform::credentials::Secret;

/// A handle to the TPM. Clones share one worker thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Tpm {
    worker: Arc<Worker>,
    deadline: Duration,
    storage: Storage,
}

/// How long an operation may take, the wait in the queue included. A chip takes at most a few seconds to make a key.
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

    /// The same TPM, with another parent for new keys and the place of the owner's password, which is read whenever the
    /// owner's primary is derived.
    #[must_use]
    pub fn with_parent(self, choice: ParentChoice, owner_auth: Option<Secret>) -> Self {
        let refusals = self.storage.refusals;
        Self { storage: Storage { choice, owner_auth, refusals }, ..self }
    }

    /// Makes a new P-256 key in the TPM, under the parent that was chosen: non-exportable, for signing only, without a
    /// password and exempt from dictionary-attack lock-out (rules K1, K3). Blocks.
    ///
    /// # Errors
    /// See [`KeyError::kind`]; [`KeyError::Deviant`] if the TPM made something else.
    pub fn create_key(&self) -> Result<TpmKey, KeyError> {
        let storage = self.storage.clone();
        let key = self.worker.run(self.deadline, move |context| chip::create(context, &storage))?;
        Ok(TpmKey { tpm: self.clone(), key: Arc::new(key) })
    }

    /// A key kept as a TSS2 PEM. The text is checked; the TPM is not asked until the key signs.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] and [`KeyError::Unsupported`], which say what is wrong with the PEM.
    pub fn key_from_pem(&self, pem: &str) -> Result<TpmKey, KeyError> {
        let key = LoadableKey::from_pem(pem)?;
        Ok(TpmKey { tpm: self.clone(), key: Arc::new(key) })
    }

    /// The certificates in an NV index, where a device maker may keep those of the factory key (rule K5): DER, one after
    /// the other, the rest of the index filled up with 0x00 or 0xFF. At most 8, in at most 16 KiB. Blocks.
    ///
    /// # Errors
    /// [`KeyError::NvMissing`], [`KeyError::NvLocked`], [`KeyError::NvUnwritten`], [`KeyError::NvContent`]; otherwise
    /// see [`KeyError::kind`].
    pub fn certificates_in_nv(&self, index: u32) -> Result<Vec<CertificateDer<'static>>, KeyError> {
        // 0x01 stands for NV indices (TPM 2.0 specification, part 2, TPM_HT).
        if index >> 24 != 0x01 {
            return Err(KeyError::NvMissing { tcti: self.worker.tcti(), index });
        }
        let storage = self.storage.clone();
        self.worker.run(self.deadline, move |context| nv::certificates(context, index, &storage))
    }

    /// What errors call it.
    fn name(&self) -> String {
        format!("the TPM at {}", self.worker.tcti())
    }

    /// Who made the TPM and which firmware it runs, for people. Blocks.
    ///
    /// # Errors
    /// See [`KeyError::kind`].
    pub fn describe(&self) -> Result<String, KeyError> {
        self.worker.run(self.deadline, chip::describe)
    }
}

/// A P-256 key of the TPM (rules K1, K3).
///
/// It holds the two halves as the TPM wrote them, the private one encrypted by the TPM: of no use without it.
#[derive(Clone)]
pub struct TpmKey {
    tpm: Tpm,
    key: Arc<LoadableKey>,
}

impl TpmKey {
    /// What the TPM lets be done with the key, as its public area says. The TPM checks at every use that this area
    /// belongs to the private half, so a changed one does not sign.
    #[must_use]
    pub fn attributes(&self) -> KeyAttributes {
        self.key.attributes()
    }

    /// Under which key of the TPM it was made.
    #[must_use]
    pub fn parent(&self) -> Parent {
        self.key.parent()
    }
}

impl Key for TpmKey {
    fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        let (key, to_sign, storage) = (Arc::clone(&self.key), *digest, self.tpm.storage.clone());
        let signed = move |context: &mut _| chip::sign(context, &key, &to_sign, &storage);
        let signature = self.tpm.worker.run(self.tpm.deadline, signed)?;
        checked(self.public_key(), digest, signature, || self.tpm.name())
    }

    fn protection(&self) -> Protection {
        Protection::Hardware
    }

    fn to_pem(&self) -> Result<String, KeyError> {
        self.key.to_pem()
    }

    fn for_programs(&self) -> Result<KeyFile, KeyError> {
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

/// The attributes of a TPM object. Printed in the words of tpm2-tools: `fixedtpm|fixedparent|…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct KeyAttributes {
    /// The key never leaves this TPM.
    pub fixed_tpm: bool,
    /// The key never moves to another parent.
    pub fixed_parent: bool,
    /// The TPM made the private half itself; it was not brought from outside.
    pub sensitive_data_origin: bool,
    /// The key is used with its password (an empty one here).
    pub user_with_auth: bool,
    /// Changes to the key are bound to a policy.
    pub admin_with_policy: bool,
    /// Exempt from dictionary-attack lock-out.
    pub no_da: bool,
    /// The key works on the TPM's own data only.
    pub restricted: bool,
    /// The key decrypts.
    pub decrypt: bool,
    /// The key signs.
    pub sign: bool,
}

impl KeyAttributes {
    /// Whether the TPM made the key and will never let it out (rule K1).
    #[must_use]
    pub fn non_exportable(&self) -> bool {
        self.fixed_tpm && self.fixed_parent && self.sensitive_data_origin
    }
}

impl fmt::Display for KeyAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.fixed_tpm, "fixedtpm"),
            (self.fixed_parent, "fixedparent"),
            (self.sensitive_data_origin, "sensitivedataorigin"),
            (self.user_with_auth, "userwithauth"),
            (self.admin_with_policy, "adminwithpolicy"),
            (self.no_da, "noda"),
            (self.restricted, "restricted"),
            (self.decrypt, "decrypt"),
            (self.sign, "sign"),
        ];
        let set: Vec<&str> = names.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
        f.write_str(&set.join("|"))
    }
}
