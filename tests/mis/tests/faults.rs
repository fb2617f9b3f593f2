//! The faults do what their names say, and only once where they should.

mod common;

use common::*;
use development_mis::{DocumentFault, Endpoint, Fault, IssuingMode, ServerFault, SvidFault};
use serde_json::Value;
use std::time::Duration;

#[test]
fn lost_response_was_processed() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let body = enrollment(&csr(&key(dir, "device", P256)));
    let url = format!("{}/api/v1/identities", mis.url());
    mis.fault(Endpoint::Enrollment, Fault::CutBefore);
    assert!(factory(mis).post(&url).json(&body).send().is_err());
    assert!(mis.devices().is_empty());
    mis.fault(Endpoint::Enrollment, Fault::LoseAnswer);
    assert!(factory(mis).post(&url).json(&body).send().is_err());
    assert_eq!(mis.devices().len(), 1);
    assert_eq!(enroll(mis, &factory(mis), &body).status(), 200);
    let journal = mis.journal();
    let seen: Vec<_> = journal.iter().map(|entry| (entry.status, entry.issued, entry.answer_lost)).collect();
    assert!(journal.iter().all(|entry| entry.csr_spki_sha256 == journal[2].csr_spki_sha256));
    assert!(journal[0].csr_spki_sha256.is_some());
    let expected = [(None, false, true), (Some(201), true, true), (Some(200), true, false)];
    assert_eq!(seen, expected);
}

#[test]
fn responses_can_be_replaced_and_combined() {
    let site = site(|_| ());
    let mis = &site.mis;
    let body = enrollment("anything");
    mis.sticky_fault(Endpoint::Enrollment, Fault::answer(502, &[], "<html>"));
    mis.fault(Endpoint::Enrollment, Fault::problem(429, "too-many-requests", Some("3600")));
    let soon = Fault::Stall(Duration::from_millis(1));
    let both = vec![soon, Fault::redirect(307, "https://elsewhere.example/")];
    mis.fault(Endpoint::Enrollment, Fault::Together(both));
    assert_eq!(mis.waiting_faults(), 2);
    let device = factory(mis);
    let first = enroll(mis, &device, &body);
    assert_eq!((first.status().as_u16(), &first.headers()["retry-after"]), (429, &"3600".parse().unwrap()));
    let second = enroll(mis, &device, &body);
    assert_eq!(second.headers()["location"], "https://elsewhere.example/");
    for _ in 0..2 {
        assert_eq!(enroll(mis, &device, &body).text().unwrap(), "<html>");
    }
    mis.clear_faults();
    mis.fault(Endpoint::Enrollment, Fault::Status(418));
    assert_eq!(problem_status(enroll(mis, &device, &body)), 418);
    assert_eq!(problem(enroll(mis, &device, &body), 400), "invalid-svid-request");
    assert!(mis.journal()[0].faulty && !mis.journal().last().unwrap().faulty);
}

fn problem_status(answer: reqwest::blocking::Response) -> u16 {
    answer.status().as_u16()
}

/// Enrolls once with the fault; the certificate's text, and whether OpenSSL validates it.
fn bent(site: &Site, fault: SvidFault) -> (Svid, String, bool) {
    let (mis, dir) = (&site.mis, site.dir.path());
    let key_file = dir.join("device.key");
    if !key_file.exists() {
        key(dir, "device", P256);
    }
    mis.fault(Endpoint::Enrollment, Fault::Svid(fault));
    let answer = enroll(mis, &factory(mis), &enrollment(&csr(&key_file)));
    let svid = Svid::of(answer, dir, "svid");
    let text = svid.text();
    let bundle = dir.join("bundle.pem");
    anchors(mis, &bundle);
    let good = verifies(&svid, &bundle, "sslclient");
    (svid, text, good)
}

