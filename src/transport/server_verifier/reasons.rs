//! Why a server's certificate is not trusted. What the libraries say of it is for their developers.

use rustls::CertificateError;
use rustls_pki_types::UnixTime;

use super::chain::{Chain, Presented};
use crate::hint::Reason;
use crate::x509::{self, Certificate, extension};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;

/// Limit on the names of a certificate that are listed.
const MAX_LISTED: usize = 4;
const MAX_NAME: usize = 80;
/// Limit on the characters of a library's message, where this agent has no words of its own.
const MAX_UNKNOWN: usize = 120;

const ALGORITHMS: &str = "Certificates of a server may be signed with RSA (2048 to 8192 bits, PKCS \
                          #1 or PSS) and SHA-256, 384 or 512, with ECDSA on P-256 or P-384 and \
                          SHA-256 or 384, or with Ed25519";

/// Why webpki found no path, for people and for TLS.
pub(super) fn of(error: &webpki::Error, chain: &Chain<'_>) -> (Reason, CertificateError) {
    use CertificateError as C;
    use webpki::Error as E;
    let unacceptable = C::ApplicationVerificationFailure;
    match error {
        E::CertExpired { time, not_after } => {
            described(C::ExpiredContext { time: *time, not_after: *not_after })
        }
        E::CertNotValidYet { time, not_before } => {
            described(C::NotValidYetContext { time: *time, not_before: *not_before })
        }
        E::BadDer | E::BadDerTime | E::TrailingData(_) => (damaged(chain).into(), C::BadEncoding),
        E::MalformedExtensions | E::ExtensionValueInvalid => match repeated(chain) {
            Some(why) => (why, C::BadEncoding),
            None => (damaged(chain).into(), C::BadEncoding),
        },
        E::UnsupportedCriticalExtension => (critical(chain), C::UnhandledCriticalExtension),
        E::UnsupportedCertVersion => (version(chain), C::BadEncoding),
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => (
            Reason::from(
                "its certificate, or an intermediate above it, is not meant for servers: its \
                 extKeyUsage lacks serverAuth",
            )
            .with_hint_text("Have its CA issue one for TLS servers"),
            C::InvalidPurpose,
        ),
        E::CaUsedAsEndEntity => (
            Reason::from(
                "its certificate is marked as a CA's (CA:TRUE in basicConstraints), as `openssl req \
                 -x509` makes them",
            )
            .with_hint_text(
                "Have a CA issue one for the server; or put it into ca_file itself, or pin its key \
                 in spki_sha256 alone",
            ),
            unacceptable,
        ),
        E::EndEntityUsedAsCa => (
            "a certificate above its own is not a CA's (CA:TRUE in basicConstraints and, if it has a keyUsage, keyCertSign)"
                .into(),
            unacceptable,
        ),
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => (
            "there are more intermediates between its certificate and its CA than a CA on the way \
             allows (pathLen in basicConstraints)"
                .into(),
            unacceptable,
        ),
        E::NameConstraintViolation
        | E::MalformedNameConstraint
        | E::InvalidNetworkMaskConstraint
        | E::MaximumNameConstraintComparisonsExceeded => (name_constraints(chain).into(), unacceptable),
        E::SignatureAlgorithmMismatch => {
            ("a certificate in its chain names two different signature algorithms, and is damaged".into(), C::BadEncoding)
        }
        E::InvalidCertValidity => {
            ("a certificate in its chain ends before it begins (notAfter, notBefore)".into(), C::BadEncoding)
        }
        E::InvalidSerialNumber => ("a certificate in its chain has a damaged serial number".into(), C::BadEncoding),
        E::MalformedDnsIdentifier => {
            ("its certificate has a DNS name that is none (subjectAltName)".into(), C::BadEncoding)
        }
        E::MaximumPathBuildCallsExceeded | E::MaximumSignatureChecksExceeded => {
            ("too many of the certificates that it presented could be on the way to its CA".into(), unacceptable)
        }
        E::UnsupportedSignatureAlgorithmContext(context) => (algorithm(&context.signature_algorithm_id), unacceptable),
        E::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => {
            (key(&context.public_key_algorithm_id, &context.signature_algorithm_id), unacceptable)
        }
        E::CertRevoked | E::CertDistrusted => ("its certificate, or one above it, is revoked".into(), C::Revoked),
        other => {
            // Revocation lists, and what later versions of webpki may add.
            let other = Excerpt::of(other, MAX_UNKNOWN);
            (format!("its certificate, or one on the way to its CA, is not acceptable ({other})").into(), unacceptable)
        }
    }
}

