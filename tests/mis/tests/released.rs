//! The released documents (N3, N4, N13).

mod common;

use common::*;
use development_mis::{DocumentFault, Documents, Endpoint, Fault, IssuerAlgorithm, Mis, Settings};
use serde_json::{Value, json};

fn released(settings: &mut Settings) {
    settings.policy.documents = Documents::Released;
}

fn get(mis: &Mis, path: &str) -> reqwest::blocking::Response {
    client(mis, None).get(format!("{}{path}", mis.url())).send().unwrap()
}

fn bundle(mis: &Mis) -> Value {
    get(mis, development_mis::BUNDLE_PATH).json().unwrap()
}

#[test]
fn released_discovery_has_two_members() {
    let site = site(released);
    let document: Value = get(&site.mis, "/.well-known/margo").json().unwrap();
    let expected = json!({
        "trustDomain": "factory.example",
        "trustBundleUri": format!("{}/.well-known/spiffe/bundle.json", site.mis.url()),
    });
    assert_eq!(document, expected);
    site.mis.policy(|policy| policy.documents = Documents::V0);
    let document: Value = get(&site.mis, "/.well-known/margo").json().unwrap();
    assert_eq!(document.as_object().unwrap().len(), 5);
}

#[test]
fn released_bundle_is_plain() {
    let site = site(released);
    let plain = bundle(&site.mis);
    assert_eq!(plain["keys"][0]["x5c"].as_array().unwrap().len(), 1);
    assert_eq!((&plain["spiffe_sequence"], &plain["spiffe_refresh_hint"]), (&1.into(), &300.into()));
    assert!(plain.get("trust_domains").is_none());
    let from_files: Value =
        serde_json::from_slice(&std::fs::read(site.mis.bundle_file().unwrap()).unwrap()).unwrap();
    assert_eq!(plain, from_files);

    let bend = |fault| site.mis.fault(Endpoint::Bundle, Fault::Document(fault));
    bend(DocumentFault::EmptyKeys);
    assert_eq!(bundle(&site.mis)["keys"], json!([]));
    bend(DocumentFault::NoX509Keys);
    assert_eq!(bundle(&site.mis)["keys"][0]["use"], "jwt-svid");
    bend(DocumentFault::LowerSequence);
    assert_eq!(bundle(&site.mis)["spiffe_sequence"], 0);
    bend(DocumentFault::BundleMap);
    assert_eq!(bundle(&site.mis)["trust_domains"]["factory.example"], plain);
    for harmless in [DocumentFault::TrustDomain("x.example".into()), DocumentFault::DuplicateTrustDomain] {
        bend(harmless);
        assert_eq!(bundle(&site.mis), plain);
    }
}

/// Every algorithm of N7 can sign; v0 has two of them.
#[test]
fn released_authorities_have_any_algorithm_of_n7() {
    for (algorithm, kty) in
        [(IssuerAlgorithm::P384, "EC"), (IssuerAlgorithm::Ed25519, "OKP"), (IssuerAlgorithm::RsaPkcs1, "RSA")]
    {
        let site = site(|settings| {
            released(settings);
            settings.algorithm = algorithm;
        });
        assert_eq!(bundle(&site.mis)["keys"][0]["kty"], kty);
        let (chain, _) = site.mis.mint_wfm("w1").unwrap();
        let anchors = site.dir.path().join("anchors.pem");
        std::fs::copy(site.mis.directory().join("trust-domain/root-1.pem"), &anchors).unwrap();
        openssl(&["verify", "-CAfile", anchors.to_str().unwrap(), chain.to_str().unwrap()]);
        drop(site.mis);
        let settings = Settings { directory: site.dir.path().join("v0"), algorithm, ..Settings::default() };
        assert!(Mis::start(settings).is_err());
    }
}

#[test]
fn missing_discovery_document_is_a_released_problem() {
    let site = site(|settings| {
        released(settings);
        settings.policy.discovery = false;
    });
    let answer = get(&site.mis, "/.well-known/margo");
    assert!(answer.headers().get("retry-after").is_none());
    let body: Value = answer.json().unwrap();
    let kind = "https://docs.margo.org/specification/problem-types#discovery-document-not-found";
    assert_eq!((&body["type"], &body["status"]), (&kind.into(), &404.into()));
    assert_eq!((&body["retryable"], &body["retryAfterSeconds"]), (&true.into(), &30.into()));
    assert_eq!(body["backoffStrategy"], "exponential");
    assert_eq!(bundle(&site.mis)["spiffe_sequence"], 1);
    let answer = get(&site.mis, "/other");
    assert_eq!(problem(answer, 404), "about:blank");
}

#[test]
fn released_mis_issues_nothing_over_the_network() {
    let site = site(released);
    let body = enrollment(&csr(&key(site.dir.path(), "device", P256)));
    assert_eq!(problem(enroll(&site.mis, &factory(&site.mis), &body), 404), "about:blank");
    assert!(site.mis.devices().is_empty());
}
