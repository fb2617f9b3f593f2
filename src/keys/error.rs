//! What can go wrong with a key, said so that somebody can act on it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::platform::access;
use crate::platform::credentials::SecretError;

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
        "the TPM at {tcti} has an owner password (code {code:#x}), so the agent cannot derive the storage key{instead}; \
         give it the password (owner_auth = \"file:PATH\" or \"credential:NAME\" under [key]), or a storage key that is \
         kept in the TPM (parent = \"0x81……\" under [key]; tpm2_getcap handles-persistent lists what is there)"
    )]
    OwnerPassword {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
        /// Why no other storage key takes its place, where that was tried.
        instead: String,
    },

    /// The TPM has refused the owner's password that is configured.
    #[error(
        "the TPM at {tcti} refuses the owner password that owner_auth under [key] names (code {code:#x}){instead}; correct \
         it, or leave owner_auth out if the owner has none (a wrong one does not lock the TPM)"
    )]
    OwnerAuthRefused {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
        /// As in [`KeyError::OwnerPassword`].
        instead: String,
    },

    /// The owner's password that is configured cannot be had.
    #[error("the owner password of the TPM (owner_auth under [key]) cannot be used: {why}{instead}")]
    OwnerAuthUnreadable {
        /// What is wrong with it.
        why: String,
        /// As in [`KeyError::OwnerPassword`].
        instead: String,
    },

    /// The owner hierarchy is disabled: its primary cannot be derived, nor its persistent keys be used.
    #[error(
        "the owner hierarchy of the TPM at {tcti} is disabled (code {code:#x}), so the agent cannot derive the storage \
         key{instead}; enable it in the firmware set-up (\"storage hierarchy\"), or name a storage key of the \
         platform that is kept in the TPM (parent = \"0x818……\" under [key])"
    )]
    HierarchyDisabled {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
        /// As in [`KeyError::OwnerPassword`].
        instead: String,
    },

    /// The persistent parent is not in the TPM.
    #[error(
        "the TPM at {tcti} has no key at handle {handle:#010x}, the parent of the agent's or the factory key; restore it \
         there (tpm2_evictcontrol); if it is gone for good, so are the keys under it: choose another one (parent under \
         [key]) and have a new key made with: miaf-agent retry --new-key"
    )]
    ParentMissing {
        /// The connection, as configured.
        tcti: String,
        /// The persistent handle.
        handle: u32,
    },

    /// The key at the persistent handle is another one than that under which the key was made.
    #[error(
        "the TPM at {tcti} has another key at handle {handle:#010x} than the one under which the agent's key was made; \
         restore that one there (tpm2_evictcontrol); if it is gone for good, so is the agent's key: have a new one made \
         with: miaf-agent retry --new-key"
    )]
    ParentReplaced {
        /// The connection, as configured.
        tcti: String,
        /// The persistent handle.
        handle: u32,
    },

    /// The key at the persistent handle cannot be the parent of the agent's key.
    #[error(
        "the key at handle {handle:#010x} of the TPM at {tcti} cannot be the parent of the agent's key: {why}"
    )]
    ParentUnfit {
        /// The connection, as configured.
        tcti: String,
        /// The persistent handle.
        handle: u32,
        /// Why not, and what to do.
        why: &'static str,
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

    /// The persistent parent asks for a password, which the agent has no place for.
    #[error(
        "the TPM at {tcti} asks for the password of the parent of the key (code {code:#x}); the agent can only use parents \
         without one: empty it and restart the agent, or make the key under another parent"
    )]
    ParentPassword {
        /// The connection, as configured.
        tcti: String,
        /// The TPM response code.
        code: u32,
    },

    /// The persistent handle that is configured for the factory key is empty.
    #[error(
        "the TPM at {tcti} holds no key at handle {handle:#010x}; check key under [bootstrap] (tpm2_getcap \
         handles-persistent lists what is there), or whether the TPM has been replaced"
    )]
    HandleMissing {
        /// The connection, as configured.
        tcti: String,
        /// The persistent handle.
        handle: u32,
    },

    /// The factory key has a password and none is configured.
    #[error(
        "{origin} has a password, and none is configured; set key_auth = \"credential:NAME\" or \
         key_auth = \"file:PATH\" under [bootstrap] (for a key that has none in truth, name an empty file)"
    )]
    AuthMissing {
        /// Which key.
        origin: String,
    },

    /// The TPM has refused the password that is configured for the factory key.
    #[error(
        "the TPM at {tcti} refuses the password that key_auth under [bootstrap] names for {origin} (code {code:#x}); \
         correct it; lest the TPM locks itself, the same one is sent again only after a day, or after a restart of the \
         agent"
    )]
    AuthRefused {
        /// The connection, as configured.
        tcti: String,
        /// Which key.
        origin: String,
        /// The TPM response code.
        code: u32,
    },

    /// A password that no key of a TPM, or not this one, can have.
    #[error(
        "the password that key_auth under [bootstrap] names is {length} octets long, and {taker} takes {limit} at \
         most; check that it is the right file and that nothing follows the password in it"
    )]
    AuthTooLong {
        /// Its length in octets.
        length: usize,
        /// Who sets the limit.
        taker: String,
        /// The limit in octets.
        limit: usize,
    },

    /// A password is configured for a factory key in a plain file.
    #[error(
        "{origin} takes no password, as only keys in the TPM do; remove key_auth under [bootstrap], or give the key \
         that it belongs to"
    )]
    AuthNotTaken {
        /// Which key.
        origin: String,
    },

    /// A key of the TPM that works and cannot do TLS 1.3.
    #[error("{origin} cannot identify the device in TLS 1.3: {why}")]
    Unfit {
        /// Which key.
        origin: String,
        /// Why not, and what to do.
        why: Unfit,
    },

    /// The TPM makes RSA-PSS signatures that TLS 1.3 does not take (RFC 8446 section 4.2.3: the salt is as long as the
    /// digest; older TPMs take the longest that fits, as Part 1 of the TPM 2.0 specification had it in annex B.7).
    #[error(
        "the TPM at {tcti} signs with an RSA-PSS salt of a length that TLS 1.3 does not take, so {origin} cannot be \
         used; use an ECC key, or look for a firmware update of the TPM"
    )]
    PssSalt {
        /// The connection, as configured.
        tcti: String,
        /// Which key.
        origin: String,
    },

    /// There is no such NV index in the TPM.
    #[error(
        "the TPM at {tcti} has no NV index {index:#010x}; check the index that is configured (tpm2_nvreadpublic lists \
         what is there), or whether the TPM has been replaced"
    )]
    NvMissing {
        /// The connection, as configured.
        tcti: String,
        /// The index.
        index: u32,
    },

    /// An NV index may not be read with what the agent has: no password and no policy.
    #[error("the TPM at {tcti} does not let the agent read NV index {index:#010x}: {why}")]
    NvLocked {
        /// The connection, as configured.
        tcti: String,
        /// The index.
        index: u32,
        /// What it would take, and what to do.
        why: &'static str,
    },

    /// An NV index is defined, and nobody has written to it.
    #[error(
        "NV index {index:#010x} of the TPM at {tcti} has never been written to; write the certificate to it \
         (tpm2_nvwrite), or check the index that is configured"
    )]
    NvUnwritten {
        /// The connection, as configured.
        tcti: String,
        /// The index.
        index: u32,
    },

    /// An NV index holds something else than DER certificates.
    #[error("NV index {index:#010x} of the TPM at {tcti} does not hold certificates in DER: {why}")]
    NvContent {
        /// The connection, as configured.
        tcti: String,
        /// The index.
        index: u32,
        /// What is wrong with it.
        why: String,
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

    /// A signature that is not one by the key that made it.
    #[error(
        "{signer} has made a signature that does not fit its public key, and it was thrown away: such a one can give the \
         private key away. It is tried again later; if this is seen again, do not trust this hardware with an identity"
    )]
    WrongSignature {
        /// What made it.
        signer: String,
    },

    /// The password of the factory key cannot be read any more.
    #[error("key_auth under [bootstrap]: {0}")]
    AuthUnreadable(#[from] SecretError),

    /// A public key that is not one.
    #[error("not a usable public key: {why}")]
    BadPublicKey {
        /// What is wrong with it.
        why: &'static str,
    },

    /// A key file that cannot be read.
    #[error("cannot read the key file {path}: {}", access::why_unreadable(path, source))]
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
         needed: with a restart of the agent the device enrolls anew"
    )]
    KekMissing {
        /// Where it should be.
        path: PathBuf,
    },

    /// The file of the key-encryption key is there, and the key is not.
    #[error(
        "the key-encryption key {path} is damaged ({octets} octets), so what was sealed under it cannot be opened any \
         more; a new key is needed: with a restart of the agent the device enrolls anew"
    )]
    KekDamaged {
        /// Where it is.
        path: PathBuf,
        /// What is left of it.
        octets: usize,
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
         LoadCredentialEncrypted=kek in its unit and restart it. If it is lost for good, give another one: the device \
         then enrolls anew"
    )]
    KekCredentialMissing,

    /// The key is sealed under another key-encryption key than the one that is here.
    #[error(
        "the key is sealed under another key-encryption key than {kek}: that one was replaced, or the state comes from \
         another device; a new key is needed: with a restart of the agent the device enrolls anew"
    )]
    ForeignSeal {
        /// The one that is here.
        kek: PathBuf,
    },

    /// The seal of a key is damaged.
    #[error(
        "the seal of the key is damaged, so the key is lost; a new key is needed: with a restart of the agent the device \
         enrolls anew"
    )]
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
            | Self::WrongSignature { .. }
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
            | Self::Deviant { .. }
            | Self::Kek { .. }
            | Self::KekCredentialMissing
            | Self::Internal(_) => ErrorKind::NeedsOperator,
            Self::NotThisTpm { .. }
            | Self::KeyPassword { .. }
            | Self::BadPublicKey { .. }
            | Self::KekMissing { .. }
            | Self::KekDamaged { .. }
            | Self::ForeignSeal { .. }
            | Self::BrokenSeal
            | Self::Unfit { .. }
            | Self::PssSalt { .. } => ErrorKind::KeyUnusable,
            Self::Unreadable { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::AuthTooLong { .. }
            | Self::AuthNotTaken { .. }
            | Self::NvContent { .. }
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
    /// The kernel has the device of this path, and it is not in the agent's `/dev`, or not in its list of devices.
    Hidden(PathBuf),
    /// There is no such device file, and the kernel has a TPM of this path.
    Elsewhere(PathBuf),
    /// The TPM is a TPM 1.2.
    Version1,
    /// The device file is there, and closed to this user: what is wrong with owner, mode or groups, and what to do.
    PermissionDenied(String),
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
            // The unit lets the agent have this one, which was not there when the agent was started.
            Self::Hidden(path) if path == Path::new("/dev/tpmrm0") => f.write_str(
                "the kernel has this device, and the sandbox of the service does not show it, as it appeared after the \
                 start; restart the agent: systemctl restart miaf-agent",
            ),
            Self::Hidden(path) => write!(
                f,
                "the kernel has this device, and the sandbox of the service does not show it; extend the unit: run \
                 systemctl edit miaf-agent, write the three lines \"[Service]\", \"BindPaths=-{path}\" and \
                 \"DeviceAllow={path} rw\", and restart the agent",
                path = path.display()
            ),
            Self::Elsewhere(path) => write!(
                f,
                "there is no such device, and the kernel has {path}; set tcti = \"device:{path}\" under [key]",
                path = path.display()
            ),
            Self::Version1 => f.write_str(
                "there is no such device, and the TPM of this machine is a TPM 1.2; a TPM 2.0 is needed",
            ),
            Self::PermissionDenied(why) => f.write_str(why),
            Self::InUse => f.write_str("another program holds the device; use device:/dev/tpmrm0, which can be shared"),
            Self::Refused => f.write_str("connection refused; start the TPM that should listen there"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Why a key of the TPM cannot identify the device in TLS 1.3 (RFC 8446 section 4.2.3 has the signatures it takes).
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
            Self::StorageKey => {
                "it is a storage key, which encrypts other keys and does not sign; give the handle of the signing key"
            }
            Self::Restricted => {
                "it is restricted, an attestation key (AK, IAK) that signs the TPM's own statements only; use the \
                 device identity key (IDevID)"
            }
            Self::NoSign => "its attributes do not let it sign; use a key made with the attribute sign",
            Self::Policy => {
                "its use is bound to a policy (userWithAuth is clear), which the agent does not support; use a key \
                 made with the attribute userwithauth"
            }
            Self::Kind => "it is neither an ECC nor an RSA key; use one of P-256, P-384 or RSA from 2048 bits",
            Self::Curve => "it lies on another curve than P-256 and P-384; use a key on one of these",
            Self::Hash => {
                "it is bound to a hash that TLS 1.3 does not combine with it; P-256 goes with SHA-256, P-384 with \
                 SHA-384, RSA-PSS with either or SHA-512: use a key made so, or one bound to no scheme"
            }
            Self::Scheme => {
                "it is bound to a signature scheme that TLS 1.3 does not know; use a key made for ECDSA or RSA-PSS, \
                 or one bound to no scheme"
            }
            Self::Pkcs1 => {
                "it is bound to RSASSA-PKCS1-v1_5, which TLS 1.3 does not take; use a key made for RSA-PSS, or one \
                 bound to no scheme"
            }
            Self::RsaSize => "it is an RSA key of less than 2048 bits; use a larger one, or P-256 or P-384",
        })
    }
}

