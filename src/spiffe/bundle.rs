//! The trust bundle: the anchors that SVIDs of one trust domain are judged by (SPIFFE Trust Domain and Bundle,
//! sections 4 and 5; miaf-v0 B1 to B5).

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TrustDomain;
use crate::json::Object;
use crate::time::Timestamp;

type Jwk = Map<String, Value>;

/// More anchors than this in one bundle is taken for a mistake, not for a trust domain.
pub const MAX_ANCHORS: usize = 64;

/// How long a bundle with a lower sequence must have been served before it is believed (miaf-v0 B5).
const REGRESSION_IS_MEANT_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The anchors of one trust domain. It may be empty: then every SVID of the domain is untrusted (miaf-v0 B3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    keys: Vec<Jwk>,
    anchors: Vec<CertificateDer<'static>>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
}

impl Bundle {
    /// Reads what `trustBundleUri` served: a Bundle Map, of which only the entry of `trust_domain` counts, or a plain
    /// SPIFFE bundle, which is taken as that domain's (miaf-v0 B2).
    ///
    /// # Errors
    /// [`BundleError`]: not the JSON of either form, no entry for the domain, a domain named twice, or a key that
    /// claims to be an X.509 authority and whose certificate cannot be read.
    pub fn from_served(body: &[u8], trust_domain: &TrustDomain) -> Result<Self, BundleError> {
        let Object(served): Object<Served> =
            serde_json::from_slice(body).map_err(|e| BundleError::Json(e.to_string()))?;
        let entry = match (served.trust_domains, served.keys) {
            (Some(map), _) => map
                .0
                .into_iter()
                .find_map(|(name, entry)| (name == trust_domain.as_str()).then_some(entry))
                .ok_or_else(|| BundleError::NoEntry(trust_domain.clone()))?
                .map_err(BundleError::Json)?,
            (None, Some(keys)) => Entry {
                keys,
                spiffe_sequence: served.spiffe_sequence,
                spiffe_refresh_hint: served.spiffe_refresh_hint,
            },
            (None, None) => return Err(BundleError::NeitherForm),
        };
        Self::from_entry(entry, served.spiffe_refresh_hint, trust_domain)
    }

    fn from_entry(entry: Entry, map_hint: Option<u64>, domain: &TrustDomain) -> Result<Self, BundleError> {
        let mut keys = Vec::new();
        let mut anchors: Vec<CertificateDer<'static>> = Vec::new();
        for (index, jwk) in entry.keys.into_iter().enumerate() {
            let Some((jwk, anchor)) = usable_key(index, jwk)? else { continue };
            if anchors.contains(&anchor) {
                continue;
            }
            if anchors.len() == MAX_ANCHORS {
                return Err(BundleError::TooManyAnchors);
            }
            keys.push(jwk);
            anchors.push(anchor);
        }
        let pace = |hint: Option<u64>| hint.filter(|seconds| *seconds > 0);
        Ok(Self {
            trust_domain: domain.clone(),
            keys,
            anchors,
            sequence: entry.spiffe_sequence,
            refresh_hint: pace(map_hint).or(pace(entry.spiffe_refresh_hint)).map(Duration::from_secs),
        })
    }

    /// The trust domain whose SVIDs it judges.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The anchors, as DER certificates, in the order served, each once.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// `spiffe_sequence`, where the MIS gives one.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often the MIS wishes to be asked: the map's hint, or the entry's. Never zero, which would be no pace.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The SPIFFE bundle document of this domain: what was served, less everything that B2 says to ignore, so that
    /// a local program with a stricter parser reads it too.
    pub fn to_document(&self) -> Value {
        let mut document = json!({ "keys": self.keys });
        if let Some(object) = document.as_object_mut() {
            if let Some(sequence) = self.sequence {
                object.insert("spiffe_sequence".into(), sequence.into());
            }
            if let Some(hint) = self.refresh_hint {
                object.insert("spiffe_refresh_hint".into(), hint.as_secs().into());
            }
        }
        document
    }

    /// The anchors as concatenated PEM. An empty bundle is an empty text.
    pub fn to_pem(&self) -> String {
        self.anchors.iter().map(|der| super::svid::certificate_pem(der)).collect()
    }
}