/// Why no issuer was found, where the signature of a certificate in the chain cannot be verified.
pub(super) fn unverifiable(chain: &Chain<'_>) -> Option<Reason> {
    let unknown =
        |one: &&Presented<'_>| one.sent.as_ref().is_some_and(|sent| !chain.knows_signature_of(sent));
    // A root that is presented in addition is not verified.
    let self_signed =
        |one: &&Presented<'_>| one.sent.as_ref().is_some_and(|sent| sent.issuer == sent.subject);
    let own = chain.own().filter(unknown);
    let found = own.or_else(|| chain.others().iter().filter(|one| !self_signed(one)).find(unknown))?;
    Some(algorithm(found.sent.as_ref()?.algorithm))
}

/// The issuer that a server's certificate names.
pub(super) fn issuer(chain: &Chain<'_>) -> Option<Excerpt> {
    Some(chain.own()?.sent.as_ref()?.issuer_name())
}

/// The names that the server's certificate is for, instead of the one in the URL.
pub(super) fn other_names(chain: &Chain<'_>) -> String {
    let names = chain.own().and_then(|own| own.sent.as_ref()).map(names).unwrap_or_default();
    let listed = match names.split_at_checked(MAX_LISTED) {
        _ if names.is_empty() => {
            "it names no host at all in its subjectAltName; a common name does not count".to_owned()
        }
        Some((listed, [_, ..])) => {
            format!("it is for {} and {} more", listed.join(", "), names.len() - MAX_LISTED)
        }
        _ => format!("it is for {}", names.join(", ")),
    };
    format!("its certificate is not for the name in the URL: {listed}")
}

/// Names and addresses of a server's certificate.
fn names(certificate: &Certificate<'_>) -> Vec<String> {
    const DNS_NAME: u8 = 0x82;
    const IP_ADDRESS: u8 = 0x87;
    let Some(alternatives) = certificate.extension(extension::SUBJECT_ALT_NAME) else { return Vec::new() };
    let mut value = alternatives.value;
    let names =
        x509::take(&mut value).and_then(|sequence| x509::elements(sequence.content)).unwrap_or_default();
    let name = |name: x509::Element<'_>| match (name.tag, name.content) {
        (DNS_NAME, name) => Some(Excerpt::of_bytes(name, MAX_NAME).into_string()),
        (IP_ADDRESS, bytes) => match bytes.len() {
            4 => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
            16 => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    };
    names.into_iter().filter_map(name).collect()
}

fn described(error: CertificateError) -> (Reason, CertificateError) {
    (describe(&error), error)
}

/// Position of a certificate in the chain, for people.
fn place(chain: &Chain<'_>, certificate: &Certificate<'_>) -> String {
    let own = chain.own().and_then(|own| own.sent.as_ref()).map(|own| own.tbs);
    if own == Some(certificate.tbs) {
        "its certificate".into()
    } else {
        format!("the intermediate \"{}\" in its chain", certificate.subject_name())
    }
}

fn sent<'c, 'a>(chain: &'c Chain<'a>) -> impl Iterator<Item = &'c Certificate<'a>> {
    chain.all().iter().filter_map(|one| one.sent.as_ref())
}

fn damaged(chain: &Chain<'_>) -> String {
    let whose = match chain.own() {
        Some(own) if own.sent.is_none() => "its certificate",
        _ => "a certificate in its chain",
    };
    format!("{whose} is damaged: it is not what X.509 says a certificate is")
}

fn repeated(chain: &Chain<'_>) -> Option<Reason> {
    sent(chain).find_map(|certificate| {
        let names = certificate.repeated_extensions()?;
        let place = place(chain, certificate);
        let why = format!("{place} has an extension more than once ({names}), which RFC 5280 forbids");
        Some(Reason::from(why).with_hint_text("Have its CA issue it anew"))
    })
}

fn critical(chain: &Chain<'_>) -> Reason {
    let policies = sent(chain).any(|one| one.extension(extension::POLICY_CONSTRAINTS).is_some());
    let processed = [extension::CERTIFICATE_POLICIES, extension::INHIBIT_ANY_POLICY];
    let known: Vec<&[u8]> =
        extension::COMMON.into_iter().chain(processed.into_iter().filter(|_| !policies)).collect();
    let found = sent(chain).find_map(|certificate| {
        let names = certificate.critical_extensions_beyond(&known)?;
        Some(format!(
            "{} has a critical extension that is not processed here: {names}",
            place(chain, certificate)
        ))
    });
    let what = found.unwrap_or_else(|| {
        "a certificate in its chain has critical certificatePolicies with a qualifier that is not processed here".into()
    });
    Reason::from(format!(
        "{what}. A certificate with an unknown critical extension must be refused (RFC 5280 section 4.2)"
    ))
    .with_hint_text(
        "Have its CA issue it without that extension or not critical, or pin a key in spki_sha256 \
         that is below it",
    )
}

