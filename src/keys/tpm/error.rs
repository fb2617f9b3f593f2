//! Errors of the TPM and of its keys.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::hint::{Hint, Reason};
use crate::keys::error::{ErrorKind, REPLACE};
use crate::platform::credentials::SecretError;

/// Why the TPM, or a key in it, cannot be used.
///
/// Displays what failed, on what, and why; [`hint`](Hint::hint) says what to do. In all
/// variants `tcti` is the connection as configured, `code` a TSS or TPM response code, `handle` a
/// persistent handle, `index` an NV index, and `origin` the name of an external key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields: see above
pub enum TpmError {
    /// No connection to the TPM.
    #[error("cannot reach the TPM at {tcti}: {cause}")]
    Unreachable { tcti: String, cause: UnreachableCause },

    /// The TPM was reset or went away in the middle of an operation, and a fresh connection did not
    /// help.
    #[error(
        "the TPM at {tcti} was reset or went away while {doing} (code {code:#x}); the agent retries later"
    )]
    Gone { tcti: String, doing: &'static str, code: u32 },

    /// The TPM did not answer in time. It may still be at work; jobs behind it wait until it is
    /// done.
    #[error("the TPM at {tcti} did not answer within {after:?}")]
    NoAnswer { tcti: String, after: Duration },

    /// The TPM asks to come back later, or too many callers wait for it.
    #[error("the TPM at {tcti} is busy ({why}); the agent retries later")]
    Busy { tcti: String, why: String },

    /// All object slots of the TPM are taken.
    #[error("the TPM at {tcti} has no free slot (code {code:#x}): another program left objects in it")]
    SlotsFull { tcti: String, code: u32 },

    /// The TPM is in dictionary-attack lock-out. The agent's own keys are exempt, others may not
    /// be.
    #[error(
        "the TPM at {tcti} is in dictionary-attack lock-out, which ends by itself after its recovery time"
    )]
    Lockout { tcti: String },

    /// The owner hierarchy asks for a password, so the storage key cannot be derived. `instead`
    /// says why no other storage key takes its place, where that was tried; so it does in the
    /// variants below.
    #[error(
        "the TPM at {tcti} has an owner password (code {code:#x}), so the agent cannot derive the storage key{instead}"
    )]
    OwnerPassword { tcti: String, code: u32, instead: String },

    /// The TPM refuses the owner password that is configured.
    #[error(
        "the TPM at {tcti} refuses the owner password that owner_auth under [key] names (code {code:#x}){instead}"
    )]
    OwnerAuthRefused { tcti: String, code: u32, instead: String },

    /// The owner password that is configured cannot be read or used.
    #[error("the owner password of the TPM (owner_auth under [key]) cannot be used: {why}{instead}")]
    OwnerAuthUnreadable { why: Reason, instead: String },

    /// The owner hierarchy is disabled: its primary cannot be derived, nor its persistent keys be
    /// used.
    #[error(
        "the owner hierarchy of the TPM at {tcti} is disabled (code {code:#x}), so the agent cannot derive the storage \
         key{instead}"
    )]
    HierarchyDisabled { tcti: String, code: u32, instead: String },

    /// The persistent parent is not in the TPM.
    #[error("the TPM at {tcti} has no key at handle {handle:#010x}, the parent of {key}")]
    ParentMissing { tcti: String, handle: u32, key: Subject },

    /// The key at the persistent handle is not the one that the agent's key was created under.
    #[error(
        "the TPM at {tcti} has another key at handle {handle:#010x} than the one under which the agent's key was created"
    )]
    ParentReplaced { tcti: String, handle: u32 },

    /// The key at the persistent handle cannot be the parent of the agent's key.
    #[error(
        "the key at handle {handle:#010x} of the TPM at {tcti} cannot be the parent of the agent's key: {why}"
    )]
    ParentUnfit { tcti: String, handle: u32, why: ParentFlaw },

    /// The persistent parent asks for a password, which cannot be configured.
    #[error(
        "the TPM at {tcti} asks for the password of the parent of {key} (code {code:#x}), and the agent can only use \
         parents without one"
    )]
    ParentPassword { tcti: String, code: u32, key: Subject },

    /// The TPM does not load the key: another TPM created it, or this one was cleared, or the key
    /// file is damaged.
    #[error(
        "the TPM at {tcti} does not load {key} (code {code:#x}): another TPM created it, or this one has been cleared \
         since, or the key file is damaged"
    )]
    NotThisTpm { tcti: String, code: u32, key: Subject },

    /// The key asks for a password, which the agent does not have.
    #[error("the TPM at {tcti} asks for the key's password (code {code:#x}), and the agent's keys have none")]
    KeyPassword { tcti: String, code: u32 },

    /// The persistent handle that is configured for the factory key is empty.
    #[error("the TPM at {tcti} holds no key at handle {handle:#010x}")]
    HandleMissing { tcti: String, handle: u32 },

    /// The factory key has a password and none is configured.
    #[error("{origin} has a password, and none is configured")]
    AuthMissing { origin: String },

    /// The TPM refuses the password that is configured for the factory key.
    #[error(
        "the TPM at {tcti} refuses the password that key_auth under [bootstrap] names for {origin} (code {code:#x}). Lest \
         the TPM locks itself, the agent sends the same password again only after a day, or after a restart"
    )]
    AuthRefused { tcti: String, origin: String, code: u32 },

    /// A password that no key of a TPM, or not this one (`taker`), can have. Lengths are in bytes.
    #[error(
        "the password that key_auth under [bootstrap] names is {length} bytes long, and {taker} takes {limit} at most"
    )]
    AuthTooLong { length: usize, taker: String, limit: usize },

    /// The password of the factory key cannot be read any more.
    #[error("key_auth under [bootstrap]: {0}")]
    AuthUnreadable(SecretError),

    /// A key of the TPM that works and cannot do TLS 1.3.
    #[error("{origin} cannot identify the device in TLS 1.3: {why}")]
    Unfit { origin: String, why: Unfit },

    /// The TPM makes RSA-PSS signatures that TLS 1.3 does not take (RFC 8446 section 4.2.3: the
    /// salt is as long as the digest; older TPMs take the longest that fits, as Part 1 of the TPM
    /// 2.0 specification had it in annex B.7).
    #[error(
        "the TPM at {tcti} signs with an RSA-PSS salt of a length that TLS 1.3 does not take, so {origin} cannot be used"
    )]
    PssSalt { tcti: String, origin: String },

    /// There is no such NV index in the TPM.
    #[error("the TPM at {tcti} has no NV index {index:#010x}")]
    NvMissing { tcti: String, index: u32 },

    /// An NV index may not be read with what the agent has: no password and no policy.
    #[error("the TPM at {tcti} does not let the agent read NV index {index:#010x}: {why}")]
    NvLocked { tcti: String, index: u32, why: NvLock },

    /// An NV index is defined and was never written.
    #[error("NV index {index:#010x} of the TPM at {tcti} has never been written to")]
    NvUnwritten { tcti: String, index: u32 },

    /// An NV index holds something else than DER certificates.
    #[error("NV index {index:#010x} of the TPM at {tcti} does not hold certificates in DER: {why}")]
    NvContent { tcti: String, index: u32, why: String },

    /// A response code that has no variant of its own here; `meaning` is what the specification
    /// says of it.
    #[error("the TPM at {tcti} failed while {doing}: code {code:#x}, {meaning}")]
    Refused { tcti: String, doing: &'static str, code: u32, meaning: String },

    /// The TPM created something other than it was told to.
    #[error("the TPM at {tcti} did not create the key that it was asked for: {why}")]
    Deviant { tcti: String, why: String },

    /// The thread that talks to the TPM could not be started, or ended in the middle. The next call
    /// starts another.
    #[error("the TPM worker is not running: {why}")]
    WorkerStopped { why: String },

    /// A `tcti` setting that is not one.
    #[error("not a TPM connection: {given:?} ({why})")]
    BadTcti { given: String, why: &'static str },
}

impl TpmError {
    /// What the failure means for the key, as [`KeyError::kind`](crate::keys::KeyError::kind).
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
            | Self::OwnerAuthRefused { .. }
            | Self::OwnerAuthUnreadable { .. }
            | Self::HierarchyDisabled { .. }
            | Self::ParentMissing { .. }
            | Self::ParentReplaced { .. }
            | Self::ParentUnfit { .. }
            | Self::ParentPassword { .. }
            | Self::HandleMissing { .. }
            | Self::AuthMissing { .. }
            | Self::AuthRefused { .. }
            | Self::AuthUnreadable(_)
            | Self::NvMissing { .. }
            | Self::NvLocked { .. }
            | Self::NvUnwritten { .. }
            | Self::Refused { .. }
            | Self::Deviant { .. } => ErrorKind::NeedsOperator,
            Self::NotThisTpm { .. }
            | Self::KeyPassword { .. }
            | Self::Unfit { .. }
            | Self::PssSalt { .. } => ErrorKind::KeyUnusable,
            Self::AuthTooLong { .. } | Self::NvContent { .. } | Self::BadTcti { .. } => ErrorKind::BadInput,
        }
    }

    /// Whether the agent's key is lost with its parent, unless that is restored.
    pub(in crate::keys) fn is_of_a_lost_parent(&self) -> bool {
        matches!(self, Self::ParentMissing { key: Subject::AgentKey, .. } | Self::ParentReplaced { .. })
    }

    /// The same of an external key, where it is of the agent's.
    pub(super) fn about(self, origin: &str) -> Self {
        let key = Subject::External(origin.to_owned());
        match self {
            Self::ParentMissing { tcti, handle, .. } => Self::ParentMissing { tcti, handle, key },
            Self::ParentPassword { tcti, code, .. } => Self::ParentPassword { tcti, code, key },
            Self::NotThisTpm { tcti, code, .. } => Self::NotThisTpm { tcti, code, key },
            other => other,
        }
    }
}

