//! The Trust Bundle, from a file that is read again for each connection.

use base64::{Engine, engine::general_purpose::STANDARD};
use development_server::{Context, Error, Result};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The anchors in a file: PEM certificates, a SPIFFE bundle, or a Bundle Map with this entry.
pub fn read(path: &Path, trust_domain: &str) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(path).context(path.display())?;
    let anchors = if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{') {
        parse(&serde_json::from_slice(&text).context(path.display())?, trust_domain)
    } else {
        CertificateDer::pem_slice_iter(&text)
            .collect::<std::result::Result<Vec<_>, _>>()
            .context(path.display())?
    };
    if anchors.is_empty() {
        return Err(Error::new(format!("{}: no X.509 anchor of {trust_domain}", path.display())));
    }
    Ok(anchors)
}

fn parse(document: &Value, trust_domain: &str) -> Vec<CertificateDer<'static>> {
    let bundle = document.get("trust_domains").map_or(Some(document), |map| map.get(trust_domain));
    let keys = bundle.and_then(|bundle| bundle.get("keys")).and_then(Value::as_array);
    let anchor = |key: &Value| {
        (key.get("use")? == "x509-svid").then_some(())?;
        let certificate = STANDARD.decode(key.get("x5c")?.get(0)?.as_str()?).ok()?;
        Some(CertificateDer::from(certificate))
    };
    keys.into_iter().flatten().filter_map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bundles_are_plain_or_mapped() {
        let keys = json!([{"use": "x509-svid", "x5c": ["AAAA"]}, {"use": "jwt-svid", "x5c": ["AAAA"]}, {}]);
        let plain = json!({ "keys": keys });
        assert_eq!(parse(&plain, "a.example").len(), 1);
        let map = json!({ "trust_domains": { "a.example": plain } });
        assert_eq!(parse(&map, "a.example").len(), 1);
        assert_eq!(parse(&map, "b.example").len(), 0);
    }
}
