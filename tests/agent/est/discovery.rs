//! Where the EST endpoint is: `mis.est_url`, `estBaseUri` of the discovery document, or neither (X13
//! to X22), and identities of devices (X7).

use development_mis::{Documents, Endpoint, EstBaseUri, IssuerAlgorithm, Policy};

use super::{CLIENT, Line, NAME};
use crate::identities;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";

/// With a discovery document of the released form.
fn line(base_uri: EstBaseUri) -> Line {
    let line = Line::with(|settings| {
        settings.policy.documents = Documents::Released;
        settings.policy.est.base_uri = base_uri;
    });
    line.hand_out_token();
    line
}

/// The configuration of a device that is told of the document, and of `more` under `[mis]`.
fn discovering(line: &Line, more: &str) -> String {
    let direct = line.config(BY_FILE, "");
    let begin = direct.find("est_url").unwrap();
    let end = direct.find("[mis.trust]").unwrap();
    let url = line.world.mis.discovery_url();
    format!("{}discovery_url = \"{url}\"\n{more}{}", &direct[..begin], &direct[end..])
}

fn est_url(url: &str) -> String {
    format!("est_url = \"{url}\"\n")
}

fn base_uri(line: &Line, to: EstBaseUri) {
    line.world.mis.policy(|p: &mut Policy| p.est.base_uri = to);
}

#[test]
fn endpoint_is_found_by_the_discovery_document() {
    let mut line = line(EstBaseUri::Own);
    line.world.device.configure(&discovering(&line, ""));
    line.world.device.start();
    line.wait_for_state("active");
    assert!(!line.world.device.log().contains("differs from estBaseUri"));
    line.check_wire();
}

#[test]
fn configured_endpoint_outranks_the_document_and_says_so_once() {
    let mut line = line(EstBaseUri::Other("https://127.0.0.1:1/.well-known/est".into()));
    let url = line.world.mis.est_url();
    line.world.device.configure(&discovering(&line, &est_url(&url)));
    line.world.device.start();
    line.wait_for_state("active");
    line.world.wait_for_requests(Endpoint::Bundle, 4); // and what else it looks at meanwhile
    let said = |line: &Line| line.world.device.log().matches("differs from estBaseUri").count();
    assert_eq!(said(&line), 1, "{}", line.world.device.log());
    assert!(line.world.device.log().contains("https://127.0.0.1:1/.well-known/est"));
    line.check_wire();
}

#[test]
fn same_endpoint_in_both_places_is_no_difference() {
    let mut line = line(EstBaseUri::Own);
    let url = format!("{}/", line.world.mis.est_url());
    line.world.device.configure(&discovering(&line, &est_url(&url)));
    line.world.device.start();
    line.wait_for_state("active");
    assert!(!line.world.device.log().contains("differs from estBaseUri"));
}

#[test]
fn document_without_an_endpoint_is_named_until_there_is_one() {
    let mut line = line(EstBaseUri::Absent);
    let without = discovering(&line, "");
    line.world.device.configure(&without);
    line.world.device.start();
    let status = line.wait_for_state("blocked");
    let error = &status["lastError"];
    assert_eq!(error["code"], "unsupported-by-mis", "{error:#}");
    assert!(error["detail"].to_string().contains(NAME), "{error:#}");
    assert!(error["hint"].to_string().contains("est_url"), "{error:#}");
    line.world.device.wait_for_status("the bundle", |status| status["bundle"].is_object());
    assert!(line.requests().is_empty());
    line.world.device.configure(&discovering(&line, &est_url(&line.world.mis.est_url())));
    line.world.device.signal("HUP");
    line.wait_for_state("active");
}

#[test]
fn endpoint_that_moves_is_followed() {
    let mut line = line(EstBaseUri::Absent);
    line.world.mis.est().add_domain("other", "other.example").unwrap();
    let moved = format!("{}/.well-known/est/nowhere", line.world.mis.url());
    base_uri(&line, EstBaseUri::Other(moved));
    line.world.device.configure(&discovering(&line, ""));
    line.world.device.start();
    line.wait_for_error("404");
    assert!(line.at(Endpoint::EstEnroll).is_empty());
    base_uri(&line, EstBaseUri::Own);
    line.wait_for_state("active");
    line.check_wire();
}

