//! Enrollments that are held, and responses that are lost: no token is wasted, and no key abandoned
//! that one is bound to (X37, X38, X48, X55 to X59).

use std::fs;
use std::time::Duration;

use development_mis::{Authorization, Endpoint, Fault, RetryAfter, TokenSpec};
use miaf_spiffe::digest::Hex;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::{CLIENT, Line, NAME, assert_repeated, statuses};
use crate::identities;
use crate::support::agent::PATIENCE;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";
const HOUR: Duration = Duration::from_secs(3600);

/// What is stored of the request under way.
fn stored(line: &Line) -> Option<Value> {
    let file = line.world.device.path(&format!("state/private/identities/{NAME}/est-request.json"));
    Some(serde_json::from_slice(&fs::read(file).ok()?).unwrap())
}

#[test]
fn held_enrollment_is_repeated_in_each_form_of_202() {
    let mut line = Line::new();
    line.hand_out_token();
    let one_second = || Fault::Held(RetryAfter::Seconds(1));
    for fault in [
        Fault::Held(RetryAfter::Absent),
        one_second(),
        Fault::Together(vec![Fault::Bare, one_second()]),
        Fault::Together(vec![Fault::Bare, Fault::Held(RetryAfter::Absent)]),
        Fault::Held(RetryAfter::DateIn(Duration::from_secs(2))),
        Fault::Held(RetryAfter::Raw("soon".into())),
    ] {
        line.world.mis.fault(Endpoint::EstEnroll, fault);
    }
    line.start(BY_FILE, "");
    line.wait_for_state("active");
    let attempts = line.at(Endpoint::EstEnroll);
    assert_eq!(statuses(&attempts), [[Some(202); 6].as_slice(), &[Some(200)]].concat());
    assert_repeated(&attempts);
    assert_eq!(line.at(Endpoint::EstCaCerts).len(), 2, "once before the token is sent, and once after");
    assert_eq!(stored(&line), None, "the token is wiped");
    line.check_wire();
}

#[test]
fn held_enrollment_survives_a_restart_and_a_kill() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.start(BY_FILE, "");
    let error = line.wait_for("a review", |client| client["state"] == "pending-admission");
    assert_eq!(error["lastError"]["code"], "pending-admission", "{error:#}");
    let before = stored(&line).unwrap();
    for is_killed in [false, true] {
        let sent = line.at(Endpoint::EstEnroll).len();
        line.world.wait_for_requests(Endpoint::EstEnroll, sent + 1);
        if is_killed {
            line.restart();
        } else {
            line.world.device.stop();
            line.world.device.start();
        }
        line.wait_for_state("pending-admission");
    }
    // The ten minutes of a repeated request do not count while it is held.
    line.world.mis.est().advance(Duration::from_secs(1200));
    assert_eq!(stored(&line).unwrap(), before);
    line.world.mis.est().release(CLIENT).unwrap();
    line.wait_for_state("active");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    assert_eq!(line.world.mis.est().record().len(), 1);
    assert!(line.world.mis.est().held().is_empty());
    line.check_wire();
}

#[test]
fn token_that_expires_while_held_is_replaced() {
    let mut line = Line::new();
    let spec = TokenSpec { valid: Duration::from_secs(60), ..TokenSpec::new(CLIENT) };
    let token = line.world.mis.est().token_with(&spec).unwrap();
    token.write(&line.world.device.path("token")).unwrap();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.start(BY_FILE, "");
    line.wait_for_state("pending-admission");
    line.world.mis.est().advance(HOUR);
    line.wait_for_error("It is sent again, 4 times at most");
    assert_eq!(line.status()["state"], "enrolling");
    let (fresh, _) = line.hand_out_token();
    line.wait_for_state("pending-admission");
    line.world.mis.est().release(CLIENT).unwrap();
    line.wait_for_state("active");
    assert_repeated(&line.at(Endpoint::EstEnroll));
    let record = line.world.mis.est().record();
    assert_eq!(record[0].authorization, Authorization::Token(fresh.username));
}

#[test]
fn lost_response_costs_no_second_token() {
    let mut line = Line::new();
    line.hand_out_token();
    for fault in [
        Fault::CutBefore,
        Fault::LoseAnswer,
        Fault::Truncated(100),
        Fault::Status(503),
        Fault::too_many(&RetryAfter::Absent),
        Fault::too_many(&RetryAfter::Seconds(1)),
    ] {
        line.world.mis.fault(Endpoint::EstEnroll, fault);
    }
    line.start(BY_FILE, "");
    line.wait_for_state("active");
    let attempts = line.at(Endpoint::EstEnroll);
    assert_repeated(&attempts);
    assert_eq!(attempts.len(), 7);
    assert!(line.world.mis.est().alerts().is_empty(), "no second key");
    line.check_wire();
}

