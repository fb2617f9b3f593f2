//! Every reason why a chain or an SVID is not accepted.

use std::borrow::Cow;

use rustls_pki_types::UnixTime;

use crate::algorithms::{Algorithms, MIN_RSA_BITS};
use crate::chain::MAX_CHAIN;
use crate::id::{NameKind, SpiffeId, SpiffeIdError, TrustDomain, name_in_words};
use crate::text::Excerpt;
use crate::time::Timestamp;

/// Why an SVID is not accepted. The current one stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// No certificate at all.
    #[error("the chain has no certificate")]
    EmptyChain,
    /// More certificates than are allowed.
    #[error("the chain has {0} certificates, more than the {MAX_CHAIN} that are allowed")]
    LongChain(usize),
    /// An element that is not exactly one PEM certificate (miaf-v0 E3).
    #[error("element {index} of the chain is not exactly one PEM certificate: {why}")]
    NotPem {
        /// Position in the chain, from 0.
        index: usize,
        /// What it is.
        why: String,
    },
    /// An element that is PEM, and not of a certificate in DER.
    #[error("element {index} of the chain is PEM, but what is in it is not an X.509 certificate in DER")]
    Malformed {
        /// Position in the chain, from 0.
        index: usize,
    },
    /// A serial number that is negative, or longer than 20 bytes.
    #[error("certificate {index} of the chain cannot be read by all programs: {why}")]
    Serial {
        /// Position in the chain, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// X.509 version 1 or 2.
    #[error("the certificate is not X.509 version 3")]
    Version,
    /// An extension that matters is damaged or there twice.
    #[error("an extension of the certificate cannot be read, or is there twice")]
    Extension,
    /// Issued for another key than that of the request.
    #[error("the certificate is for another public key than the one in the request")]
    OtherKey,
    /// The serial number of the current SVID, given by its issuer once more.
    #[error(
        "the new certificate has the serial number {serial} of the SVID that it is to replace, and an \
         issuer must not give one twice (RFC 5280, section 4.1.2.2)"
    )]
    SerialInUse {
        /// The serial number, shortened.
        serial: String,
    },
    /// `cA` is true.
    #[error("the certificate is a certificate authority (basicConstraints cA is true), not an SVID")]
    CertificateAuthority,
    /// No key usage.
    #[error("the certificate has no keyUsage extension")]
    NoKeyUsage,
    /// Key usage that a verifier may ignore.
    #[error("the keyUsage extension of the certificate is not marked critical")]
    KeyUsageNotCritical,
    /// Cannot sign a handshake.
    #[error("the keyUsage of the certificate lacks digitalSignature")]
    NoDigitalSignature,
    /// Could sign certificates or CRLs.
    #[error("the keyUsage of the certificate allows keyCertSign or cRLSign, which an SVID must not")]
    MaySignCertificates,
    /// Extended key usage without `serverAuth`.
    #[error("the extended key usage of the certificate lacks serverAuth")]
    NoServerAuth,
    /// Extended key usage without `clientAuth`.
    #[error("the extended key usage of the certificate lacks clientAuth")]
    NoClientAuth,
    /// None, or several.
    #[error("the certificate has {0} URI names where an SVID has exactly one")]
    UriCount(usize),
    /// The one URI is not a SPIFFE ID.
    #[error("the certificate names \"{uri}\", which is not a SPIFFE ID: {why}")]
    NotASpiffeId {
        /// What was found, shortened.
        uri: String,
        /// The rule it breaks.
        why: SpiffeIdError,
    },
    /// A name that a verifier may overlook, where there is no other.
    #[error("the certificate has no subject, and its names (subjectAltName) are not marked critical")]
    NamesNotCritical,
    /// A name of another domain.
    #[error("the certificate names {got}, which is not in the trust domain \"{want}\"")]
    OtherTrustDomain {
        /// What was found.
        got: SpiffeId,
        /// What the discovery document says.
        want: TrustDomain,
    },
    /// A name of another kind than the way of this identity's enrollment gives (margo-now N2).
    #[error("the certificate names {got}, which is {}, but this identity is {want}", name_in_words(.got))]
    OtherKindOfName {
        /// What was found.
        got: SpiffeId,
        /// The kind of this identity's name.
        want: NameKind,
    },
    /// A client of another WFM than the configured one (miaf-v0 W4).
    #[error("the certificate names {got}, which is not a WFM Client of {want}")]
    OtherWfm {
        /// What was found.
        got: SpiffeId,
        /// The SPIFFE ID of the WFM.
        want: SpiffeId,
    },
    /// Another identity than the current one, or than the configured one.
    #[error("the new certificate names {got}, but this identity is {want}")]
    OtherIdentity {
        /// What was found.
        got: SpiffeId,
        /// The current or configured identity.
        want: SpiffeId,
    },
    /// `notAfter` not later than `notBefore`.
    #[error("the certificate is valid for no time at all ({not_before} to {not_after})")]
    EmptyValidity {
        /// First moment.
        not_before: Timestamp,
        /// Last moment.
        not_after: Timestamp,
    },
    /// Expired.
    #[error("the certificate expired at {not_after}, and it is {now} here")]
    Expired {
        /// Last moment of validity.
        not_after: Timestamp,
        /// The device's clock.
        now: Timestamp,
    },
    /// An intermediate that has expired.
    #[error("an issuer of the chain expired at {not_after}, and it is {now} here")]
    IssuerExpired {
        /// Last moment of its validity.
        not_after: Timestamp,
        /// The device's clock.
        now: Timestamp,
    },
    /// Later than a little clock difference explains, be it the leaf or an intermediate.
    #[error("the chain is valid only from {not_before}, and it is {now} here")]
    FarFuture {
        /// First moment of validity.
        not_before: Timestamp,
        /// The device's clock.
        now: Timestamp,
    },
    /// Sound, but early: to be validated again at `not_before`.
    #[error("the certificate becomes valid at {not_before}")]
    NotYetValid {
        /// First moment of validity.
        not_before: Timestamp,
    },
    /// No path to an anchor of the bundle.
    #[error("the certificate does not chain to an anchor of the trust bundle")]
    UnknownIssuer,
    /// A signature or key of another algorithm than these.
    #[error("a signature or key of the chain is {0}")]
    Algorithm(Algorithms),
    /// An RSA key under 3072 bits.
    #[error("the chain has an RSA key of {0} bits; at least {MIN_RSA_BITS} are required")]
    WeakRsa(usize),
    /// An intermediate whose key usage forbids it to issue.
    #[error("an issuer of the chain may not sign certificates (its keyUsage lacks keyCertSign)")]
    IssuerMayNotSign,
    /// An issuer, or the anchor itself, that is an end entity.
    #[error("an issuer of the chain is no certificate authority (its basicConstraints lack cA)")]
    IssuerIsNoAuthority,
    /// An intermediate that is limited to other purposes.
    #[error("an issuer of the chain may not issue for this purpose (its extended key usage)")]
    IssuerPurpose,
    /// More intermediates than an issuer allows.
    #[error("the chain is longer than one of its issuers allows (pathLenConstraint)")]
    PathTooLong,
    /// Everything else that path validation finds (RFC 5280 section 6).
    #[error("the chain does not validate: {}", in_words(.0))]
    Path(webpki::Error),
}

