//! PEM with a line width of one's choice: `certificateChainPem` may be wrapped at any (E3).

use base64::{Engine, engine::general_purpose::STANDARD};
use development_server::{Context, Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};

/// The usual width.
pub const WIDTH: usize = 64;

/// One PEM block.
pub fn encode(label: &str, der: &[u8], width: usize) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(width.clamp(1, rest.len()));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// The certificates of a PEM text, in order; at least one.
pub fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let found = CertificateDer::pem_slice_iter(text)
        .map(|one| one.map(|der| der.to_vec()))
        .collect::<std::result::Result<Vec<_>, _>>()
        .context("PEM")?;
    if found.is_empty() {
        return Err(Error::new("no certificate in the PEM text"));
    }
    Ok(found)
}

/// The key of a PEM `PUBLIC KEY` block, DER SubjectPublicKeyInfo.
pub fn public_key(text: &[u8]) -> Result<Vec<u8>> {
    Ok(SubjectPublicKeyInfoDer::from_pem_slice(text).context("PEM")?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_wrapped_at_the_requested_width() {
        for width in [1, 64, 76, 1000] {
            let text = encode("CERTIFICATE", &[7; 200], width);
            assert_eq!(certificates(text.as_bytes()).unwrap(), [vec![7; 200]]);
            assert!(text.lines().filter(|line| !line.starts_with('-')).all(|l| l.len() <= width));
        }
    }
}
