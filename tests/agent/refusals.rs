//! What the MIS may refuse, and what follows (miaf-v0 P, E7, E8, R4, R6).

use std::time::Duration;

use development_mis::{AnchorStep, ClientKind, Endpoint, Fault};

use crate::world::World;

#[test]
fn permanent_refusal_blocks_until_a_restart() {
    for (status, code) in [
        (400, "invalid-svid-request"),
        (400, "invalid-audience"),
        (422, "unsupported-method"),
        (422, "unsupported-svid-profile"),
        (422, "https://example.com/errors/unheard-of"),
        (409, "key-rotation-not-permitted"),
    ] {
        let mut world = World::new();
        world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(status, code, None));
        world.device.start();
        let blocked = world.device.wait_for("blocked");
        let error = &blocked["lastError"];
        assert!(error["type"].as_str().unwrap().ends_with(code), "{error}");
        assert_eq!((error["status"].as_u64(), &error["permanent"]), (Some(status.into()), &true.into()));
        let (_, meanwhile) = world.after(Duration::from_secs(2));
        assert!(meanwhile.iter().all(|e| e.path != "/api/v1/identities"), "{code} was repeated");
        assert!(
            meanwhile.iter().any(|e| e.path == "/.well-known/margo"),
            "discovery is polled while blocked (P2)"
        );

        world.mis.clear_faults();
        world.device.kill();
        world.device.start(); // a restart is a correction
        world.device.wait_for("active");
    }
}

#[test]
fn changed_discovery_document_ends_the_block() {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(422, "unsupported-method", None));
    world.device.start();
    world.device.wait_for("blocked");
    world.mis.clear_faults();
    world.mis.policy(|policy| policy.methods.push("urn:margo:bootstrap:new-one:v1".into()));
    world.device.wait_for("active");
}

#[test]
fn transient_failure_is_retried_with_backoff() {
    for fault in [
        Fault::answer(400, &[("content-type", "text/html")], "<html>Bad Request</html>"), // a proxy's (P5)
        Fault::answer(422, &[], ""),
        Fault::problem(409, "something-of-the-future", None),
        Fault::problem(429, "too-many-requests", Some("0")),
        Fault::problem(503, "about:blank", None),
        Fault::answer(500, &[("content-type", "text/html")], "x".repeat(2 * 1024 * 1024)),
        Fault::answer(502, &[], ""),
        Fault::answer(200, &[("content-type", "application/json")], "{\"svid\":"),
        Fault::answer(200, &[("content-type", "application/json")], " ".repeat(3 * 1024 * 1024)),
        Fault::redirect(307, "https://127.0.0.1:1/api/v1/identities"),
        Fault::CutBefore,
    ] {
        let mut world = World::new();
        let named = format!("{fault:.60?}");
        for _ in 0..3 {
            world.mis.fault(Endpoint::Enrollment, fault.clone());
        }
        world.device.start();
        world.device.wait_for("active");
        let tries = world.seen(Endpoint::Enrollment);
        assert_eq!(tries.len(), 4, "{named}");
        assert!(
            tries.windows(2).all(|two| two[1].at - two[0].at >= Duration::from_millis(100)),
            "{named}: too soon"
        );
        assert!(
            tries.windows(2).all(|two| two[0].csr_spki_sha256 == two[1].csr_spki_sha256),
            "{named}: another key"
        );
    }
}

#[test]
fn slow_refusal_is_shown_and_retried_at_the_cap() {
    for (status, code) in
        [(401, "invalid-bootstrap-proof"), (401, "about:blank"), (403, "about:blank"), (404, "about:blank")]
    {
        let mut world = World::new();
        for _ in 0..2 {
            world.mis.fault(Endpoint::Enrollment, Fault::problem(status, code, None));
        }
        world.device.start();
        world.device.wait_for_error(&format!("\"status\":{status}"));
        world.device.wait_for("active");
        let tries = world.seen(Endpoint::Enrollment);
        // The cap is 500 ms here; a slow retry waits at least half of it.
        assert!(
            tries.windows(2).all(|two| two[1].at - two[0].at >= Duration::from_millis(250)),
            "{status} {code}"
        );
        if status == 404 {
            assert!(world.seen(Endpoint::Discovery).len() >= 2, "discovery was read again");
        }
    }
}

#[test]
fn retry_after_is_honored_to_the_second_across_a_restart() {
    let mut world = World::new();
    world.mis.fault(Endpoint::Enrollment, Fault::problem(429, "too-many-requests", Some("10")));
    world.device.start();
    world.device.wait_for_error("too-many-requests");
    world.device.kill();
    world.device.start();
    world.device.wait_for("active");
    let tries = world.seen(Endpoint::Enrollment);
    assert_eq!(tries.len(), 2);
    assert!(tries[1].at - tries[0].at >= Duration::from_secs(10), "{:?}", tries[1].at - tries[0].at);
}

