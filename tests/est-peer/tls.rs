//! TLS at EST servers: versions, chains, and who asks for a certificate.

use serde_json::Value;

use crate::server::{EstPeer, TABLE};
use crate::world::{Endpoint, World};

#[test]
fn tls_1_2_is_used_only_where_it_is_allowed() {
    let mut peer = EstPeer::start(TABLE, &["--tls", "1.2"]);
    let endpoint = Endpoint::of(&peer);
    let mut world = World::at(&endpoint);
    world.device.start();
    world.device.wait_for_error("tls12");
    assert_eq!(peer.requests("cacerts"), Vec::<Value>::new());
    world.configure(&endpoint, "token = \"file:{dir}/token\"\ntls12 = true\n");
    world.device.signal("HUP");
    world.device.wait_for("active");
    assert_eq!(peer.next("simpleenroll")["tls"], "TLSv1.2");
    // The certificate goes over it as well.
    world.renew();
    assert_eq!(peer.next_with("simplereenroll", 200)["tls"], "TLSv1.2");
}

#[test]
fn server_without_its_intermediate_is_named_so() {
    let mut peer = EstPeer::start(TABLE, &["--https-leaf-only"]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.device.start();
    world.device.wait_for_error("intermediate");
    assert_eq!(peer.requests("cacerts"), Vec::<Value>::new());
    assert_eq!(peer.requests("simpleenroll"), Vec::<Value>::new());
}

#[test]
fn server_that_wants_a_certificate_of_everyone_costs_no_token() {
    let mut peer = EstPeer::start(TABLE, &["--client-certificates", "required"]);
    let mut world = World::at(&Endpoint::of(&peer));
    world.device.start();
    world.device.wait_for_error("certificate");
    for operation in ["cacerts", "simpleenroll"] {
        assert_eq!(peer.requests(operation), Vec::<Value>::new(), "{operation}");
    }
}

#[test]
fn no_renewal_is_sent_where_no_certificate_is_asked_for() {
    let mut peer = EstPeer::start(TABLE, &["--client-certificates", "none"]);
    let mut world = World::at(&Endpoint::of(&peer));
    let serial = world.enroll();
    world.order_renewal();
    let status = world.device.wait_for_error("certificate");
    assert_eq!(status["svid"]["serial"], serial);
    assert_eq!(peer.requests("simplereenroll"), Vec::<Value>::new(), "a request left (X29)");
}
