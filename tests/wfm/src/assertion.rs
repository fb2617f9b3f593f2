//! Binding assertions (W5): compact JWS, signed with the key of the WFM's SVID.

use crate::clients;
use development_server::{Context, Error, Result, hex};

use crate::tls::Credential;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use ring::rsa;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PSS_SHA256};
use rustls::pki_types::CertificateDer;
use serde_json::json;

/// `typ` of an assertion.
pub const TYPE: &str = "application/wfm-client-binding+jwt";

/// The word for the client's part of its SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vocabulary {
    /// v0: `clientHandle`.
    ClientHandle,
    /// The archived newest form: `wfmClientId`.
    WfmClientId,
}

impl Vocabulary {
    /// The member's name in the request and in the assertion.
    pub fn member(self) -> &'static str {
        match self {
            Self::ClientHandle => "clientHandle",
            Self::WfmClientId => "wfmClientId",
        }
    }

    /// The error code where the client belongs to another device.
    pub fn conflict(self) -> &'static str {
        match self {
            Self::ClientHandle => "wfm-client-handle-conflict",
            Self::WfmClientId => "wfm-client-id-conflict",
        }
    }
}

/// What an assertion says.
#[derive(Debug, Clone)]
pub struct Claims {
    /// `typ` in the header.
    pub kind: String,
    /// `iss` and `sub`.
    pub issuer: String,
    /// `aud`
    pub audience: String,
    /// `iat`, seconds since 1970.
    pub issued: i64,
    /// `exp`, seconds since 1970.
    pub expires: i64,
    /// `wfmId`
    pub wfm_id: String,
    /// `clientHandle` or `wfmClientId`
    pub handle: String,
    /// Which of them.
    pub vocabulary: Vocabulary,
}

enum Secret {
    Es256(EcdsaKeyPair),
    Ps256(rsa::KeyPair),
}

/// The key and chain that sign.
pub struct Signer {
    chain: Vec<CertificateDer<'static>>,
    secret: Secret,
}

impl Signer {
    /// Reads a credential with a P-256 or RSA key.
    pub fn read(credential: &Credential) -> Result<Self> {
        let (chain, key) = credential.read()?;
        let pkcs8 = key.secret_der();
        let random = SystemRandom::new();
        let secret = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random) {
            Ok(key) => Secret::Es256(key),
            Err(_) => Secret::Ps256(
                rsa::KeyPair::from_pkcs8(pkcs8)
                    .map_err(|_| Error::new("neither a P-256 nor an RSA key in PKCS#8"))
                    .context(credential.key.display())?,
            ),
        };
        Ok(Self { chain, secret })
    }

    /// The SPIFFE ID of its SVID.
    pub fn spiffe_id(&self) -> String {
        self.chain.first().map(|leaf| clients::uris(leaf).concat()).unwrap_or_default()
    }

    /// Signs the claims, with the chain of `shown` in `x5c`.
    pub fn sign(&self, claims: &Claims, shown: &Self) -> Result<String> {
        let alg = match &self.secret {
            Secret::Es256(_) => "ES256",
            Secret::Ps256(_) => "PS256",
        };
        let x5c: Vec<String> = shown.chain.iter().map(|one| STANDARD.encode(one)).collect();
        let header = json!({ "typ": claims.kind, "alg": alg, "x5c": x5c });
        let mut body = json!({
            "iss": claims.issuer,
            "sub": claims.issuer,
            "aud": claims.audience,
            "iat": claims.issued,
            "exp": claims.expires,
            "jti": random_hex::<16>()?,
            "wfmId": claims.wfm_id,
        });
        body[claims.vocabulary.member()] = claims.handle.as_str().into();
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&body));
        let failed = |_| Error::new("the cryptographic library does not sign");
        let random = SystemRandom::new();
        let signature = match &self.secret {
            Secret::Es256(key) => key.sign(&random, signed.as_bytes()).map_err(failed)?.as_ref().to_vec(),
            Secret::Ps256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PSS_SHA256, &random, signed.as_bytes(), &mut signature).map_err(failed)?;
                signature
            }
        };
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn random_hex<const N: usize>() -> Result<String> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::new("no random bytes"))?;
    Ok(hex(&bytes))
}