impl SvidError {
    /// What to do, as an imperative without a full stop at its end. `None`: the message says whose
    /// fault it is, and nothing else is known to help.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::SerialInUse { .. } => {
                Some("Have the operator of the MIS correct how it numbers certificates")
            }
            Self::FarFuture { .. } => Some("Compare the clock of this device with that of the MIS"),
            _ => None,
        }
    }

    /// Whether a newer bundle could lead to another result: path validation reports the most
    /// telling of several errors, so an unknown issuer may hide behind another one (miaf-v0 E4: the
    /// bundle is fetched once more).
    pub fn depends_on_bundle(&self) -> bool {
        matches!(
            self,
            Self::UnknownIssuer
                | Self::Algorithm(_)
                | Self::WeakRsa(_)
                | Self::IssuerMayNotSign
                | Self::IssuerIsNoAuthority
                | Self::IssuerPurpose
                | Self::PathTooLong
                | Self::IssuerExpired { .. }
                | Self::Path(_)
        )
    }
}

/// Describes an error of webpki, which displays as the name of its variant with all that it
/// carries.
fn in_words(error: &webpki::Error) -> Cow<'static, str> {
    use webpki::Error as E;
    let words = match error {
        E::BadDer
        | E::BadDerTime
        | E::TrailingData(_)
        | E::MalformedExtensions
        | E::ExtensionValueInvalid => "a part of a certificate cannot be decoded",
        E::InvalidCertValidity => "a certificate ends before it begins",
        E::InvalidSerialNumber => "a serial number cannot be read",
        E::MalformedDnsIdentifier => "a DNS name of a certificate cannot be read",
        E::MalformedNameConstraint | E::InvalidNetworkMaskConstraint | E::UnsupportedNameType => {
            "the name constraints of an issuer cannot be read"
        }
        E::NameConstraintViolation => "an issuer may not issue for this name (its name constraints)",
        E::SignatureAlgorithmMismatch => "a certificate names two different signature algorithms",
        E::UnsupportedCertVersion => "an issuer is not X.509 version 3",
        E::UnsupportedCriticalExtension => "a critical extension of a certificate is not known",
        E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => "there are too many ways from it to an anchor",
        other => return Cow::Owned(Excerpt::of(format_args!("{other:?}"), 64).into()),
    };
    Cow::Borrowed(words)
}

