//! Verification of X.509-SVIDs (N6, N7, N10) and the names in them (N2).

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// The shortest RSA key (N7), in bits.
const RSA_BITS: usize = 3072;

/// What a SPIFFE ID names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// `/margo/device/<uuid>`
    Device,
    /// `/margo/wfm/<wfm-id>`
    Wfm(String),
    /// `/margo/wfm/<wfm-id>/client/<client-id>`
    WfmClient {
        /// `<wfm-id>`
        wfm_id: String,
        /// `<client-id>`
        client_id: String,
    },
    /// Anything else.
    Other,
}

impl Name {
    /// The name that a SPIFFE ID is.
    pub fn of(spiffe_id: &str) -> Self {
        let mut parts = spiffe_id.split('/');
        let start = [parts.next(), parts.next(), parts.next(), parts.next()];
        let [Some("spiffe:"), Some(""), Some(domain), Some("margo")] = start else { return Self::Other };
        let rest: Vec<&str> = parts.collect();
        if domain.is_empty() || !rest.iter().all(|part| is_segment(part)) {
            return Self::Other;
        }
        match rest.as_slice() {
            ["device", _] => Self::Device,
            ["wfm", id] => Self::Wfm((*id).to_owned()),
            ["wfm", id, "client", client] => {
                Self::WfmClient { wfm_id: (*id).to_owned(), client_id: (*client).to_owned() }
            }
            _ => Self::Other,
        }
    }
}

/// Whether this can be a segment of a SPIFFE ID's path.
pub fn is_segment(text: &str) -> bool {
    let permitted = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(permitted) && !matches!(text, "." | "..")
}

/// The URI SANs of a certificate that can be read.
pub fn uris(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

/// The trust domain in a SPIFFE ID.
pub fn trust_domain(spiffe_id: &str) -> Option<&str> {
    spiffe_id.strip_prefix("spiffe://")?.split('/').next().filter(|name| !name.is_empty())
}

/// Verifies an SVID of `domain` and returns its SPIFFE ID: chain, validity, key, key usage, and one
/// URI SAN with a path.
///
/// # Errors
///
/// Why it is none.
pub fn verify(
    chain: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
    domain: &str,
    now: UnixTime,
) -> Result<String, String> {
    let (leaf, intermediates) = chain.split_first().ok_or("no client certificate was presented")?;
    check_leaf(leaf)?;
    let mut uris = uris(leaf);
    if uris.len() != 1 {
        return Err(format!("an SVID has one URI SAN, this one has {}", uris.len()));
    }
    let id = uris.swap_remove(0);
    let path = id.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(domain));
    if !path.is_some_and(|path| path.starts_with('/') && path.len() > 1) {
        return Err(format!("{id:?} is not a SPIFFE ID of {domain}"));
    }
    let anchors: Vec<_> = anchors.iter().filter_map(|one| anchor_from_trusted_cert(one).ok()).collect();
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            let usage = KeyUsage::client_auth();
            leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, intermediates, now, usage, None, None)
                .map(|_| ())
        })
        .map_err(|error| format!("the SVID does not verify: {error}"))?;
    Ok(id)
}

fn check_leaf(der: &[u8]) -> Result<(), String> {
    let (rest, leaf) =
        X509Certificate::from_der(der).map_err(|error| format!("not a certificate: {error}"))?;
    if !rest.is_empty() {
        return Err("bytes after the certificate".to_owned());
    }
    let mut signs = false;
    for extension in leaf.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err("the certificate of an authority".to_owned());
            }
            ParsedExtension::KeyUsage(usage) => {
                if usage.key_cert_sign() || usage.crl_sign() {
                    return Err("key usage of an authority".to_owned());
                }
                signs = usage.digital_signature();
            }
            _ => {}
        }
    }
    if !signs {
        return Err("no key usage digitalSignature".to_owned());
    }
    match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS => {
            Err(format!("an RSA key of {} bits, {RSA_BITS} are the least", key.key_size()))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("a public key that cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(Name::of("spiffe://a.example/margo/device/1"), Name::Device);
        assert_eq!(Name::of("spiffe://a.example/margo/wfm/w"), Name::Wfm("w".to_owned()));
        let client = Name::WfmClient { wfm_id: "w".to_owned(), client_id: "c".to_owned() };
        assert_eq!(Name::of("spiffe://a.example/margo/wfm/w/client/c"), client);
        for other in [
            "spiffe://a.example",
            "spiffe:///margo/wfm/w",
            "spiffe://a.example/margo/wfm/..",
            "spiffe://a.example/margo/wfm/w/client/a~b",
            "spiffe://a.example/margo/wfm/w/client/%41",
            "spiffe://a.example/margo/wfm/w/client/c/",
            "https://a.example/margo/wfm/w",
        ] {
            assert_eq!(Name::of(other), Name::Other, "{other}");
        }
    }
}
