//! Errors of keys. Each provider has a type of its own ([`TpmError`], [`SoftwareError`]), and so
//! have the texts and files that keys are read from ([`KeyFileError`]); [`KeyError`] is any of
//! them.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use super::software::SoftwareError;
use super::tpm::TpmError;
use crate::hint::{Hint, Reason};
use miaf_client::api::Protection;
use miaf_spiffe::pem::PemError;

/// The end of a hint about a key that is gone for good.
pub(super) const REPLACE: &str = "replace the key with: miaf-agent retry --new-key";

/// Why a key could not be created, read or used. It never holds key material.
///
/// Displays what failed, on what, and why; [`hint`](Hint::hint) says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyError {
    /// Of the TPM and its keys.
    Tpm(TpmError),
    /// Of software keys.
    Software(SoftwareError),
    /// Of a text or a file with a key.
    File(KeyFileError),
    /// A signature that does not fit the public key of what made it.
    WrongSignature {
        /// What made it.
        signer: String,
    },
    /// A public key that is not one.
    BadPublicKey {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A key of another algorithm than the one that this operation takes.
    NotP256 {
        /// Its algorithm, as the status shows it.
        algorithm: &'static str,
    },
    /// A key with less protection than the configuration demands (`key.require`).
    TooWeak {
        /// The protection that it has.
        protection: Protection,
    },
    /// A violated invariant.
    Internal(String),
}

/// What a [`KeyError`] means for the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The provider cannot be used now. The key is as good as ever: retry later.
    Unavailable,
    /// The provider works but refuses this until something is changed. The key may still be good:
    /// keep it.
    NeedsOperator,
    /// This key will never work on this device: a new one is needed.
    KeyUnusable,
    /// What was passed in (a file, a PEM, a setting) is not what it should be.
    BadInput,
}

impl KeyError {
    /// What the failure means for the key and its caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tpm(error) => error.kind(),
            Self::Software(error) => error.kind(),
            Self::File(_) => ErrorKind::BadInput,
            Self::WrongSignature { .. } => ErrorKind::Unavailable,
            Self::BadPublicKey { .. } => ErrorKind::KeyUnusable,
            Self::NotP256 { .. } => ErrorKind::BadInput,
            Self::TooWeak { .. } | Self::Internal(_) => ErrorKind::NeedsOperator,
        }
    }

    /// Whether the key, sound as it is, has too little protection or too few bits.
    #[must_use]
    pub fn is_too_weak(&self) -> bool {
        match self {
            Self::TooWeak { .. } => true,
            Self::File(KeyFileError::Unsupported { form: KeyForm::RsaSize { bits, least }, .. }) => {
                bits < least
            }
            _ => false,
        }
    }

    /// Whether the key is lost, unless what it depends on is restored: its TPM, the parent that it
    /// was created under, or what it is sealed with. Such a key may be replaced when the operator
    /// says so.
    #[must_use]
    pub fn is_of_a_lost_key(&self) -> bool {
        match self {
            Self::Tpm(error) if error.is_of_a_lost_parent() => true,
            _ => self.kind() == ErrorKind::KeyUnusable,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tpm(error) => error.fmt(f),
            Self::Software(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
            Self::WrongSignature { signer } => write!(
                f,
                "{signer} has made a signature that does not fit its public key. It was discarded, since it could reveal \
                 the private key"
            ),
            Self::BadPublicKey { why } => write!(f, "not a usable public key: {why}"),
            Self::NotP256 { algorithm } => write!(
                f,
                "the key of this identity is {algorithm}, and only keys on P-256 sign by ES256 (ECDSA on P-256 with SHA-256)"
            ),
            Self::TooWeak { protection } => write!(
                f,
                "the key of this identity is protected by \"{protection}\", and key.require = \"tpm\" demands \"hardware\""
            ),
            Self::Internal(what) => write!(f, "internal error: {what}"),
        }
    }
}

impl Hint for KeyError {
    /// `None` where the agent recovers without help, or nothing is known to help.
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Tpm(error) => error.hint(),
            Self::Software(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::WrongSignature { .. } => Some("Replace the hardware if this is seen again".into()),
            Self::NotP256 { .. } => Some(
                "Take the key from the files of the identity, or have an SVID installed for a key on P-256"
                    .into(),
            ),
            Self::TooWeak { .. } => {
                Some("Set provider = \"tpm\" for this identity, or remove require under [key]".into())
            }
            Self::BadPublicKey { .. } | Self::Internal(_) => None,
        }
    }
}

