//! The enrollment of a WFM Client by binding assertion (W3, W5): a WFM vouches, in a JWS signed
//! with the key of its SVID, for one client of its own.

use crate::clients;
use crate::csr::modulus_bits;
use crate::names::{self, Name};
use crate::pki;
use crate::wire::Problem;
use crate::x509::{self, Der};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use const_oid::db::rfc5912;
use der::{Decode, Encode};
use development_server::{Context, Result};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

/// `typ` of the assertion (W5).
pub const ASSERTION_TYPE: &str = "application/wfm-client-binding+jwt";
/// The longest time from `iat` to `exp`, in seconds (W5).
pub const LONGEST_ASSERTION: i64 = 300;
/// How far the WFM's clock may be ahead, in seconds.
const SKEW: i64 = 60;
/// The longest `jti`.
const JTI_LIMIT: usize = 256;
/// The most certificates in `x5c`.
const CHAIN_LIMIT: usize = 8;

/// What an assertion is verified against.
pub struct Expected<'a> {
    /// The Trust Bundle.
    pub anchors: &'a [Der],
    /// The Trust Domain.
    pub trust_domain: &'a str,
    /// `{base}/api/v1/identities`.
    pub audience: &'a str,
    /// The accepted WFMs, and further signers of each.
    pub wfms: &'a BTreeMap<String, Vec<String>>,
    /// Seconds since 1970.
    pub now: i64,
}

/// A verified assertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The WFM.
    pub wfm_id: String,
    /// Its client.
    pub client_handle: String,
    issuer: String,
    jti: String,
    expires: i64,
}

impl Binding {
    /// The Enrollment Subject Identifier (W5).
    pub fn esi(&self) -> String {
        let parts = ["wfm-client-binding:v1", &self.wfm_id, &self.client_handle];
        x509::hex(&x509::sha256(parts.join("\0").as_bytes()))
    }

    /// The WFM Client's SPIFFE ID (W4).
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/margo/wfm/{}/client/{}", self.wfm_id, self.client_handle)
    }
}

#[derive(Deserialize)]
struct Header {
    typ: Option<String>,
    alg: String,
    x5c: Option<Vec<String>>,
    crit: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claims {
    iss: String,
    sub: String,
    aud: Value,
    iat: i64,
    exp: i64,
    nbf: Option<i64>,
    jti: String,
    wfm_id: String,
    client_handle: Option<String>,
    /// The word of the archived newest form (W1).
    wfm_client_id: Option<String>,
}

/// Verifies an assertion in all but its being used for the first time.
///
/// # Errors
///
/// `invalid-audience` where it is made for another place, `invalid-bootstrap-proof` for the rest.
pub fn verify(assertion: &str, expected: &Expected<'_>) -> std::result::Result<Binding, Problem> {
    let refuse = |why: String| Problem::invalid_proof(format!("bindingAssertion: {why}"));
    let (claims, signer) = open(assertion, expected).map_err(refuse)?;
    if claims.aud != expected.audience {
        return Err(Problem::invalid_audience(format!(
            "bindingAssertion: aud is {}, and this place is {:?}",
            claims.aud, expected.audience
        )));
    }
    validate(claims, &signer, expected).map_err(refuse)
}

/// The claims, and the SPIFFE ID of the SVID whose key signed them.
fn open(assertion: &str, expected: &Expected<'_>) -> std::result::Result<(Claims, String), String> {
    let parts: Vec<&str> = assertion.split('.').collect();
    let [header64, claims64, signature64] = parts.as_slice() else {
        return Err(format!("a compact JWS has three parts, this has {}", parts.len()));
    };
    let header: Header = json(header64, "header")?;
    if header.typ.as_deref() != Some(ASSERTION_TYPE) {
        return Err(format!("typ is {:?}, not {ASSERTION_TYPE:?}", header.typ.unwrap_or_default()));
    }
    if header.crit.is_some() {
        return Err("crit names extensions, and none is known".to_owned());
    }
    let chain = header.x5c.unwrap_or_default();
    if chain.is_empty() || chain.len() > CHAIN_LIMIT {
        return Err(format!("x5c has 1 to {CHAIN_LIMIT} certificates, this has {}", chain.len()));
    }
    let chain = chain
        .iter()
        .map(|one| STANDARD.decode(one).map(CertificateDer::from))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| format!("x5c is not base64 of the standard alphabet: {error}"))?;
    let signer = clients::judge_svid(&chain, expected.anchors, expected.trust_domain)
        .map_err(|why| format!("the signer's SVID in x5c: {why}"))?;
    let leaf = chain.first().ok_or("x5c is empty")?;

    let signature = URL_SAFE_NO_PAD
        .decode(signature64)
        .map_err(|error| format!("the signature is not base64url without padding: {error}"))?;
    let signed = format!("{header64}.{claims64}");
    let spki = x509::spki_of(leaf).map_err(|error| error.to_string())?;
    let spki = SubjectPublicKeyInfoOwned::from_der(&spki).map_err(|error| error.to_string())?;
    UnparsedPublicKey::new(algorithm(&header.alg, &spki)?, spki.subject_public_key.raw_bytes())
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| "the signature is not that of the key in x5c".to_owned())?;
    Ok((json(claims64, "claims")?, signer))
}

