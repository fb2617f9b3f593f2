//! The strict server over real TLS, rule by rule.

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::*;
use development_mis::{
    Admission, AnchorStep, ClientKind, Endpoint, FactorySpec, Fault, IssuerAlgorithm, IssuingMode, KeyKind,
    Limit, Mis, Settings, SvidFault,
};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(120);

#[test]
fn discovery_has_the_members_of_d3_and_revalidates() {
    let site = site(|_| ());
    let mis = &site.mis;
    let anonymous = client(mis, None);
    let answer = anonymous.get(mis.discovery_url()).send().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    let etag = answer.headers()["etag"].clone();
    let modified = answer.headers()["last-modified"].clone();
    let document: Value = answer.json().unwrap();
    assert_eq!(
        document,
        json!({
            "trustDomain": "factory.example",
            "trustBundleUri": format!("{}/.well-known/spiffe/bundle.json", mis.url()),
            "margoIdentityServiceBaseUri": mis.url(),
            "supportedBootstrapMethods": ["urn:margo:bootstrap:factory-cert-mtls:v1"],
            "svidProfilesSupported": ["https://margo.org/profiles/spiffe/x509-svid/v1"],
        })
    );
    let again = |name: &str, value: &reqwest::header::HeaderValue| {
        anonymous.get(mis.discovery_url()).header(name, value).send().unwrap().status()
    };
    assert_eq!(again("if-none-match", &etag), 304);
    assert_eq!(again("if-modified-since", &modified), 304);
    assert_eq!(again("if-none-match", &"\"other\"".parse().unwrap()), 200);
    mis.policy(|policy| policy.methods.push("urn:margo:bootstrap:acme:v1".to_owned()));
    assert_eq!(again("if-none-match", &etag), 200);
    assert!(mis.journal()[1].conditional.as_ref().unwrap().starts_with("if-none-match: \""));
}

#[test]
fn other_requests_get_problem_details() {
    let site = site(|_| ());
    let mis = &site.mis;
    let device = factory(mis);
    for path in ["/", "/api/v1/identities/", "/api/v1/identities/x", "/api/v1/identities//renewal"] {
        let answer = device.get(format!("{}{path}", mis.url())).send().unwrap();
        assert_eq!(problem(answer, 404), "about:blank", "{path}");
    }
    let answer = device.get(format!("{}/api/v1/identities", mis.url())).send().unwrap();
    assert_eq!(answer.headers()["allow"], "POST");
    assert_eq!(problem(answer, 405), "about:blank");
    let answer = device.post(mis.discovery_url()).send().unwrap();
    assert_eq!(answer.headers()["allow"], "GET, HEAD");
    assert_eq!(problem(answer, 405), "about:blank");
    let url = format!("{}/api/v1/identities", mis.url());
    let answer = device.post(&url).body("{}").send().unwrap();
    assert_eq!(problem(answer, 415), "about:blank");
    let huge = vec![b' '; 100_000];
    let answer = device.post(&url).header("content-type", "application/json").body(huge).send().unwrap();
    assert_eq!(problem(answer, 413), "about:blank");
}

#[test]
fn tls_is_1_3_only() {
    let site = site(|_| ());
    let output = std::process::Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &format!("127.0.0.1:{}", site.mis.port())])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(site.mis.wait_for_refused_handshakes(LONG, 1).is_some());
}

