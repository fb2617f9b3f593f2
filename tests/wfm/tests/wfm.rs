//! The development WFM over real TLS, with SVIDs of a development MIS.

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use development_mis::{
    BINDING_METHOD, KeyKind, MintKey, MintSpec, Mis, Settings as MisSettings, SvidFault, X509_PROFILE,
};
use development_wfm::{AssertionFault, ClientKind, Credential, Endpoint, Fault, Limit, Settings, Wfm};
use reqwest::blocking::{Client, Response};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(120);
const CLIENT: &str = "spiffe://factory.example/margo/wfm/w1/client/c1";
const DEVICE: &str = "spiffe://factory.example/margo/device/11111111-1111-4111-8111-111111111111";

type Files = (PathBuf, PathBuf);

struct Stage {
    mis: Mis,
    wfm: Wfm,
    dir: TempDir,
}

fn stage(change: impl FnOnce(&mut Settings)) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = MisSettings { directory: dir.path().join("mis"), ..MisSettings::default() };
    settings.policy.accept_wfm("w1");
    let mis = Mis::start(settings).unwrap();
    let (chain, key) = mis.mint_wfm("w1").unwrap();
    let bundle = mis.bundle_file().unwrap();
    let mut settings = Settings::new(Credential::new(chain, key), bundle, mis.url());
    change(&mut settings);
    let wfm = Wfm::start(settings).unwrap();
    Stage { mis, wfm, dir }
}

impl Stage {
    /// An SVID of this name, with a fault.
    fn svid(&self, name: &str, id: &str, faults: Vec<SvidFault>) -> Files {
        let faults = [vec![SvidFault::SpiffeId(id.to_owned())], faults].concat();
        self.mis.mint_files(name, &MintSpec { faults, ..MintSpec::new(CLIENT) }).unwrap()
    }

    fn device(&self) -> Files {
        self.svid("device", DEVICE, Vec::new())
    }

    fn deployments(&self, client: &Client) -> Response {
        client.get(format!("{}/api/v1/deployments", self.wfm.url())).send().unwrap()
    }

    fn onboard(&self, client: &Client, body: &Value) -> Response {
        client.post(format!("{}/api/v1/onboarding", self.wfm.url())).json(body).send().unwrap()
    }

    fn client(&self, identity: Option<&Files>) -> Client {
        client(&self.mis, identity)
    }
}

/// A client that trusts the bundle, and whatever name the server has: as WFM Clients do (N10).
fn client(mis: &Mis, identity: Option<&Files>) -> Client {
    client_with(&mis.directory().join("trust-domain/root-1.pem"), identity)
}

fn client_with(anchor: &std::path::Path, identity: Option<&Files>) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(anchor).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByChain(
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap(),
        )));
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_file_iter(chain).unwrap().map(Result::unwrap).collect();
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
    };
    Client::builder().tls_backend_preconfigured(config).build().unwrap()
}

/// Chain only: an SVID has no DNS name.
#[derive(Debug)]
struct ByChain(Arc<rustls::client::WebPkiServerVerifier>);