impl Hint for TpmError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Gone { .. }
            | Self::Busy { .. }
            | Self::WorkerStopped { .. }
            | Self::NvContent { .. }
            | Self::Refused { .. } => return None,
            Self::Unreachable { cause, .. } => return cause.hint(),
            Self::ParentUnfit { why, .. } => return Some(why.hint().into()),
            Self::Unfit { why, .. } => return Some(why.hint().into()),
            Self::NvLocked { why, .. } => return Some(why.hint().into()),
            Self::ParentMissing { handle, key, .. } => {
                let otherwise = match key {
                    Subject::NewKey => "set another parent under [key]",
                    Subject::AgentKey => REPLACE,
                    Subject::External(_) => "provision another factory key",
                };
                return Some(
                    format!("Restore the parent at {handle:#010x} (tpm2_evictcontrol), or {otherwise}")
                        .into(),
                );
            }
            Self::ParentReplaced { handle, .. } => {
                return Some(
                    format!("Restore the parent at {handle:#010x} (tpm2_evictcontrol), or {REPLACE}").into(),
                );
            }
            Self::NotThisTpm { key: Subject::External(_), .. } => {
                "Reinstall the original TPM, or provision a factory key that this TPM created"
            }
            Self::NotThisTpm { .. } => {
                return Some(format!("Reinstall the original TPM, or {REPLACE}").into());
            }
            Self::SlotsFull { tcti, .. } if tcti.starts_with("device:") && tcti != RESOURCE_MANAGER => {
                "Set tcti = \"device:/dev/tpmrm0\" under [key]: the kernel's resource manager shares the slots"
            }
            Self::SlotsFull { .. } => "Free the slots with: tpm2_flushcontext -t",
            Self::NoAnswer { .. } => {
                "Power-cycle the device if this stays; the kernel log has the errors of the TPM's driver"
            }
            Self::Lockout { .. } => {
                "Wait for that time, or clear the lock-out with: tpm2_dictionarylockout --clear-lockout"
            }
            Self::OwnerPassword { .. } => {
                "Give the agent the password (owner_auth = \"file:PATH\" or \"credential:NAME\" under [key]), or a storage \
                 key that is kept in the TPM (parent = \"0x81……\" under [key]; tpm2_getcap handles-persistent lists what \
                 is there)"
            }
            Self::OwnerAuthRefused { .. } => {
                "Correct the password, or remove owner_auth if the owner has none (a wrong one does not lock the TPM)"
            }
            Self::OwnerAuthUnreadable { why, .. } => {
                // What is wrong with the file says more.
                return why.hint().or(Some("Correct owner_auth under [key], or what it names".into()));
            }
            Self::HierarchyDisabled { .. } => {
                "Enable it in the firmware set-up (\"storage hierarchy\"), or name a storage key of the platform that is \
                 kept in the TPM (parent = \"0x818……\" under [key])"
            }
            Self::ParentPassword { key: Subject::External(_), .. } => {
                "Empty the parent's password and restart the agent, or provision a key under another parent"
            }
            Self::ParentPassword { .. } => {
                "Empty the parent's password and restart the agent, or set another parent under [key]"
            }
            Self::KeyPassword { .. } => "Replace the key with: miaf-agent retry --new-key",
            Self::HandleMissing { .. } => {
                "Correct key under [bootstrap] (tpm2_getcap handles-persistent lists what is there), or reinstall the \
                 original TPM"
            }
            Self::AuthMissing { .. } => {
                "Set key_auth = \"credential:NAME\" or key_auth = \"file:PATH\" under [bootstrap] (for a key that has no \
                 password in truth, name an empty file)"
            }
            Self::AuthRefused { .. } => "Correct the password",
            Self::AuthTooLong { .. } => {
                "Check that key_auth names the right file, and that nothing follows the password in it"
            }
            Self::AuthUnreadable(why) => {
                return why.hint().or(Some("Correct key_auth under [bootstrap], or what it names".into()));
            }
            Self::PssSalt { .. } => "Use an ECC key, or update the firmware of the TPM",
            Self::NvMissing { .. } => {
                "Correct the index (tpm2_nvreadpublic lists what is there), or reinstall the original TPM"
            }
            Self::NvUnwritten { .. } => {
                "Write the certificate to it (tpm2_nvwrite), or correct the index that is configured"
            }
            Self::Deviant { .. } => "Replace the TPM: it cannot be trusted with an identity",
            Self::BadTcti { .. } => {
                "Set tcti to device:/dev/tpmrm0, swtpm:host=127.0.0.1,port=2321 or tabrmd:bus_type=system"
            }
        };
        Some(hint.into())
    }
}

