//! The odd responses of servers in the field, one after the other. What the names stand for: README.md.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::json;

use crate::server::{EstPeer, SECRET, TABLE, USER};
use crate::world::{Endpoint, World, openssl_output, pem};

/// What the agent has to read.
const READ: &[&str] = &[
    "ber",
    "long-lengths",
    "unsorted",
    "empty-crls",
    "crl",
    "attribute-certificate",
    "unreadable-element",
    "leaf-twice",
    "with-chain",
    "with-strangers",
    "content",
    "one-line",
    "lines-64-lf",
    "lines-76-crlf",
    "no-last-line-break",
    "blanks",
    "type-plain",
    "type-certs-only",
    "type-in-capitals",
    "encoding-base64",
    "encoding-binary",
];

/// What it has to refuse, and keep what it has.
const REFUSED: &[&str] = &[
    "no-certificates",
    "only-chain",
    "enveloped",
    "bare-certificate",
    "trailing-nul",
    "cut-short",
    "pem",
    "raw-der",
    "html",
    "no-padding",
    "url-alphabet",
    "nul-after-base64",
    "text-after-base64",
    "empty",
    "type-pem",
    "type-text",
    "type-none",
    "leaf-for-another-key",
    "leaf-of-another-id",
    "leaf-of-another-domain",
    "leaf-of-two-ids",
    "leaf-without-san",
    "leaf-expired",
];

/// Bags of `/cacerts` that have the path.
const BAGS: &[&str] = &["without-root", "strange-roots", "shuffled", "expired-twins", "rollover", "twice"];

/// Each part of the names at a device and a server of its own: an agent lets five seconds pass between
/// two certificates.
fn in_parts(names: &[&str], each: impl Fn(&[&str]) + Sync) {
    std::thread::scope(|scope| {
        for part in names.chunks(6) {
            scope.spawn(|| each(part));
        }
    });
}

#[test]
fn odd_responses_are_read() {
    in_parts(READ, read);
}

fn read(names: &[&str]) {
    let mut peer = EstPeer::start(TABLE, &[]);
    let mut world = World::at(&Endpoint::of(&peer));
    peer.order("simpleenroll", &["ber", "blanks", "type-in-capitals"], None);
    world.enroll();
    for odd in names {
        eprintln!("{odd}");
        peer.order("simplereenroll", &[odd], None);
        world.renew();
        assert_eq!(peer.next_with("simplereenroll", 200)["odd"], json!([odd]));
        let chain = world.chain();
        assert_eq!(chain.len(), 2, "{odd}: {chain:#?}");
        assert_eq!(chain[1], pem(&peer.file("intermediate.crt")), "{odd}");
    }
}

/// Several CAs issue so, although RFC 5280 has the SAN critical where there is no subject.
#[test]
fn san_that_is_not_critical_is_accepted_and_repeated() {
    let mut peer = EstPeer::start(TABLE, &[]);
    peer.order("simpleenroll", &["leaf-with-san-not-critical"], None);
    let mut world = World::at(&Endpoint::of(&peer));
    world.enroll();
    assert!(world.device.log().contains("critical"), "there is no warning: {}", world.device.log());
    // The server copies the criticality of the request.
    world.renew();
    let chain = world.device.path("renewed.pem");
    std::fs::write(&chain, &world.chain()[0]).unwrap();
    let shown = openssl_output(&["x509", "-noout", "-ext", "subjectAltName", "-in", chain.to_str().unwrap()]);
    assert!(shown.contains("Alternative Name") && !shown.contains("critical"), "{shown}");
}

#[test]
fn odd_responses_are_refused_with_a_reason() {
    let reasons = Mutex::new(BTreeSet::new());
    in_parts(REFUSED, |names| refuse(names, &reasons));
    let reasons = reasons.into_inner().unwrap();
    assert_eq!(reasons.len(), 4, "the reasons cannot be told apart: {reasons:#?}");
}