/// One JWK of the set: `None` when the standard says to ignore it, else the key with the one certificate that counts.
fn usable_key(index: usize, mut jwk: Jwk) -> Result<Option<(Jwk, CertificateDer<'static>)>, BundleError> {
    let is = |name: &str, known: &[&str]| {
        jwk.get(name).and_then(Value::as_str).is_some_and(|value| known.contains(&value))
    };
    if !is("kty", &["EC", "RSA"]) || !is("use", &["x509-svid"]) {
        return Ok(None);
    }
    let unreadable = |why: String| BundleError::Anchor { index, why };
    let first = match jwk.get("x5c") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(chain)) => match chain.first() {
            None => return Ok(None),
            Some(first) => first,
        },
        // To ignore it would be to take an authority for withdrawn because of a slip of the pen (miaf-v0 B3).
        Some(_) => return Err(unreadable("x5c is not an array".into())),
    };
    let text = first.as_str().ok_or_else(|| unreadable("the first element of x5c is not a string".into()))?;
    let der = BASE64.decode(text).map_err(|e| unreadable(format!("x5c is not standard base64: {e}")))?;
    match X509Certificate::from_der(&der) {
        Ok(([], _)) => {}
        Ok(_) => return Err(unreadable("bytes follow the certificate in x5c".into())),
        Err(_) => return Err(unreadable("x5c does not hold an X.509 certificate".into())),
    }
    webpki::anchor_from_trusted_cert(&CertificateDer::from(der.as_slice()))
        .map_err(|e| unreadable(format!("the certificate cannot serve as an anchor: {e}")))?;
    let only = Value::Array(vec![Value::String(text.to_owned())]);
    jwk.insert("x5c".into(), only);
    Ok(Some((jwk, CertificateDer::from(der))))
}

/// Whether a bundle just served may take the place of the one held (miaf-v0 B5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceVerdict {
    /// Newer, equal, or without a number to compare.
    Use,
    /// Lower than the held one, first seen at `since`: refused until it has been served for 24 hours.
    Regressed {
        /// When the regression was first seen.
        since: Timestamp,
    },
}

/// Compares sequence numbers. `regressed_since` is what the last call returned, if it was a regression.
pub fn judge_sequence(
    held: Option<u64>,
    served: Option<u64>,
    regressed_since: Option<Timestamp>,
    now: Timestamp,
) -> SequenceVerdict {
    match (held, served) {
        (Some(held), Some(served)) if served < held => {
            let since = regressed_since.filter(|since| *since <= now).unwrap_or(now);
            if now >= since.after(REGRESSION_IS_MEANT_AFTER) {
                SequenceVerdict::Use
            } else {
                SequenceVerdict::Regressed { since }
            }
        }
        _ => SequenceVerdict::Use,
    }
}

/// Why a served trust bundle is refused. The one held stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not JSON, mistyped, a duplicate trust domain, nested too deep.
    #[error("it is not a SPIFFE bundle: {0}")]
    Json(String),
    /// An object with neither `trust_domains` nor `keys`.
    #[error("it has neither \"trust_domains\" (a Bundle Map) nor \"keys\" (a SPIFFE bundle)")]
    NeitherForm,
    /// The map lacks this agent's domain.
    #[error("the Bundle Map has no entry for the trust domain \"{0}\"")]
    NoEntry(TrustDomain),
    /// A key that claims to be an X.509 authority is damaged.
    #[error("key {index} of the bundle cannot be used: {why}")]
    Anchor {
        /// Position in `keys`, from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
    /// More than [`MAX_ANCHORS`].
    #[error("it has more anchors than the {MAX_ANCHORS} that are believable")]
    TooManyAnchors,
}

/// Both forms in one: unknown members are ignored (miaf-v0 D4).
#[derive(serde::Deserialize)]
struct Served {
    trust_domains: Option<TrustDomains>,
    keys: Option<Vec<Jwk>>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

#[derive(serde::Deserialize)]
struct Entry {
    keys: Vec<Jwk>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

/// A map read entry by entry: serde's own maps keep the last of two equal names in silence, and the standard demands
/// that duplicates are rejected. An entry that is not a bundle is an error only for whoever needs it: a broken foreign
/// domain must not cost this one its refresh.
struct TrustDomains(Vec<(String, Result<Entry, String>)>);

impl<'de> Deserialize<'de> for TrustDomains {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = TrustDomains;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of trust domains")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TrustDomains, A::Error> {
                let (mut seen, mut entries) = (BTreeSet::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format_args!("trust domain \"{name}\" appears twice")));
                    }
                    let entry = serde_json::from_value(map.next_value::<Value>()?);
                    entries.push((name, entry.map(|Object(entry)| entry).map_err(|e| e.to_string())));
                }
                Ok(TrustDomains(entries))
            }
        }
        deserializer.deserialize_map(V)
    }
}

#[cfg(test)]
mod tests;
