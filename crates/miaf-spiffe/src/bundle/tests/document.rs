//! The document for local programs: with a refresh hint, further authorities, and keys that every
//! program can read.

use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

use super::*;

const HINT: Duration = Duration::from_secs(300);

fn certificate(key: &KeyPair) -> CertificateDer<'static> {
    CertificateParams::default().self_signed(key).unwrap().der().clone()
}

fn p256() -> CertificateDer<'static> {
    certificate(&KeyPair::generate().unwrap())
}

fn rsa() -> KeyPair {
    const PKCS8: &[u8] = include_bytes!("../../../../../tests/data/test-key-rsa-3072.pk8.der");
    KeyPair::from_pkcs8_der_and_sign_algo(&PKCS8.into(), &rcgen::PKCS_RSA_SHA256).unwrap()
}

fn document(bundle: &Bundle, further: &[CertificateDer<'_>]) -> Value {
    serde_json::to_value(bundle.document(HINT, further)).unwrap()
}

#[test]
fn document_has_the_hint_of_the_mis_or_the_agents_own() {
    let seconds = Duration::from_secs;
    for (served, own, published) in [
        (json!(60), seconds(300), 60),
        (json!(1), seconds(300), 1),
        (json!(null), seconds(300), 300),
        (json!(0), seconds(300), 300),
        (json!("x"), seconds(300), 300),
        (json!(null), Duration::from_millis(1500), 2),
        (json!(null), Duration::from_millis(1), 1),
        (json!(null), Duration::ZERO, 1),
    ] {
        let bundle =
            read(json!({ "keys": [jwk(json!([anchor()]))], "spiffe_refresh_hint": served })).unwrap();
        assert_eq!(bundle.document(own, &[]).spiffe_refresh_hint, Some(published), "{served}, {own:?}");
        let stored = bundle.to_document().spiffe_refresh_hint;
        assert_eq!(stored, bundle.refresh_hint().map(|hint| hint.as_secs()), "that of the MIS alone");
    }
}

#[test]
fn further_authorities_follow_the_anchors_once() {
    let [root, first, second] = [p256(), p256(), p256()];
    let bundle =
        read(map(json!({ "keys": [jwk(json!([BASE64.encode(&root)]))], "spiffe_sequence": 7 }))).unwrap();
    let further = [first.clone(), root.clone(), second.clone(), first.clone()];
    let published = document(&bundle, &further);
    let read_back = read(published.clone()).unwrap();
    assert_eq!(read_back.anchors(), [root, first, second]);
    assert_eq!((read_back.sequence(), read_back.warnings()), (Some(7), &[][..]));
    assert_eq!(published["keys"].as_array().unwrap().len(), 3);
    for key in published["keys"].as_array().unwrap() {
        assert_eq!(key["use"], "x509-svid");
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
    }
    assert_eq!(bundle.to_document().keys.len(), 1, "what is stored has none of them");
}

#[test]
fn further_authorities_stay_within_the_limit_of_keys() {
    let keys: Vec<_> = (0..MAX_ANCHORS - 1).map(|_| jwk(json!([anchor()]))).collect();
    let bundle = read(json!({ "keys": keys })).unwrap();
    let published = document(&bundle, &[p256(), p256()]);
    assert_eq!(read(published).unwrap().anchors().len(), MAX_ANCHORS);
}

#[test]
fn further_authority_without_a_jwk_form_is_passed_over() {
    let bundle = read(json!({ "keys": [jwk(json!([anchor()]))] })).unwrap();
    let mut for_pss_only = certificate(&rsa()).to_vec();
    let rsa_encryption = [0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1];
    let at = for_pss_only.windows(9).position(|bytes| bytes == rsa_encryption).unwrap();
    for_pss_only[at + 8] = 10;
    let mut unknown_curve = p256().to_vec();
    let curve = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let at = unknown_curve.windows(8).position(|bytes| bytes == curve).unwrap();
    unknown_curve[at + 7] = 6;
    let mut compressed = p256().to_vec();
    let point = [0, 4];
    let start = compressed.windows(8).position(|bytes| bytes == curve).unwrap();
    let at = start + compressed[start..].windows(2).position(|bytes| bytes == point).unwrap();
    compressed[at + 1] = 2;
    for der in [Vec::new(), b"text".to_vec(), for_pss_only, unknown_curve, compressed] {
        assert_eq!(document(&bundle, &[der.into()])["keys"].as_array().unwrap().len(), 1);
    }
}

/// The members of RFC 7518 and RFC 8037, without which a program may refuse the whole bundle.
#[test]
fn keys_have_the_parameters_of_their_kind() {
    let bundle = read(json!({ "keys": [jwk(json!([anchor()]))] })).unwrap();
    for (algorithm, kty, curve, length) in [
        (&PKCS_ECDSA_P256_SHA256, "EC", "P-256", 32),
        (&PKCS_ECDSA_P384_SHA384, "EC", "P-384", 48),
        (&PKCS_ED25519, "OKP", "Ed25519", 32),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let published = document(&bundle, &[certificate(&key)])["keys"][1].clone();
        let point = key.public_key_raw();
        assert_eq!((&published["kty"], &published["crv"]), (&json!(kty), &json!(curve)));
        let coordinate = |member: &str| BASE64_URL.decode(published[member].as_str().unwrap()).unwrap();
        assert_eq!(coordinate("x").len(), length);
        match kty {
            "OKP" => assert_eq!((coordinate("x"), &published["y"]), (point.to_vec(), &Value::Null)),
            _ => assert_eq!([vec![4], coordinate("x"), coordinate("y")].concat(), point),
        }
        assert!(published["n"].is_null() && published["e"].is_null());
    }
    let published = document(&bundle, &[certificate(&rsa())])["keys"][1].clone();
    assert_eq!((&published["kty"], &published["e"]), (&json!("RSA"), &json!("AQAB")));
    let modulus = BASE64_URL.decode(published["n"].as_str().unwrap()).unwrap();
    assert_eq!(modulus.len(), 384, "without the zero that keeps it positive");
    assert!(rsa().public_key_raw().windows(384).any(|bytes| bytes == modulus));
    assert!(["crv", "x", "y"].iter().all(|member| published[member].is_null()));
}

#[test]
fn parameters_are_added_only_where_the_mis_gives_none() {
    let anchor = BASE64.encode(p256());
    let published = |members: Value| {
        let mut key = jwk(json!([anchor]));
        key.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        document(&read(json!({ "keys": [key] })).unwrap(), &[])["keys"][0].clone()
    };
    let complete = published(json!({ "kid": "a" }));
    assert_eq!((&complete["crv"], &complete["kid"]), (&json!("P-256"), &json!("a")));
    assert!(complete["x"].is_string() && complete["y"].is_string());
    for (name, value) in [("crv", "P-256"), ("x", "b"), ("y", "b"), ("n", "b"), ("e", "AQAB")] {
        let kept = published(json!({ (name): value }));
        let members: Vec<_> = kept.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = vec!["kty", "use", "x5c", name];
        expected.sort_unstable();
        assert_eq!((members, &kept[name]), (expected, &json!(value)));
    }
    let of_another_kind = published(json!({ "kty": "RSA" }));
    assert!(of_another_kind["n"].is_null() && of_another_kind["x"].is_null(), "{of_another_kind}");
}

#[test]
fn withdrawn_bundle_has_a_document_too() {
    let withdrawn = read(map(json!({ "keys": [] }))).unwrap();
    assert_eq!(document(&withdrawn, &[]), json!({ "keys": [], "spiffe_refresh_hint": 300 }));
    assert_eq!(
        document(&withdrawn, &[p256()])["keys"],
        json!([]),
        "an intermediate vouches for nothing alone"
    );
}
