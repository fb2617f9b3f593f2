//! Discovery and bundle: accepted and refused documents, and the cached ones (miaf-v0 D, B).

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use development_mis::{AnchorStep, DocumentFault as Bent, Endpoint, Fault};
use serde_json::{Value, json};

use crate::support::agent::PATIENCE;
use crate::world::World;

#[test]
fn bad_discovery_document_is_refused_with_its_reason() {
    let mut world = World::new();
    let bent = |document: Bent| Fault::Document(document);
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let faults = [
        (bent(Bent::MissingMember("trustDomain".into())), "missing field `trustDomain`"),
        (bent(Bent::MissingMember("trustBundleUri".into())), "missing field `trustBundleUri`"),
        (bent(Bent::HttpUrls), "not an absolute https:// URL"),
        (bent(Bent::TrustDomain("Not A Name".into())), "trustDomain is not valid"),
        (bent(Bent::Replace(b"[]".to_vec())), "not a Margo discovery document"),
        (bent(Bent::Replace(deep.into_bytes())), "invalid type: sequence"),
        (bent(Bent::Replace(vec![b' '; 10 * 1024 * 1024])), "larger than 65536 bytes"),
        (bent(Bent::Replace(vec![0xff; 10])), "not UTF-8"),
        (Fault::redirect(302, "https://127.0.0.1:1/elsewhere"), "redirects are not followed"),
        (Fault::problem(404, "about:blank", None), "\"status\":404"),
    ];
    world.mis.sticky_fault(Endpoint::Discovery, faults[0].0.clone());
    world.device.start();
    for (fault, why) in faults {
        world.mis.sticky_fault(Endpoint::Discovery, fault);
        world.device.wait_for_error(why);
    }
    assert!(world.seen(Endpoint::Bundle).is_empty() && world.seen(Endpoint::Enrollment).is_empty());
    world.mis.sticky_fault(Endpoint::Discovery, bent(Bent::ExtraMembers)); // and unknown members are ignored (D4)
    world.device.wait_for("active");
}

/// A document of two members is Margo's released form (N3): there is a bundle, and nothing to request.
#[test]
fn missing_member_of_v0_is_named_and_leads_to_no_request() {
    let mut world = World::new();
    let members = ["margoIdentityServiceBaseUri", "supportedBootstrapMethods", "svidProfilesSupported"];
    for (is_first, member) in [true, false, false].into_iter().zip(members) {
        world.mis.sticky_fault(Endpoint::Discovery, Fault::Document(Bent::MissingMember(member.into())));
        if is_first {
            world.device.start();
        }
        let status = world.device.wait_for_error(member);
        assert_eq!(status["state"], "blocked", "{status:#}");
        let error = &status["lastError"];
        assert_eq!(error["code"], "unsupported-by-mis", "{error:#}");
        let (detail, hint) = (error["detail"].as_str().unwrap(), error["hint"].as_str().unwrap());
        assert!(detail.contains("\"device\"") && hint.contains("miaf-agent csr"), "{error:#}");
        world.device.wait_for_status("the bundle", |status| status["bundle"].is_object());
    }
    assert!(world.seen(Endpoint::Enrollment).is_empty(), "D5");
    world.mis.clear_faults();
    world.device.wait_for("active");
}

#[test]
fn mis_without_a_discovery_document_is_told_from_a_wrong_url() {
    let mut world = World::new();
    let kind = "https://docs.margo.org/specification/problem-types#discovery-document-not-found";
    world.mis.sticky_fault(Endpoint::Discovery, Fault::problem(404, kind, None));
    world.device.start();
    let status = world.device.wait_for_error("discovery-document-not-found");
    let hint = status["lastError"]["hint"].as_str().unwrap();
    assert!(hint.contains("mis.bundle_url") && hint.contains("mis.trust_domain"), "{hint}");
}