impl rustls::client::danger::ServerCertVerifier for ByChain {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &rustls::pki_types::ServerName<'_>,
        ocsp: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(leaf, above, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. },
            )) => Ok(rustls::client::danger::ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Checks a Problem Details response, and returns the last part of its type.
#[track_caller]
fn problem(answer: Response, status: u16) -> String {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let body: Value = answer.json().unwrap();
    assert_eq!(body["status"], status);
    body["type"].as_str().unwrap().rsplit(['/', '#']).next().unwrap().to_owned()
}

fn claims(assertion: &Value) -> Value {
    let jws = assertion["bindingAssertion"].as_str().unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jws.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[test]
fn onboarding_speaks_both_vocabularies() {
    let stage = stage(|_| ());
    let device = stage.client(Some(&stage.device()));
    let onboard = |body: Value| {
        let answer = stage.onboard(&device, &body);
        assert_eq!(answer.status(), 201);
        claims(&answer.json().unwrap())
    };
    let one = onboard(json!({ "clientHandle": "c1" }));
    assert_eq!((&one["clientHandle"], &one["wfmId"]), (&"c1".into(), &"w1".into()));
    assert_eq!((&one["iss"], &one["sub"]), (&stage.wfm.spiffe_id().into(), &stage.wfm.spiffe_id().into()));
    assert_eq!(one["aud"], format!("{}/api/v1/identities", stage.mis.url()));
    assert_eq!(one["exp"].as_i64().unwrap() - one["iat"].as_i64().unwrap(), 300);
    let two = onboard(json!({ "wfmClientId": "c2" }));
    assert!(two["wfmClientId"] == "c2" && two.get("clientHandle").is_none());
    assert_ne!(one["jti"], two["jti"]);
    let (derived, again) = (onboard(json!({})), onboard(json!({})));
    assert_eq!(derived["clientHandle"], again["clientHandle"]);
    let entry = stage.wfm.journal().remove(0);
    assert_eq!((entry.client.kind, entry.client.spiffe_id.as_deref()), (ClientKind::Device, Some(DEVICE)));
    assert_eq!(entry.onboarded.as_deref(), Some(CLIENT));
}

#[test]
fn onboarding_refusals_are_those_of_w1() {
    let stage = stage(|_| ());
    let (mis, wfm) = (&stage.mis, &stage.wfm);
    let device = stage.client(Some(&stage.device()));
    assert_eq!(problem(stage.onboard(&device, &json!({ "handle": "x" })), 400), "about:blank");
    let url = format!("{}/api/v1/onboarding", wfm.url());
    assert_eq!(problem(device.post(&url).body("{}").send().unwrap(), 415), "about:blank");
    let answer = device.get(&url).send().unwrap();
    assert_eq!(answer.headers()["allow"], "POST");
    assert_eq!(problem(answer, 405), "about:blank");
    let factory = (mis.factory_cert(), mis.factory_key());
    let wfm_client = mis.mint_wfm_client("w1", "c1").unwrap();
    for who in [None, Some(&factory), Some(&wfm_client)] {
        assert_eq!(problem(stage.onboard(&stage.client(who), &json!({})), 401), "about:blank");
    }
    assert_eq!(wfm.journal().pop().unwrap().client.kind, ClientKind::WfmClient);

    assert_eq!(stage.onboard(&device, &json!({ "clientHandle": "c1" })).status(), 201);
    let other = stage.client(Some(&stage.svid("other", &DEVICE.replace('1', "2"), Vec::new())));
    let answer = stage.onboard(&other, &json!({ "clientHandle": "c1" }));
    assert_eq!(problem(answer, 422), "wfm-client-handle-conflict");
    let answer = stage.onboard(&other, &json!({ "wfmClientId": "c1" }));
    assert_eq!(problem(answer, 422), "wfm-client-id-conflict");
    wfm.policy(|policy| policy.devices = Some(BTreeSet::from([DEVICE.to_owned()])));
    assert_eq!(problem(stage.onboard(&other, &json!({})), 403), "wfm-client-onboarding-forbidden");
    let limit = Limit { successes: 1, window: Duration::from_secs(1000) };
    wfm.policy(|policy| policy.onboarding_limit = Some(limit));
    let answer = stage.onboard(&device, &json!({}));
    assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 900);
    assert_eq!(problem(answer, 429), "too-many-requests");
    wfm.policy(|policy| policy.onboarding = false);
    assert_eq!(problem(stage.onboard(&device, &json!({})), 404), "about:blank");
}

#[test]
fn deployments_are_for_accepted_clients_only() {
    let stage = stage(|settings| settings.base_path = "/v1alpha2/margo".to_owned());
    let (mis, wfm) = (&stage.mis, &stage.wfm);
    let files = mis.mint_wfm_client("w1", "c1").unwrap();
    let client = stage.client(Some(&files));
    assert_eq!(problem(stage.deployments(&client), 403), "not-authorized");
    wfm.accept(CLIENT);
    let answer = stage.deployments(&client);
    assert_eq!(answer.status(), 200);
    let body: Value = answer.json().unwrap();
    assert_eq!(body["deployments"].as_array().unwrap().len(), 1);
    let journal = wfm.journal();
    let entry = journal.last().unwrap();
    assert_eq!((entry.client.kind, entry.client.spiffe_id.as_deref()), (ClientKind::WfmClient, Some(CLIENT)));
    assert_eq!(entry.path, "/v1alpha2/margo/api/v1/deployments");
    assert!(wfm.application_bytes() > 0);

    let foreign = mis.mint_wfm_client("w2", "c1").unwrap();
    let own = mis.mint_wfm("w1").unwrap();
    for who in ["spiffe://factory.example/margo/wfm/w2/client/c1", DEVICE, wfm.spiffe_id()] {
        wfm.accept(who); // of no use
    }
    for files in [stage.device(), foreign, own, mis.mint_wfm_client("w1", "C1").unwrap()] {
        assert_eq!(problem(stage.deployments(&stage.client(Some(&files))), 403), "not-authorized");
    }
    let factory = (mis.factory_cert(), mis.factory_key());
    for who in [None, Some(&factory)] {
        assert_eq!(problem(stage.deployments(&stage.client(who)), 401), "about:blank");
    }
}

/// What a client's certificate must be (N6, N7), beside its name.
#[test]
fn invalid_svids_are_refused() {
    let stage = stage(|_| ());
    stage.wfm.accept(CLIENT);
    let two = vec![SvidFault::TwoUriSans];
    for (name, id, faults) in [
        ("expired", CLIENT, vec![SvidFault::Expired]),
        ("early", CLIENT, vec![SvidFault::NotYetValid(Duration::from_secs(600))]),
        ("ca", CLIENT, vec![SvidFault::CaTrue]),
        ("cert-sign", CLIENT, vec![SvidFault::KeyCertSign]),
        ("crl-sign", CLIENT, vec![SvidFault::CrlSign]),
        ("no-usage", CLIENT, vec![SvidFault::NoKeyUsage]),
        ("two", CLIENT, two),
        ("none", CLIENT, vec![SvidFault::NoUriSan]),
        ("issuer", CLIENT, vec![SvidFault::UnknownIssuer]),
        ("scheme", "https://factory.example/margo/wfm/w1/client/c1", vec![]),
        ("no-path", "spiffe://factory.example", vec![]),
        ("domain", "spiffe://other.example/margo/wfm/w1/client/c1", vec![]),
        ("longer-domain", "spiffe://factory.example.org/margo/wfm/w1/client/c1", vec![]),
    ] {
        let files = stage.svid(name, id, faults);
        assert_eq!(problem(stage.deployments(&stage.client(Some(&files))), 401), "about:blank", "{name}");
    }
    let weak = MintSpec { key: MintKey::New(KeyKind::Rsa2048), ..MintSpec::new(CLIENT) };
    let files = stage.mis.mint_files("weak", &weak).unwrap();
    assert_eq!(problem(stage.deployments(&stage.client(Some(&files))), 401), "about:blank");
    // An intermediate, DNS names and other keys are no faults.
    for kind in [KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa3072] {
        let spec = MintSpec {
            key: MintKey::New(kind),
            dns: vec!["client.example".to_owned()],
            mode: Some(development_mis::IssuingMode::Intermediate),
            ..MintSpec::new(CLIENT)
        };
        let files = stage.mis.mint_files("good", &spec).unwrap();
        assert_eq!(stage.deployments(&stage.client(Some(&files))).status(), 200, "{kind:?}");
    }
}

/// A device with an SVID, onboarding, enrollment at the MIS, deployments.
#[test]
fn assertions_lead_to_an_identity_and_faults_do_not() {
    let stage = stage(|_| ());
    let (mis, wfm, dir) = (&stage.mis, &stage.wfm, stage.dir.path());
    let csr = |name: &str| {
        let key = dir.join(format!("{name}.key"));
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let make =
            ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &text(&key)];
        assert!(Command::new("openssl").args(make).output().unwrap().status.success());
        let ask = ["req", "-new", "-subj", "/CN=x", "-outform", "DER", "-key", &text(&key)];
        (key, STANDARD.encode(Command::new("openssl").args(ask).output().unwrap().stdout))
    };
    let enroll = |client: &Client, csr: &str, credential: Value| {
        let body = json!({
            "svidProfileUri": X509_PROFILE, "svidRequest": { "csr": csr }, "bootstrapCredential": credential,
        });
        client.post(format!("{}/api/v1/identities", mis.url())).json(&body).send().unwrap()
    };
    let svid = |answer: Response, name: &str| {
        let body: Value = answer.json().unwrap();
        let chain = body["svid"]["certificateChainPem"].as_array().unwrap();
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, chain.iter().map(|one| one.as_str().unwrap()).collect::<String>()).unwrap();
        file
    };
    let at_mis = |files: &Files| client_with(&mis.ca_file(), Some(files));
    let (device_key, device_csr) = csr("device");
    let factory = at_mis(&(mis.factory_cert(), mis.factory_key()));
    let answer = enroll(&factory, &device_csr, json!({ "method": development_mis::FACTORY_METHOD }));
    let device = (svid(answer, "device"), device_key);
    let (client_key, client_csr) = csr("client");
    let attempt = || {
        let answer = stage.onboard(&stage.client(Some(&device)), &json!({ "clientHandle": "c1" }));
        let proof: Value = answer.json().unwrap();
        enroll(&at_mis(&device), &client_csr, json!({ "method": BINDING_METHOD, "proof": proof }))
    };
    let answer = attempt();
    assert_eq!(answer.status(), 201);
    let identity = (svid(answer, "client"), client_key);
    assert_eq!(stage.deployments(&stage.client(Some(&identity))).status(), 200);
    assert_eq!(problem(stage.deployments(&stage.client(Some(&device))), 403), "not-authorized");

    let other = {
        let (chain, key) = mis.mint_wfm("w2").unwrap();
        Credential::new(chain, key)
    };
    let reasons = [
        (AssertionFault::Replayed, "replayed"),
        (AssertionFault::Expired, "expired"),
        (AssertionFault::NotYetValid, "not valid yet"),
        (AssertionFault::TooLong, "after iat"),
        (AssertionFault::ForeignSigner(other.clone()), "not authorized"),
        (AssertionFault::ForeignSignerOwnName(other.clone()), "the signer's SVID is of"),
        (AssertionFault::WrongSignature(other), "signature"),
        (AssertionFault::OtherWfmId("w2".to_owned()), "not authorized"),
        (AssertionFault::WrongType("JWT".to_owned()), "typ"),
        (AssertionFault::Garbage, "three parts"),
        (AssertionFault::WrongAudience("https://other.example/api/v1/identities".to_owned()), "aud"),
    ];
    for (fault, reason) in reasons {
        wfm.fault(Endpoint::Onboarding, Fault::Assertion(fault.clone()));
        let body: Value = attempt().json().unwrap();
        assert!(body["detail"].as_str().unwrap().contains(reason), "{fault:?}: {body}");
    }
    wfm.fault(Endpoint::Onboarding, Fault::LoseResponse);
    let lost = stage.client(Some(&device)).post(format!("{}/api/v1/onboarding", wfm.url())).json(&json!({}));
    assert!(lost.send().is_err());
    assert!(wfm.journal().last().unwrap().response_lost);
    wfm.fault(Endpoint::Onboarding, Fault::problem(503, "", Some("7")));
    let answer = stage.onboard(&stage.client(Some(&device)), &json!({}));
    assert_eq!(answer.headers()["retry-after"], "7");
    assert_eq!(attempt().status(), 200);
}

