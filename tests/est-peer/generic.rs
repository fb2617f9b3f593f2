//! Enrollment and renewal at a server that knows nothing of Margo.

use serde_json::{Value, json};

use crate::server::{COPIES, EstPeer, GENERIC, ID, SECRET, TABLE};
use crate::world::{Endpoint, World, operator_certificate, pem};

/// The one operation of each request that has a connection.
fn connections_of(peer: &mut EstPeer, operation: &str) -> Vec<Value> {
    peer.requests(operation).iter().map(|request| request["connection"].clone()).collect()
}

#[test]
fn registered_spiffe_id_becomes_the_identity() {
    let mut peer = EstPeer::start(TABLE, &[]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.enroll();
    assert_eq!(world.device.status()["spiffeId"], ID);

    // What went over the wire (X28, X46, X47, X59).
    let first = &peer.said()[0];
    assert!(first["request"].as_str().unwrap().ends_with("/cacerts"), "no token was risked: {first}");
    let enrollment = peer.next_with("simpleenroll", 200);
    let [authorization, certificate] = [&enrollment["authorization"], &enrollment["certificate"]];
    assert_eq!([authorization, certificate], [&json!(true), &Value::Null], "{enrollment}");
    let [subject, san] = [&enrollment["subject"], &enrollment["san"]];
    assert_eq!([subject, san], [&json!(""), &Value::Null], "a claim of an identity: {enrollment}");
    assert_eq!(enrollment["challenge_password"], false);
    assert_eq!(enrollment["base64"], "lines-64-lf");

    // The leaf and its intermediate, and not the root.
    let chain = world.chain();
    assert_eq!(chain.len(), 2, "{chain:#?}");
    assert_eq!(chain[1], pem(&peer.file("intermediate.crt")));

    // Same key; no token; the names of the certificate, byte for byte, or the server would refuse.
    let renewed = world.renew();
    assert_eq!(renewed["spiffeId"], ID);
    let renewal = peer.next_with("simplereenroll", 200);
    assert_eq!(renewal["key"], enrollment["key"]);
    assert_eq!(renewal["authorization"], false);
    assert!(renewal["certificate"].is_string());
    assert_eq!(world.chain()[1], pem(&peer.file("intermediate.crt")));

    for request in peer.requests("cacerts") {
        let [authorization, certificate] = [&request["authorization"], &request["certificate"]];
        assert_eq!([authorization, certificate], [&json!(false), &Value::Null], "{request}");
    }
    assert!(peer.requests("cacerts").len() >= 3, "one before the token, one with each certificate");
    let mut seen = Vec::new();
    for operation in ["cacerts", "simpleenroll", "simplereenroll"] {
        let mut own = connections_of(&mut peer, operation);
        own.dedup();
        assert!(own.iter().all(|connection| !seen.contains(connection)), "a connection is shared: {seen:?}");
        seen.extend(own);
    }
    assert!(peer.said().iter().all(|line| line["resumed"] != true));
    world.secret_is_nowhere(SECRET);
}

#[test]
fn copied_san_becomes_the_identity() {
    let mut peer = EstPeer::start(COPIES, &["--require-subject"]);
    let names = format!("common_name = \"line-7\"\nrequest_spiffe_id = \"{ID}\"\n");
    let mut world = World::with(&Endpoint::of(&peer), &names);
    world.enroll();
    assert_eq!(world.device.status()["spiffeId"], ID);
    assert_eq!(peer.next_with("simpleenroll", 200)["subject"], "CN=line-7");
    let renewed = world.renew();
    assert_eq!(renewed["spiffeId"], ID);
    assert_eq!(peer.next_with("simplereenroll", 200)["subject"], "CN=line-7");
}

#[test]
fn server_that_gives_no_spiffe_id_is_named_so() {
    let mut peer = EstPeer::start(GENERIC, &[]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.device.start();
    let status = world.device.wait_for_error("SPIFFE ID");
    assert!(status["svid"].is_null());
    let hint = status["lastError"]["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("profile") || hint.contains("request_spiffe_id"), "{status:#}");
    let first = peer.next_with("simpleenroll", 200);
    // Whatever is tried again is tried with the same key.
    world.device.run(&["retry"]);
    assert_eq!(peer.next_with("simpleenroll", 200)["key"], first["key"]);
}

#[test]
fn refused_empty_subject_ends_with_a_common_name() {
    let mut peer = EstPeer::start(TABLE, &["--require-subject"]);
    let endpoint = Endpoint::of(&peer);
    let mut world = World::at(&endpoint);
    world.device.start();
    for _ in 0..3 {
        peer.next_with("simpleenroll", 500);
    }
    world.device.wait_for_error("common_name");
    world.configure(&endpoint, "token = \"file:{dir}/token\"\ncommon_name = \"line-7\"\n");
    world.device.signal("HUP");
    world.device.wait_for("active");
}

#[test]
fn other_form_of_base64_is_tried_once_and_kept() {
    let mut peer = EstPeer::start(TABLE, &["--request", "one-line"]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.enroll();
    let refused = peer.next("simpleenroll");
    let taken = peer.next("simpleenroll");
    assert_eq!([&refused["status"], &taken["status"]], [&json!(400), &json!(200)]);
    assert_eq!(taken["base64"], "one-line");
    world.renew();
    assert_eq!(peer.next("simplereenroll")["base64"], "one-line", "the form that worked was not kept");
}

#[test]
fn server_that_needs_lines_gets_them_at_once() {
    let mut peer = EstPeer::start(TABLE, &["--request", "lines", "--base64", "one-line"]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.enroll();
    assert_eq!(peer.next("simpleenroll")["status"], 200);
}

#[test]
fn registered_certificate_enrolls_and_no_token_is_sent() {
    // The certificate is of another CA: that of an operator.
    let operator = EstPeer::start(GENERIC, &[]);
    let (cert, key) = (operator.file("operator.crt"), operator.file("operator.key"));
    operator_certificate(&operator, &cert, &key);
    let client_ca = operator.file("ca.crt");
    let registered =
        ["--certificate", cert.to_str().unwrap(), ID, "--client-ca", client_ca.to_str().unwrap()];
    let form = format!("cert_file = \"{}\"\nkey = \"file:{}\"\n", cert.display(), key.display());

    let mut peer = EstPeer::start(&registered, &[]);
    let mut world = World::without_token(&Endpoint::of(&peer), &form);
    world.enroll();
    let enrollment = peer.next_with("simpleenroll", 200);
    assert_eq!(enrollment["authorization"], false);
    assert!(enrollment["certificate"].is_string());
    let renewal = {
        world.renew();
        peer.next_with("simplereenroll", 200)
    };
    assert_ne!(renewal["certificate"], enrollment["certificate"], "renewal is by the SVID");

    // A server that asks for no certificate gets no request (X29).
    let mut silent = EstPeer::start(&registered, &["--client-certificates", "none"]);
    let mut world = World::without_token(&Endpoint::of(&silent), &form);
    world.device.start();
    world.device.wait_for_error("certificate");
    assert_eq!(silent.requests("simpleenroll"), Vec::<Value>::new());
}
