//! Bundles, good and bad, and numbers that go up and down.

use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::*;

mod document;
mod properties;

fn domain() -> TrustDomain {
    TrustDomain::parse("factory.example").unwrap()
}

fn anchor() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    BASE64.encode(rcgen::CertificateParams::default().self_signed(&key).unwrap().der())
}

fn jwk(x5c: Value) -> Value {
    json!({ "kty": "EC", "use": "x509-svid", "x5c": x5c })
}

fn read(body: Value) -> Result<Bundle, BundleError> {
    read_text(&body.to_string())
}

fn read_text(body: &str) -> Result<Bundle, BundleError> {
    Bundle::from_served(body.as_bytes(), &domain())
}

/// What is handed out, as a local program reads it.
fn handed_out(bundle: &Bundle) -> Value {
    serde_json::to_value(bundle.to_document()).unwrap()
}

fn map(entry: Value) -> Value {
    json!({ "trust_domains": { "factory.example": entry, "other.example": { "keys": [] } } })
}

#[test]
fn bundle_map_and_plain_bundle_give_the_same_anchors() {
    let jwk = json!({ "kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "", "y": "", "x5c": [anchor()] });
    let entry = json!({ "keys": [jwk], "spiffe_sequence": 7, "spiffe_refresh_hint": 60 });
    let plain = read(entry.clone()).unwrap();
    assert_eq!(plain.anchors().len(), 1);
    assert_eq!((plain.sequence(), plain.refresh_hint()), (Some(7), Some(Duration::from_secs(60))));
    assert_eq!(read(map(entry.clone())).unwrap(), plain);
    assert_eq!(read(handed_out(&plain)).unwrap(), plain, "what is handed out reads back as itself");
    assert_eq!(plain.trust_domain(), &domain());
}

#[test]
fn bundle_map_counts_by_the_entry_of_the_domain() {
    let (ours, theirs) = (anchor(), anchor());
    let both = json!({
        "keys": [jwk(json!([theirs]))],
        "spiffe_sequence": 99,
        "trust_domains": {
            "other.example": { "keys": [jwk(json!([theirs]))], "spiffe_sequence": 98 },
            "factory.example": { "keys": [jwk(json!([ours]))], "spiffe_sequence": 7 },
            "a.factory.example": { "keys": [jwk(json!([theirs]))], "spiffe_sequence": 97 },
        },
    });
    let bundle = read(both).unwrap();
    assert_eq!(bundle.anchors(), [CertificateDer::from(BASE64.decode(ours).unwrap())]);
    assert_eq!(bundle.sequence(), Some(7));
}

#[test]
fn plain_bundle_has_a_name_once_it_is_given_one() {
    let body = json!({ "keys": [jwk(json!([anchor()]))], "spiffe_sequence": 7 });
    let unnamed = MaybeNamedBundle::from_served(body.to_string().as_bytes(), None).unwrap();
    assert_eq!((unnamed.trust_domain(), unnamed.named()), (None, None));
    assert_eq!((unnamed.anchors().len(), unnamed.sequence()), (1, Some(7)));
    let named = unnamed.with_name(&domain());
    assert_eq!(*named, read(body.clone()).unwrap());
    assert_eq!(
        MaybeNamedBundle::from_served(body.to_string().as_bytes(), Some(&domain())).unwrap(),
        MaybeNamedBundle::Named(named.clone())
    );
    let stored = serde_json::to_vec(&unnamed.to_document()).unwrap();
    assert_eq!(MaybeNamedBundle::from_stored_without_name(&stored).unwrap(), unnamed);
    // A name is given once.
    let other = TrustDomain::parse("other.example").unwrap();
    assert_eq!(MaybeNamedBundle::Named(named.clone()).with_name(&other), named);
}

#[test]
fn bundle_map_of_one_entry_names_it() {
    let entry = json!({ "keys": [jwk(json!([anchor()]))] });
    let read = |body: Value| MaybeNamedBundle::from_served(body.to_string().as_bytes(), None);
    let only = read(json!({ "trust_domains": { "factory.example": entry } })).unwrap();
    assert_eq!(only.trust_domain(), Some(&domain()));
    let empty = read(json!({ "trust_domains": { "factory.example": { "keys": [] } } })).unwrap();
    assert!(empty.anchors().is_empty(), "it withdraws all");
    assert_eq!(read(map(entry.clone())), Err(BundleError::NotOneEntry(2)));
    assert_eq!(read(json!({ "trust_domains": {} })), Err(BundleError::NoEntries));
    // What is wrong with one of several is of no concern: it may be that of another trust domain.
    let broken = json!({ "trust_domains": { "a.example": 5, "factory.example": entry } });
    assert_eq!(read(broken), Err(BundleError::NotOneEntry(2)));
    let misnamed = read(json!({ "trust_domains": { "Factory": entry } }));
    assert!(matches!(misnamed, Err(BundleError::EntryName(_))), "{misnamed:?}");
    let twice = format!("{{\"trust_domains\":{{\"a\":{entry},\"a\":{entry}}}}}");
    let twice = MaybeNamedBundle::from_served(twice.as_bytes(), None).unwrap_err();
    assert!(twice.to_string().contains("appears twice"), "{twice}");
    assert_eq!(read(json!({ "keys": [] })), Err(BundleError::NoAnchors));
    assert_eq!(read(json!({})), Err(BundleError::NeitherForm));
}

#[test]
fn anchors_keep_their_order_and_each_is_there_once() {
    let (first, second) = (anchor(), anchor());
    let keys = json!([jwk(json!([first])), jwk(json!([second])), jwk(json!([first]))]);
    let bundle = read(json!({ "keys": keys })).unwrap();
    let served = [first, second].map(|text| CertificateDer::from(BASE64.decode(text).unwrap()));
    assert_eq!(bundle.anchors(), served);
    assert_eq!(bundle.to_document().keys.len(), 2);
    assert_eq!(bundle.to_pem().matches("-----BEGIN CERTIFICATE-----\n").count(), 2);
    let read_back: Vec<_> = CertificateDer::pem_slice_iter(bundle.to_pem().as_bytes()).collect();
    assert_eq!(read_back.into_iter().map(Result::unwrap).collect::<Vec<_>>(), bundle.anchors());
}

#[test]
fn refresh_hint_is_the_maps_or_the_entrys_and_never_zero() {
    let seconds = |n| Some(Duration::from_secs(n));
    for (of_map, of_entry, pace) in [
        (json!(60), json!(30), seconds(60)),
        (json!(60), json!(null), seconds(60)),
        (json!(null), json!(30), seconds(30)),
        (json!(0), json!(30), seconds(30)),
        (json!(0), json!(0), None),
        (json!(1), json!(0), seconds(1)),
        (json!(null), json!(null), None),
        (json!(u64::MAX), json!(null), seconds(u64::MAX)),
        (json!(300.0), json!(null), seconds(300)),
        (json!(-1), json!(30.0), seconds(30)),
        (json!("1"), json!(0.5), None),
    ] {
        let mut body = map(json!({ "keys": [], "spiffe_refresh_hint": of_entry }));
        body["spiffe_refresh_hint"] = of_map;
        assert_eq!(read(body.clone()).unwrap().refresh_hint(), pace, "{body}");
    }
}

#[test]
fn sequence_is_a_whole_number_of_64_bits() {
    for (text, sequence) in [
        ("0", Some(0)),
        ("9007199254740993", Some(9_007_199_254_740_993)), // where floating point begins to skip
        ("18446744073709551615", Some(u64::MAX)),
        ("null", None),
        ("7.0", Some(7)),
        ("1e3", Some(1000)),
    ] {
        let key = jwk(json!([anchor()]));
        let body = format!(r#"{{"keys":[{key}],"spiffe_sequence":{text}}}"#);
        assert_eq!(read_text(&body).unwrap().sequence(), sequence, "{body}");
    }
}

#[test]
fn unreadable_numbers_are_warned_of_and_count_as_none() {
    let cases = ["-1", "1.5", "1e400", "18446744073709551616", r#""1""#, "true", "[]", r#"{"":[0]}"#];
    let key = jwk(json!([anchor()]));
    for text in cases {
        let entry = format!(r#"{{"keys":[{key}],"spiffe_sequence":{text},"spiffe_refresh_hint":{text}}}"#);
        let in_map =
            format!(r#"{{"trust_domains":{{"factory.example":{entry}}},"spiffe_refresh_hint":{text}}}"#);
        for (body, warnings) in [(entry, 2), (in_map, 3)] {
            let bundle = read_text(&body).unwrap();
            assert_eq!((bundle.sequence(), bundle.refresh_hint()), (None, None), "{body}");
            assert_eq!(bundle.warnings().len(), warnings, "{body}: {:?}", bundle.warnings());
            assert!(bundle.warnings()[0].to_string().contains(text), "{:?}", bundle.warnings());
        }
    }
    let long = format!(r#"{{"keys":[{key}],"spiffe_sequence":"{}"}}"#, "\\u001b]0;x\u{202e}".repeat(50_000));
    let said = read_text(&long).unwrap().warnings()[0].to_string();
    assert!(said.len() < 400 && !said.contains(['\u{1b}', '\u{202e}']), "{said}");
}

#[test]
fn anchors_over_the_limit_are_refused() {
    let served =
        |n: usize| read(json!({ "keys": (0..n).map(|_| jwk(json!([anchor()]))).collect::<Vec<_>>() }));
    assert_eq!(served(MAX_ANCHORS).unwrap().anchors().len(), MAX_ANCHORS);
    assert_eq!(served(MAX_ANCHORS + 1), Err(BundleError::TooManyAnchors));
    let same = anchor();
    let again = json!({ "keys": vec![jwk(json!([same])); MAX_ANCHORS + 1] });
    assert_eq!(read(again).unwrap().anchors().len(), 1, "the same one again is none more");
}

#[test]
fn unreadable_authority_is_an_error() {
    let good = anchor();
    let der = BASE64.decode(&good).unwrap();
    let longer = BASE64.encode([der.as_slice(), &[0]].concat());
    let shorter = BASE64.encode(&der[..der.len() - 1]);
    let mut version_2 = der.clone();
    let version = version_2.windows(5).position(|w| w == [0xa0, 3, 2, 1, 2]).unwrap();
    version_2[version + 4] = 1;
    for (x5c, why) in [
        (json!("text"), "not an array"),
        (json!({}), "not an array"),
        (json!([5]), "not a string"),
        (json!([null]), "not a string"),
        (json!([""]), "does not hold an X.509 certificate"),
        (json!([" \n"]), "does not hold an X.509 certificate"),
        (json!(["AAAA"]), "does not hold an X.509 certificate"),
        (json!([shorter]), "does not hold an X.509 certificate"),
        (json!([longer]), "bytes follow the certificate"),
        (json!([format!("-----BEGIN CERTIFICATE-----\n{good}")]), "PEM"),
        (json!(["MIIB_-8="]), "base64url"),
        (json!([format!("{good}=")]), "not standard Base64"),
        (json!([format!("{good}\u{a0}")]), "not standard Base64"),
        (json!(["A".repeat(30_000)]), "larger than 16 KiB"),
        (json!([BASE64.encode(version_2)]), "cannot serve as an anchor"),
    ] {
        match read(map(json!({ "keys": [{ "kty": "OKP" }, jwk(x5c.clone())] }))) {
            Err(BundleError::Anchor { index: 1, why: told }) => {
                assert!(told.contains(why), "{x5c}: {told}")
            }
            other => panic!("{x5c}: {other:?}"),
        }
    }
}

#[test]
fn keys_that_b2_ignores_are_ignored() {
    let good = anchor();
    let bundle = read(map(json!({ "unknown": 1, "keys": [
        { "kty": "OKP", "use": "x509-svid", "x5c": ["garbage"] },
        { "kty": "EC", "use": "jwt-svid", "x5c": ["garbage"] },
        { "use": "x509-svid", "x5c": ["garbage"] },
        { "kty": "EC", "use": "X509-SVID", "x5c": ["garbage"] },
        { "kty": "ec", "use": "x509-svid", "x5c": ["garbage"] },
        { "kty": 5, "use": "x509-svid", "x5c": ["garbage"] },
        { "kty": "EC", "use": ["x509-svid"], "x5c": ["garbage"] },
        { "kty": "EC", "use": "x509-svid" },
        { "kty": "EC", "use": "x509-svid", "x5c": [] },
        { "kty": "RSA", "use": "x509-svid", "x5c": null },
        {},
        { "kty": "EC", "x5c": ["garbage"] },
        { "kty": "EC", "use": "x509-svid", "x5c": [good, "garbage"] },
    ]})))
    .unwrap();
    assert_eq!(bundle.anchors().len(), 1);
    assert_eq!(handed_out(&bundle)["keys"][0]["x5c"].as_array().unwrap().len(), 1);
}

#[test]
fn entry_without_usable_keys_is_an_empty_bundle() {
    assert!(read(map(json!({ "keys": [] }))).unwrap().anchors().is_empty());
    assert!(read(map(json!({ "keys": [{ "kty": "OKP" }] }))).unwrap().anchors().is_empty());
}

#[test]
fn plain_bundle_without_an_anchor_is_refused() {
    for keys in [
        json!([]),
        json!([{}]),
        json!([{ "kty": "EC", "use": "jwt-svid", "kid": "a", "crv": "P-256" }]),
        json!([{ "kty": "EC", "use": "x509-svid", "crv": "P-256" }]),
        json!([{ "kty": "EC", "use": "x509-svid", "x5c": [] }]),
        json!([{ "kty": "OKP", "crv": "X25519", "use": "x509-svid", "x5c": [anchor()] }]),
    ] {
        let plain = json!({ "keys": keys, "spiffe_sequence": 7 });
        assert_eq!(read(plain.clone()), Err(BundleError::NoAnchors), "{keys}");
        let withdrawn = read(map(plain.clone())).unwrap();
        assert!(withdrawn.anchors().is_empty(), "the form says what it means: {keys}");
        let both = json!({ "trust_domains": { "factory.example": plain }, "keys": [] });
        assert_eq!(read(both), Ok(withdrawn.clone()), "{keys}");
        // The agent stores what was withdrawn in the other form.
        for stored in [plain, handed_out(&withdrawn)] {
            let stored = Bundle::from_stored(stored.to_string().as_bytes(), &domain());
            assert_eq!(stored, Ok(withdrawn.clone()), "{keys}");
        }
    }
    let told = BundleError::NoAnchors.to_string();
    assert!(told.contains("no key that is an X.509 authority"), "{told}");
}

#[test]
fn ed25519_anchor_is_read_by_its_curve() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let anchor = rcgen::CertificateParams::default().self_signed(&key).unwrap().der().clone();
    let okp = |curve: Value, x5c: &str| json!({ "kty": "OKP", "use": "x509-svid", "crv": curve, "x": "a", "x5c": [x5c] });
    let text = BASE64.encode(&anchor);
    let bundle = read(json!({ "keys": [okp(json!("Ed25519"), &text)] })).unwrap();
    assert_eq!(bundle.anchors(), [anchor]);
    assert_eq!(handed_out(&bundle)["keys"], json!([okp(json!("Ed25519"), &text)]));
    for unknown in [json!("Ed448"), json!("X25519"), json!("ed25519"), json!(null), json!(["Ed25519"])] {
        assert_eq!(
            read(json!({ "keys": [okp(unknown.clone(), &text)] })),
            Err(BundleError::NoAnchors),
            "{unknown}"
        );
    }
    let damaged = read(json!({ "keys": [jwk(json!([self::anchor()])), okp(json!("Ed25519"), "AAAA")] }));
    assert!(matches!(damaged, Err(BundleError::Anchor { index: 1, .. })), "{damaged:?}");
}

#[test]
fn members_other_than_the_certificate_do_not_matter() {
    let key = json!({ "kty": "RSA", "use": "x509-svid", "x5c": [anchor()], "n": "AQAB", "x": 5, "kid": "a" });
    assert_eq!(read(json!({ "keys": [key] })).unwrap().anchors().len(), 1);
}

#[test]
fn wrapped_or_unpadded_base64_is_the_same_anchor() {
    let good = anchor();
    let served = CertificateDer::from(BASE64.decode(&good).unwrap());
    let lines = |end: &str| {
        good.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect::<Vec<_>>().join(end)
    };
    let unpadded = good.trim_end_matches('=').to_owned();
    for text in [lines("\n"), lines("\r\n") + "\r\n", format!(" \t{good} "), unpadded] {
        let bundle = read(json!({ "keys": [jwk(json!([text]))] })).unwrap();
        assert_eq!(bundle.anchors(), std::slice::from_ref(&served), "{text}");
        assert_eq!(bundle.to_document().keys[0].x5c[0], good, "it is handed out as the standard has it");
    }
}

/// An anchor whose serial number is this, in DER as it is given.
fn with_serial(serial: &[u8]) -> String {
    let mut parameters = rcgen::CertificateParams::default();
    parameters.serial_number = Some(rcgen::SerialNumber::from(vec![0x11; serial.len()]));
    let key = rcgen::KeyPair::generate().unwrap();
    let mut der = parameters.self_signed(&key).unwrap().der().to_vec();
    let at = der.windows(serial.len()).position(|found| found == vec![0x11; serial.len()]).unwrap();
    der[at..at + serial.len()].copy_from_slice(serial);
    BASE64.encode(der)
}

#[test]
fn anchors_unreadable_to_peers_are_skipped_and_named() {
    let good = anchor();
    for (serial, why) in [
        (vec![0x80], "negative"),
        (vec![0xff; 16], "not encoded in DER"),
        (vec![0, 0x11], "not encoded in DER"),
    ] {
        let bad = jwk(json!([with_serial(&serial)]));
        let bundle = read(map(json!({ "keys": [bad, jwk(json!([good]))] }))).unwrap();
        assert_eq!(bundle.anchors(), [CertificateDer::from(BASE64.decode(&good).unwrap())], "{serial:x?}");
        assert_eq!(bundle.to_document().keys.len(), 1);
        let [warning] = bundle.warnings() else { panic!("{:?}", bundle.warnings()) };
        let said = warning.to_string();
        assert!(said.starts_with("key 0 (CN=rcgen") && said.contains(why), "{said}");
        // Alone it would leave an empty bundle, which says something else.
        match read(json!({ "keys": [bad] })) {
            Err(BundleError::Anchor { index: 0, why: told }) => assert!(told.contains(why), "{told}"),
            other => panic!("{other:?}"),
        }
    }
    for serial in [&[0x7f; 20][..], &[0]] {
        assert_eq!(read(json!({ "keys": [jwk(json!([with_serial(serial)]))] })).unwrap().warnings(), []);
    }
}

#[test]
fn anchor_with_a_long_serial_is_used_with_a_warning() {
    for serial in [vec![0x7f; 21], [vec![0], vec![0xff; 21]].concat()] {
        let bundle =
            read(json!({ "keys": [jwk(json!([with_serial(&serial)])), jwk(json!([anchor()]))] })).unwrap();
        assert_eq!(bundle.anchors().len(), 2, "{serial:x?}");
        let [warning] = bundle.warnings() else { panic!("{:?}", bundle.warnings()) };
        assert!(warning.to_string().contains("key 0 (CN=rcgen"), "{warning}");
        assert!(
            warning.to_string().contains("is used, but its serial number is longer than 20"),
            "{warning}"
        );
        assert!(!warning.is_loss());
    }
}

/// Each was accepted by an earlier version, and is refused when it is served now.
#[test]
fn stored_bundle_is_not_validated_by_newer_rules() {
    let good = anchor();
    let negative = with_serial(&[0x80]);
    let twice = format!(r#"{{"kty":"OKP","x5c":["AAAA"],"use":"x509-svid","x5c":["{good}"],"kty":"EC"}}"#);
    let sequence = format!(r#"{{"keys":[],"spiffe_sequence":3,"keys":[{twice}],"spiffe_sequence":7}}"#);
    let large = {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.subject_alt_names = vec![rcgen::SanType::DnsName("a".repeat(20_000).try_into().unwrap())];
        let key = rcgen::KeyPair::generate().unwrap();
        BASE64.encode(parameters.self_signed(&key).unwrap().der())
    };
    let in_map = |entry: &str| format!(r#"{{"trust_domains":{{"factory.example":{entry}}}}}"#);
    let many: String = (0..MAX_TRUST_DOMAINS).map(|n| format!(r#","{n}.example":0"#)).collect();
    for (body, anchor) in [
        (json!({ "keys": [jwk(json!([negative]))] }).to_string(), &negative),
        (map(json!({ "keys": [jwk(json!([negative]))] })).to_string(), &negative),
        (format!(r#"{{"keys":[{twice}]}}"#), &good),
        (in_map(&sequence), &good),
        (json!({ "keys": [jwk(json!([large]))] }).to_string(), &large),
        (
            format!(r#"{{"trust_domains":{{"factory.example":{{"keys":[{}]}}{many}}}}}"#, jwk(json!([good]))),
            &good,
        ),
    ] {
        read_text(&body).unwrap_err();
        let stored = Bundle::from_stored(body.as_bytes(), &domain()).unwrap();
        assert_eq!(stored.anchors(), [CertificateDer::from(BASE64.decode(anchor).unwrap())]);
        let handed_out = serde_json::to_string(&stored.to_document()).unwrap();
        let again = Bundle::from_stored(handed_out.as_bytes(), &domain()).unwrap();
        assert_eq!(again.anchors(), stored.anchors(), "what is handed out can be read");
        let document: BundleDocument = serde_json::from_str(&handed_out).unwrap();
        assert_eq!(document, stored.to_document());
    }
    let stored = Bundle::from_stored(in_map(&sequence).as_bytes(), &domain()).unwrap();
    assert_eq!(stored.sequence(), Some(7), "the last one counts");
    // Where there is another anchor, what peers cannot read is passed over, as at the next fetch.
    let both = json!({ "keys": [jwk(json!([negative])), serde_json::from_str::<Value>(&twice).unwrap()] });
    assert_eq!(Bundle::from_stored(both.to_string().as_bytes(), &domain()).unwrap().anchors().len(), 1);
    for never in ["", "[]", "{}", r#"{"keys":[[]]}"#, r#"{"keys":5}"#, r#"{"trust_domains":{}}"#] {
        Bundle::from_stored(never.as_bytes(), &domain()).unwrap_err();
    }
    let damaged = json!({ "keys": [jwk(json!(["AAAA"]))] }).to_string();
    Bundle::from_stored(damaged.as_bytes(), &domain()).unwrap_err();
}

#[test]
fn anchors_out_of_their_validity_are_reported_and_stay() {
    let bundle = read(json!({ "keys": [jwk(json!([anchor()]))] })).unwrap();
    let [facts] = bundle.anchor_facts() else { panic!("{bundle:?}") };
    let second = Duration::from_secs(1);
    let out = |at: Timestamp| bundle.anchors_out_of_validity(at).count();
    assert_eq!((out(facts.not_before), out(facts.not_after)), (0, 0));
    assert_eq!(out(facts.not_after.after(second)), 1);
    assert_eq!(out(Timestamp::from_secs(facts.not_before.as_millis() / 1000 - 1)), 1);
    assert!(facts.subject.contains("rcgen"), "{}", facts.subject);
}

#[test]
fn ignored_members_are_not_stored() {
    let key = json!({
        "kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "a", "y": "b", "kid": "c", "x5c": [anchor()],
        "pad": [{ "": 0 }, [[]]], "x5t": "d", "alg": 5,
    });
    let bundle = read(json!({ "keys": [key], "pad": {} })).unwrap();
    let members = ["crv", "kid", "kty", "use", "x", "x5c", "y"];
    assert!(handed_out(&bundle)["keys"][0].as_object().unwrap().keys().eq(members), "{bundle:?}");
}

#[test]
fn bundle_map_has_a_limit_of_trust_domains() {
    let named = |count: usize| {
        let others: String = (1..count).map(|n| format!(r#","{n}.example":0"#)).collect();
        read_text(&format!(r#"{{"trust_domains":{{"factory.example":{{"keys":[]}}{others}}}}}"#))
    };
    assert!(named(MAX_TRUST_DOMAINS).is_ok());
    assert!(named(MAX_TRUST_DOMAINS + 1).unwrap_err().to_string().contains("10000 trust domains"));
}

#[test]
fn hostile_duplicate_name_is_quoted_as_an_excerpt() {
    let name = format!("\\u001b]0;owned\\u0007\u{202e}{}", "x".repeat(100_000));
    let told =
        read_text(&format!(r#"{{"trust_domains":{{"{name}":1,"{name}":2}}}}"#)).unwrap_err().to_string();
    assert!(told.contains("appears twice") && told.len() < 400, "{told}");
    assert!(!told.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{told:?}");
}

#[test]
fn known_member_that_appears_twice_is_refused() {
    let anchor = anchor();
    let key = format!(r#"{{"kty":"OKP","use":"x509-svid","x5c":["{anchor}"],"kty":"EC"}}"#);
    let entry = r#"{"keys":[],"keys":[]}"#;
    for twice in [
        &format!(r#"{{"keys":[{key}]}}"#),
        entry,
        &format!(r#"{{"trust_domains":{{"factory.example":{entry}}}}}"#),
        r#"{"trust_domains":{},"trust_domains":{"factory.example":{"keys":[]}}}"#,
    ] {
        let refused = read_text(twice).unwrap_err();
        assert!(refused.to_string().contains("duplicate field"), "{refused}");
    }
}

#[test]
fn bundle_map_with_a_duplicate_domain_is_refused() {
    for name in ["factory.example", "other.example", r"factory\u002eexample"] {
        let body = format!(
            r#"{{"trust_domains":{{"factory.example":{{"keys":[]}},"other.example":{{"keys":[]}},"{name}":{{"keys":[]}}}}}}"#
        );
        let refused = Bundle::from_served(body.as_bytes(), &domain()).unwrap_err();
        assert!(refused.to_string().contains("appears twice"), "{refused}");
    }
}

#[test]
fn damaged_bundles_are_refused_with_the_reason() {
    assert_eq!(read(json!({})), Err(BundleError::NeitherForm));
    assert_eq!(read(json!({ "trust_domains": null, "keys": null })), Err(BundleError::NeitherForm));
    for name in ["Factory.example", "factory.example.", "a.factory.example", "spiffe://factory.example", ""] {
        let foreign = json!({ "trust_domains": { name: { "keys": [] } } });
        assert_eq!(read(foreign), Err(BundleError::NoEntry(domain())), "{name}");
    }
    for text in ["", "{", "null", "\u{feff}\u{feff}{}", r#"{"keys":[]}x"#, r#"{"keys":[],}"#, "{'keys':[]}"] {
        assert!(matches!(read_text(text), Err(BundleError::Json(_))), "{text}");
    }
    for body in [json!({ "trust_domains": [] }), json!({ "trust_domains": 5 }), json!({ "keys": [[]] })] {
        assert!(matches!(read(body.clone()), Err(BundleError::Json(_))), "{body}");
    }
    assert_eq!(read(json!({ "trust_domains": {} })), Err(BundleError::NoEntry(domain())));
    for entry in [json!("text"), json!({}), json!(null), json!({ "keys": null }), json!([[], null, null])] {
        assert!(matches!(read(map(entry.clone())), Err(BundleError::Json(_))), "{entry}");
    }
    assert!(matches!(read(json!([null, [], null, null])), Err(BundleError::Json(_))));
    let told = read(json!({ "trust_domains": [] })).unwrap_err().to_string();
    assert!(told.contains("expected an object of trust domains"), "{told}");
    let foreign = json!({ "trust_domains": { "factory.example": { "keys": [] }, "other.example": 5 } });
    assert!(read(foreign).is_ok(), "what is wrong in other entries does not matter");
    assert!(matches!(read(json!({ "keys": {} })), Err(BundleError::Json(_))));
    assert!(matches!(read(json!([])), Err(BundleError::Json(_))));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(Bundle::from_served(deep.as_bytes(), &domain()), Err(BundleError::Json(_))));
}

#[test]
fn sequence_is_compared_with_the_cached_one() {
    use SequenceCheck::{Accepted, Regressed};
    let now = Timestamp::from_secs(1_000_000);
    let before = |seconds| Timestamp::from_secs(1_000_000 - seconds);
    const DAY: i64 = 24 * 3600;
    for (case, stored, served, since, verdict) in [
        ("newer", Some(5), Some(6), None, Accepted),
        ("the same", Some(5), Some(5), None, Accepted),
        ("nothing stored", None, Some(1), None, Accepted),
        ("no number stored", None, None, None, Accepted),
        ("no number served", Some(5), None, None, Accepted),
        ("newer again, after a lower one", Some(5), Some(6), Some(before(60)), Accepted),
        ("lower, for the first time", Some(5), Some(4), None, Regressed { since: now }),
        ("lower by the whole range", Some(u64::MAX), Some(0), None, Regressed { since: now }),
        ("lower since this moment", Some(5), Some(4), Some(now), Regressed { since: now }),
        (
            "a second less than a day",
            Some(5),
            Some(4),
            Some(before(DAY - 1)),
            Regressed { since: before(DAY - 1) },
        ),
        ("a day", Some(5), Some(4), Some(before(DAY)), Accepted),
        ("more than a day", Some(5), Some(4), Some(before(DAY + 1)), Accepted),
        (
            "a wall clock that went backwards begins anew",
            Some(5),
            Some(4),
            Some(before(-1)),
            Regressed { since: now },
        ),
    ] {
        assert_eq!(check_sequence(stored, served, since, now), verdict, "{case}");
    }
}