const RESOURCE_MANAGER: &str = "device:/dev/tpmrm0";

/// The key that an operation is for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// A key that is to be created.
    NewKey,
    /// A key that the agent created.
    AgentKey,
    /// A key that another program created, by its name.
    External(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewKey => "new keys",
            Self::AgentKey => "the agent's key",
            Self::External(origin) => origin,
        })
    }
}

/// Why a TPM cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnreachableCause {
    /// There is no such device file.
    Missing,
    /// The kernel has the device of this path, and it is not in the agent's `/dev`, or not in its
    /// list of devices.
    Hidden(PathBuf),
    /// There is no such device file, and the kernel has a TPM of this path.
    OtherDevice(PathBuf),
    /// The TPM is a TPM 1.2.
    Version1,
    /// The device file is there, and its owner, mode or group keep this user out. The hint has the
    /// command that corrects it.
    PermissionDenied(Reason),
    /// The device is held by another program: `/dev/tpm0` admits one at a time.
    InUse,
    /// Nothing listens at the address.
    Refused,
    /// tpm2-abrmd does not answer on D-Bus.
    NoResourceManager,
    /// Something is there that does not answer as a TPM 2.0.
    NoTpm {
        /// The TSS response code.
        code: u32,
        /// The TSS library that talks to it.
        library: &'static str,
    },
    /// Anything else.
    Other(Reason),
}

