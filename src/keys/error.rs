//! Errors of keys. Each provider has a type of its own ([`TpmError`], [`SoftwareError`]), and so
//! have the texts and files that keys are read from ([`KeyFileError`]); [`KeyError`] is any of
//! them.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::software::SoftwareError;
use super::tpm::TpmError;
use crate::platform::access;

/// What to do about an error: one imperative sentence without its full stop.
pub type Hint = Cow<'static, str>;

/// The end of a hint about a key that is gone for good.
pub(super) const REPLACE: &str = "replace the key with: miaf-agent retry --new-key";

/// Why a key could not be created, read or used. It never holds key material.
///
/// [`detail`](Self::detail) says what failed, on what, and why; [`hint`](Self::hint) what to do.
/// Displayed, it is the one and then the other.
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
            Self::Internal(_) => ErrorKind::NeedsOperator,
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

    /// What failed, on what, and why.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Tpm(error) => error.to_string(),
            Self::Software(error) => error.to_string(),
            Self::File(error) => error.to_string(),
            Self::WrongSignature { signer } => format!(
                "{signer} has made a signature that does not fit its public key. It was discarded, since it could reveal \
                 the private key"
            ),
            Self::BadPublicKey { why } => format!("not a usable public key: {why}"),
            Self::Internal(what) => format!("internal error: {what}"),
        }
    }

    /// What to do. `None` where the agent recovers without help, or nothing is known to help.
    #[must_use]
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Tpm(error) => error.hint(),
            Self::Software(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::WrongSignature { .. } => Some("Replace the hardware if this is seen again".into()),
            Self::BadPublicKey { .. } | Self::Internal(_) => None,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_hint(f, &self.detail(), self.hint())
    }
}

impl std::error::Error for KeyError {}

/// An error and what to do about it, in one line.
pub(super) fn write_with_hint(
    f: &mut fmt::Formatter<'_>,
    detail: &dyn fmt::Display,
    hint: Option<Hint>,
) -> fmt::Result {
    match hint {
        Some(hint) => write!(f, "{detail}. {hint}"),
        None => write!(f, "{detail}"),
    }
}

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
    #[error("cannot read the key file {path}: {}", access::why_unreadable(path, why))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// A text that is damaged, or no key at all.
    #[error("{origin} is damaged or not a key: {why}")]
    Malformed {
        /// Where it came from, such as `the key file /etc/…`.
        origin: String,
        /// What is wrong with it.
        why: String,
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
    pub(super) fn malformed(origin: &str, why: impl Into<String>) -> KeyError {
        Self::Malformed { origin: origin.into(), why: why.into() }.into()
    }

    pub(super) fn unsupported(origin: &str, form: KeyForm) -> KeyError {
        Self::Unsupported { origin: origin.into(), form }.into()
    }

    /// What to do, as [`KeyError::hint`].
    #[must_use]
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Unreadable { .. } | Self::Malformed { .. } => None, // `why` says it
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
                "it is an ENCRYPTED PRIVATE KEY, or one with the header Proc-Type: 4,ENCRYPTED, and the agent has no way to \
                 ask for its passphrase",
            ),
            Self::Certificate => f.write_str("it holds a certificate and no private key"),
            Self::PublicKey => f.write_str("it holds a public key and no private key"),
            Self::Plain => f.write_str("it is a private key in a file, not a TSS2 PRIVATE KEY of the TPM"),
            Self::Several => f.write_str("it holds more than one private key"),
            Self::RsaSize(bits) => {
                write!(f, "it is an RSA key of {bits} bits, and 2048 to 4096 are supported")
            }
            Self::Other(label) if label == OPENSSH => {
                f.write_str("it is an OPENSSH PRIVATE KEY, which only OpenSSH reads")
            }
            Self::Other(label) if label.ends_with("PRIVATE KEY") => {
                write!(f, "it is a private key of a form that is not read, {label}")
            }
            Self::Other(label) => write!(f, "it holds a PEM block {label:?} and no private key"),
            Self::Algorithm => f.write_str(
                "its algorithm or encoding is not supported, or it is damaged (openssl pkey -noout -check -text -in KEY \
                 tells)",
            ),
        }
    }
}

const OPENSSH: &str = "OPENSSH PRIVATE KEY";

impl KeyForm {
    /// What to do, as [`KeyError::hint`].
    #[must_use]
    pub fn hint(&self) -> Option<Hint> {
        let hint = match self {
            Self::OtherTss2(_) | Self::Plain => return None,
            Self::Encrypted => "Remove the passphrase with: openssl pkey -in KEY -out NEWKEY",
            Self::Certificate | Self::PublicKey => "Give the file of the private key",
            Self::Several => "Leave one private key in the file",
            Self::RsaSize(_) => "Use an RSA key of 2048 to 4096 bits, or ECDSA on P-256 or P-384",
            Self::Other(label) if label == OPENSSH => {
                "Convert a copy of it with: ssh-keygen -p -N '' -m PKCS8 -f KEY"
            }
            Self::Other(label) if label.ends_with("PRIVATE KEY") => {
                "Write it as PKCS#8 with: openssl pkey -in KEY -out NEWKEY"
            }
            Self::Other(_) => "Give the file of the private key",
            Self::Algorithm => {
                "Use a key on P-256 or P-384, RSA from 2048 bits, or Ed25519, in PKCS#8 or, for ECDSA and RSA, SEC1 and \
                 PKCS#1"
            }
        };
        Some(hint.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tpm::{ParentFlaw, Subject, Unfit, UnreachableCause};

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
            assert_eq!(text, format!("{}. {hint}", error.detail()));
            assert!(!error.detail().contains("miaf-agent") && !text.contains("restart"), "{text}");
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
            assert!(!error.to_string().contains("--new-key"), "{error}");
        }
    }

    #[test]
    fn hint_is_imperative_and_apart_from_the_detail() {
        let errors: Vec<KeyError> = vec![
            TpmError::Unreachable { tcti: tcti(), cause: UnreachableCause::Missing }.into(),
            TpmError::SlotsFull { tcti: tcti(), code: 0x902 }.into(),
            TpmError::Unfit { origin: "it".into(), why: Unfit::Curve }.into(),
            KeyFileError::unsupported("it", KeyForm::Encrypted),
            KeyFileError::unsupported("it", KeyForm::Other("OPENSSH PRIVATE KEY".into())),
        ];
        for error in errors {
            let (detail, hint) = (error.detail(), error.hint().unwrap());
            assert!(hint.starts_with(char::is_uppercase) && !hint.ends_with('.'), "{hint}");
            assert!(!detail.ends_with('.') && !detail.contains(&*hint), "{detail}");
        }
        let another = TpmError::SlotsFull { tcti: "device:/dev/tpm0".into(), code: 0x902 };
        assert!(another.hint().unwrap().contains("/dev/tpmrm0"));
    }
}