#[test]
fn discovery_document_of_another_trust_domain_is_refused() {
    let mut world = World::new();
    let config = crate::world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("[mis]", "[mis]\ntrust_domain = \"other.example\""));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(
        status["lastError"]["detail"].as_str().unwrap().contains("the configuration says \"other.example\"")
    );
    world.device.kill();

    world.device.configure(&config);
    world.device.start();
    world.device.wait_for("active");
    world.mis.sticky_fault(Endpoint::Discovery, Fault::Document(Bent::TrustDomain("other.example".into())));
    world.device.kill();
    world.device.start();
    world.device.wait_for_error("this device's identity is in \\\"factory.example\\\"");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200, "what is held stays in use");
}

#[test]
fn unsupported_method_or_profile_leads_to_no_request() {
    for listed in [true, false] {
        let mut world = World::with(|settings| {
            let list = if listed { &mut settings.policy.methods } else { &mut settings.policy.profiles };
            *list = vec!["urn:example:another".into()];
        });
        world.device.start();
        let status = world.device.wait_for("blocked");
        assert!(
            status["lastError"]["detail"].as_str().unwrap().contains("urn:example:another"),
            "{status:#}"
        );
        let (_, _) = world.after(Duration::from_secs(1));
        assert!(world.seen(Endpoint::Enrollment).is_empty(), "D5");
        let policy = development_mis::Policy::default();
        world.mis.policy(|p| (p.methods, p.profiles) = (policy.methods, policy.profiles));
        world.device.wait_for("active");
    }
}

#[test]
fn documents_are_revalidated_also_after_a_restart() {
    let mut world = World::enrolled();
    world.device.wait_until("a revalidated bundle", |_| {
        world.seen(Endpoint::Bundle).iter().any(|entry| entry.status == Some(304))
    });
    world.device.kill();
    let before = world.mis.journal().len();
    world.device.start();
    let answered = |journal: &[development_mis::Entry]| {
        journal.iter().skip(before).filter(|entry| entry.status.is_some()).count() >= 2
    };
    let journal = world.mis.wait_for(PATIENCE, answered).unwrap();
    for entry in &journal[before..before + 2] {
        assert_eq!(entry.status, Some(304), "{entry:?}");
        assert!(entry.conditional.as_ref().unwrap().to_lowercase().contains("if-"), "{entry:?}");
    }
}

#[test]
fn bundle_is_accepted_in_both_forms_and_with_foreign_keys() {
    for form in [Bent::PlainBundle, Bent::ForeignKeys, Bent::ExtraMembers] {
        let mut world = World::new();
        world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(form));
        world.device.start();
        world.device.wait_for("active");
        let bundle: serde_json::Value =
            serde_json::from_str(&world.device.get("/v1/bundle").unwrap().1).unwrap();
        assert_eq!(bundle["keys"].as_array().unwrap().len(), 1, "{bundle:#}");
        assert_eq!(bundle["keys"][0]["x5c"].as_array().unwrap().len(), 1, "{bundle:#}");
    }
}

/// An earlier version took a member that is there twice. The one who served it so still does.
#[test]
fn cached_bundle_that_newer_rules_refuse_is_served() {
    let mut world = World::enrolled();
    let held = world.device.get("/v1/bundle").unwrap();
    world.kill();
    let record = world.device.path("state/private/bundle.json");
    let mut cached: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let body = cached["record"]["body"].as_str().unwrap();
    let twice = body.replacen("\"kty\":", "\"kty\":\"OKP\",\"kty\":", 1);
    assert_ne!(twice, body);
    cached["record"]["body"] = twice.clone().into();
    std::fs::write(&record, cached.to_string()).unwrap();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(Bent::Replace(twice.into_bytes())));
    world.device.start();
    world.device.wait_for_error("duplicate field");
    assert_eq!(world.device.get("/v1/bundle").unwrap(), held);
    assert_eq!(world.device.run(&["bundle"]).status.code(), Some(0));
}

