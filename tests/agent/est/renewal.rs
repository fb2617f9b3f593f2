//! Renewal by the SVID: keys, names, refusals, and the way out of them (X64 to X69).

use std::collections::BTreeSet;

use development_mis::{Authorization, Endpoint, Entry, Fault, RetryAfter, SvidFault};

use super::{CLIENT, Line, assert_repeated, statuses};
use crate::world;

const BY_FILE: &str = "token = \"file:{dir}/token\"\n";

fn keys(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.csr_spki_sha256.clone().unwrap()).collect()
}

#[test]
fn key_is_replaced_as_rotate_says() {
    for (rotate, renewals, distinct) in [("false", 3, 1), ("true", 3, 4), ("2", 5, 2)] {
        let mut line = Line::new();
        line.hand_out_token();
        line.start(&format!("{BY_FILE}[identity.key]\nrotate = {rotate}\n"), world::SOON);
        let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, renewals);
        assert!(renewals.iter().all(|entry| entry.status == Some(200)), "{renewals:?}");
        let all: Vec<_> = keys(&line.at(Endpoint::EstEnroll)).into_iter().chain(keys(&renewals)).collect();
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), distinct, "rotate = {rotate}: {all:?}");
        if rotate == "2" {
            assert_eq!((&all[0], &all[1], &all[0]), (&all[1], &all[2], &all[2]), "two renewals keep it");
            assert_ne!(all[2], all[3]);
            assert_eq!(all[3], all[4]);
        }
        line.check_wire();
    }
}

#[test]
fn refused_rekey_is_followed_by_the_existing_key_once() {
    let mut line = Line::new();
    line.world.mis.policy(|p| p.rotation_at_renewal = false);
    line.hand_out_token();
    line.start(&format!("{BY_FILE}[identity.key]\nrotate = true\n"), world::SOON);
    let first = line.wait_for("an SVID", |client| client["svid"].is_object());
    line.wait_for_another_svid(&first);
    let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, 4);
    // The CSR is sent in both forms of base64 (X51), and then with the existing key, from now on.
    assert_eq!(statuses(&renewals[..4]), [Some(400), Some(400), Some(200), Some(200)]);
    let [enrolled] = &keys(&line.at(Endpoint::EstEnroll))[..] else { panic!("one enrollment") };
    let keys = keys(&renewals);
    assert_eq!((&keys[0], &keys[2], &keys[3]), (&keys[1], enrolled, enrolled), "{keys:?}");
    assert_ne!(keys[0], keys[2]);
    line.check_wire();
}

/// The server compares, and notes a criticality that differs.
#[test]
fn renewal_repeats_subject_and_names_byte_for_byte() {
    let mut line = Line::new();
    let subject = Fault::Svid(SvidFault::Subject("Line 7".into()));
    let together = Fault::Together(vec![subject.clone(), Fault::Svid(SvidFault::SanNotCritical)]);
    line.world.mis.fault(Endpoint::EstEnroll, together);
    for fault in [subject.clone(), subject] {
        line.world.mis.fault(Endpoint::EstReenroll, fault);
    }
    line.hand_out_token();
    line.start(BY_FILE, world::SOON);
    let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, 3);
    assert_eq!(statuses(&renewals[..3]), [Some(200); 3], "{renewals:#?}");
    line.check_wire();
}

#[test]
fn lost_response_to_a_renewal_is_repeated() {
    for rotate in [false, true] {
        let mut line = Line::new();
        line.hand_out_token();
        for fault in [
            Fault::LoseAnswer,
            Fault::CutBefore,
            Fault::Held(RetryAfter::Seconds(1)),
            Fault::Held(RetryAfter::Absent),
        ] {
            line.world.mis.fault(Endpoint::EstReenroll, fault);
        }
        line.start(&format!("{BY_FILE}[identity.key]\nrotate = {rotate}\n"), world::SOON);
        let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, 5);
        assert_repeated(&renewals[..5]);
        assert_eq!(renewals[4].status, Some(200));
        line.check_wire();
    }
}

#[test]
fn refused_svid_is_kept_and_a_token_is_the_way_out() {
    let mut line = Line::enrolled("", world::SOON);
    line.world.mis.est().revoke(CLIENT).unwrap();
    let error = line.wait_for_error("403");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("revoked"), "{error:#}");
    let file = line.world.device.path("token").display().to_string();
    let way_out = format!(
        "A fresh enrollment token repairs it at once: miaf-agent enroll --token-file FILE; or put it into {file}, which \
         the agent reads by itself"
    );
    assert!(hint.ends_with(&way_out), "{error:#}");
    let before = line.at(Endpoint::EstReenroll).len();
    line.world.wait_for_requests(Endpoint::EstReenroll, before + 3); // it may be the MIS's mistake
    let held = line.status();
    assert!(held["svid"].is_object(), "{held:#}");
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1, "the used token is not sent again");
    line.restart();
    assert!(line.status()["svid"].is_object());
    let token = line.world.mis.est().token(CLIENT);
    line.enroll_by_command(&token);
    line.wait_for_another_svid(&held);
    let record = line.world.mis.est().record();
    assert!(record.iter().any(|one| one.authorization == Authorization::Token(token.username.clone())));
    let enrollments = line.at(Endpoint::EstEnroll);
    assert_eq!(statuses(&enrollments), [Some(200), Some(200)]);
    // And it is renewed from then on.
    let before = line.at(Endpoint::EstReenroll).iter().filter(|entry| entry.status == Some(200)).count();
    line.world.device.wait_until("a renewal", |_| {
        line.at(Endpoint::EstReenroll).iter().filter(|entry| entry.status == Some(200)).count() > before
    });
    line.check_wire();
}

#[test]
fn renewal_that_wants_a_password_is_named() {
    let line = Line::enrolled("", world::SOON);
    let challenge = [("www-authenticate", "Basic realm=\"estrealm\"")];
    line.world.mis.sticky_fault(Endpoint::EstReenroll, Fault::answer(401, &challenge, ""));
    let error = line.wait_for_error("Renewal by certificate alone is not offered");
    assert!(error["hint"].to_string().contains("without a password"), "{error:#}");
    let held = line.status();
    assert!(held["svid"].is_object());
    assert_eq!(line.at(Endpoint::EstEnroll).len(), 1);
    line.world.mis.clear_faults();
    line.wait_for_another_svid(&held);
    line.check_wire();
}

#[test]
fn expired_svid_in_the_token_form_waits_for_a_token() {
    let mut line = Line::new();
    let short = Fault::Svid(SvidFault::Lifetime(std::time::Duration::from_secs(20)));
    line.world.mis.fault(Endpoint::EstEnroll, short);
    line.world.mis.sticky_fault(Endpoint::EstReenroll, Fault::Status(503));
    line.hand_out_token();
    line.start(BY_FILE, "");
    let first = line.wait_for("an SVID", |client| client["svid"].is_object());
    line.wait_for_error("needs a fresh enrollment token");
    let expired = line.wait_for_state("expired");
    assert!(expired["svid"].is_object(), "it stays readable");
    line.wait_for_error("token-");
    let renewals = line.at(Endpoint::EstReenroll).len();
    line.restart();
    line.world.after(std::time::Duration::from_secs(2));
    assert_eq!(line.at(Endpoint::EstReenroll).len(), renewals, "an SVID that has ended is not renewed");
    line.hand_out_token();
    line.wait_for_another_svid(&first);
    line.wait_for_state("active");
    line.check_wire();
}