fn refuse(names: &[&str], reasons: &Mutex<BTreeSet<String>>) {
    let mut peer = EstPeer::start(TABLE, &[]);
    let mut world = World::at(&Endpoint::of(&peer));
    let mut serial = world.enroll();
    for odd in names {
        eprintln!("{odd}");
        peer.order("simplereenroll", &[odd], None);
        world.order_renewal();
        assert_eq!(peer.next_with("simplereenroll", 200)["odd"], json!([odd]));
        let status = world.device.wait_for_status("a refusal", |status| status["lastError"].is_object());
        assert_eq!(status["svid"]["serial"], serial, "{odd}: what it had is gone");
        if ["bare-certificate", "pem", "raw-der", "html"].contains(odd) {
            reasons.lock().unwrap().insert(status["lastError"]["detail"].as_str().unwrap().to_owned());
        }
        peer.order("simplereenroll", &[], None);
        world.device.run(&["retry"]);
        let renewed = world.device.wait_for_another_svid(&serial);
        assert!(renewed["lastError"].is_null(), "{odd}: {renewed:#}");
        serial = renewed["svid"]["serial"].clone();
    }
}

#[test]
fn path_is_found_in_each_bag() {
    let mut peer = EstPeer::start(TABLE, &[]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.enroll();
    for bag in BAGS {
        eprintln!("{bag}");
        peer.order("cacerts", &[bag], None);
        world.renew();
        let chain = world.chain();
        assert_eq!(chain.len(), 2, "{bag}: {chain:#?}");
        assert_eq!(chain[1], pem(&peer.file("intermediate.crt")), "{bag}");
    }
}

#[test]
fn rollover_certificate_carries_the_path_to_the_next_root() {
    let mut peer = EstPeer::start(TABLE, &["--odd", "cacerts", "rollover"]);
    let endpoint = Endpoint { bundle_file: peer.file("rollover-bundle.json"), ..Endpoint::of(&peer) };
    let mut world = World::at(&endpoint);
    world.enroll();
    let chain = world.chain();
    assert_eq!(chain.len(), 3, "leaf, intermediate, OldWithNew: {chain:#?}");
    assert_ne!(chain[2], pem(&peer.file("ca.crt")), "the old root is no link to the next one");
    // Without it there is no path; the SVID stays.
    peer.order("cacerts", &["without-root"], None);
    world.order_renewal();
    let status = world.device.wait_for_status("an error", |status| status["lastError"].is_object());
    assert!(status["svid"].is_object(), "{status:#}");
}

#[test]
fn issued_leaf_waits_for_its_path() {
    // In the order of a DER SET, the intermediate may stand before the crowd.
    for bag in [&["without-intermediate"][..], &["crowd", "unsorted"]] {
        eprintln!("{bag:?}");
        let mut peer = EstPeer::start(TABLE, &[]);
        peer.order("cacerts", bag, None);
        let mut world = World::at(&Endpoint::of(&peer));
        world.device.start();
        let issued = peer.next_with("simpleenroll", 200);
        world.device.wait_for_status("an error", |status| status["lastError"].is_object());
        // Also after a power cut.
        world.device.kill();
        peer.order("cacerts", &[], None);
        world.device.start();
        world.device.wait_for("active");
        assert_eq!(peer.requests("simpleenroll").len(), 1, "a second certificate was asked for: {issued}");
    }
}

#[test]
fn held_enrollment_repeats_the_same_request() {
    let mut peer = EstPeer::start(TABLE, &[]);
    peer.order("simpleenroll", &["202-bare=1"], None);
    let mut world = World::at(&Endpoint::of(&peer));
    world.device.start();
    world.device.wait_for("pending-admission");
    for odd in ["202-bare=1", "202-bare", "202=1", "202"] {
        eprintln!("{odd}");
        peer.order("simpleenroll", &[odd], None);
        peer.next_with("simpleenroll", 202);
        let status = peer.next_with("simpleenroll", 202);
        assert_eq!(status["authorization"], true);
    }
    world.device.kill();
    world.device.start();
    peer.next_with("simpleenroll", 202);
    world.device.wait_for("pending-admission");
    peer.order("simpleenroll", &["cut-issued"], Some(1));
    world.device.wait_for("active");
    let requests = peer.requests("simpleenroll");
    let issued: BTreeSet<_> = requests.iter().filter_map(|request| request["key"].as_str()).collect();
    assert_eq!(issued.len(), 1, "more than one key for one token: {requests:#?}");
    assert!(
        requests.iter().filter(|request| request["serial"].is_string()).count() >= 2,
        "the answer was not lost"
    );
}

#[test]
fn refused_token_is_not_sent_for_ever() {
    for refusal in ["challenge", "close", "403"] {
        eprintln!("{refusal}");
        let mut peer = EstPeer::start(TABLE, &["--wrong-secret", refusal]);
        let mut world = World::at(&Endpoint::of(&peer));
        world.token(&format!("{USER}:another-secret"));
        world.device.start();
        let status = if refusal == "403" { 403 } else { 401 };
        peer.next_with("simpleenroll", status);
        world.device.wait_for_error("token");
        world.secret_is_nowhere("another-secret");
        // Another one is used at once.
        world.token(&format!("{USER}:{SECRET}"));
        world.device.wait_for("active");
        assert!(peer.requests("simpleenroll").len() <= 6);
    }
}

#[test]
fn transient_answers_are_tried_again() {
    for odd in ["429", "503", "500", "429=1", "503=1", "cut", "cut-body", "409"] {
        eprintln!("{odd}");
        let mut peer = EstPeer::start(TABLE, &[]);
        peer.order("simpleenroll", &[odd], Some(1));
        let mut world = World::at(&Endpoint::of(&peer));
        world.enroll();
        assert!(peer.requests("simpleenroll").len() >= 2, "{odd}");
    }
}

#[test]
fn refused_renewal_keeps_the_svid() {
    const ANSWERS: &[&str] = &[
        "204",
        "302",
        "400-text",
        "400-without-type",
        "400-nginx-none",
        "400-nginx-bad",
        "401",
        "401-empty",
        "401-digest",
        "401-without-challenge",
        "403",
        "403-apache",
        "404",
        "405-empty",
        "413",
        "415",
        "500-json-echo",
    ];
    in_parts(ANSWERS, keep);
}

fn keep(answers: &[&str]) {
    let mut peer = EstPeer::start(TABLE, &[]);
    let mut world = World::at(&Endpoint::of(&peer));
    let mut serial = world.enroll();
    for odd in answers {
        eprintln!("{odd}");
        peer.order("simplereenroll", &[odd], None);
        world.order_renewal();
        let request = peer.next_with("simplereenroll", odd[..3].parse().unwrap());
        assert_eq!(request["authorization"], false, "a challenge was answered");
        let status = world.device.wait_for_status("an error", |status| status["lastError"].is_object());
        assert_eq!(status["svid"]["serial"], serial);
        let error = status["lastError"].to_string();
        if odd.starts_with("400-nginx") {
            assert!(error.contains("certificate"), "{odd}: {error}");
        }
        peer.order("simplereenroll", &[], None);
        world.device.run(&["retry"]);
        serial = world.device.wait_for_another_svid(&serial)["svid"]["serial"].clone();
    }
}

#[test]
fn echoed_credentials_are_not_shown() {
    let mut peer = EstPeer::start(TABLE, &[]);
    peer.order("simpleenroll", &["500-json-echo"], None);
    let mut world = World::at(&Endpoint::of(&peer));
    world.device.start();
    peer.next_with("simpleenroll", 500);
    world.device.wait_for_status("an error", |status| status["lastError"].is_object());
    world.secret_is_nowhere(SECRET);
    let credentials = base64_of(&format!("{USER}:{SECRET}"));
    world.secret_is_nowhere(&credentials);
    world.secret_is_nowhere(&credentials[..20]);
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
