//! Enrollment by binding assertion (W3 to W5). The assertions are made here, by the `openssl`
//! command and by hand.

mod common;

#[allow(dead_code)] // what the tests of the agent need of it
#[path = "../../support/ports.rs"]
mod ports;

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use common::*;
use development_mis::{ASSERTION_TYPE, BINDING_METHOD, ClientKind, FACTORY_METHOD, MintSpec, Mis};
use reqwest::blocking::Client;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CLIENT: &str = "spiffe://factory.example/margo/wfm/w1/client/c1";

/// An MIS that accepts w1, a device with an SVID, and the WFM's SVID.
struct Stage {
    site: Site,
    device: Client,
    device_key: PathBuf,
    device_id: String,
    wfm: (PathBuf, PathBuf),
    csr: String,
    client_key: PathBuf,
}

fn stage() -> Stage {
    stage_at(0)
}

/// As [`stage`], with the MIS at this port; 0 for any.
fn stage_at(port: u16) -> Stage {
    let site = site(|settings| {
        settings.policy.accept_wfm("w1");
        settings.listen = ([127, 0, 0, 1], port).into();
    });
    let dir = site.dir.path();
    let device_key = key(dir, "device", P256);
    let svid =
        Svid::of(enroll(&site.mis, &factory(&site.mis), &enrollment(&csr(&device_key))), dir, "device");
    let device = svid.client(&site.mis, &device_key);
    let wfm = site.mis.mint_wfm("w1").unwrap();
    let client_key = key(dir, "client", P256);
    let csr = csr(&client_key);
    Stage { device, device_key, device_id: svid.id, wfm, csr, client_key, site }
}

impl Stage {
    fn mis(&self) -> &Mis {
        &self.site.mis
    }

    fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let issuer = "spiffe://factory.example/margo/wfm/w1";
        json!({
            "iss": issuer, "sub": issuer, "aud": format!("{}/api/v1/identities", self.mis().url()),
            "iat": now, "exp": now + 300, "jti": format!("{:?}", std::time::Instant::now()),
            "wfmId": "w1", "clientHandle": "c1",
        })
    }

    fn assertion(&self, claims: &Value) -> String {
        jws(&header(&self.wfm.0), claims, &self.wfm.1)
    }

    fn enroll(&self, client: &Client, assertion: &str) -> reqwest::blocking::Response {
        enroll(self.mis(), client, &body(assertion, &self.csr))
    }

    /// The detail of a refusal of this assertion, and its code.
    #[track_caller]
    fn refused(&self, assertion: &str) -> (String, String) {
        let answer = self.enroll(&self.device, assertion);
        let status = answer.status().as_u16();
        let body: Value = answer.json().unwrap();
        let kind = body["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let expected = if kind == "invalid-audience" { 400 } else { 401 };
        assert_eq!(status, expected, "{body}");
        (kind, body["detail"].as_str().unwrap().to_owned())
    }
}

fn header(chain: &Path) -> Value {
    let chain: Vec<String> =
        CertificateDer::pem_file_iter(chain).unwrap().map(|one| STANDARD.encode(one.unwrap())).collect();
    json!({ "typ": ASSERTION_TYPE, "alg": "ES256", "x5c": chain })
}

fn jws(header: &Value, claims: &Value, key: &Path) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_file(key).unwrap();
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.secret_pkcs8_der(), &random)
        .unwrap();
    let signature = key.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn body(assertion: &str, csr: &str) -> Value {
    let mut body = enrollment(csr);
    body["bootstrapCredential"] =
        json!({ "method": BINDING_METHOD, "proof": { "bindingAssertion": assertion } });
    body
}