#[test]
fn wrong_server_certificates_are_shown_on_request() {
    let stage = stage(|_| ());
    let (mis, wfm) = (&stage.mis, &stage.wfm);
    wfm.accept(CLIENT);
    let files = mis.mint_wfm_client("w1", "c1").unwrap();
    let shown = || {
        let address = format!("127.0.0.1:{}", wfm.port());
        let tls = Command::new("openssl")
            .args(["s_client", "-showcerts", "-connect", &address])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        CertificateDer::from_pem_slice(&tls.stdout).unwrap()
    };
    let own = CertificateDer::from_pem_file(mis.directory().join("wfm-w1.pem")).unwrap();
    assert_eq!(shown(), own);
    let device = stage.device();
    let web = (mis.server_cert(), mis.directory().join("tls.key"));
    for (chain, key) in [mis.mint_wfm("w2").unwrap(), device, web] {
        wfm.show(Credential::new(&chain, key));
        assert_eq!(shown(), CertificateDer::from_pem_file(chain).unwrap());
    }
    // This client does not trust the Web PKI certificate: nothing of its request arrives.
    let before = wfm.application_bytes();
    let url = format!("{}/api/v1/deployments", wfm.url());
    assert!(stage.client(Some(&files)).get(&url).send().is_err());
    assert!(wfm.wait_for_refused_handshakes(LONG, 1).is_some());
    assert_eq!(wfm.application_bytes(), before);
    wfm.show_own();
    assert_eq!(shown(), own);
    assert_eq!(stage.deployments(&stage.client(Some(&files))).status(), 200);
}