fn validate(claims: Claims, signer: &str, expected: &Expected<'_>) -> std::result::Result<Binding, String> {
    let client_handle = match (claims.client_handle, claims.wfm_client_id) {
        (Some(one), None) | (None, Some(one)) => one,
        (Some(one), Some(two)) if one == two => one,
        (Some(_), Some(_)) => return Err("clientHandle and wfmClientId differ".to_owned()),
        (None, None) => return Err("clientHandle is missing".to_owned()),
    };
    if claims.iss != claims.sub {
        return Err(format!("iss {:?} and sub {:?} differ", claims.iss, claims.sub));
    }
    if claims.iss != signer {
        return Err(format!("iss is {:?}, and the signer's SVID is of {signer:?}", claims.iss));
    }
    if claims.exp <= claims.iat || claims.exp.saturating_sub(claims.iat) > LONGEST_ASSERTION {
        return Err(format!("exp is not 1 s to {LONGEST_ASSERTION} s after iat"));
    }
    if claims.iat.max(claims.nbf.unwrap_or(claims.iat)) > expected.now.saturating_add(SKEW) {
        return Err("not valid yet (iat or nbf is in the future)".to_owned());
    }
    if claims.exp <= expected.now {
        return Err(format!("expired {} s ago", expected.now.saturating_sub(claims.exp)));
    }
    if claims.jti.is_empty() || claims.jti.len() > JTI_LIMIT {
        return Err(format!("jti has 1 to {JTI_LIMIT} bytes"));
    }
    if !names::is_segment(&claims.wfm_id) || !names::is_segment(&client_handle) {
        return Err("wfmId or clientHandle cannot be part of a SPIFFE ID".to_owned());
    }
    let own = Name::Wfm { wfm_id: &claims.wfm_id };
    let authorized = expected.wfms.get(&claims.wfm_id).is_some_and(|further| {
        Name::parse(signer, expected.trust_domain) == Some(own) || further.iter().any(|one| one == signer)
    });
    if !authorized {
        return Err(format!("{signer} is not authorized for the wfmId {:?}", claims.wfm_id));
    }
    Ok(Binding {
        wfm_id: claims.wfm_id,
        client_handle,
        issuer: claims.iss,
        jti: claims.jti,
        expires: claims.exp,
    })
}

/// A JSON object in base64url; serde alone would take an array for a struct too.
fn json<T: DeserializeOwned>(text: &str, what: &str) -> std::result::Result<T, String> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| format!("the {what} is not base64url without padding: {error}"))?;
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(format!("the {what} is not a JSON object"));
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("the {what}: {error}"))
}

/// The signature algorithms of K3.
fn algorithm(
    alg: &str,
    key: &SubjectPublicKeyInfoOwned,
) -> std::result::Result<&'static dyn VerificationAlgorithm, String> {
    match (alg, key.algorithm.oid) {
        ("ES256", rfc5912::ID_EC_PUBLIC_KEY) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.to_der().ok());
            if curve != rfc5912::SECP_256_R_1.to_der().ok() {
                return Err("ES256 with a curve other than P-256".to_owned());
            }
            Ok(&ECDSA_P256_SHA256_FIXED)
        }
        ("PS256", rfc5912::RSA_ENCRYPTION) => {
            let bits = modulus_bits(key.subject_public_key.raw_bytes()).map_err(|error| error.to_string())?;
            if bits < 3072 {
                return Err(format!("an RSA key of {bits} bits, 3072 are the least"));
            }
            Ok(&RSA_PSS_2048_8192_SHA256)
        }
        ("ES256" | "PS256", other) => Err(format!("alg {alg} does not fit the signer's key ({other})")),
        _ => Err(format!("alg is {alg:?}, permitted are ES256 and PS256")),
    }
}

/// The assertions used, until they expire; stored, so that a restart permits no replay.
pub struct Used {
    file: PathBuf,
    /// `exp` by issuer and `jti`.
    until: BTreeMap<String, i64>,
}

impl Used {
    /// Reads the file, where there is one.
    pub fn open(file: PathBuf) -> Result<Self> {
        let until = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).context(file.display())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).context(file.display()),
        };
        Ok(Self { file, until })
    }

    /// Notes an assertion, durably; `false` where it was used before.
    pub fn first_use(&mut self, binding: &Binding, now: i64) -> Result<bool> {
        self.until.retain(|_, expires| *expires > now);
        let name = format!("{} {}", binding.issuer, binding.jti);
        if self.until.contains_key(&name) {
            return Ok(false);
        }
        self.until.insert(name, binding.expires);
        pki::replace(&self.file, &serde_json::to_vec_pretty(&self.until)?)?;
        Ok(true)
    }
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}