impl std::error::Error for KeyError {}

impl From<TpmError> for KeyError {
    fn from(error: TpmError) -> Self {
        Self::Tpm(error)
    }
}

impl From<SoftwareError> for KeyError {
    fn from(error: SoftwareError) -> Self {
        Self::Software(error)
    }
}

impl From<KeyFileError> for KeyError {
    fn from(error: KeyFileError) -> Self {
        Self::File(error)
    }
}

/// Why a text or a file does not give a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// A file that cannot be read.
    #[error("cannot read the key file {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: Reason,
    },
    /// A text that is damaged, or no key at all.
    #[error("{origin} is damaged or not a key: {why}")]
    Malformed {
        /// Where it came from, such as `the key file /etc/…`.
        origin: String,
        /// What is wrong with it, and what to do.
        why: Reason,
    },
    /// A file in DER.
    #[error("{origin} is binary (DER or PKCS #12) and not PEM")]
    Binary {
        /// Where it came from.
        origin: String,
    },
    /// A key of a form that is known and not accepted here.
    #[error("{origin} cannot be used: {form}")]
    Unsupported {
        /// Where it came from.
        origin: String,
        /// What it is instead.
        form: KeyForm,
    },
    /// A password is configured for a factory key in a plain file.
    #[error("{origin} takes no password, as only keys in the TPM do")]
    AuthNotTaken {
        /// Which key.
        origin: String,
    },
}

impl KeyFileError {
    pub(super) fn malformed(origin: &str, why: impl Into<Reason>) -> KeyError {
        Self::Malformed { origin: origin.into(), why: why.into() }.into()
    }

    /// A text that is not sound PEM.
    pub(super) fn not_pem(origin: &str, why: &PemError) -> KeyError {
        Self::Malformed { origin: origin.into(), why: Reason::of(why) }.into()
    }

    pub(super) fn unsupported(origin: &str, form: KeyForm) -> KeyError {
        Self::Unsupported { origin: origin.into(), form }.into()
    }
}

impl Hint for KeyFileError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Unreadable { why, .. } | Self::Malformed { why, .. } => why.hint(),
            Self::Binary { .. } => Some(
                "Convert it with: openssl pkey -inform DER -in FILE -out NEWFILE (a PKCS #12, .p12 or .pfx, with: openssl \
                 pkcs12 -nocerts -nodes -in FILE -out NEWFILE)"
                    .into(),
            ),
            Self::Unsupported { form, .. } => form.hint(),
            Self::AuthNotTaken { .. } => {
                Some("Remove key_auth under [bootstrap], or set key to the key that it belongs to".into())
            }
        }
    }
}

/// The error with the name of what it is about.
pub(super) fn named(error: KeyError, origin: &str) -> KeyError {
    match error {
        KeyError::File(KeyFileError::Malformed { why, .. }) => KeyFileError::malformed(origin, why),
        KeyError::File(KeyFileError::Unsupported { form, .. }) => KeyFileError::unsupported(origin, form),
        other => other,
    }
}

/// A form of key file that is recognised where another one was expected.
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
    /// A `TSS2 PRIVATE KEY` of the TPM, where a plain one is to be brought in.
    InTpm,
    /// An RSA key of too few bits or too many.
    RsaSize {
        /// Bits that it has.
        bits: usize,
        /// Bits that are needed.
        least: usize,
    },
    /// A PEM block with some other label.
    Other(String),
    /// A private key of an algorithm or an encoding that the agent's TLS library does not take.
    Algorithm,
    /// A private key of another algorithm than installed keys have, or in another encoding.
    InstalledAlgorithm,
}