#[test]
fn refused_rotation_leads_to_the_current_key_at_once() {
    let world = World::renewing();
    world.mis.policy(|policy| policy.rotation_at_renewal = false);
    let before = world.device.status();
    let refused_already = world.seen(Endpoint::Renewal).len();
    world.device.wait_for_another_svid(&before["svid"]["serial"]);
    let tries = world.wait_for_requests(Endpoint::Renewal, refused_already + 2).split_off(refused_already);
    let refused = tries.iter().position(|entry| entry.problem == Some("key-rotation-not-permitted")).unwrap();
    let (new, existing) = (&tries[refused], &tries[refused + 1]);
    assert_ne!(existing.csr_spki_sha256, new.csr_spki_sha256);
    assert_eq!(existing.status, Some(200));
    assert!(existing.at - new.at < Duration::from_secs(30));
    // The next renewal is requested with the current key first.
    let next = &world.wait_for_requests(Endpoint::Renewal, refused_already + refused + 3)
        [refused_already + refused + 2];
    assert_eq!((next.status, &next.csr_spki_sha256), (Some(200), &existing.csr_spki_sha256));
}

#[test]
fn renewal_401_leads_to_an_enrollment_with_the_same_name() {
    let world = World::renewing();
    let before = world.device.status();
    world.mis.invalidate_svids().unwrap();
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    let enrollments = world.seen(Endpoint::Enrollment);
    assert_eq!((enrollments[1].client, enrollments[1].status), (ClientKind::Factory, Some(200)));
    assert_eq!(world.seen(Endpoint::Renewal)[0].status, Some(401));
}

#[test]
fn problem_details_are_logged_completely() {
    let mut world = World::new();
    let problem = "{\"type\":\"https://example.com/errors/odd\",\"title\":\"Odd\",\"status\":503,\
                   \"detail\":\"the moon is full\",\"instance\":\"urn:audit:4711\"}";
    world.mis.fault(
        Endpoint::Enrollment,
        Fault::answer(503, &[("content-type", "application/problem+json")], problem),
    );
    world.device.start();
    world.device.wait_for("active");
    let log = world.device.log();
    let line = log.lines().find(|line| line.contains("urn:audit:4711")).expect("the instance is in the log");
    for part in ["Odd", "https://example.com/errors/odd", "503", "the moon is full"] {
        assert!(line.contains(part), "{part} is missing in: {line}");
    }
}

#[test]
fn handshake_refusal_at_renewal_counts_as_a_401() {
    let world = World::renewing();
    let before = world.device.status();
    world.mis.policy(|policy| policy.refuse_in_handshake = true);
    world.mis.rotate_anchors(AnchorStep::Switch).unwrap();
    world.mis.rotate_anchors(AnchorStep::DropOld).unwrap(); // the CA of the SVID held is no longer known
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    assert!(!world.mis.refused_handshakes().is_empty());
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 2);
}

#[test]
fn retry_after_that_outlasts_the_svid_is_reported_ahead() {
    let world = World::renewing();
    let day = Fault::problem(429, "too-many-requests", Some("86400"));
    world.mis.sticky_fault(Endpoint::Renewal, day);
    let status = world.device.wait_for_error("too-many-requests");
    assert_eq!(status["svid"]["endsWhileWaiting"], true, "{status:#}");
    let waits_until = status["lastError"]["waitsUntil"].as_str().expect("when the wait ends");
    assert!(waits_until > status["svid"]["notAfter"].as_str().unwrap(), "{status:#}");
    assert!(status["lastError"]["retryAt"].as_str().unwrap() >= waits_until, "{status:#}");
    let metrics = world.device.get("/metrics").unwrap().1;
    assert!(metrics.contains("\nmiaf_agent_svid_ends_while_waiting{identity=\"device\"} 1\n"), "{metrics}");
    let log = world.device.log();
    assert_eq!(log.matches("the Retry-After delay of the MIS ends at").count(), 1, "{log}");
    let words = String::from_utf8(world.device.run(&["status"]).stdout).unwrap();
    let line = |name| words.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(line("Hint ").contains("ask the operator of the MIS to raise its limit"), "{words}");
    assert!(line("Next step ").contains("after the identity"), "{words}");
}

#[test]
fn hint_says_who_has_to_do_what() {
    for (fault, act) in [
        (Fault::problem(401, "invalid-bootstrap-proof", None), "SHA-256 of the factory certificate"),
        (Fault::problem(403, "about:blank", None), "Ask the operator of the MIS whether"),
    ] {
        let mut world = World::new();
        world.mis.sticky_fault(Endpoint::Enrollment, fault);
        world.device.start();
        world.device.wait_for_status(act, |status| status["lastError"]["hint"].to_string().contains(act));
        let words = String::from_utf8(world.device.run(&["status"]).stdout).unwrap();
        let line = |name| words.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        assert!(line("Hint ").contains(act), "{words}");
        assert!(line("Next step ").contains("follow the hint; the agent tries again "), "{words}");
    }
}