impl fmt::Display for UnreachableCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no such device"),
            // The unit lets the agent have this one, which was not there when the agent was
            // started.
            Self::Hidden(path) if path == Path::new("/dev/tpmrm0") => f.write_str(
                "the kernel has this device, and the sandbox of the service does not show it, as it appeared after the \
                 start",
            ),
            Self::Hidden(_) => f.write_str(
                "the kernel has this device, and the sandbox of the service does not show it",
            ),
            Self::OtherDevice(path) => {
                write!(f, "there is no such device, and the kernel has {}", path.display())
            }
            Self::Version1 => {
                f.write_str("there is no such device, and the TPM of this machine is a TPM 1.2")
            }
            Self::PermissionDenied(why) | Self::Other(why) => why.fmt(f),
            Self::InUse => f.write_str("another program holds the device"),
            Self::Refused => f.write_str("connection refused"),
            Self::NoResourceManager => f.write_str("tpm2-abrmd does not answer on D-Bus"),
            Self::NoTpm { code, .. } => {
                write!(f, "it can be opened but does not answer as a TPM 2.0 (code {code:#x})")
            }
        }
    }
}

impl Hint for UnreachableCause {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Missing => {
                "Enable the TPM in the firmware set-up, and load its kernel driver".into()
            }
            Self::Hidden(path) if path == Path::new("/dev/tpmrm0") => {
                "Restart the agent: systemctl restart miaf-agent".into()
            }
            Self::Hidden(path) => format!(
                "Extend the unit: run systemctl edit miaf-agent, write the three lines \"[Service]\", \"BindPaths=-{path}\" \
                 and \"DeviceAllow={path} rw\", and restart the agent",
                path = path.display()
            )
            .into(),
            Self::OtherDevice(path) => {
                format!("Set tcti = \"device:{}\" under [key]", path.display()).into()
            }
            Self::Version1 => "Use a machine with a TPM 2.0, or software keys (provider = \"software\" under [key])".into(),
            Self::PermissionDenied(why) | Self::Other(why) => return why.hint(),
            Self::InUse => "Set tcti = \"device:/dev/tpmrm0\" under [key], which can be shared".into(),
            Self::Refused => "Start the TPM that should listen there, or correct tcti under [key]".into(),
            Self::NoResourceManager => {
                "Start it (systemctl start tpm2-abrmd), and install libtss2-tcti-tabrmd".into()
            }
            Self::NoTpm { library, .. } => format!("Check that it is a TPM 2.0, and install {library}").into(),
        })
    }
}

