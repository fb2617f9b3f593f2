//! A certificate chain of bounded size.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::encoding;
use crate::pem::{self, Pem};
use crate::svid_error::SvidError;

/// Limit of certificates in a chain. webpki reads every certificate again for every order of them:
/// for eight of one name and 50 kB each, all orders together take minutes.
pub(crate) const MAX_CHAIN: usize = 6;
/// Limit of bytes of DER in one certificate, for the same reason.
const MAX_CERTIFICATE: usize = 16 * 1024;

/// Certificate chain of bounded size: leaf first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Vec<CertificateDer<'static>>);

impl Chain {
    /// Reads one certificate from each PEM text, whatever its line width (miaf-v0 E3).
    ///
    /// # Errors
    /// [`SvidError`]: no certificate, too many, or a text that is not exactly one certificate.
    pub fn from_pem<S: AsRef<str>>(texts: &[S]) -> Result<Self, SvidError> {
        if texts.is_empty() {
            return Err(SvidError::EmptyChain);
        }
        if texts.len() > MAX_CHAIN {
            return Err(SvidError::LongChain(texts.len()));
        }
        let chain: Result<Vec<_>, _> =
            texts.iter().enumerate().map(|(index, text)| one_certificate(index, text.as_ref())).collect();
        Ok(Self(chain?))
    }

    /// Reads all certificates of one PEM text, leaf first, as `openssl ca` and operators write them:
    /// what stands between the blocks does not count.
    ///
    /// # Errors
    /// [`SvidError`]: no certificate, too many, or a block of another kind, such as a private key.
    pub fn from_pem_text(text: &[u8]) -> Result<Self, SvidError> {
        let not_pem = |index, why: String| SvidError::NotPem { index, why };
        let Pem { blocks, commented_out } = pem::read(text).map_err(|e| not_pem(0, e.to_string()))?;
        if blocks.is_empty() {
            return Err(not_pem(0, pem::instead_of_blocks(text, &commented_out).to_string()));
        }
        if blocks.len() > MAX_CHAIN {
            return Err(SvidError::LongChain(blocks.len()));
        }
        let element = |(index, block): (usize, &pem::Block)| match &*block.label {
            "CERTIFICATE" => certificate(index, &block.der),
            other => Err(not_pem(index, format!("it is a {other}"))),
        };
        blocks.iter().enumerate().map(element).collect::<Result<_, _>>().map(Self)
    }

    /// Takes the certificates that a peer presented: leaf first, in any order after it.
    ///
    /// # Errors
    /// [`SvidError`]: no certificate, too many, one of more than 16 KiB, or bytes that are not a
    /// certificate in DER.
    pub fn from_der(certificates: &[CertificateDer<'_>]) -> Result<Self, SvidError> {
        if certificates.is_empty() {
            return Err(SvidError::EmptyChain);
        }
        if certificates.len() > MAX_CHAIN {
            return Err(SvidError::LongChain(certificates.len()));
        }
        certificates
            .iter()
            .enumerate()
            .map(|(index, der)| certificate(index, der))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Leaf, then intermediates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// Each certificate as a PEM text of its own.
    pub fn to_pems(&self) -> Vec<String> {
        self.0.iter().map(certificate_pem).collect()
    }

    /// The first certificate: that of the subject.
    #[must_use]
    pub fn leaf(&self) -> &CertificateDer<'static> {
        static NONE: CertificateDer<'static> = CertificateDer::from_slice(&[]);
        self.0.first().unwrap_or(&NONE) // never empty: those who make it see to it
    }

    pub(crate) fn intermediates(&self) -> &[CertificateDer<'static>] {
        self.0.get(1..).unwrap_or_default()
    }
}

/// One certificate as PEM, wrapped at 64 columns (RFC 7468).
pub fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let text = BASE64.encode(der);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn one_certificate(index: usize, text: &str) -> Result<CertificateDer<'static>, SvidError> {
    let not_pem = |why: String| SvidError::NotPem { index, why };
    if text.contains('\0') {
        return Err(not_pem("it has a NUL character".into())); // a file may, in UTF-16
    }
    let Pem { blocks, commented_out } = pem::read(text.as_bytes()).map_err(|e| not_pem(e.to_string()))?;
    let der = match blocks.as_slice() {
        [block] if &*block.label == "CERTIFICATE" => &block.der,
        [block] => return Err(not_pem(format!("it is a {}", block.label))),
        [] => return Err(not_pem(pem::instead_of_blocks(text.as_bytes(), &commented_out).to_string())),
        [_, second, ..] => {
            return Err(not_pem(format!("it has {} blocks, the second a {}", blocks.len(), second.label)));
        }
    };
    certificate(index, der)
}

/// One element of a chain, in bounds and readable.
fn certificate(index: usize, der: &[u8]) -> Result<CertificateDer<'static>, SvidError> {
    if der.len() > MAX_CERTIFICATE || !encoding::is_der(der) {
        return Err(SvidError::Malformed { index });
    }
    let der = CertificateDer::from(der.to_vec());
    parse(index, &der)?;
    Ok(der)
}

/// Parses one element of a chain.
pub(crate) fn parse<'a>(index: usize, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SvidError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(SvidError::Malformed { index }),
    }
}
