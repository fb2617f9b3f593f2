//! A small client for the tests, and keys and requests made by the `openssl` command: another
//! implementation than the one under test.

#![allow(dead_code, reason = "not every test file uses all of it")]

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use development_mis::{FACTORY_METHOD, Mis, Settings, X509_PROFILE};
use reqwest::blocking::{Client, RequestBuilder, Response};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

pub struct Site {
    pub mis: Mis,
    pub dir: TempDir,
}

/// A fresh MIS with these settings changed.
pub fn site(change: impl FnOnce(&mut Settings)) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings { directory: dir.path().join("mis"), ..Settings::default() };
    change(&mut settings);
    Site { mis: Mis::start(settings).unwrap(), dir }
}

/// A key of this kind (`openssl genpkey` options) in PEM.
pub fn key(dir: &Path, name: &str, options: &[&str]) -> PathBuf {
    let path = dir.join(format!("{name}.key"));
    openssl(&[&["genpkey", "-out", path.to_str().unwrap()], options].concat());
    path
}

pub const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
pub const RSA3072: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];
pub const RSA2048: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
pub const PSS: &[&str] = &["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32", "-sha256"];

/// A DER PKCS#10 request.
pub fn csr_der(key: &Path, options: &[&str]) -> Vec<u8> {
    let base = ["req", "-new", "-key", key.to_str().unwrap(), "-outform", "DER"];
    let subject: &[&str] = &["-subj", "/CN=ignored", "-addext", "subjectAltName=DNS:ignored"];
    openssl(&[&base, subject, options].concat())
}

pub fn csr(key: &Path) -> String {
    STANDARD.encode(csr_der(key, &["-sha256"]))
}

pub fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A client that trusts the MIS, with or without a certificate of its own.
pub fn client(mis: &Mis, identity: Option<(&Path, &Path)>) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(mis.ca_file()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificates, key)) => {
            let chain =
                CertificateDer::pem_file_iter(certificates).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
    };
    Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

/// The sample device's client.
pub fn factory(mis: &Mis) -> Client {
    client(mis, Some((&mis.factory_cert(), &mis.factory_key())))
}

pub fn enrollment(csr: &str) -> Value {
    json!({
        "svidProfileUri": X509_PROFILE,
        "svidRequest": { "csr": csr },
        "bootstrapCredential": { "method": FACTORY_METHOD },
    })
}

pub fn renewal(csr: &str) -> Value {
    json!({ "svidProfileUri": X509_PROFILE, "svidRequest": { "csr": csr } })
}

pub fn enroll(mis: &Mis, client: &Client, body: &Value) -> Response {
    client.post(format!("{}/api/v1/identities", mis.url())).json(body).send().unwrap()
}

pub fn renew(mis: &Mis, client: &Client, id: &str, body: &Value) -> Response {
    try_renew(mis, client, id, body).send().unwrap()
}

pub fn try_renew(mis: &Mis, client: &Client, id: &str, body: &Value) -> RequestBuilder {
    let id = URL_SAFE_NO_PAD.encode(id);
    client.post(format!("{}/api/v1/identities/{id}/renewal", mis.url())).json(body)
}

/// A successful response's SVID, written to a file of PEM certificates.
pub struct Svid {
    pub chain: PathBuf,
    pub certificates: usize,
    pub id: String,
}

impl Svid {
    pub fn of(answer: Response, dir: &Path, name: &str) -> Self {
        assert!(answer.status().is_success(), "{answer:?}");
        assert_eq!(answer.headers()["content-type"], "application/json");
        let body: Value = answer.json().unwrap();
        assert_eq!(body["svidProfileUri"], X509_PROFILE);
        let parts: Vec<&str> = body["svid"]["certificateChainPem"]
            .as_array()
            .unwrap()
            .iter()
            .map(|part| part.as_str().unwrap())
            .collect();
        let chain = dir.join(format!("{name}.pem"));
        fs::write(&chain, parts.concat()).unwrap();
        let text = openssl(&["x509", "-noout", "-text", "-in", chain.to_str().unwrap()]);
        let text = String::from_utf8(text).unwrap();
        let id =
            text.lines().find_map(|line| line.trim().strip_prefix("URI:")).unwrap_or_default().to_owned();
        Self { chain, certificates: parts.len(), id }
    }

    pub fn text(&self) -> String {
        let text = openssl(&["x509", "-noout", "-text", "-in", self.chain.to_str().unwrap()]);
        String::from_utf8(text).unwrap()
    }

    pub fn client(&self, mis: &Mis, key: &Path) -> Client {
        client(mis, Some((&self.chain, key)))
    }
}

/// Checks a Problem Details response against the SUP, and returns its code (or `about:blank`).
#[track_caller]
pub fn problem(answer: Response, status: u16) -> String {
    assert_eq!(answer.status(), status, "{answer:?}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body: Value = answer.json().unwrap();
    assert_eq!(body["status"], status);
    for member in ["type", "title", "detail", "instance"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body}");
    }
    let kind = body["type"].as_str().unwrap();
    kind.strip_prefix("https://margo.org/docs/errors/").unwrap_or(kind).to_owned()
}

/// Writes the anchors of the Trust Bundle to a file, for `openssl verify`.
pub fn anchors(mis: &Mis, file: &Path) -> Value {
    let url = format!("{}{}", mis.url(), development_mis::BUNDLE_PATH);
    let map: Value = client(mis, None).get(url).send().unwrap().json().unwrap();
    let entry = map["trust_domains"][mis.trust_domain()].clone();
    let pem: String = entry["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| {
            assert_eq!(key["use"], "x509-svid");
            let der = STANDARD.decode(key["x5c"][0].as_str().unwrap()).unwrap();
            let text = STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        })
        .collect();
    fs::write(file, pem).unwrap();
    entry
}

/// Whether OpenSSL validates an SVID against anchors, for this purpose.
pub fn verifies(svid: &Svid, anchors: &Path, purpose: &str) -> bool {
    let chain = svid.chain.to_str().unwrap();
    Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
        .arg(anchors)
        .args(["-untrusted", chain, chain])
        .output()
        .unwrap()
        .status
        .success()
}
