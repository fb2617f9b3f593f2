//! The two public documents, as v0 has them (D3, B1) or as they are released (N3, N4), with their
//! validators.

use crate::pki::Pki;
use crate::policy::{Documents, EstBaseUri, Policy};
use crate::wire::BUNDLE_PATH;
use crate::x509::{self, Der};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use const_oid::db::{rfc5912, rfc8410};
use der::asn1::UintRef;
use der::{Decode, Reader, SliceReader};
use development_server::{Error, Result};
use hyper::HeaderMap;
use hyper::header::{IF_MODIFIED_SINCE, IF_NONE_MATCH};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_cert::Certificate;

/// The discovery document. `base` is the server's origin, `est_url` its EST endpoint (X13).
pub fn discovery(trust_domain: &str, base: &str, est_url: &str, policy: &Policy) -> Value {
    let mut document = json!({
        "trustDomain": trust_domain,
        "trustBundleUri": format!("{base}{BUNDLE_PATH}"),
    });
    if policy.documents == Documents::V0 {
        document["margoIdentityServiceBaseUri"] = base.into();
        document["supportedBootstrapMethods"] = policy.methods.as_slice().into();
        document["svidProfilesSupported"] = policy.profiles.as_slice().into();
    }
    match &policy.est.base_uri {
        EstBaseUri::Absent => {}
        EstBaseUri::Own => document["estBaseUri"] = est_url.into(),
        EstBaseUri::Other(url) => document["estBaseUri"] = url.as_str().into(),
    }
    if let Some(urls) = &policy.est.crl_uris {
        document["crlUris"] = urls.as_slice().into();
    }
    document
}

/// The trust bundle: v0's Bundle Map with one entry for the Trust Domain, or the released plain
/// bundle.
pub fn bundle(trust_domain: &str, pki: &Pki, policy: &Policy) -> Result<Value> {
    let plain = plain_bundle(&pki.anchors(), pki.sequence(), policy.refresh_hint)?;
    Ok(match policy.documents {
        Documents::V0 => json!({ "trust_domains": { trust_domain: plain } }),
        Documents::Released => plain,
    })
}

/// A SPIFFE bundle (a JWK Set) of these anchors.
pub fn plain_bundle(anchors: &[Der], sequence: u64, refresh_hint: Option<u64>) -> Result<Value> {
    let keys = anchors.iter().map(jwk).collect::<Result<Vec<_>>>()?;
    let mut bundle = json!({ "keys": keys, "spiffe_sequence": sequence });
    if let Some(hint) = refresh_hint {
        bundle["spiffe_refresh_hint"] = hint.into();
    }
    Ok(bundle)
}

/// One anchor as a JWK.
fn jwk(anchor: &Der) -> Result<Value> {
    let certificate = Certificate::from_der(anchor)?;
    let spki = &certificate.tbs_certificate.subject_public_key_info;
    let key = spki.subject_public_key.raw_bytes();
    let mut jwk = json!({ "use": "x509-svid", "x5c": [STANDARD.encode(anchor)] });
    match (spki.algorithm.oid, key) {
        (rfc5912::ID_EC_PUBLIC_KEY, [4, point @ ..]) if matches!(point.len(), 64 | 96) => {
            let (x, y) = point.split_at(point.len() / 2);
            jwk["kty"] = "EC".into();
            jwk["crv"] = if point.len() == 64 { "P-256" } else { "P-384" }.into();
            jwk["x"] = URL_SAFE_NO_PAD.encode(x).into();
            jwk["y"] = URL_SAFE_NO_PAD.encode(y).into();
        }
        (rfc5912::RSA_ENCRYPTION, key) => {
            let (n, e) = SliceReader::new(key)?.sequence(|body| {
                let n = UintRef::decode(body)?.as_bytes().to_vec();
                let e = UintRef::decode(body)?.as_bytes().to_vec();
                Ok((n, e))
            })?;
            jwk["kty"] = "RSA".into();
            jwk["n"] = URL_SAFE_NO_PAD.encode(n).into();
            jwk["e"] = URL_SAFE_NO_PAD.encode(e).into();
        }
        (rfc8410::ID_ED_25519, key) => {
            jwk["kty"] = "OKP".into();
            jwk["crv"] = "Ed25519".into();
            jwk["x"] = URL_SAFE_NO_PAD.encode(key).into();
        }
        _ => return Err(Error::new("an anchor with a key that has no JWK here")),
    }
    Ok(jwk)
}

/// What a client can revalidate with.
#[derive(Debug, Clone)]
pub struct Validators {
    /// A strong entity tag of the exact bytes.
    pub etag: String,
    /// When these bytes were served first.
    pub modified: SystemTime,
}

impl Validators {
    /// Validators of a body; `modified` stays while the body stays.
    pub fn of(body: &[u8], before: Option<&Self>) -> Self {
        let etag = format!("\"{}\"", &x509::hex(&x509::sha256(body))[..32]);
        match before {
            Some(before) if before.etag == etag => before.clone(),
            _ => Self { etag, modified: whole_second(SystemTime::now()) },
        }
    }

    /// RFC 9110: `If-None-Match` decides (weak comparison); only without it, `If-Modified-Since`.
    pub fn unchanged(&self, headers: &HeaderMap) -> bool {
        let mut tags = headers.get_all(IF_NONE_MATCH).iter().peekable();
        if tags.peek().is_some() {
            return tags.filter_map(|value| value.to_str().ok()).any(|value| {
                value
                    .split(',')
                    .map(str::trim)
                    .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
            });
        }
        headers
            .get(IF_MODIFIED_SINCE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| httpdate::parse_http_date(value).ok())
            .is_some_and(|since| self.modified <= since)
    }
}

fn whole_second(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