/// Enrollment, re-enrollment and renewal in one hierarchy, validated by OpenSSL.
fn golden_path(mode: IssuingMode, algorithm: IssuerAlgorithm, kind: &[&str], sign: &[&str]) {
    let site = site(|settings| (settings.mode, settings.algorithm) = (mode, algorithm));
    let (mis, dir) = (&site.mis, site.dir.path());
    let bundle = dir.join("bundle.pem");
    let entry = anchors(mis, &bundle);
    assert_eq!(entry["spiffe_sequence"], 1);
    assert_eq!(entry["spiffe_refresh_hint"], 300);
    let kty = if algorithm == IssuerAlgorithm::P256 { "EC" } else { "RSA" };
    assert_eq!(entry["keys"][0]["kty"], kty);

    let key_file = key(dir, "device", kind);
    let csr = STANDARD.encode(csr_der(&key_file, sign));
    let answer = enroll(mis, &factory(mis), &enrollment(&csr));
    assert_eq!(answer.status(), 201);
    let first = Svid::of(answer, dir, "first");
    assert_eq!(first.certificates, if mode == IssuingMode::Root { 1 } else { 2 });
    assert!(first.id.starts_with("spiffe://factory.example/margo/device/"));
    for purpose in ["sslclient", "sslserver"] {
        assert!(verifies(&first, &bundle, purpose), "{}", first.text());
    }
    let text = first.text();
    assert!(text.contains("Subject: \n") || text.contains("Subject:\n"), "{text}");
    for line in [
        "X509v3 Subject Alternative Name: critical",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("ignored"));

    let answer = enroll(mis, &factory(mis), &enrollment(&csr));
    assert_eq!(answer.status(), 200);
    assert_eq!(Svid::of(answer, dir, "again").id, first.id);

    let device = first.client(mis, &key_file);
    let answer = renew(mis, &device, &first.id, &renewal(&csr));
    assert_eq!(answer.status(), 200);
    let second = Svid::of(answer, dir, "second");
    assert_eq!(second.id, first.id);
    assert!(verifies(&second, &bundle, "sslclient"));

    let journal = mis.journal();
    let last = journal.last().unwrap();
    assert_eq!((last.client, last.issued, last.status), (ClientKind::Svid, true, Some(200)));
    assert_eq!(journal[1].client, ClientKind::Factory);
    assert_eq!(journal[1].csr_spki_sha256, last.csr_spki_sha256);
    assert_eq!(last.spiffe_id.as_ref(), Some(&first.id));
    assert_eq!(mis.devices().len(), 1);
}

#[test]
fn golden_path_root_p256() {
    golden_path(IssuingMode::Root, IssuerAlgorithm::P256, P256, &["-sha256"]);
}

#[test]
fn golden_path_intermediate_p256() {
    golden_path(IssuingMode::Intermediate, IssuerAlgorithm::P256, RSA3072, PSS);
}

#[test]
fn golden_path_root_rsa_pss() {
    golden_path(IssuingMode::Root, IssuerAlgorithm::RsaPss, RSA3072, PSS);
}

#[test]
fn golden_path_intermediate_rsa_pss() {
    golden_path(IssuingMode::Intermediate, IssuerAlgorithm::RsaPss, P256, &["-sha256"]);
}

#[test]
fn requests_that_are_not_exactly_right_are_refused() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let device = factory(mis);
    let key_file = key(dir, "device", P256);
    let good = csr(&key_file);
    let refused = |body: &Value| problem(enroll(mis, &device, body), 400);

    let changes: [fn(&mut Value); 6] = [
        |body| body["extra"] = 1.into(),
        |body| body["svidRequest"]["extra"] = 1.into(),
        |body| body["bootstrapCredential"]["extra"] = 1.into(),
        |body| drop(body.as_object_mut().unwrap().remove("svidRequest")),
        |body| drop(body.as_object_mut().unwrap().remove("svidProfileUri")),
        |body| drop(body.as_object_mut().unwrap().remove("bootstrapCredential")),
    ];
    for change in changes {
        let mut body = enrollment(&good);
        change(&mut body);
        assert_eq!(refused(&body), "invalid-svid-request", "{body}");
    }

    let der = csr_der(&key_file, &["-sha256"]);
    let mut tampered = der.clone();
    *tampered.last_mut().unwrap() ^= 1;
    let pem =
        String::from_utf8(openssl(&["req", "-new", "-key", key_file.to_str().unwrap(), "-subj", "/CN=x"]))
            .unwrap();
    // What OpenSSL 3.0 takes by default, and 3.5 only when configured.
    let pss_long_salt = &["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:max", "-sha256"][..];
    let rsa = key(dir, "rsa", RSA3072);
    let request = |key: &std::path::Path, options: &[&str]| STANDARD.encode(csr_der(key, options));
    for csr in [
        String::new(),
        pem,
        format!("{}\n{}", &good[..64], &good[64..]),
        good.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned() + "-",
        STANDARD.encode(b"not a request"),
        STANDARD.encode([&der[..], b"x"].concat()),
        STANDARD.encode(&tampered),
        request(&key_file, &["-sha384"]),
        request(&key(dir, "p384", P384), &["-sha256"]),
        request(&key(dir, "rsa2048", RSA2048), PSS),
        request(&rsa, &["-sha256"]),
        request(&rsa, pss_long_salt),
        request(&key(dir, "ed", &["-algorithm", "ED25519"]), &[]),
    ] {
        assert_eq!(refused(&enrollment(&csr)), "invalid-svid-request", "{csr}");
    }
    assert!(mis.devices().is_empty());
}

