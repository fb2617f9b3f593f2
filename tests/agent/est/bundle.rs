//! The CA of an EST server and the trust bundle, before a token is spent (X59).

use std::fs;
use std::path::PathBuf;

use development_mis::{Endpoint, EstBaseUri, EstFault, Fault};

use super::{CLIENT, Line, assert_repeated};
use crate::identities;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";

/// A device, and the bundle of another CA than that of its EST server.
fn line_with_another_bundle() -> (Line, PathBuf) {
    let line = Line::new();
    line.world.mis.est().add_domain("other", "other.example").unwrap();
    let file = line.world.device.path("bundle.json");
    write_bundle(&line, &file, "other");
    (line, file)
}

fn write_bundle(line: &Line, file: &PathBuf, of: &str) {
    let aside = line.world.device.path("aside");
    fs::write(&aside, line.world.mis.est().bundle_of(of).unwrap()).unwrap();
    fs::rename(&aside, file).unwrap();
}

fn start_with(line: &mut Line, bundle: &std::path::Path) {
    let own = line.world.mis.bundle_file().unwrap();
    let config = line.config(BY_FILE, "").replace(own.to_str().unwrap(), bundle.to_str().unwrap());
    line.world.device.configure(&config);
    line.world.device.start();
}

/// Waits until the device has looked this often more, without success.
fn looks_again(line: &Line, times: usize) {
    let asked = line.at(Endpoint::EstCaCerts).len();
    line.world.wait_for_requests(Endpoint::EstCaCerts, asked + times);
}

#[test]
fn token_is_not_sent_to_the_ca_of_another_bundle() {
    let (mut line, bundle) = line_with_another_bundle();
    line.hand_out_token();
    start_with(&mut line, &bundle);
    for is_after_restart in [false, true] {
        if is_after_restart {
            line.restart();
        }
        let error = line.wait_for_error("not one of the trust bundle");
        assert_eq!(error["code"], "issuer-not-trusted", "{error:#}");
        let detail = error["detail"].as_str().unwrap();
        assert!(
            detail.starts_with(&line.world.mis.est_url()) && detail.ends_with("No token was sent"),
            "{detail}"
        );
        assert!(
            detail.contains(", which has 1: \"") && detail.contains(bundle.to_str().unwrap()),
            "{detail}"
        );
        assert!(error["hint"].to_string().contains("miaf-agent bundle"), "{error:#}");
        looks_again(&line, 2);
    }
    assert!(line.at(Endpoint::EstEnroll).is_empty(), "the token is as good as new");
    write_bundle(&line, &bundle, "factory.example");
    line.wait_for_state("active");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    assert_eq!(line.world.mis.est().record().len(), 1);
    line.check_wire();
}

/// The bundle is read when its file changes, and not at its refresh alone, which is minutes away (X12).
#[test]
fn corrected_bundle_file_is_read_without_a_command() {
    let (mut line, bundle) = line_with_another_bundle();
    line.hand_out_token();
    let own = line.world.mis.bundle_file().unwrap();
    let config = line.config(BY_FILE, "").replace(own.to_str().unwrap(), bundle.to_str().unwrap());
    line.world.device.configure(&config.replace("[bundle]\nrefresh = \"1s\"\n", ""));
    line.world.device.start();
    line.wait_for_error("not one of the trust bundle");
    looks_again(&line, 2);
    // What cannot be used has its delay between two attempts, and does not wait for that either.
    for (content, says) in [("{}", "neither"), ("[]", "is not a SPIFFE bundle")] {
        let aside = line.world.device.path("aside");
        fs::write(&aside, content).unwrap();
        fs::rename(&aside, &bundle).unwrap();
        line.world.device.wait_until(says, |device| {
            device.status_document()["lastError"]["detail"].to_string().contains(says)
        });
    }
    write_bundle(&line, &bundle, "factory.example");
    line.wait_for_state("active");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    line.check_wire();
}

/// What an endpoint serves beside a path is none: not of the issuer's name, nor of a time that is over.
#[test]
fn decoys_and_expired_twins_are_no_path_for_a_token() {
    let mut line = Line::new();
    line.hand_out_token();
    let serve = |line: &Line, more: EstFault| {
        let all = [EstFault::WithoutRoot, EstFault::WithoutIntermediates, more].map(Fault::Est);
        line.world.mis.sticky_fault(Endpoint::EstCaCerts, Fault::Together(all.to_vec()));
    };
    serve(&line, EstFault::Decoy);
    line.start(BY_FILE, "");
    line.wait_for_error("Decoy");
    serve(&line, EstFault::ExpiredTwin);
    let error = line.wait_for_error("an issuer of the chain expired");
    assert!(error["title"].to_string().contains("may not issue SVIDs"), "{error:#}");
    looks_again(&line, 2);
    assert!(line.at(Endpoint::EstEnroll).is_empty());
    line.world.mis.clear_faults();
    line.wait_for_state("active");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    line.check_wire();
}