#[test]
fn svid_faults_are_as_named() {
    use SvidFault::*;
    for mode in [IssuingMode::Root, IssuingMode::Intermediate] {
        let site = site(|settings| settings.mode = mode);
        let usual = if mode == IssuingMode::Root { 1 } else { 2 };
        let device = || site.mis.devices()[0].ldi.clone();
        let uris = |text: &str| text.matches("URI:spiffe://").count();

        let (svid, _, good) = bent(&site, WrongSpiffeId);
        assert!(good && svid.id != device() && svid.id.contains("/margo/device/"));
        let (svid, _, good) = bent(&site, OtherTrustDomain("other.example".into()));
        assert!(good && svid.id.starts_with("spiffe://other.example/margo/device/"));
        let (_, text, good) = bent(&site, TwoUriSans);
        assert!(good && uris(&text) == 2);
        let (_, text, _) = bent(&site, NoUriSan);
        assert_eq!(uris(&text), 0);
        let (svid, _, good) = bent(&site, UppercaseUuid);
        assert!(good && svid.id != device() && svid.id.to_lowercase() == device());
        let (svid, _, good) = bent(&site, NotADevice);
        assert!(good && svid.id.contains("/margo/wfm/"));
        let (_, text, _) = bent(&site, CaTrue);
        assert!(text.contains("CA:TRUE"));
        let (_, text, _) = bent(&site, NoKeyUsage);
        assert!(!text.contains("X509v3 Key Usage"));
        let (_, text, good) = bent(&site, KeyUsageNotCritical);
        assert!(good && text.contains("X509v3 Key Usage: \n"));
        let (_, text, _) = bent(&site, KeyCertSign);
        assert!(text.contains("Digital Signature, Certificate Sign"));
        let (_, text, good) = bent(&site, NoClientAuth);
        assert!(!good && !text.contains("TLS Web Client Authentication"));
        let (svid, _, good) = bent(&site, OtherKey);
        let public = |kind: &str, file: &std::path::Path| {
            openssl(
                &[
                    &[kind, "-in", file.to_str().unwrap()][..],
                    if kind == "x509" { &["-pubkey", "-noout"] } else { &["-pubout"] },
                ]
                .concat(),
            )
        };
        let key_file = site.dir.path().join("device.key");
        assert!(good && public("x509", &svid.chain) != public("pkey", &key_file));
        assert!(!bent(&site, Expired).2);
        assert!(!bent(&site, NotYetValid(Duration::from_secs(60))).2);
        let (svid, _, good) = bent(&site, UnknownIssuer);
        assert!(!good && svid.certificates == 1);
        let (svid, text, good) = bent(&site, P384Signature);
        assert!(good && svid.certificates == 2 && text.contains("ecdsa-with-SHA384"));
        let (svid, _, good) = bent(&site, MissingIntermediate);
        assert!(!good && svid.certificates == 1);
        let (svid, _, good) = bent(&site, RootAppended);
        assert!(good && svid.certificates == usual + 1);
        for width in [76, 1000] {
            let (svid, _, good) = bent(&site, PemWidth(width));
            let text = std::fs::read_to_string(&svid.chain).unwrap();
            let longest = text.lines().map(str::len).max().unwrap();
            assert!(good && (longest == width || (width == 1000 && longest > 76)));
        }
        let (_, _, good) = bent(&site, ExtraMembers);
        assert!(good);
        assert_eq!(site.mis.devices().len(), 1);
    }
}

#[test]
fn response_faults_are_as_named() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let body = enrollment(&csr(&key(dir, "device", P256)));
    let bent = |fault: SvidFault| -> Value {
        mis.fault(Endpoint::Enrollment, Fault::Svid(fault));
        enroll(mis, &factory(mis), &body).json().unwrap()
    };
    assert_eq!(bent(SvidFault::EmptyChain)["svid"]["certificateChainPem"], serde_json::json!([]));
    assert_eq!(bent(SvidFault::Garbage)["svid"]["certificateChainPem"][0], "not a certificate");
    let other = bent(SvidFault::WrongProfile)["svidProfileUri"].clone();
    assert_ne!(other, development_mis::X509_PROFILE);
    assert_eq!(bent(SvidFault::ExtraMembers)["svid"]["unknownMember"], true);
}