#[test]
fn order_of_refusals_is_that_of_the_sup() {
    let site = site(|_| ());
    let mis = &site.mis;
    let (device, anonymous) = (factory(mis), client(mis, None));
    let mut body = enrollment("not a request");
    body["svidProfileUri"] = "https://margo.org/profiles/other".into();
    body["bootstrapCredential"]["method"] = "urn:margo:bootstrap:other:v1".into();
    assert_eq!(problem(enroll(mis, &anonymous, &body), 422), "unsupported-method");
    body["bootstrapCredential"]["method"] = development_mis::FACTORY_METHOD.into();
    assert_eq!(problem(enroll(mis, &anonymous, &body), 401), "invalid-bootstrap-proof");
    body["bootstrapCredential"]["proof"] = json!({});
    assert_eq!(problem(enroll(mis, &device, &body), 401), "invalid-bootstrap-proof");
    body["bootstrapCredential"]["proof"] = Value::Null;
    assert_eq!(problem(enroll(mis, &device, &body), 422), "unsupported-svid-profile");
    body["svidProfileUri"] = development_mis::X509_PROFILE.into();
    assert_eq!(problem(enroll(mis, &device, &body), 400), "invalid-svid-request");
    let kinds: Vec<ClientKind> = mis.journal().iter().map(|entry| entry.client).collect();
    assert_eq!(kinds[..3], [ClientKind::None, ClientKind::None, ClientKind::Factory]);
}

#[test]
fn bad_device_credentials_get_problem_details() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let body = enrollment(&csr(&key(dir, "device", P256)));
    let make = |name: &str, spec: FactorySpec| {
        let (certificate, key) = mis.new_factory_credential_as(name, &spec).unwrap();
        client(mis, Some((&certificate, &key)))
    };
    let expired = make("expired", FactorySpec { lifetime: Duration::ZERO, ..Default::default() });
    let unknown = make("unknown", FactorySpec { unknown_manufacturer: true, ..Default::default() });
    let p384 = make("p384", FactorySpec { key: KeyKind::P384, ..Default::default() });
    let rsa = make("rsa", FactorySpec { key: KeyKind::Rsa2048, ..Default::default() });
    for bad in [&expired, &unknown] {
        assert_eq!(problem(enroll(mis, bad, &body), 401), "invalid-bootstrap-proof");
    }
    assert_eq!(mis.journal().last().unwrap().client, ClientKind::Unknown);
    for good in [&p384, &rsa] {
        assert_eq!(enroll(mis, good, &body).status(), 201);
    }

    mis.policy(|policy| policy.refuse_in_handshake = true);
    let url = format!("{}/api/v1/identities", mis.url());
    let fresh = make("foreign", FactorySpec { unknown_manufacturer: true, ..Default::default() });
    assert!(fresh.post(url).json(&body).send().is_err());
    assert!(mis.wait_for_refused_handshakes(LONG, 1).is_some());
    assert_eq!(enroll(mis, &factory(mis), &body).status(), 201);
}

#[test]
fn renewal_requires_the_current_svid() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let key_file = key(dir, "device", P256);
    let csr = csr(&key_file);
    let first = Svid::of(enroll(mis, &factory(mis), &enrollment(&csr)), dir, "first");
    let body = renewal(&csr);
    for stranger in [client(mis, None), factory(mis)] {
        assert_eq!(problem(renew(mis, &stranger, &first.id, &body), 401), "about:blank");
    }
    let device = first.client(mis, &key_file);
    let other = first.id.replace("device/", "device/0");
    assert_eq!(problem(renew(mis, &device, &other, &body), 401), "about:blank");
    let answer = enroll(mis, &device, &enrollment(&csr));
    assert_eq!(problem(answer, 401), "invalid-bootstrap-proof");
    let answer = renew(mis, &device, &first.id, &enrollment(&csr));
    assert_eq!(problem(answer, 400), "invalid-svid-request");
    let mut other = body.clone();
    other["svidProfileUri"] = "https://margo.org/profiles/other".into();
    assert_eq!(problem(renew(mis, &device, &first.id, &other), 422), "unsupported-svid-profile");
    assert_eq!(renew(mis, &device, &first.id, &body).status(), 200);

    mis.invalidate_svids().unwrap();
    assert_eq!(problem(renew(mis, &device, &first.id, &body), 401), "about:blank");
    mis.forget_devices().unwrap();
    assert_eq!(problem(renew(mis, &device, &first.id, &body), 401), "about:blank");
    assert_ne!(Svid::of(enroll(mis, &factory(mis), &enrollment(&csr)), dir, "new").id, first.id);
}