/// What was found under one bundle says nothing under the next.
#[test]
fn held_token_is_not_sent_under_a_bundle_of_another_ca() {
    let (mut line, bundle) = line_with_another_bundle();
    write_bundle(&line, &bundle, "factory.example");
    line.hand_out_token();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    start_with(&mut line, &bundle);
    line.world.wait_for_requests(Endpoint::EstEnroll, 2);
    write_bundle(&line, &bundle, "other");
    line.wait_for_error("not one of the trust bundle");
    let sent = line.at(Endpoint::EstEnroll).len();
    looks_again(&line, 2);
    assert_eq!(line.at(Endpoint::EstEnroll).len(), sent);
    line.world.mis.est().release(CLIENT).unwrap();
    write_bundle(&line, &bundle, "factory.example");
    line.wait_for_state("active");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    line.check_wire();
}

/// It is told beside the error of the renewal that is to replace it.
#[test]
fn untrusted_svid_is_told_while_its_renewal_fails() {
    let (mut line, bundle) = line_with_another_bundle();
    write_bundle(&line, &bundle, "factory.example");
    line.hand_out_token();
    start_with(&mut line, &bundle);
    line.wait_for_state("active");
    line.world.mis.sticky_fault(Endpoint::EstReenroll, Fault::Status(403));
    identities::run(&line.world.device, &["renew"]);
    line.wait_for_error("403");
    write_bundle(&line, &bundle, "other");
    let held = line.wait_for("an untrusted SVID", |client| client["svid"]["trusted"] == false);
    assert_eq!(held["ready"], false, "{held:#}");
    line.wait_for("a renewal that is due", |client| client["state"] == "renewing");
    line.wait_for_error("403");
    let refused =
        "the WFM Client line-7 has an identity that peers refuse: the trust bundle does not vouch for it";
    let printed = identities::run(&line.world.device, &["status"]);
    assert!(printed.contains(refused) && printed.contains("403"), "{printed}");
    let waited = line.world.device.run(&["wait", "--timeout", "1s"]);
    let said = String::from_utf8(waited.stderr).unwrap();
    assert!(
        !waited.status.success() && said.contains(refused) && !said.contains("has a valid identity"),
        "{said}"
    );
    let told = |line: &Line| {
        let log = line.world.device.log();
        log.lines().filter(|line| line.contains("svid-not-trusted")).map(str::to_owned).collect::<Vec<_>>()
    };
    line.world.device.wait_until("svid-not-trusted in the journal", |_| !told(&line).is_empty());
    looks_again(&line, 2);
    let told = told(&line);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].contains(&format!("put it into {}, which the agent reads", bundle.display())),
        "{told:#?}"
    );
    write_bundle(&line, &bundle, "factory.example");
    line.wait_for("a trusted SVID", |client| client["svid"]["trusted"] == true && client["ready"] == true);
    let printed = identities::run(&line.world.device, &["status"]);
    assert!(printed.contains("the WFM Client line-7 has a valid identity"), "{printed}");
    // Without a bundle nothing is known.
    line.world.device.stop();
    fs::remove_file(&bundle).unwrap();
    fs::remove_file(line.world.device.path("state/private/bundle.json")).unwrap();
    line.world.device.start();
    line.wait_for("an SVID, and no bundle", |client| client["svid"]["trusted"] == true);
    assert_eq!(line.status()["ready"], false);
}

#[test]
fn token_waits_for_the_right_server() {
    let mut line = Line::with(|settings| settings.policy.documents = development_mis::Documents::Released);
    line.world.mis.est().add_domain("other", "other.example").unwrap();
    line.hand_out_token();
    let elsewhere = format!("{}/.well-known/est/other", line.world.mis.url());
    line.world.mis.policy(|p| p.est.base_uri = EstBaseUri::Other(elsewhere));
    let direct = line.config(BY_FILE, "");
    let est_url = format!("est_url = \"{}\"\n", line.world.mis.est_url());
    let bundle = format!("bundle_file = \"{}\"\n", line.world.mis.bundle_file().unwrap().display());
    let discovery = format!("discovery_url = \"{}\"\n", line.world.mis.discovery_url());
    line.world.device.configure(&direct.replace(&est_url, &discovery).replace(&bundle, ""));
    line.world.device.start();
    let error = line.wait_for_error("not one of the trust bundle");
    assert!(error["hint"].to_string().contains("mis.est_url"), "{error:#}");
    assert!(line.at(Endpoint::EstEnroll).is_empty());
    line.world.mis.policy(|p| p.est.base_uri = EstBaseUri::Own);
    line.wait_for_state("active");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    line.check_wire();
}
