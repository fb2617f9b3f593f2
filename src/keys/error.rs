//! What can go wrong with a key, said so that somebody can act on it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a key could not be made, read or used.
///
/// The text says what failed, on what, why, and what to do about it. It never holds key material.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No connection to the TPM.
    #[error("cannot reach the TPM at {tcti}: {cause}")]
    Unreachable {
        /// The connection, as configured.
        tcti: String,
        /// Why.
        cause: UnreachableCause,
    },

    /// The TPM was reset or went away in the middle of an operation, and a fresh connection did not help.
    #[error(
        "the TPM at {tcti} was reset or went away while {doing} (code {code:#x}); it is tried again later"
    )]
    Gone {
        /// The connection, as configured.
        tcti: String,
        /// What was being done.
        doing: &'static str,
        /// The TSS response code.
        code: u32,
    },

    /// The TPM did not answer in time. It may still be at work; the queue behind it stands still until it is done.
    #[error(
        "the TPM at {tcti} did not answer within {after:?}; if this stays, look in the kernel log for tpm errors \
         and power-cycle the device"
    )]
    NoAnswer {
        /// The connection, as configured.
        tcti: String,
        /// How long it had.
        after: Duration,
    },

    /// The TPM asks to come back later, or too many callers wait for it.
    #[error("the TPM at {tcti} is busy ({why}); it is tried again later")]
    Busy {
        /// The connection, as configured.
        tcti: String,
        /// What keeps it busy.
        why: String,
    },

    /// All object slots of the TPM are taken.
    #[error(
        "the TPM at {tcti} has no free slot (code {code:#x}): another program left objects in it; use the resource \
         manager (device:/dev/tpmrm0), or free the slots with: tpm2_flushcontext -t"
    )]
    SlotsFull {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
    },

    /// The TPM is in dictionary-attack lock-out. The agent's own keys are exempt, others may not be.
    #[error(
        "the TPM at {tcti} is in dictionary-attack lock-out; wait for its recovery time to pass, or clear it with: \
         tpm2_dictionarylockout --clear-lockout"
    )]
    Lockout {
        /// The connection, as configured.
        tcti: String,
    },

    /// The owner hierarchy asks for a password, so the storage key cannot be derived.
    #[error(
        "the TPM at {tcti} has an owner password (code {code:#x}), so the agent cannot derive the storage key; \
         empty it with: tpm2_changeauth -c owner -p OLDPASSWORD"
    )]
    OwnerPassword {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
    },

    /// The persistent parent that the key file names is not in the TPM.
    #[error(
        "the TPM at {tcti} has no key at handle {handle:#010x}, under which the key was made; restore it there \
         (tpm2_evictcontrol), or make a new key"
    )]
    ParentMissing {
        /// The connection, as configured.
        tcti: String,
        /// The persistent handle.
        handle: u32,
    },

    /// The TPM does not know the key: it was made by another TPM, or this one was cleared, or the file is damaged.
    #[error(
        "the TPM at {tcti} refuses the key (code {code:#x}): another TPM made it, or this one has been cleared since, \
         or the key file is damaged; a new key is needed"
    )]
    NotThisTpm {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
    },

    /// The key asks for a password, which the agent does not have.
    #[error(
        "the TPM at {tcti} asks for the key's password (code {code:#x}); only keys without one can be used"
    )]
    KeyPassword {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
    },

    /// The TPM answered with a code that has no case of its own here.
    #[error("the TPM at {tcti} failed while {doing}: code {code:#x}, {meaning}")]
    Refused {
        /// The connection, as configured.
        tcti: String,
        /// What was being done.
        doing: &'static str,
        /// The TSS response code.
        code: u32,
        /// What the TPM's specification has to say about the code.
        meaning: String,
    },

    /// The TPM made something other than what it was asked for.
    #[error(
        "the TPM at {tcti} did not make the key it was asked for: {why}; do not trust it with an identity"
    )]
    Deviant {
        /// The connection, as configured.
        tcti: String,
        /// What is different.
        why: String,
    },

    /// A public key that is not one.
    #[error("not a usable public key: {why}")]
    BadPublicKey {
        /// What is wrong with it.
        why: &'static str,
    },

    /// A key file that cannot be read.
    #[error("cannot read the key file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// A key file that is not what it should be inside.
    #[error("{origin} is damaged or not a key: {why}")]
    Malformed {
        /// Where it came from, such as `the key file /etc/…`.
        origin: String,
        /// What is wrong with it.
        why: String,
    },

    /// A key file of a form that is known but not taken here.
    #[error("{origin} cannot be used: {form}")]
    Unsupported {
        /// Where it came from.
        origin: String,
        /// What it is instead.
        form: KeyForm,
    },

    /// A `tcti` setting that is not one.
    #[error(
        "not a TPM connection: {given:?} ({why}); accepted are device:/dev/tpmrm0, swtpm:host=127.0.0.1,port=2321 \
         and tabrmd:bus_type=system"
    )]
    BadTcti {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },

    /// There is no key-encryption key at the place for it.
    #[error(
        "the key-encryption key {path} is gone, so what was sealed under it cannot be opened any more; a new key is \
         needed"
    )]
    KekMissing {
        /// Where it should be.
        path: PathBuf,
    },

    /// A key-encryption key that cannot be used.
    #[error("the key-encryption key {path} cannot be used: {why}")]
    Kek {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: io::Error,
    },

    /// The key is sealed under the systemd credential, and there is none.
    #[error(
        "the key is sealed under the systemd credential \"kek\", which this service was not given; restore \
         LoadCredentialEncrypted=kek in its unit and restart it"
    )]
    KekCredentialMissing,

    /// The key is sealed under another key-encryption key than the one that is here.
    #[error(
        "the key is sealed under another key-encryption key than {kek}: that one was replaced, or the state comes from \
         another device; a new key is needed"
    )]
    ForeignSeal {
        /// The one that is here.
        kek: PathBuf,
    },

    /// The seal of a key is damaged.
    #[error("the seal of the key is damaged, so the key is lost; a new key is needed")]
    BrokenSeal,

    /// The thread that talks to the TPM could not be started, or ended in the middle. The next call starts another.
    #[error("the TPM worker is not running: {why}")]
    WorkerStopped {
        /// Why.
        why: String,
    },

    /// Something that cannot happen, happened.
    #[error("internal error: {0}")]
    Internal(String),
}