/// A form of key file that is recognised where another one was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyForm {
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
    /// An RSA key of so many bits, which are too few or too many.
    RsaSize(usize),
    /// A PEM block with some other label.
    Other(String),
    /// A private key of an algorithm or an encoding that the agent's TLS library does not take.
    Algorithm,
}

impl fmt::Display for KeyForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherTss2(what) => write!(f, "it is a TSS2 PRIVATE KEY, but {what}"),
            Self::Encrypted => f.write_str(
                "it is an ENCRYPTED PRIVATE KEY, or one with the header Proc-Type: 4,ENCRYPTED, and there is nobody to \
                 ask for its passphrase; remove it with: openssl pkey -in KEY -out NEWKEY",
            ),
            Self::Certificate => f.write_str("it holds a certificate and no private key; give the key's own file"),
            Self::PublicKey => f.write_str("it holds a public key and no private key; give the private key's file"),
            Self::Plain => f.write_str("it is a private key in a file, not a TSS2 PRIVATE KEY of the TPM"),
            Self::Several => f.write_str("it holds more than one private key; leave one"),
            Self::RsaSize(bits) => write!(
                f,
                "it is an RSA key of {bits} bits, and the agent takes 2048 to 4096; use one of these, or ECDSA P-256 or \
                 P-384"
            ),
            Self::Other(label) if label == "OPENSSH PRIVATE KEY" => f.write_str(
                "it is an OPENSSH PRIVATE KEY, which only OpenSSH reads; convert a copy of it with: ssh-keygen -p -N '' \
                 -m PKCS8 -f KEY",
            ),
            Self::Other(label) if label.ends_with("PRIVATE KEY") => write!(
                f,
                "it is a private key of a form that is not read, {label}; write it as PKCS#8 with: openssl pkey -in KEY \
                 -out NEWKEY"
            ),
            Self::Other(label) => write!(f, "it holds a PEM block {label:?} and no private key"),
            Self::Algorithm => f.write_str(
                "its algorithm or encoding is not supported, or it is damaged (openssl pkey -noout -check -text -in KEY tells); \
                 supported are ECDSA P-256 and P-384, RSA from 2048 bits and Ed25519, in PKCS#8 or, for ECDSA and RSA, \
                 SEC1 and PKCS#1",
            ),
        }
    }
}