#[test]
fn expired_svid_is_401() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let key_file = key(dir, "device", P256);
    let csr = csr(&key_file);
    mis.fault(Endpoint::Enrollment, Fault::Svid(SvidFault::Expired));
    let svid = Svid::of(enroll(mis, &factory(mis), &enrollment(&csr)), dir, "svid");
    let device = svid.client(mis, &key_file);
    assert_eq!(problem(renew(mis, &device, &svid.id, &renewal(&csr)), 401), "about:blank");
    assert_eq!(mis.journal().last().unwrap().client, ClientKind::Svid);

    mis.policy(|policy| policy.refuse_in_handshake = true);
    let device = svid.client(mis, &key_file);
    assert!(try_renew(mis, &device, &svid.id, &renewal(&csr)).send().is_err());
    let why = mis.wait_for_refused_handshakes(LONG, 1).unwrap();
    assert!(why[0].contains("Expired"), "{why:?}");
}

#[test]
fn new_key_is_subject_to_the_policy() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let (one, two, three) = (key(dir, "1", P256), key(dir, "2", P256), key(dir, "3", P256));
    let first = Svid::of(enroll(mis, &factory(mis), &enrollment(&csr(&one))), dir, "first");
    mis.policy(|policy| {
        policy.rotation_at_enrollment = false;
        policy.rotation_at_renewal = false;
    });
    let rotated = enrollment(&csr(&two));
    let answer = enroll(mis, &factory(mis), &rotated);
    assert_eq!(problem(answer, 409), "key-rotation-not-permitted");
    let device = first.client(mis, &one);
    let answer = renew(mis, &device, &first.id, &renewal(&csr(&two)));
    assert_eq!(problem(answer, 409), "key-rotation-not-permitted");
    assert_eq!(renew(mis, &device, &first.id, &renewal(&csr(&one))).status(), 200);

    // A renewal with a new key leaves the SVID before it usable …
    mis.policy(|policy| policy.rotation_at_renewal = true);
    let second = Svid::of(renew(mis, &device, &first.id, &renewal(&csr(&two))), dir, "second");
    assert_eq!(renew(mis, &device, &first.id, &renewal(&csr(&two))).status(), 200);
    // … also where a lost response meets a policy that has changed.
    mis.policy(|policy| policy.rotation_at_renewal = false);
    assert_eq!(renew(mis, &device, &first.id, &renewal(&csr(&two))).status(), 200);

    // An enrollment with a new key does not.
    mis.policy(|policy| policy.rotation_at_enrollment = true);
    let answer = enroll(mis, &factory(mis), &enrollment(&csr(&three)));
    assert_eq!(answer.status(), 200);
    let third = Svid::of(answer, dir, "third");
    assert_eq!(third.id, first.id);
    for (old, key) in [(&first, &one), (&second, &two)] {
        let answer = renew(mis, &old.client(mis, key), &first.id, &renewal(&csr(key)));
        assert_eq!(problem(answer, 401), "about:blank");
    }
    let device = third.client(mis, &three);
    assert_eq!(renew(mis, &device, &first.id, &renewal(&csr(&three))).status(), 200);
}

#[test]
fn admission_and_rate_limits_have_a_retry_after() {
    let site = site(|settings| settings.policy.admission = Admission::pending(7));
    let (mis, dir) = (&site.mis, site.dir.path());
    let key_file = key(dir, "device", P256);
    let csr = csr(&key_file);
    let answer = enroll(mis, &factory(mis), &enrollment(&csr));
    assert_eq!(answer.headers()["retry-after"], "7");
    assert_eq!(problem(answer, 409), "enrollment-pending");
    mis.admit(&mis.factory_cert()).unwrap();
    let answer = enroll(mis, &factory(mis), &enrollment(&csr));
    assert_eq!(answer.status(), 201);
    let svid = Svid::of(answer, dir, "svid");
    assert_eq!(mis.device(&mis.factory_cert()).unwrap().unwrap().ldi, svid.id);

    let limit = Some(Limit { successes: 1, window: Duration::from_secs(1000) });
    mis.policy(|policy| (policy.renewal_limit, policy.enrollment_limit) = (limit, limit));
    let device = svid.client(mis, &key_file);
    assert_eq!(renew(mis, &device, &svid.id, &renewal(&csr)).status(), 200);
    let answers =
        [renew(mis, &device, &svid.id, &renewal(&csr)), enroll(mis, &factory(mis), &enrollment(&csr))];
    for answer in answers {
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((990..=1000).contains(&wait), "{wait}");
        assert_eq!(problem(answer, 429), "too-many-requests");
    }
    assert!(mis.journal().last().unwrap().retry_after.is_some());
}