#[test]
fn document_faults_are_as_named() {
    use DocumentFault::*;
    let site = site(|settings| settings.first_sequence = 5);
    let mis = &site.mis;
    let get = |endpoint: Endpoint, fault: DocumentFault| {
        mis.fault(endpoint, Fault::Document(fault));
        let path = match endpoint {
            Endpoint::Bundle => development_mis::BUNDLE_PATH,
            _ => development_mis::DISCOVERY_PATH,
        };
        let text = client(mis, None).get(format!("{}{path}", mis.url())).send().unwrap();
        let text = text.text().unwrap();
        (serde_json::from_str::<Value>(&text).unwrap_or_default(), text)
    };
    let discovery = |fault| get(Endpoint::Discovery, fault);
    let bundle = |fault| get(Endpoint::Bundle, fault);
    assert_eq!(discovery(Replace(b"noise".into())).1, "noise");
    assert_eq!(discovery(TrustDomain("b.example".into())).0["trustDomain"], "b.example");
    assert!(!discovery(HttpUrls).1.contains("https://127.0.0.1"));
    assert!(discovery(MissingMember("trustBundleUri".into())).0.get("trustBundleUri").is_none());
    assert!(discovery(ExtraMembers).0.get("unknownMember").is_some());
    let entry = "/trust_domains/factory.example";
    assert_eq!(bundle(DuplicateTrustDomain).1.matches("\"factory.example\":").count(), 2);
    assert_eq!(bundle(EmptyKeys).0.pointer(entry).unwrap()["keys"], serde_json::json!([]));
    assert!(bundle(PlainBundle).0["keys"].is_array());
    assert_eq!(bundle(LowerSequence).0.pointer(entry).unwrap()["spiffe_sequence"], 4);
    let keys = bundle(ForeignKeys).0.pointer(entry).unwrap()["keys"].clone();
    assert_eq!(keys.as_array().unwrap().len(), 5);
    assert!(bundle(TrustDomain("b.example".into())).0.pointer(entry).is_none());
    assert!(bundle(MissingMember("keys".into())).0.pointer(entry).unwrap().get("keys").is_none());
    assert!(bundle(MissingMember("trust_domains".into())).0.get("trust_domains").is_none());
}

#[test]
fn outage_ends_where_it_began() {
    let site = site(|_| ());
    let mis = &site.mis;
    let anonymous = client(mis, None);
    let get = || anonymous.get(mis.discovery_url()).send();
    assert!(get().is_ok());
    mis.stop_listening().unwrap();
    mis.stop_listening().unwrap();
    assert!(get().is_err());
    mis.resume().unwrap();
    mis.resume().unwrap();
    assert!(get().is_ok());
    let url = mis.discovery_url();
    drop(site);
    assert!(anonymous.get(url).send().is_err()); // another server may have the port by now, and another CA
}

#[test]
fn journal_can_be_waited_for() {
    let site = site(|_| ());
    let mis = &site.mis;
    let nothing = mis.wait_for(Duration::from_millis(1), |entries| !entries.is_empty());
    assert!(nothing.is_none());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            mis.wait_for(Duration::from_secs(120), |entries| {
                entries.iter().any(|entry| entry.status == Some(200))
            })
        });
        client(mis, None).get(mis.discovery_url()).send().unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().len(), 1);
    });
}

#[test]
fn server_certificate_can_be_wrong() {
    for fault in [ServerFault::Expired, ServerFault::NotYetValid, ServerFault::SelfSigned] {
        let site = site(|settings| settings.server_fault = Some(fault.clone()));
        let answer = client(&site.mis, None).get(site.mis.discovery_url()).send();
        assert!(answer.is_err(), "{fault:?}");
        assert_eq!(site.mis.wait_for(Duration::ZERO, |entries| entries.is_empty()).unwrap().len(), 0);
    }
    let other = site(|_| ());
    let extra = vec![other.mis.ca_file()];
    let site = site(|settings| settings.server_fault = Some(ServerFault::Appended(extra)));
    let get = |trusting: &Site| client(&trusting.mis, None).get(site.mis.discovery_url()).send();
    assert!(get(&site).is_ok());
    assert!(get(&other).is_err());
}