impl fmt::Display for KeyForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherTss2(what) => write!(f, "it is a TSS2 PRIVATE KEY, but {what}"),
            Self::Encrypted => f.write_str(
                "it is an ENCRYPTED PRIVATE KEY, or one with the header Proc-Type: 4,ENCRYPTED, and the agent has no way to \
                 ask for its passphrase",
            ),
            Self::Certificate => f.write_str("it holds a certificate and no private key"),
            Self::PublicKey => f.write_str("it holds a public key and no private key"),
            Self::Plain => f.write_str("it is a private key in a file, not a TSS2 PRIVATE KEY of the TPM"),
            Self::Several => f.write_str("it holds more than one private key"),
            Self::InTpm => f.write_str("it is a TSS2 PRIVATE KEY of the TPM, which cannot be brought in"),
            Self::RsaSize { bits, least } => {
                write!(f, "it is an RSA key of {bits} bits, and {least} to 4096 are supported")
            }
            Self::Other(label) if label == OPENSSH => {
                f.write_str("it is an OPENSSH PRIVATE KEY, which only OpenSSH reads")
            }
            Self::Other(label) if label.ends_with("PRIVATE KEY") => {
                write!(f, "it is a private key of a form that is not read, {label}")
            }
            Self::Other(label) => write!(f, "it holds a PEM block {label:?} and no private key"),
            Self::Algorithm | Self::InstalledAlgorithm => {
                f.write_str("its algorithm or encoding is not supported, or it is damaged")
            }
        }
    }
}

const OPENSSH: &str = "OPENSSH PRIVATE KEY";