fn version(chain: &Chain<'_>) -> Reason {
    match sent(chain).find(|certificate| certificate.version != 3) {
        Some(old) => Reason::from(format!(
            "{} is of X.509 version {}, which has no subjectAltName and no basicConstraints",
            place(chain, old),
            old.version
        ))
        .with_hint_text("Have it issued as version 3"),
        None => damaged(chain).into(),
    }
}

fn name_constraints(chain: &Chain<'_>) -> String {
    let kinds = |certificate: &Certificate<'_>| {
        let mut value = certificate.extension(extension::NAME_CONSTRAINTS)?.value;
        let mut kinds: Vec<&str> = Vec::new();
        for part in x509::elements(x509::take(&mut value)?.content)? {
            for subtree in x509::elements(part.content)? {
                let kind = match x509::take(&mut { subtree.content })?.tag {
                    0x81 => "e-mail addresses",
                    0x82 => "DNS names",
                    0xa4 => "directory names",
                    0x86 => "URIs",
                    0x87 => "IP addresses",
                    _ => "other names",
                };
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        Some(format!("{} (it has constraints on {})", place(chain, certificate), kinds.join(", ")))
    };
    let issuer = sent(chain).find_map(kinds).unwrap_or_else(|| "its CA".into());
    let names = chain.own().and_then(|own| own.sent.as_ref()).map(|own| {
        let mut all = names(own);
        all.truncate(MAX_LISTED);
        format!(", whose subject is \"{}\" and whose names are {}", own.subject_name(), all.join(", "))
    });
    format!(
        "the name constraints of {issuer} do not allow its certificate{}. Constraints on URIs, \
         e-mail addresses and other names are not processed: they refuse every certificate that has \
         such a name",
        names.unwrap_or_default()
    )
}

fn algorithm(content: &[u8]) -> Reason {
    let name = x509::algorithm_name(content);
    Reason::from(format!(
        "a certificate in its chain is signed with {name}, which is not supported. {ALGORITHMS}"
    ))
    .with_hint_text(SUPPORTED)
}

fn key(key: &[u8], signature: &[u8]) -> Reason {
    let (key, signature) = (x509::algorithm_name(key), x509::algorithm_name(signature));
    Reason::from(format!(
        "a certificate in its chain is signed with {signature} by a key that is {key}, and the two \
         together are not supported. {ALGORITHMS}"
    ))
    .with_hint_text(SUPPORTED)
}

const SUPPORTED: &str = "Have its CA issue a certificate that is signed with one of them";

/// Describes TLS's error about a server's certificate.
pub(super) fn describe(why: &CertificateError) -> Reason {
    use CertificateError as C;
    let why: String = match why {
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "its certificate is not for the name in the URL".into()
        }
        C::Expired | C::ExpiredContext { .. } => {
            // Without the time of this check: the same message is logged once.
            let since = match why {
                C::ExpiredContext { not_after, .. } => format!(" ({})", moment(*not_after)),
                _ => String::new(),
            };
            format!(
                "its certificate or one on the way to its CA has expired{since}, or this device's clock is wrong"
            )
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            let until = match why {
                C::NotValidYetContext { not_before, .. } => format!(" ({})", moment(*not_before)),
                _ => String::new(),
            };
            format!(
                "its certificate or one on the way to its CA is not valid yet{until}, or this device's clock is wrong"
            )
        }
        C::BadSignature => "it does not hold the key of its certificate (bad signature)".into(),
        C::BadEncoding => "its certificate is damaged: it is not what X.509 says a certificate is".into(),
        C::Revoked => "its certificate is revoked".into(),
        C::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is not processed here".into()
        }
        C::UnknownIssuer => "its certificate was not issued by a CA that is trusted (unknown issuer)".into(),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            "its certificate is not meant for servers (its extKeyUsage lacks serverAuth)".into()
        }
        C::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. } => format!(
            "it signs the handshake with {}, which is not supported. {KEYS}",
            x509::algorithm_name(signature_algorithm_id)
        ),
        C::UnsupportedSignatureAlgorithmForPublicKeyContext { public_key_algorithm_id, .. } => format!(
            "the key of its certificate is {}, which does not go with how it signs the handshake. {KEYS}",
            x509::algorithm_name(public_key_algorithm_id)
        ),
        C::UnknownRevocationStatus
        | C::ExpiredRevocationList
        | C::ExpiredRevocationListContext { .. }
        | C::InvalidOcspResponse => "whether its certificate is revoked cannot be determined".into(),
        C::ApplicationVerificationFailure => "its certificate is not acceptable".into(),
        other => format!("its certificate is not acceptable ({})", Excerpt::of(other, MAX_UNKNOWN)),
    };
    why.into()
}

const KEYS: &str = "A server's key may be ECDSA on P-256 or P-384, RSA with 2048 to 8192 bits, or Ed25519";

fn moment(time: UnixTime) -> Timestamp {
    Timestamp::from_secs(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
