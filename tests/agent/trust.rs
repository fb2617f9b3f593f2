//! Initial trust: the MIS is authenticated by what was provisioned, or not spoken to (miaf-v0 T).

use std::time::Duration;

use development_mis::ServerFault;

use crate::world::{self, World};

#[test]
fn without_initial_trust_no_one_is_contacted() {
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    let ca_line = config.lines().find(|line| line.starts_with("ca_file")).unwrap();
    world.device.configure(&config.replace(ca_line, ""));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["detail"].as_str().unwrap().contains("no initial trust is configured"));
    let (_, contacts) = world.after(Duration::from_secs(1));
    assert!(
        contacts.is_empty() && world.mis.journal().is_empty() && world.mis.refused_handshakes().is_empty()
    );
}

#[test]
fn a_form_of_trust_that_is_not_there_yet_is_refused_and_not_ignored() {
    for line in ["spki_sha256 = [\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"]", "system_roots = true"] {
        let mut world = World::new();
        let config = world::config(&world.mis, &world.tpm, "");
        world.device.configure(&config.replace("[mis.trust]", &format!("[mis.trust]\n{line}")));
        world.device.start();
        world.device.wait_for("blocked");
        assert!(world.mis.journal().is_empty());
    }
}

#[test]
fn a_server_that_the_anchors_do_not_vouch_for_gets_nothing() {
    let other = World::new();
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    let (ours, theirs) = (world.mis.ca_file(), other.mis.ca_file());
    world.device.configure(&config.replace(ours.to_str().unwrap(), theirs.to_str().unwrap()));
    world.device.start();
    world.device.wait_for_error("unknown issuer");
    assert!(world.mis.journal().is_empty());

    // The file is corrected: it counts at the next attempt, without a restart.
    std::fs::copy(&ours, &theirs).unwrap();
    world.device.wait_for("active");
}

#[test]
fn a_server_certificate_that_is_not_good_now_is_refused_with_its_reason() {
    for (fault, why) in [
        (ServerFault::Expired, "has expired"),
        (ServerFault::NotYetValid, "is not valid yet"),
        (ServerFault::SelfSigned, "unknown issuer"),
    ] {
        let mut world = World::with(|settings| settings.server_fault = Some(fault));
        world.device.start();
        world.device.wait_for_error(why);
        assert!(world.mis.journal().is_empty(), "{why}");
    }
}

#[test]
fn the_name_in_the_url_must_be_in_the_certificate() {
    let mut world = World::with(|settings| settings.hosts = vec!["localhost".into()]);
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("https://localhost:", "https://127.0.0.1:"));
    world.device.start();
    world.device.wait_for_error("is not for the name in the URL");
    assert!(world.mis.journal().is_empty());
}

#[test]
fn an_ip_address_is_matched_by_its_own_kind_of_name() {
    let mut world = World::with(|settings| settings.hosts = vec!["127.0.0.1".into()]);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.mis.url().contains("127.0.0.1"));
}