#[test]
fn bad_bundle_is_refused_and_the_current_one_stays() {
    let world = World::enrolled();
    let held = world.device.published("bundle.pem");
    for (fault, why) in [
        (Fault::Document(Bent::DuplicateTrustDomain), "appears twice"),
        (Fault::Document(Bent::LowerSequence), "lower than the 1 of the current one"),
        (
            Fault::Document(Bent::Replace(b"{\"trust_domains\":{\"other.example\":{\"keys\":[]}}}".to_vec())),
            "no entry",
        ),
        (Fault::Document(Bent::Replace(b"{}".to_vec())), "neither"),
        (Fault::Document(Bent::Replace(vec![b' '; 2 * 1024 * 1024])), "larger than 1048576 bytes"),
        (Fault::problem(500, "about:blank", None), "\"status\":500"),
    ] {
        world.mis.sticky_fault(Endpoint::Bundle, fault);
        world.device.wait_for_error(why);
        assert_eq!(world.device.published("bundle.pem"), held, "{why}");
        assert_eq!(world.device.get("/readyz").unwrap().0, 200, "{why}");
    }
    world.mis.clear_faults();
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
}

#[test]
fn emptied_bundle_is_published_and_nothing_is_ready() {
    let world = World::enrolled();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(Bent::EmptyKeys));
    world.device.wait_until("an empty bundle", |device| device.published("bundle.pem").is_empty());
    // The sockets follow the files.
    world.device.wait_until("not ready", |device| device.get("/readyz").unwrap().0 == 503);
    world.device.wait_for_error("holds no anchor");
    world.mis.clear_faults();
    world.device.wait_until("ready again", |device| device.get("/readyz").unwrap().0 == 200);
}

#[test]
fn new_anchors_are_published() {
    let world = World::enrolled();
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    world.device.wait_until("both anchors", |device| {
        device.published("bundle.pem").matches("BEGIN CERTIFICATE").count() == 2
    });
    // The status follows the files.
    world.device.wait_for_status("the new bundle", |status| status["bundle"]["sequence"] == 2);
}

/// A key of a bundle whose certificate ended long ago, or has this serial number.
fn foreign_key(serial: Option<[u8; 8]>) -> Value {
    const MARK: [u8; 8] = [0x11; 8];
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serial_number = Some(rcgen::SerialNumber::from(MARK.to_vec()));
    if serial.is_none() {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let mut der = params.self_signed(&key).unwrap().der().to_vec();
    if let Some(serial) = serial {
        let at = der.windows(8).position(|found| found == MARK).unwrap();
        der[at..at + 8].copy_from_slice(&serial);
    }
    json!({ "kty": "EC", "use": "x509-svid", "x5c": [BASE64.encode(der)] })
}

#[test]
fn anchors_that_peers_refuse_are_logged_and_counted() {
    let mut world = World::enrolled();
    let mut bundle: Value = serde_json::from_str(&world.device.get("/v1/bundle").unwrap().1).unwrap();
    let keys = bundle["keys"].as_array_mut().unwrap();
    keys.push(foreign_key(None));
    keys.push(foreign_key(Some([0x80, 1, 1, 1, 1, 1, 1, 1])));
    bundle["spiffe_sequence"] = json!("soon");
    bundle["spiffe_refresh_hint"] = json!(1e0);
    let body = format!("\u{feff}{bundle}").into_bytes();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(Bent::Replace(body)));
    for restarted in [false, true] {
        if restarted {
            world.kill();
            world.device.start();
        }
        for figure in [
            "bundle_anchors 2",
            "bundle_anchors_not_valid 1",
            "bundle_unused_parts 2",
            "svid_anchor_not_after_timestamp_seconds",
        ] {
            world.device.wait_until(figure, |device| {
                device.get("/metrics").unwrap().1.contains(&format!("miaf_agent_{figure}"))
            });
        }
        assert_eq!(world.device.get("/readyz").unwrap().0, 200, "restarted: {restarted}");
    }
    let log = world.device.log();
    for said in [
        "expired at 2001-01-01T00:00:00Z",
        "its serial number is negative",
        "spiffe_sequence is \\\"soon\\\"",
    ] {
        assert!(log.contains(said) || log.contains(&said.replace('\\', "")), "{said} is missing in {log}");
    }
}

/// Another way to the MIS, until it is closed.
struct OtherAddress {
    url: String,
    closed: Arc<AtomicBool>,
}

