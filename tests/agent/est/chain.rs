//! What was issued, and the way from it to the trust bundle: chains are assembled, kept and repaired,
//! and wrong SVIDs are refused (X54, X57, X60 to X63).

use std::fs;
use std::time::Duration;

use development_mis::{Endpoint, EstFault, Fault, SvidFault};

use super::{CLIENT, Line, NAME};
use crate::world;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";

fn chain(line: &Line) -> String {
    let file = line.world.device.path(&format!("state/svid/{NAME}/current/svid.pem"));
    fs::read_to_string(file).unwrap_or_default()
}

#[test]
fn leaf_without_a_path_is_kept_until_there_is_one() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.sticky_fault(Endpoint::EstCaCerts, Fault::Est(EstFault::WithoutIntermediates));
    line.start(&format!("{BY_FILE}remove_token = true\n"), "");
    let error = line.wait_for_error("Nothing leads from the SVID");
    assert!(error["hint"].to_string().contains("/cacerts"), "{error:#}");
    for is_after_restart in [false, true] {
        if is_after_restart {
            line.restart();
            line.wait_for_error("Nothing leads from the SVID");
        }
        let asked = line.at(Endpoint::EstCaCerts).len();
        line.world.wait_for_requests(Endpoint::EstCaCerts, asked + 2); // judged at each refresh
    }
    assert!(line.status()["svid"].is_null());
    assert_eq!(line.world.mis.est().record().len(), 1);
    line.world.mis.clear_faults();
    line.wait_for_state("active");
    assert_eq!(line.world.mis.est().record().len(), 1, "it is adopted without another issuance");
    assert!(!line.world.device.path("token").exists(), "and the token is used up with it");
    line.check_wire();
}

#[test]
fn renewed_leaf_without_a_path_leaves_the_svid_in_use() {
    let line = Line::enrolled("", world::SOON);
    line.world.mis.sticky_fault(Endpoint::EstCaCerts, Fault::Est(EstFault::WithoutIntermediates));
    line.wait_for_error("Nothing leads from the SVID");
    let held = line.status();
    assert!(held["svid"].is_object(), "{held:#}");
    assert_eq!(line.world.device.get("/readyz").unwrap().0, 200);
    line.world.mis.clear_faults();
    line.wait_for_another_svid(&held);
    line.wait_for("no error", |client| client["lastError"].is_null());
    line.check_wire();
}

#[test]
fn chain_is_found_in_what_an_endpoint_serves() {
    for (fault, at) in [
        (EstFault::Decoy, Endpoint::EstCaCerts),
        (EstFault::ExpiredTwin, Endpoint::EstCaCerts),
        (EstFault::Shuffled, Endpoint::EstCaCerts),
        (EstFault::WithoutRoot, Endpoint::EstCaCerts),
        (EstFault::Ber, Endpoint::EstCaCerts),
        (EstFault::Ber, Endpoint::EstEnroll),
        (EstFault::ChainInAnswer, Endpoint::EstEnroll),
        (EstFault::LeafTwice, Endpoint::EstEnroll),
        (EstFault::Lines76, Endpoint::EstEnroll),
        (EstFault::RefuseLines, Endpoint::EstEnroll),
    ] {
        let mut line = Line::with(|settings| settings.policy.est.intermediates = 2);
        line.hand_out_token();
        line.world.mis.sticky_fault(at, Fault::Est(fault.clone()));
        line.start(BY_FILE, "");
        line.wait_for_state("active");
        line.world.device.wait_until("files", |_| !chain(&line).is_empty());
        assert_eq!(chain(&line).matches("BEGIN CERTIFICATE").count(), 3, "{fault:?}");
        assert_eq!(line.world.mis.est().record().len(), 1, "{fault:?}");
        line.check_wire();
    }
}