/// Why a key of the TPM cannot be the parent of the agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParentFlaw {
    /// It is neither an ECC nor an RSA key.
    Kind,
    /// It is no storage key.
    NotStorage,
    /// It is used under a policy.
    Policy,
    /// It is guarded against guessing, and so each power cut counts.
    NotExempt,
    /// It can leave the TPM.
    NotBound,
    /// It is weaker than P-256.
    Weak,
}

impl fmt::Display for ParentFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "it is neither an ECC nor an RSA key",
            Self::NotStorage => {
                "it is not a storage key (attributes restricted and decrypt, and not sign)"
            }
            Self::Policy => {
                "its use is bound to a policy (userwithauth is clear), which the agent does not support"
            }
            Self::NotExempt => {
                "it is not exempt from dictionary-attack lock-out (noda is clear), so each power cut after its use would \
                 count as a wrong password"
            }
            Self::NotBound => {
                "it is not bound to this TPM (fixedtpm or fixedparent is clear), so keys under it would not be either"
            }
            Self::Weak => "it is weaker than the keys under it",
        })
    }
}

impl ParentFlaw {
    fn hint(self) -> &'static str {
        match self {
            Self::Kind | Self::NotStorage => "Set parent under [key] to the handle of a storage key",
            Self::Policy => "Use one created with the attribute userwithauth",
            Self::NotExempt => "Use one created with the attribute noda",
            Self::NotBound => "Use one created with the attributes fixedtpm and fixedparent",
            Self::Weak => "Use one of P-256 or RSA 2048, or stronger",
        }
    }
}