#[test]
fn handshake_policy_outages_and_resumption() {
    let stage = stage(|settings| settings.offer_resumption = true);
    let (mis, wfm) = (&stage.mis, &stage.wfm);
    wfm.accept(CLIENT);
    let client = stage.client(Some(&mis.mint_wfm_client("w1", "c1").unwrap()));
    assert_eq!(stage.deployments(&client).status(), 200);
    wfm.stop_listening().unwrap();
    assert!(wfm.wait_for_connections(LONG, |all| all.iter().all(|one| one.ended)).is_some());
    let url = format!("{}/api/v1/deployments", wfm.url());
    assert!(client.get(&url).send().is_err());
    wfm.resume().unwrap();
    assert_eq!(stage.deployments(&client).status(), 200);
    let connections = wfm.connections();
    assert!(!connections[0].resumed && connections.last().unwrap().resumed, "{connections:?}");
    assert_eq!(wfm.journal().last().unwrap().client.spiffe_id.as_deref(), Some(CLIENT));

    wfm.policy(|policy| policy.refuse_in_handshake = true);
    let factory = (mis.factory_cert(), mis.factory_key());
    for who in [None, Some(&factory)] {
        assert!(stage.client(who).get(&url).send().is_err());
    }
    assert!(wfm.wait_for_refused_handshakes(LONG, 2).is_some());
    let fresh = stage.client(Some(&mis.mint_wfm_client("w1", "c1").unwrap()));
    assert_eq!(stage.deployments(&fresh).status(), 200);
}

#[test]
fn wfm_starts_with_a_valid_svid_of_a_wfm_only() {
    let stage = stage(|_| ());
    let bundle = stage.mis.bundle_file().unwrap();
    let start = |files: &Files| {
        let credential = Credential::new(&files.0, &files.1);
        Wfm::start(Settings::new(credential, &bundle, stage.mis.url())).map(drop)
    };
    let wfm = "spiffe://factory.example/margo/wfm/w1";
    start(&stage.svid("good", wfm, vec![])).unwrap();
    for (name, id, faults) in [
        ("expired", wfm, vec![SvidFault::Expired]),
        ("issuer", wfm, vec![SvidFault::UnknownIssuer]),
        ("client", CLIENT, vec![]),
        ("device", DEVICE, vec![]),
        ("none", wfm, vec![SvidFault::NoUriSan]),
    ] {
        assert!(start(&stage.svid(name, id, faults)).is_err(), "{name}");
    }
    assert!(start(&(stage.mis.server_cert(), stage.mis.directory().join("tls.key"))).is_err());
}