impl Hint for KeyForm {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::OtherTss2(_) | Self::Plain => return None,
            Self::Encrypted => "Remove the passphrase with: openssl pkey -in KEY -out NEWKEY",
            Self::Certificate | Self::PublicKey => "Give the file of the private key",
            Self::Several => "Leave one private key in the file",
            Self::InTpm => {
                "Give a private key in PKCS#8; for a key in the TPM, set enroll = \"manual\" and provider = \"tpm\" for this \
                 identity, and the agent creates one"
            }
            Self::RsaSize { least, .. } => {
                let hint = format!("Use an RSA key of {least} to 4096 bits, or ECDSA on P-256 or P-384");
                return Some(hint.into());
            }
            Self::Other(label) if label == OPENSSH => {
                "Convert a copy of it with: ssh-keygen -p -N '' -m PKCS8 -f KEY"
            }
            Self::Other(label) if label.ends_with("PRIVATE KEY") => {
                "Write it as PKCS#8 with: openssl pkey -in KEY -out NEWKEY"
            }
            Self::Other(_) => "Give the file of the private key",
            Self::Algorithm => {
                "Use a key on P-256 or P-384, RSA from 2048 bits, or Ed25519, in PKCS#8 or, for ECDSA and RSA, SEC1 and \
                 PKCS#1 (to see what it is: openssl pkey -noout -check -text -in KEY)"
            }
            Self::InstalledAlgorithm => {
                "Use a key on P-256 or P-384, RSA of 3072 to 4096 bits, or Ed25519 (to see what it is: openssl pkey -noout \
                 -check -text -in KEY). Write one of these anew with: openssl pkey -in KEY -out NEWKEY"
            }
        };
        Some(hint.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;
    use crate::keys::tpm::{NvLock, ParentFlaw, Subject, Unfit, UnreachableCause};
    use crate::platform::credentials::SecretError;

    fn tcti() -> String {
        "device:/dev/tpmrm0".into()
    }

    #[test]
    fn lost_key_has_one_remedy_which_replaces_it() {
        let handle = 0x8100_0001;
        let lost: Vec<KeyError> = vec![
            TpmError::NotThisTpm { tcti: tcti(), code: 0x1df, key: Subject::AgentKey }.into(),
            TpmError::ParentMissing { tcti: tcti(), handle, key: Subject::AgentKey }.into(),
            TpmError::ParentReplaced { tcti: tcti(), handle }.into(),
            SoftwareError::KekMissing { path: "/kek".into() }.into(),
            SoftwareError::KekDamaged { path: "/kek".into(), length: 3 }.into(),
            SoftwareError::ForeignSeal { kek: "/kek".into() }.into(),
            SoftwareError::BrokenSeal.into(),
        ];
        for error in lost {
            let (text, hint) = (error.to_string(), error.hint().unwrap());
            assert!(error.is_of_a_lost_key(), "{text}");
            assert!(hint.ends_with("eplace the key with: miaf-agent retry --new-key"), "{hint}");
            assert_eq!(error.with_hint().to_string(), format!("{text}. {hint}"));
            assert!(!text.contains("miaf-agent") && !text.contains("restart"), "{text}");
            assert_apart(&error);
        }
    }

    #[test]
    fn key_that_may_still_work_is_not_lost() {
        let handle = 0x8100_0001;
        let kept: Vec<KeyError> = vec![
            TpmError::Lockout { tcti: tcti() }.into(),
            TpmError::ParentMissing { tcti: tcti(), handle, key: Subject::NewKey }.into(),
            TpmError::ParentMissing { tcti: tcti(), handle, key: Subject::External("it".into()) }.into(),
            TpmError::ParentUnfit { tcti: tcti(), handle, why: ParentFlaw::Weak }.into(),
            SoftwareError::CredentialMissing.into(),
            SoftwareError::KekExposed { path: "/kek".into(), mode: 0o640 }.into(),
            KeyError::Internal("x".into()),
        ];
        for error in kept {
            assert!(!error.is_of_a_lost_key(), "{error}");
            assert!(!error.with_hint().to_string().contains("--new-key"), "{error}");
            assert_apart(&error);
        }
    }

    #[test]
    fn weak_key_is_told_from_one_of_another_form() {
        let rsa = |bits| KeyFileError::unsupported("it", KeyForm::RsaSize { bits, least: 3072 });
        assert!(rsa(2048).is_too_weak());
        assert!(KeyError::TooWeak { protection: Protection::SoftwareBasic }.is_too_weak());
        assert!(!rsa(8192).is_too_weak());
        assert!(!KeyFileError::unsupported("it", KeyForm::Encrypted).is_too_weak());
        assert!(!KeyError::from(SoftwareError::BrokenSeal).is_too_weak());
    }

    #[test]
    fn hint_is_imperative_and_apart_from_the_message() {
        let handle = 0x8100_0001;
        let secret = || SecretError { what: "/auth".into(), why: denied() };
        let unreachable = |cause| TpmError::Unreachable { tcti: tcti(), cause };
        let nv = |why| TpmError::NvLocked { tcti: tcti(), index: 1, why };
        let unfit = |why| TpmError::Unfit { origin: "it".into(), why };
        let external = || Subject::External("it".into());
        let instead = String::new;
        let mut errors: Vec<KeyError> = vec![
            unreachable(UnreachableCause::Missing).into(),
            unreachable(UnreachableCause::Hidden("/dev/tpmrm0".into())).into(),
            unreachable(UnreachableCause::Hidden("/dev/tpm1".into())).into(),
            unreachable(UnreachableCause::OtherDevice("/dev/tpm1".into())).into(),
            unreachable(UnreachableCause::Version1).into(),
            unreachable(UnreachableCause::PermissionDenied(denied())).into(),
            unreachable(UnreachableCause::InUse).into(),
            unreachable(UnreachableCause::Refused).into(),
            unreachable(UnreachableCause::NoResourceManager).into(),
            unreachable(UnreachableCause::NoTpm { code: 1, library: "libtss2" }).into(),
            unreachable(UnreachableCause::Other(denied())).into(),
            TpmError::NoAnswer { tcti: tcti(), after: std::time::Duration::from_secs(1) }.into(),
            TpmError::SlotsFull { tcti: tcti(), code: 0x902 }.into(),
            TpmError::Lockout { tcti: tcti() }.into(),
            TpmError::OwnerPassword { tcti: tcti(), code: 1, instead: instead() }.into(),
            TpmError::OwnerAuthRefused { tcti: tcti(), code: 1, instead: instead() }.into(),
            TpmError::OwnerAuthUnreadable { why: "it is empty".into(), instead: instead() }.into(),
            TpmError::OwnerAuthUnreadable { why: denied(), instead: instead() }.into(),
            TpmError::HierarchyDisabled { tcti: tcti(), code: 1, instead: instead() }.into(),
            TpmError::ParentMissing { tcti: tcti(), handle, key: Subject::NewKey }.into(),
            TpmError::ParentMissing { tcti: tcti(), handle, key: external() }.into(),
            TpmError::ParentPassword { tcti: tcti(), code: 1, key: Subject::AgentKey }.into(),
            TpmError::ParentPassword { tcti: tcti(), code: 1, key: external() }.into(),
            TpmError::NotThisTpm { tcti: tcti(), code: 1, key: external() }.into(),
            TpmError::KeyPassword { tcti: tcti(), code: 1 }.into(),
            TpmError::HandleMissing { tcti: tcti(), handle }.into(),
            TpmError::AuthMissing { origin: "it".into() }.into(),
            TpmError::AuthRefused { tcti: tcti(), origin: "it".into(), code: 1 }.into(),
            TpmError::AuthTooLong { length: 65, taker: "a key".into(), limit: 64 }.into(),
            TpmError::AuthUnreadable(secret()).into(),
            TpmError::PssSalt { tcti: tcti(), origin: "it".into() }.into(),
            TpmError::NvMissing { tcti: tcti(), index: 1 }.into(),
            TpmError::NvUnwritten { tcti: tcti(), index: 1 }.into(),
            TpmError::Deviant { tcti: tcti(), why: "x".into() }.into(),
            TpmError::BadTcti { given: "x".into(), why: "it names no kind" }.into(),
            SoftwareError::CredentialTooShort { path: "/kek".into(), length: 3 }.into(),
            SoftwareError::KekUnreadable { path: "/kek".into(), why: denied() }.into(),
            SoftwareError::KekNotCreated { path: "/kek".into(), why: denied() }.into(),
            KeyFileError::Unreadable { path: "/key".into(), why: denied() }.into(),
            KeyFileError::Binary { origin: "it".into() }.into(),
            KeyFileError::AuthNotTaken { origin: "it".into() }.into(),
            KeyFileError::not_pem("it", &miaf_spiffe::pem::read(b"-----BEGIN A-----").unwrap_err()),
            KeyError::WrongSignature { signer: "it".into() },
            KeyError::NotP256 { algorithm: "ecdsa-p384" },
            KeyError::TooWeak { protection: Protection::SoftwareIsolated },
        ];
        let locks =
            [NvLock::Password, NvLock::OwnerPassword, NvLock::Policy, NvLock::Platform, NvLock::UntilRestart];
        errors.extend(locks.into_iter().map(|lock| nv(lock).into()));
        let flaws = [Unfit::StorageKey, Unfit::Restricted, Unfit::Hash, Unfit::Scheme, Unfit::Pkcs1];
        errors.extend(flaws.into_iter().map(|flaw| unfit(flaw).into()));
        let flaws = [ParentFlaw::Kind, ParentFlaw::Policy, ParentFlaw::NotExempt, ParentFlaw::NotBound];
        let of_parent = |why| TpmError::ParentUnfit { tcti: tcti(), handle, why }.into();
        errors.extend(flaws.into_iter().map(of_parent));
        let forms = [
            KeyForm::Encrypted,
            KeyForm::Certificate,
            KeyForm::PublicKey,
            KeyForm::Several,
            KeyForm::InTpm,
            KeyForm::RsaSize { bits: 1024, least: 2048 },
            KeyForm::Other(OPENSSH.into()),
            KeyForm::Other("DSA PRIVATE KEY".into()),
            KeyForm::Other("X".into()),
            KeyForm::Algorithm,
            KeyForm::InstalledAlgorithm,
        ];
        errors.extend(forms.into_iter().map(|form| KeyFileError::unsupported("it", form)));
        for error in errors {
            assert_apart(&error);
            assert!(error.hint().is_some(), "{error}");
        }
        let another = TpmError::SlotsFull { tcti: "device:/dev/tpm0".into(), code: 0x902 };
        assert!(another.hint().unwrap().contains("/dev/tpmrm0"));
    }

    fn denied() -> Reason {
        Reason::from("permission denied").with_hint_text("Let it in: chmod u+r /it")
    }

    #[test]
    fn error_of_a_secret_keeps_the_hint_that_says_more() {
        let hint = |why: Reason| {
            let error = TpmError::OwnerAuthUnreadable { why, instead: String::new() };
            error.hint().unwrap().into_owned()
        };
        assert_eq!(hint(denied()), "Let it in: chmod u+r /it");
        assert!(hint("it is empty".into()).starts_with("Correct owner_auth"));
    }
}