#[test]
fn binding_enrolls_a_wfm_client_and_renews() {
    let stage = stage();
    let (mis, dir) = (stage.mis(), stage.site.dir.path());
    let document: Value = client(mis, None).get(mis.discovery_url()).send().unwrap().json().unwrap();
    assert_eq!(document["supportedBootstrapMethods"], json!([FACTORY_METHOD, BINDING_METHOD]));

    let answer = stage.enroll(&stage.device, &stage.assertion(&stage.claims()));
    assert_eq!(answer.status(), 201);
    let svid = Svid::of(answer, dir, "client");
    assert_eq!(svid.id, CLIENT);
    let esi = openssl_sha256(b"wfm-client-binding:v1\0w1\0c1", dir);
    assert_eq!(mis.wfm_clients()[0].esi, esi);
    assert_eq!((mis.devices().len(), mis.wfm_clients().len()), (1, 1));
    let entry = mis.journal().pop().unwrap();
    assert_eq!(entry.client, ClientKind::Svid);
    assert_eq!(entry.client_spiffe_id.as_deref(), Some(stage.device_id.as_str()));

    // Renewal is the standard one, with the client's SVID and no assertion (W4).
    let wfm_client = svid.client(mis, &stage.client_key);
    assert_eq!(renew(mis, &wfm_client, CLIENT, &renewal(&stage.csr)).status(), 200);
    assert_eq!(problem(renew(mis, &stage.device, CLIENT, &renewal(&stage.csr)), 401), "about:blank");

    // The other vocabulary leads to the same identity; a new key is subject to the policy.
    let mut claims = stage.claims();
    let handle = claims.as_object_mut().unwrap().remove("clientHandle").unwrap();
    claims["wfmClientId"] = handle;
    assert_eq!(stage.enroll(&stage.device, &stage.assertion(&claims)).status(), 200);
    mis.policy(|policy| policy.rotation_at_enrollment = false);
    let other = body(&stage.assertion(&stage.claims()), &csr(&key(dir, "other", P256)));
    assert_eq!(problem(enroll(mis, &stage.device, &other), 409), "key-rotation-not-permitted");
    mis.policy(|policy| policy.rotation_at_enrollment = true);
    let other = body(&stage.assertion(&stage.claims()), &csr(&key(dir, "other", P256)));
    assert_eq!(enroll(mis, &stage.device, &other).status(), 200);
    assert_eq!(problem(renew(mis, &wfm_client, CLIENT, &renewal(&stage.csr)), 401), "about:blank");
}

fn openssl_sha256(bytes: &[u8], dir: &Path) -> String {
    let file = dir.join("esi");
    std::fs::write(&file, bytes).unwrap();
    let out = String::from_utf8(openssl(&["dgst", "-sha256", "-r", file.to_str().unwrap()])).unwrap();
    out.split(' ').next().unwrap().to_owned()
}

#[test]
fn each_method_has_its_own_client_certificate() {
    let stage = stage();
    let (mis, dir) = (stage.mis(), stage.site.dir.path());
    let answer = stage.enroll(&stage.device, &stage.assertion(&stage.claims()));
    let svid = Svid::of(answer, dir, "client").client(mis, &stage.client_key);
    let wfm = client(mis, Some((&stage.wfm.0, &stage.wfm.1)));
    // A device's SVID that this MIS did not issue over the network.
    let unknown = MintSpec {
        faults: vec![development_mis::SvidFault::SpiffeId(stage.device_id.clone())],
        ..MintSpec::new(CLIENT)
    };
    let unknown = mis.mint_files("unknown", &unknown).unwrap();
    let unknown = client(mis, Some((&unknown.0, &unknown.1)));
    for (who, client) in [
        ("none", client(mis, None)),
        ("factory", factory(mis)),
        ("wfm client", svid),
        ("wfm", wfm),
        ("unknown device", unknown),
    ] {
        let answer = stage.enroll(&client, &stage.assertion(&stage.claims()));
        assert_eq!(problem(answer, 401), "invalid-bootstrap-proof", "{who}");
    }
    let answer = enroll(mis, &stage.device, &enrollment(&stage.csr));
    assert_eq!(problem(answer, 401), "invalid-bootstrap-proof");
    mis.invalidate_svids().unwrap();
    let answer = stage.enroll(&stage.device, &stage.assertion(&stage.claims()));
    assert_eq!(problem(answer, 401), "invalid-bootstrap-proof");
}