#[test]
fn proof_of_one_endpoint_is_none_of_another() {
    let mut line = line(EstBaseUri::Own);
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.world.device.configure(&discovering(&line, ""));
    line.world.device.start();
    line.wait_for_state("pending-admission");
    let elsewhere = format!("{}/.well-known/est/nowhere", line.world.mis.url());
    base_uri(&line, EstBaseUri::Other(elsewhere));
    identities::run(&line.world.device, &["retry"]);
    line.wait_for_error("404");
    let there = |entry: &&development_mis::Entry| entry.path.contains("nowhere");
    let seen = line.requests();
    assert!(seen.iter().filter(there).all(|entry| !entry.authorization), "no token for what is unproven");
    base_uri(&line, EstBaseUri::Own);
    line.world.mis.est().release(CLIENT).unwrap();
    line.wait_for_state("active");
    line.check_wire();
}

/// Where the public store alone authenticates the document, it cannot send the token elsewhere (X18).
#[test]
fn endpoint_of_another_origin_is_refused_under_the_public_store() {
    let mut line = line(EstBaseUri::Absent);
    let elsewhere = line.world.mis.est_url().replace("127.0.0.1", "localhost");
    base_uri(&line, EstBaseUri::Other(elsewhere.clone()));
    let ca_file = line.world.mis.ca_file();
    let public = |config: String| {
        let own = format!("ca_file = \"{}\"", ca_file.display());
        config.replace(&own, "system_roots = true")
    };
    line.world.device.environment("SSL_CERT_FILE", ca_file.to_str().unwrap());
    line.world.device.configure(&public(discovering(&line, "")));
    line.world.device.start();
    let status = line.wait_for_state("blocked");
    let error = &status["lastError"];
    assert!(error["detail"].to_string().contains("localhost"), "{error:#}");
    assert!(error["detail"].to_string().contains(NAME), "{error:#}");
    assert!(error["hint"].to_string().contains("mis.est_url"), "{error:#}");
    line.restart();
    line.wait_for_state("blocked");
    assert!(line.requests().is_empty());
    // What the operator says directly, and what is at the document's own origin, is used.
    base_uri(&line, EstBaseUri::Own);
    identities::run(&line.world.device, &["retry"]);
    line.wait_for_state("active");
    line.check_wire();
}

const DEVICE: &str = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";

#[test]
fn device_over_est_has_to_be_allowed() {
    let mut line = Line::with(|settings| settings.policy.est.device_ids = true);
    line.world.mis.est().token(DEVICE).write(&line.world.device.path("token")).unwrap();
    line.start(BY_FILE, "");
    let error = line.wait_for_error("WFM Client");
    assert!(error["detail"].to_string().contains("/margo/device/"), "{error:#}");
    assert!(line.status()["svid"].is_null());
    line.world.device.configure(&line.config(&format!("{BY_FILE}allow_nonstandard = true\n"), ""));
    line.world.device.signal("HUP");
    let status = line.wait_for_state("active");
    assert_eq!(status["spiffeId"], DEVICE);
    line.check_wire();
}

/// Its kind of name does not tell by which algorithms its path was validated (X57).
#[test]
fn device_over_est_is_trusted_after_a_restart() {
    let mut line = Line::with(|settings| {
        settings.policy.documents = Documents::Released;
        settings.policy.est.device_ids = true;
        settings.algorithm = IssuerAlgorithm::P384;
    });
    line.world.mis.est().token(DEVICE).write(&line.world.device.path("token")).unwrap();
    line.start(&format!("{BY_FILE}allow_nonstandard = true\n"), "");
    let enrolled = line.wait_for_state("active");
    line.restart();
    let status = line.wait_for_state("active");
    assert!(status["lastError"].is_null(), "{status:#}");
    assert_eq!(status["svid"]["serial"], enrolled["svid"]["serial"]);
    line.check_wire();
}
