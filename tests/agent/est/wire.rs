//! TLS of the EST endpoint, and identities side by side (X26, X28).

use development_mis::{ClientCertificates, Endpoint};

use super::{CLIENT, Line, statuses};
use crate::identities;
use crate::world;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";

#[test]
fn server_of_tls12_alone_is_taken_where_the_switch_says_so() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.policy(|p| p.tls12_only = true);
    line.start(BY_FILE, "");
    let error = line.wait_for_error("TLS 1.3");
    assert!(error["hint"].to_string().contains("tls12 = true under [identity.est]"), "{error:#}");
    assert!(line.requests().is_empty());
    line.world.device.configure(&line.config(&format!("{BY_FILE}tls12 = true\n"), world::SOON));
    line.world.device.signal("HUP");
    line.wait_for("an SVID", |client| client["svid"].is_object());
    let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, 1);
    assert_eq!(renewals[0].status, Some(200));
    line.check_wire();
}

#[test]
fn server_that_wants_a_certificate_of_everyone_is_named() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.policy(|p| p.client_certificates = ClientCertificates::Required);
    line.start(BY_FILE, "");
    line.wait_for_error("wants a client certificate of everyone");
    assert!(line.at(Endpoint::EstEnroll).is_empty());
    line.world.mis.policy(|p| p.client_certificates = ClientCertificates::Requested);
    line.wait_for_state("active");
    line.check_wire();
}

const SECOND: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-8";

fn with_second(line: &Line) -> String {
    let second = "\n[[identity]]\nname = \"second\"\nenroll = \"est\"\n[identity.est]\n\
                  token = \"file:{dir}/second-token\"\n";
    format!("{}{second}", line.config(BY_FILE, ""))
}

#[test]
fn refused_identity_does_not_touch_the_other() {
    let mut line = Line::new();
    line.hand_out_token();
    let est = line.world.mis.est();
    let refused = est.token(SECOND);
    est.invalidate(&refused.username).unwrap();
    refused.write(&line.world.device.path("second-token")).unwrap();
    line.world.device.configure(&with_second(&line));
    line.world.device.start();
    let first = line.wait_for_state("active");
    assert_eq!(first["spiffeId"], CLIENT);
    assert!(first["lastError"].is_null(), "{first:#}");
    let says = |identity: &serde_json::Value| identity["lastError"]["code"] == "token-refused";
    identities::wait_for(&line.world.device, "second", "the refusal", says);
    assert_eq!(line.status()["state"], "active");
    let attempts = line.at(Endpoint::EstEnroll);
    let mut outcomes = statuses(&attempts);
    outcomes.sort();
    assert_eq!(outcomes, [Some(200), Some(401)]);
    assert_ne!(attempts[0].csr_spki_sha256, attempts[1].csr_spki_sha256, "each has a key of its own");
    est.token(SECOND).write(&line.world.device.path("second-token")).unwrap();
    identities::wait_for_state(&line.world.device, "second", "active");
    line.check_wire();
}

#[test]
fn reload_adds_and_removes_an_identity() {
    let line = Line::enrolled("", "");
    let before = line.wait_for_state("active");
    line.world.mis.est().token(SECOND).write(&line.world.device.path("second-token")).unwrap();
    line.world.device.configure(&with_second(&line));
    line.world.device.signal("HUP");
    let second = identities::wait_for_state(&line.world.device, "second", "active");
    assert_eq!(second["spiffeId"], SECOND);
    line.world.device.configure(&line.config(BY_FILE, ""));
    line.world.device.signal("HUP");
    line.world.device.wait_until("the removal", |device| identities::identity(device, "second").is_null());
    let after = line.status();
    assert_eq!(after["svid"]["serial"], before["svid"]["serial"]);
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 2);
    line.check_wire();
}