/// Why an NV index may not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NvLock {
    /// It has a password.
    Password,
    /// The owner may read it, and has a password.
    OwnerPassword,
    /// It is read under a policy.
    Policy,
    /// Only the platform may read it.
    Platform,
    /// It is locked until the TPM restarts.
    UntilRestart,
}

impl fmt::Display for NvLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password => "it has a password",
            Self::OwnerPassword => "the owner may read it, and the TPM has an owner password",
            Self::Policy => "it is read under a policy, which the agent does not support",
            Self::Platform => "only the platform (the firmware) may read it",
            Self::UntilRestart => {
                "another program (tpm2_nvreadlock) has locked it against reading until the TPM restarts"
            }
        })
    }
}

impl NvLock {
    fn hint(self) -> &'static str {
        match self {
            Self::Password => {
                "Define the index so that it can be read without a password (tpm2_nvdefine with ownerread or authread and \
                 no -p), or keep the certificate in a file"
            }
            Self::OwnerPassword => {
                "Empty the owner password (tpm2_changeauth -c owner -p OLDPASSWORD), define the index with authread, or \
                 keep the certificate in a file"
            }
            Self::Policy | Self::Platform => {
                "Define the index with ownerread or authread, or keep the certificate in a file"
            }
            Self::UntilRestart => "Restart the device, and keep that program from locking the index",
        }
    }
}

/// Why a key of the TPM cannot identify the device in TLS 1.3 (RFC 8446 section 4.2.3 has the
/// signatures it takes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unfit {
    /// It encrypts other keys (`restricted` and `decrypt`), as storage and endorsement keys do.
    StorageKey,
    /// It signs the TPM's own statements only (`restricted` and `sign`).
    Restricted,
    /// It may not sign at all.
    NoSign,
    /// It is used under a policy, not with a password (`userWithAuth` clear).
    Policy,
    /// It is neither an ECC nor an RSA key.
    Kind,
    /// It lies on another curve than P-256 and P-384.
    Curve,
    /// It is bound to a hash that TLS 1.3 does not combine with it.
    Hash,
    /// It is bound to a signature scheme that TLS 1.3 does not know.
    Scheme,
    /// It is bound to RSASSA-PKCS1-v1_5.
    Pkcs1,
    /// It is an RSA key of less than 2048 bits.
    RsaSize,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StorageKey => "it is a storage key, which encrypts other keys and does not sign",
            Self::Restricted => {
                "it is restricted, an attestation key (AK, IAK) that signs the TPM's own statements only"
            }
            Self::NoSign => "its attributes do not let it sign",
            Self::Policy => {
                "its use is bound to a policy (userWithAuth is clear), which the agent does not support"
            }
            Self::Kind => "it is neither an ECC nor an RSA key",
            Self::Curve => "it lies on another curve than P-256 and P-384",
            Self::Hash => "it is bound to a hash that TLS 1.3 does not combine with it",
            Self::Scheme => "it is bound to a signature scheme that TLS 1.3 does not know",
            Self::Pkcs1 => "it is bound to RSASSA-PKCS1-v1_5, which TLS 1.3 does not take",
            Self::RsaSize => "it is an RSA key of less than 2048 bits",
        })
    }
}

impl Unfit {
    fn hint(self) -> &'static str {
        match self {
            Self::StorageKey => "Give the handle of the signing key",
            Self::Restricted => "Use the device identity key (IDevID)",
            Self::NoSign => "Use a key created with the attribute sign",
            Self::Policy => "Use a key created with the attribute userwithauth",
            Self::Kind | Self::RsaSize => "Use a key of P-256, P-384 or RSA from 2048 bits",
            Self::Curve => "Use a key on P-256 or P-384",
            Self::Hash => {
                "Use a key bound to no scheme, or P-256 with SHA-256, P-384 with SHA-384, or RSA-PSS with either or \
                 SHA-512"
            }
            Self::Scheme => "Use a key created for ECDSA or RSA-PSS, or one bound to no scheme",
            Self::Pkcs1 => "Use a key created for RSA-PSS, or one bound to no scheme",
        }
    }
}