#[test]
fn restart_keeps_devices_and_anchors() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("mis");
    let settings = || Settings { directory: directory.clone(), ..Settings::default() };
    let key_file = key(dir.path(), "device", P256);
    let csr = csr(&key_file);
    let mis = Mis::start(settings()).unwrap();
    for (file, mode) in [("", 0o700), ("factory.key", 0o600), ("tls.key", 0o600)] {
        let found = fs::metadata(directory.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    let first = Svid::of(enroll(&mis, &factory(&mis), &enrollment(&csr)), dir.path(), "first");
    mis.rotate_anchors(AnchorStep::Announce).unwrap();
    drop(mis);

    let mis = Mis::start(settings()).unwrap();
    assert_eq!(mis.sequence(), 2);
    let device = first.client(&mis, &key_file);
    assert_eq!(renew(&mis, &device, &first.id, &renewal(&csr)).status(), 200);
    let answer = enroll(&mis, &factory(&mis), &enrollment(&csr));
    assert_eq!(answer.status(), 200);
    drop(mis);
    let other = Settings { trust_domain: "other.example".to_owned(), ..settings() };
    assert!(Mis::start(other).is_err());
}

#[test]
fn anchors_rotate_without_a_gap() {
    let site = site(|settings| settings.mode = IssuingMode::Intermediate);
    let (mis, dir) = (&site.mis, site.dir.path());
    let bundle = dir.join("bundle.pem");
    let key_file = key(dir, "device", P256);
    let csr = csr(&key_file);
    let old = Svid::of(enroll(mis, &factory(mis), &enrollment(&csr)), dir, "old");
    mis.rotate_anchors(AnchorStep::Switch).unwrap();
    assert_eq!(anchors(mis, &bundle)["keys"].as_array().unwrap().len(), 2);
    assert_eq!(mis.sequence(), 2);
    let device = old.client(mis, &key_file);
    let new = Svid::of(renew(mis, &device, &old.id, &renewal(&csr)), dir, "new");
    assert!(verifies(&old, &bundle, "sslclient") && verifies(&new, &bundle, "sslclient"));
    mis.rotate_anchors(AnchorStep::DropOld).unwrap();
    assert_eq!(anchors(mis, &bundle)["spiffe_sequence"], 3);
    assert!(!verifies(&old, &bundle, "sslclient") && verifies(&new, &bundle, "sslclient"));
    assert_eq!(problem(renew(mis, &device, &old.id, &renewal(&csr)), 401), "about:blank");
    let device = new.client(mis, &key_file);
    assert_eq!(renew(mis, &device, &old.id, &renewal(&csr)).status(), 200);
}

#[test]
fn external_key_gets_a_device_credential() {
    let site = site(|_| ());
    let (mis, dir) = (&site.mis, site.dir.path());
    let key_file = key(dir, "tpm", P256);
    let spki = openssl(&["pkey", "-in", key_file.to_str().unwrap(), "-pubout", "-outform", "DER"]);
    let certificate = mis.certify_factory_key("tpm", &spki).unwrap();
    let device = client(mis, Some((&certificate, &key_file)));
    let body = enrollment(&csr(&key(dir, "device", P256)));
    assert_eq!(enroll(mis, &device, &body).status(), 201);
    assert!(mis.certify_factory_key("../up", &spki).is_err());

    let public = dir.join("public.pem");
    openssl(&["pkey", "-in", key_file.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
    let settings = Settings {
        directory: dir.join("other"),
        devices: vec!["two".to_owned()],
        certify: vec![("three".to_owned(), public)],
        ..Settings::default()
    };
    Mis::make_directory(&settings).unwrap();
    let made = fs::read(dir.join("other/factory-three.pem")).unwrap();
    let mis = Mis::start(settings).unwrap();
    assert_eq!(fs::read(mis.directory().join("factory-three.pem")).unwrap(), made);
    for (name, key_file) in [("two", mis.directory().join("factory-two.key")), ("three", key_file)] {
        let certificate = mis.directory().join(format!("factory-{name}.pem"));
        assert_eq!(enroll(&mis, &client(&mis, Some((&certificate, &key_file))), &body).status(), 201);
    }
}