#[test]
fn replayed_assertion_is_refused_also_after_a_restart() {
    // One that no outgoing connection takes while the MIS is away.
    let stage = stage_at(ports::free());
    let assertion = stage.assertion(&stage.claims());
    assert_eq!(stage.enroll(&stage.device, &assertion).status(), 201);
    assert!(stage.refused(&assertion).1.contains("replayed"));
    let port = stage.mis().port();
    let Stage { site: Site { mis, dir }, device, csr, .. } = stage;
    let mut settings = development_mis::Settings {
        directory: mis.directory().to_owned(),
        listen: ([127, 0, 0, 1], port).into(),
        ..development_mis::Settings::default()
    };
    settings.policy.accept_wfm("w1");
    drop(mis);
    let mis = Mis::start(settings).unwrap();
    assert_eq!(problem(enroll(&mis, &device, &body(&assertion, &csr)), 401), "invalid-bootstrap-proof");
    drop(dir);
}

#[test]
fn wrong_claims_are_refused_with_the_reason() {
    let stage = stage();
    let now = stage.claims()["iat"].as_u64().unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut claims = stage.claims();
        change(&mut claims);
        stage.refused(&stage.assertion(&claims))
    };
    for audience in [json!("https://other.example/api/v1/identities"), json!(stage.mis().url()), json!([])] {
        let (kind, detail) = refused(&|claims| claims["aud"] = audience.clone());
        assert_eq!(kind, "invalid-audience", "{detail}");
    }
    type Change<'a> = &'a dyn Fn(&mut Value);
    let cases: [(&str, Change<'_>); 12] = [
        ("expired", &|claims| (claims["iat"], claims["exp"]) = ((now - 400).into(), (now - 100).into())),
        ("not valid yet", &|claims| {
            (claims["iat"], claims["exp"]) = ((now + 600).into(), (now + 700).into())
        }),
        ("after iat", &|claims| claims["exp"] = (now + 900).into()),
        ("after iat", &|claims| claims["exp"] = claims["iat"].clone()),
        ("differ", &|claims| claims["sub"] = CLIENT.into()),
        ("the signer's SVID is of", &|claims| {
            (claims["iss"], claims["sub"]) = (CLIENT.into(), CLIENT.into())
        }),
        ("not authorized", &|claims| claims["wfmId"] = "w2".into()),
        ("part of a SPIFFE ID", &|claims| claims["clientHandle"] = "..".into()),
        ("part of a SPIFFE ID", &|claims| claims["clientHandle"] = "a~b".into()),
        ("differ", &|claims| claims["wfmClientId"] = "c2".into()),
        ("jti", &|claims| claims["jti"] = "".into()),
        ("claims", &|claims| drop(claims.as_object_mut().unwrap().remove("iat"))),
    ];
    for (reason, change) in cases {
        let (kind, detail) = refused(change);
        assert_eq!(kind, "invalid-bootstrap-proof");
        assert!(detail.contains(reason), "{reason}: {detail}");
    }
    assert!(stage.mis().wfm_clients().is_empty());
}