impl KeyError {
    /// What the failure means for the key, and for whoever wanted to use it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. }
            | Self::Gone { .. }
            | Self::NoAnswer { .. }
            | Self::Busy { .. }
            | Self::SlotsFull { .. }
            | Self::WorkerStopped { .. } => ErrorKind::Unavailable,
            Self::Lockout { .. }
            | Self::OwnerPassword { .. }
            | Self::ParentMissing { .. }
            | Self::Refused { .. }
            | Self::Deviant { .. }
            | Self::Kek { .. }
            | Self::KekCredentialMissing
            | Self::Internal(_) => ErrorKind::NeedsOperator,
            Self::NotThisTpm { .. }
            | Self::KeyPassword { .. }
            | Self::BadPublicKey { .. }
            | Self::KekMissing { .. }
            | Self::ForeignSeal { .. }
            | Self::BrokenSeal => ErrorKind::KeyUnusable,
            Self::Unreadable { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::BadTcti { .. } => ErrorKind::BadInput,
        }
    }
}

/// What a [`KeyError`] means for the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The TPM cannot be used now. The key is as good as ever: try again later.
    Unavailable,
    /// The TPM works but will not do this until somebody changes something. The key may still be good: keep it.
    NeedsOperator,
    /// This key will never work on this device: a new one is needed.
    KeyUnusable,
    /// What was handed in (a file, a PEM, a setting) is not what it should be.
    BadInput,
}

/// Why a TPM cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnreachableCause {
    /// There is no such device file.
    Missing,
    /// The device file is there, and closed to this user.
    PermissionDenied,
    /// The device is held by another program: `/dev/tpm0` admits one at a time.
    InUse,
    /// Nothing listens at the address.
    Refused,
    /// Anything else.
    Other(String),
}

impl fmt::Display for UnreachableCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "there is no such device; check that the TPM is enabled in the firmware set-up and that its kernel \
                 driver is loaded",
            ),
            Self::PermissionDenied => f.write_str(
                "permission denied; add the user that runs the agent to the group tss (usermod -aG tss USER) and \
                 restart it",
            ),
            Self::InUse => f.write_str("another program holds the device; use device:/dev/tpmrm0, which can be shared"),
            Self::Refused => f.write_str("connection refused; start the TPM that should listen there"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// A form of key file that is recognised where another one was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyForm {
    /// A `TSS2 PRIVATE KEY`: the key lives in a TPM.
    Tss2,
    /// A `TSS2 PRIVATE KEY` of a form the agent does not use.
    OtherTss2(&'static str),
    /// A private key under a passphrase.
    Encrypted,
    /// A certificate.
    Certificate,
    /// A public key.
    PublicKey,
    /// A private key in a plain file.
    Plain,
    /// More than one private key.
    Several,
    /// A PEM block with some other label.
    Other(String),
    /// A private key of an algorithm or an encoding that the agent's TLS library does not take.
    Algorithm(String),
}

impl fmt::Display for KeyForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tss2 => f.write_str("it is a TSS2 PRIVATE KEY, a key of the TPM, not a key in a file"),
            Self::OtherTss2(what) => write!(f, "it is a TSS2 PRIVATE KEY, but {what}"),
            Self::Encrypted => f.write_str(
                "the private key is encrypted, and the agent has nobody to ask for the passphrase; decrypt it with: \
                 openssl pkey -in KEY -out PLAIN",
            ),
            Self::Certificate => f.write_str("it holds a certificate and no private key; give the key's own file"),
            Self::PublicKey => f.write_str("it holds a public key and no private key; give the private key's file"),
            Self::Plain => f.write_str("it is a private key in a file, not a TSS2 PRIVATE KEY of the TPM"),
            Self::Several => f.write_str("it holds more than one private key; leave one"),
            Self::Other(label) => write!(f, "it holds a PEM block {label:?} and no private key"),
            Self::Algorithm(why) => write!(
                f,
                "its algorithm or encoding is not supported ({why}); supported are ECDSA P-256 and P-384, RSA from \
                 2048 bits and Ed25519, in PKCS#8 or, for ECDSA and RSA, SEC1 and PKCS#1"
            ),
        }
    }
}