impl OtherAddress {
    fn of(world: &World) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let closed = Arc::new(AtomicBool::new(false));
        let (port, is_closed) = (world.mis.port(), closed.clone());
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                if is_closed.load(Ordering::SeqCst) {
                    continue; // and is dropped
                }
                let Ok(mis) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [(&caller, &mis), (&mis, &caller)]
                    .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
                {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { url, closed }
    }
}

#[test]
fn moved_bundle_is_found_by_the_discovery_document() {
    let mut world = World::new();
    let old = OtherAddress::of(&world);
    let at_old = format!("{}/.well-known/spiffe/bundle.json", old.url);
    let names_old = Bent::Member("trustBundleUri".into(), at_old);
    world.mis.sticky_fault(Endpoint::Discovery, Fault::Document(names_old));
    let allowed = format!("[mis]\nbundle_origins = [{:?}, {:?}]\n", old.url, world.mis.url());
    let config = crate::world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("[mis]\n", &allowed));
    world.device.start();
    world.device.wait_for("active");

    // The address is gone, and the document says so; no renewal is due for hours.
    world.mis.clear_faults();
    old.closed.store(true, Ordering::SeqCst);
    let seen = world.seen(Endpoint::Discovery).len();
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    world.device.wait_for_status("the bundle at its new address", |status| status["bundle"]["sequence"] == 2);
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
    assert!(world.seen(Endpoint::Discovery).len() > seen);
}

/// The document is read again at the pace of the bundle, and refused as often: the bundle that is
/// held stays in use, also while it cannot be refreshed at its old address.
#[test]
fn bundle_at_an_origin_that_is_not_allowed_is_not_fetched() {
    let mut world = World::new();
    let other = OtherAddress::of(&world);
    let at_other = format!("{}/.well-known/spiffe/bundle.json", other.url);
    let names_other = || Fault::Document(Bent::Member("trustBundleUri".into(), at_other.clone()));
    world.mis.sticky_fault(Endpoint::Discovery, names_other());
    world.device.start();
    let status = world.device.wait_for_error("bundles are allowed from");
    let error = &status["lastError"];
    assert_eq!(error["code"], "discovery-refused", "{error:#}");
    let (detail, hint) = (error["detail"].as_str().unwrap(), error["hint"].as_str().unwrap());
    assert!(detail.contains(&other.url) && detail.contains(&world.mis.url()), "{detail}");
    assert!(hint.contains(&other.url) && hint.contains("mis.bundle_origins"), "{hint}");
    assert!(world.seen(Endpoint::Bundle).is_empty() && world.seen(Endpoint::Enrollment).is_empty());

    // With a document from before, the bundle goes on to come from there.
    world.mis.clear_faults();
    world.device.wait_for("active");
    world.mis.sticky_fault(Endpoint::Discovery, names_other());
    world.mis.sticky_fault(Endpoint::Bundle, Fault::problem(404, "about:blank", None));
    world.device.wait_for_error("bundles are allowed from");
    let seen = world.seen(Endpoint::Discovery).len();
    world.wait_for_requests(Endpoint::Discovery, seen + 3);
    assert_eq!(world.device.get("/readyz").unwrap().0, 200, "what is held stays in use");
    world.mis.clear_faults();
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
}

#[test]
fn refused_bundle_causes_no_more_discovery_than_polls() {
    let world = World::enrolled();
    let before = world.mis.journal().len();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(Bent::Replace(b"{}".to_vec())));
    world.device.wait_for_error("neither");
    world.wait_for_requests(Endpoint::Discovery, 4); // the first was that of the enrollment
    let since = world.mis.journal().split_off(before);
    let at = |endpoint| since.iter().filter(|entry| crate::world::is_at(entry, endpoint)).count();
    let (bundle, discovery) = (at(Endpoint::Bundle), at(Endpoint::Discovery));
    assert!(discovery <= bundle, "{discovery} for {bundle}");
    assert!(world.device.get("/readyz").unwrap().0 == 200, "what is held stays in use");
}