impl SvidError {
    /// The error of a path that webpki refuses under these algorithms.
    pub(crate) fn of_path(e: webpki::Error, algorithms: Algorithms) -> Self {
        use webpki::Error as E;
        let moment = |t: UnixTime| Timestamp::from_secs(i64::try_from(t.as_secs()).unwrap_or(i64::MAX));
        match e {
            // A CA that changed its key and kept its name shows as a bad signature, or, where it
            // went from one kind of key to another, as a signature that does not fit the key.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            E::UnsupportedSignatureAlgorithmForPublicKeyContext(c)
                if is_of_another_key(&c.signature_algorithm_id, &c.public_key_algorithm_id, algorithms) =>
            {
                Self::UnknownIssuer
            }
            E::UnsupportedSignatureAlgorithmContext(_)
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::Algorithm(algorithms),
            // Of intermediates: the leaf's own validity is checked first.
            E::CertExpired { time, not_after } => {
                Self::IssuerExpired { not_after: moment(not_after), now: moment(time) }
            }
            E::CertNotValidYet { time, not_before } => {
                Self::FarFuture { not_before: moment(not_before), now: moment(time) }
            }
            // Of issuers too: the leaf has passed stricter rules before.
            E::EndEntityUsedAsCa => Self::IssuerIsNoAuthority,
            E::PathLenConstraintViolated => Self::PathTooLong,
            E::EmptyEkuExtension | E::RequiredEkuNotFoundContext(_) => Self::IssuerPurpose,
            other => Self::Path(other),
        }
    }
}

/// Whether a signature that does not fit an allowed key was made by a key of another kind. An ECDSA
/// key and the hash of another curve are taken for what an operator did: `openssl` signs with
/// SHA-256 by default, whatever the curve.
fn is_of_another_key(signature: &[u8], key: &[u8], algorithms: Algorithms) -> bool {
    const ECDSA_KEY: &[u8] = &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]; // 1.2.840.10045.2.1
    const ECDSA_SIGNATURE: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4]; // 1.2.840.10045.4
    let is_allowed = algorithms.signatures().iter().any(|a| a.public_key_alg_id().as_ref() == key);
    is_allowed && !(key.starts_with(ECDSA_KEY) && signature.starts_with(ECDSA_SIGNATURE))
}