#[test]
fn foreign_and_wrong_signers_are_refused() {
    let stage = stage();
    let mis = stage.mis();
    let claims = || stage.claims();
    let foreign = site(|_| ());
    let foreign = foreign.mis.mint_wfm("w1").unwrap();
    let refused = |header: &Value, claims: &Value, key: &Path| {
        let (kind, detail) = stage.refused(&jws(header, claims, key));
        assert_eq!(kind, "invalid-bootstrap-proof");
        detail
    };
    let detail = refused(&header(&foreign.0), &claims(), &foreign.1);
    assert!(detail.contains("SVID in x5c"), "{detail}");
    let detail = refused(&header(&stage.wfm.0), &claims(), &foreign.1);
    assert!(detail.contains("signature"), "{detail}");
    // Of this trust domain, and not this WFM: another WFM, a client, the device.
    let device = (stage.site.dir.path().join("device.pem"), stage.device_key.clone());
    for other in [mis.mint_wfm("w2").unwrap(), mis.mint_wfm_client("w1", "c2").unwrap(), device] {
        let own = refused(&header(&other.0), &claims(), &other.1);
        assert!(own.contains("the signer's SVID is of"), "{own}");
        let mut named = claims();
        let id = id_in(&other.0);
        (named["iss"], named["sub"]) = (id.as_str().into(), id.as_str().into());
        let own = refused(&header(&other.0), &named, &other.1);
        assert!(own.contains("not authorized"), "{own}");
    }
    let good = header(&stage.wfm.0);
    for (member, value, reason) in [
        ("typ", json!("JWT"), "typ"),
        ("typ", json!(null), "typ"),
        ("alg", json!("none"), "alg"),
        ("alg", json!("HS256"), "alg"),
        ("alg", json!("PS256"), "does not fit"),
        ("crit", json!(["exp"]), "crit"),
        ("x5c", json!([]), "x5c"),
        ("x5c", json!(["AAAA"]), "SVID in x5c"),
    ] {
        let mut bent = good.clone();
        bent[member] = value;
        let detail = refused(&bent, &claims(), &stage.wfm.1);
        assert!(detail.contains(reason), "{member}: {detail}");
    }
    for nonsense in ["", "a.b", "a.b.c.d", "....", "e30.e30.AAAA", "W10.e30.AAAA"] {
        assert_eq!(stage.refused(nonsense).0, "invalid-bootstrap-proof");
    }
    // A delegated signer, by the operator's decision.
    let delegate = mis.mint_wfm("w2").unwrap();
    mis.policy(|policy| {
        policy.wfms.insert("w1".to_owned(), vec!["spiffe://factory.example/margo/wfm/w2".to_owned()])
    });
    let mut named = claims();
    let id = "spiffe://factory.example/margo/wfm/w2";
    (named["iss"], named["sub"]) = (id.into(), id.into());
    let assertion = jws(&header(&delegate.0), &named, &delegate.1);
    assert_eq!(stage.enroll(&stage.device, &assertion).status(), 201);
}

fn id_in(chain: &Path) -> String {
    let text = openssl(&["x509", "-noout", "-ext", "subjectAltName", "-in", chain.to_str().unwrap()]);
    let text = String::from_utf8(text).unwrap();
    text.split("URI:").nth(1).unwrap().trim().to_owned()
}

#[test]
fn binding_request_is_read_strictly() {
    let stage = stage();
    let mis = stage.mis();
    let good = || body(&stage.assertion(&stage.claims()), &stage.csr);
    let mut extra = good();
    extra["bootstrapCredential"]["proof"]["extra"] = 1.into();
    assert_eq!(problem(enroll(mis, &stage.device, &extra), 400), "invalid-svid-request");
    let mut text = good();
    text["bootstrapCredential"]["proof"] = "x".into();
    assert_eq!(problem(enroll(mis, &stage.device, &text), 400), "invalid-svid-request");
    let mut none = good();
    none["bootstrapCredential"].as_object_mut().unwrap().remove("proof");
    assert_eq!(problem(enroll(mis, &stage.device, &none), 401), "invalid-bootstrap-proof");
    let own = body(&stage.assertion(&stage.claims()), &csr(&stage.device_key));
    assert_eq!(problem(enroll(mis, &stage.device, &own), 400), "invalid-svid-request");
    mis.policy(|policy| policy.methods.pop());
    assert_eq!(problem(enroll(mis, &stage.device, &good()), 422), "unsupported-method");
}