#[test]
fn rolled_over_root_costs_no_issuance() {
    let line = Line::enrolled("", "");
    let before = line.wait_for_state("active");
    line.world.device.wait_until("files", |_| !chain(&line).is_empty());
    let certificates = |line: &Line| chain(line).matches("BEGIN CERTIFICATE").count();
    let length = certificates(&line);
    line.world.mis.est().roll_over().unwrap();
    // The operator brings the bundle with the new root alone.
    let (file, aside) = (line.world.mis.bundle_file().unwrap(), line.world.device.path("aside"));
    fs::write(&aside, line.world.mis.est().bundle_of("factory.example").unwrap()).unwrap();
    fs::copy(&aside, file).unwrap();
    line.world.device.wait_until("a chain to the new root", |_| certificates(&line) > length);
    let after = line.wait_for("no error", |client| client["lastError"].is_null());
    assert_eq!(after["svid"]["serial"], before["svid"]["serial"], "the same SVID");
    assert_eq!(line.world.mis.est().record().len(), 1);
    assert!(line.at(Endpoint::EstReenroll).is_empty());
    // It is renewed with that chain, by a server that knows the new root alone.
    crate::identities::run(&line.world.device, &["renew"]);
    line.wait_for_another_svid(&before);
    line.check_wire();
}

/// What an EST server must not issue, and a part of what is said of it.
fn wrong_svids() -> Vec<(SvidFault, &'static str)> {
    let other = "spiffe://factory.example/margo/wfm/wfm-1/client/line-8";
    vec![
        (SvidFault::SpiffeId(other.into()), "line-8"),
        (SvidFault::SpiffeId("spiffe://factory.example/elsewhere".into()), "elsewhere"),
        (SvidFault::OtherTrustDomain("other.example".into()), "other.example"),
        (SvidFault::TwoUriSans, "2 URI"),
        (SvidFault::NoUriSan, "0 URI"),
        (SvidFault::SpiffeId("https://factory.example/line-7".into()), "SPIFFE ID"),
        (SvidFault::OtherKey, "for the public key of the request"),
        (SvidFault::CaTrue, "certificate authority"),
        (SvidFault::Expired, "expired"),
        (SvidFault::UnknownIssuer, "Nothing leads from the SVID"),
    ]
}

#[test]
fn wrong_svid_is_refused_at_enrollment() {
    for (fault, says) in wrong_svids() {
        let mut line = Line::new();
        line.hand_out_token();
        let gives_no_id = matches!(&fault, SvidFault::NoUriSan)
            || matches!(&fault, SvidFault::SpiffeId(id) if id.starts_with("https"));
        line.world.mis.sticky_fault(Endpoint::EstEnroll, Fault::Svid(fault.clone()));
        let config = line.config(BY_FILE, "");
        let guarded = format!("enroll = \"est\"\nspiffe_id = \"{CLIENT}\"\n");
        line.world.device.configure(&config.replace("enroll = \"est\"\n", &guarded));
        line.world.device.start();
        let error = line.wait_for_error(says);
        let hint = error["hint"].as_str().unwrap_or_default();
        assert_eq!(hint.contains("register the SPIFFE ID"), gives_no_id, "{fault:?}: {error:#}");
        assert!(line.status()["svid"].is_null(), "{fault:?}");
        if matches!(fault, SvidFault::UnknownIssuer) {
            continue; // it is kept: another bundle may lead to it
        }
        line.world.mis.clear_faults();
        line.wait_for_state("active");
        line.check_wire();
    }
}

#[test]
fn wrong_svid_is_refused_at_renewal_and_the_current_one_stays() {
    let line = Line::enrolled("", world::SOON);
    for (fault, says) in wrong_svids() {
        line.world.mis.sticky_fault(Endpoint::EstReenroll, Fault::Svid(fault.clone()));
        line.wait_for_error(says);
        let status = line.status();
        assert!(status["svid"].is_object() && status["spiffeId"] == CLIENT, "{fault:?}: {status:#}");
    }
    let held = line.status();
    line.world.mis.clear_faults();
    line.wait_for_another_svid(&held);
    line.check_wire();
}

/// No rule limits a lifetime: what counts is the first end on the way to the trust bundle.
#[test]
fn svid_that_outlives_its_issuer_ends_with_it() {
    let mut line = Line::new();
    line.hand_out_token();
    let century = Duration::from_secs(100 * 365 * 86_400);
    line.world.mis.fault(Endpoint::EstEnroll, Fault::Svid(SvidFault::Lifetime(century)));
    line.start(BY_FILE, "");
    let svid = line.wait_for_state("active")["svid"].clone();
    assert!(svid["leafNotAfter"].as_str() > svid["notAfter"].as_str(), "{svid:#}");
    assert!(line.world.device.log().contains("before the SVID itself"));
}