#[test]
fn kill_before_the_response_costs_no_second_token() {
    for is_issued in [false, true] {
        let mut line = Line::new();
        line.hand_out_token();
        let stall = if is_issued { Fault::StallAnswer(HOUR) } else { Fault::Stall(HOUR) };
        line.world.mis.sticky_fault(Endpoint::EstEnroll, stall);
        line.start(BY_FILE, "");
        let sent = |line: &Line| {
            let issued = line.world.mis.est().record().len();
            if is_issued { issued } else { line.at(Endpoint::EstEnroll).len() }
        };
        line.world.device.wait_until("a request under way", |_| sent(&line) == 1);
        line.world.kill();
        let csr = stored(&line).unwrap()["record"]["csr"].as_str().unwrap().to_owned();
        line.world.mis.clear_faults();
        fs::remove_file(line.world.device.path("token")).unwrap(); // what is stored has to do
        line.world.device.start();
        line.wait_for_state("active");
        let attempts = line.at(Endpoint::EstEnroll);
        assert_eq!(attempts.len(), 2);
        let sent = Hex(digest(&SHA256, csr.as_bytes()).as_ref()).to_string();
        assert_eq!(attempts[1].body_sha256.as_ref(), Some(&sent), "the stored request");
        assert!(line.world.mis.est().alerts().is_empty(), "one key");
        line.check_wire();
    }
}

#[test]
fn issued_leaf_is_durable_before_its_issuers_are_fetched() {
    let mut line = Line::new();
    line.hand_out_token();
    line.world.mis.policy(|p| p.est.retry_after = 1);
    line.world.mis.est().hold(CLIENT).unwrap();
    line.start(BY_FILE, "");
    line.wait_for_state("pending-admission");
    line.world.mis.sticky_fault(Endpoint::EstCaCerts, Fault::Stall(HOUR));
    line.world.mis.est().release(CLIENT).unwrap();
    let is_stalled = |line: &Line| line.at(Endpoint::EstCaCerts).len() == 2;
    line.world.device.wait_until("the request for the issuers", |_| is_stalled(&line));
    line.world.kill();
    line.world.mis.clear_faults();
    line.world.mis.sticky_fault(Endpoint::EstEnroll, Fault::Status(500));
    line.world.device.start();
    line.wait_for_state("active");
    assert_eq!(line.world.mis.est().record().len(), 1, "nothing is requested once more");
    assert_eq!(stored(&line), None);
    line.check_wire();
}

#[test]
fn endpoint_that_is_no_est_server_gets_no_token() {
    let mut line = Line::new();
    line.hand_out_token();
    let html = |status| Fault::answer(status, &[("content-type", "text/html")], "<h1>front end</h1>");
    let faults = [
        (html(200), "web page"),
        (html(404), "404"),
        (html(400), "client certificate"),
        (html(502), "502"),
        (Fault::redirect(301, "https://127.0.0.1/.well-known/est"), "redirect"),
        (Fault::CutBefore, "cacerts"),
        (Fault::answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""), "401"),
    ];
    line.world.mis.sticky_fault(Endpoint::EstCaCerts, faults[0].0.clone());
    line.start(BY_FILE, "");
    for (fault, says) in faults {
        line.world.mis.sticky_fault(Endpoint::EstCaCerts, fault);
        let error = line.wait_for_error(says);
        assert!(error["hint"].is_string(), "{error:#}");
    }
    assert!(line.at(Endpoint::EstEnroll).is_empty());
    line.world.mis.clear_faults();
    identities::run(&line.world.device, &["retry"]);
    line.wait_for_state("active");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    line.check_wire();
}

#[test]
fn wrong_url_and_untrusted_server_get_no_token() {
    let mut line = Line::new();
    line.hand_out_token();
    let right = line.config(BY_FILE, "");
    let url = line.world.mis.est_url();
    let elsewhere = Line::new();
    let other_ca = elsewhere.world.mis.ca_file();
    let wrong = [
        (right.replace(&url, &url.replace("factory.example", "nowhere")), "404"),
        (right.replace(&url, &line.world.mis.url()), "/.well-known/est"),
        (right.replace(&url, &format!("{url}/simpleenroll")), "Remove the operation"),
        (
            right.replace(line.world.mis.ca_file().to_str().unwrap(), other_ca.to_str().unwrap()),
            "unknown issuer",
        ),
    ];
    for (nth, (config, says)) in wrong.into_iter().enumerate() {
        line.world.device.configure(&config);
        if nth == 0 {
            line.world.device.start()
        } else {
            line.world.device.signal("HUP")
        }
        line.wait_for_error(says);
    }
    let journal = line.world.mis.journal();
    assert!(!journal.iter().any(|entry| entry.authorization || entry.path.ends_with("/simpleenroll")));
    line.world.device.configure(&right);
    line.world.device.signal("HUP");
    line.wait_for_state("active");
    let handshakes = line.world.mis.wait_for_refused_handshakes(PATIENCE, 1);
    assert!(handshakes.is_some(), "the server that is not trusted was met");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
}
