//! A bundle that the configuration names itself, as a URL or as a file, without a discovery document
//! (N5).

use std::fs;

use development_mis::{AnchorStep, DocumentFault, Endpoint, Fault};
use serde_json::Value;

use crate::world::{self, World};

/// The configuration with these lines in place of the discovery URL.
fn configure(world: &World, lines: &str) {
    let lines = format!("trust_domain = {:?}\n{lines}", world.mis.trust_domain());
    let discovery = format!("discovery_url = {:?}", world.mis.discovery_url());
    let config = world::config(&world.mis, &world.tpm, "").replace(&discovery, &lines);
    world.device.configure(&config);
}

/// The bundle that the MIS serves now, as a plain SPIFFE bundle.
fn served(world: &World) -> String {
    world.device.get("/v1/bundle").unwrap().1
}

fn anchors(world: &World) -> usize {
    let Some((200, bundle)) = world.device.get("/v1/bundle") else { return 0 };
    let bundle: Value = serde_json::from_str(&bundle).unwrap();
    bundle["keys"].as_array().unwrap().len()
}

/// Waits for a shared error that says this. The identity has one of its own all the time: the MIS
/// issues nothing.
fn wait_for_shared_error(world: &World, says: &str) -> Value {
    let mut error = Value::Null;
    world.device.wait_until(says, |device| {
        error = device.status_document()["lastError"].clone();
        error.to_string().contains(says)
    });
    error
}

#[test]
fn bundle_url_is_used_without_a_discovery_document() {
    let mut world = World::new();
    configure(&world, &format!("bundle_url = \"{}/.well-known/spiffe/bundle.json\"", world.mis.url()));
    world.device.start();
    let status = world.device.wait_for_error("the configuration, which names the trust bundle");
    assert_eq!(
        (&status["state"], &status["lastError"]["code"]),
        (&"blocked".into(), &"unsupported-by-mis".into())
    );
    assert_eq!(status["trustDomain"], world.mis.trust_domain());
    world.device.wait_until("the bundle", |_| anchors(&world) == 1);
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    world.device.wait_until("both anchors", |_| anchors(&world) == 2);
    assert!(world.seen(Endpoint::Discovery).is_empty() && world.seen(Endpoint::Enrollment).is_empty());
}

#[test]
fn identity_outlives_the_change_to_a_bundle_url() {
    let mut world = World::enrolled();
    let svid = world.device.get("/v1/svid").unwrap();
    world.kill();
    configure(&world, &format!("bundle_url = \"{}/.well-known/spiffe/bundle.json\"", world.mis.url()));
    let seen = world.seen(Endpoint::Discovery).len();
    world.device.start();
    let bundles = world.seen(Endpoint::Bundle).len();
    world.wait_for_requests(Endpoint::Bundle, bundles + 2);
    assert_eq!(world.device.get("/v1/svid").unwrap(), svid);
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    assert_eq!(world.seen(Endpoint::Discovery).len(), seen);
}

#[test]
fn bundle_file_is_read_at_each_poll_and_contacts_no_one() {
    let mut source = World::enrolled();
    let one = served(&source);
    source.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    source.device.wait_until("both anchors", |_| anchors(&source) == 2);
    let two = served(&source);
    source.kill();

    let mut world = World::new();
    let file = world.device.path("bundle.json");
    configure(&world, "bundle_file = \"{dir}/bundle.json\"");
    world.device.start();
    let error = wait_for_shared_error(&world, "bundle.json cannot be read");
    assert_eq!(error["code"], "bundle-refused", "{error:#}");
    fs::write(&file, &one).unwrap();
    world.device.wait_until("the bundle", |_| anchors(&world) == 1);
    fs::write(&file, &two).unwrap();
    world.device.wait_until("the changed bundle", |_| anchors(&world) == 2);
    // What cannot be used replaces nothing.
    for (bad, why) in [
        ("{}", "neither"),
        (&one.replace("\"kty\":", "\"kty\":7,\"kty\":")[..], "duplicate field"),
        (&one, "lower than"),
    ] {
        fs::write(&file, bad).unwrap();
        let error = wait_for_shared_error(&world, why);
        assert!(error["detail"].as_str().unwrap().contains("bundle.json"), "{error:#}");
        assert_eq!(anchors(&world), 2, "{why}");
    }
    fs::remove_file(&file).unwrap();
    wait_for_shared_error(&world, "bundle.json cannot be read");
    assert_eq!(anchors(&world), 2);
    world.kill();
    world.device.start();
    world.device.wait_until("the cached bundle", |_| anchors(&world) == 2);
    assert!(world.mis.journal().is_empty(), "{:?}", world.mis.journal());
}

#[test]
fn bundle_file_needs_no_initial_trust() {
    let source = World::enrolled();
    let bundle = served(&source);
    let mut world = World::new();
    fs::write(world.device.path("bundle.json"), bundle).unwrap();
    configure(&world, "bundle_file = \"{dir}/bundle.json\"");
    let file = world.device.path("config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let ca_line = config.lines().find(|line| line.starts_with("ca_file")).unwrap();
    fs::write(&file, config.replace(ca_line, "")).unwrap();
    world.device.start();
    world.device.wait_until("the bundle", |_| anchors(&world) == 1);
    let status = world.device.status_document();
    assert!(status["lastError"].is_null(), "{status:#}");
}

#[test]
fn changed_bundle_file_is_checked_and_followed() {
    let mut source = World::enrolled();
    let one = served(&source);
    source.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    source.device.wait_until("both anchors", |_| anchors(&source) == 2);
    let two = served(&source);
    source.kill();

    let mut world = World::new();
    fs::write(world.device.path("one.json"), one).unwrap();
    fs::write(world.device.path("two.json"), two).unwrap();
    configure_file(&world, "one.json");
    assert_can_be_used(&world);
    world.device.start();
    world.device.wait_until("the bundle", |_| anchors(&world) == 1);
    configure_file(&world, "two.json");
    assert_can_be_used(&world);
    world.device.signal("HUP");
    world.device.wait_until("the bundle of the other file", |_| anchors(&world) == 2);
    // What a reload would refuse.
    let path = world.device.path("config.toml");
    let config = fs::read_to_string(&path).unwrap();
    let domain = config.lines().find(|line| line.starts_with("trust_domain")).unwrap();
    fs::write(&path, config.replace(domain, "trust_domain = \"Factory\"")).unwrap();
    let (code, says) = check_config(&world);
    assert!(code == Some(78) && says.contains("mis.trust_domain"), "{code:?} {says}");
    fs::write(&path, config.replace(domain, "")).unwrap();
    assert_can_be_used(&world);
}

/// Configures a bundle file, and nothing that an MIS could be trusted by: none is contacted.
fn configure_file(world: &World, file: &str) {
    configure(world, &format!("bundle_file = \"{{dir}}/{file}\""));
    let path = world.device.path("config.toml");
    let config = fs::read_to_string(&path).unwrap();
    let lines = config.lines().filter(|line| !line.starts_with("ca_file"));
    fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

fn check_config(world: &World) -> (Option<i32>, String) {
    let output = world.device.run(&["check-config"]);
    let says = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(says).unwrap())
}

fn assert_can_be_used(world: &World) {
    let (code, says) = check_config(world);
    assert!(
        code == Some(0) && says.contains("can be used") && !says.contains("trust anchor"),
        "{code:?} {says}"
    );
}

/// A file that someone delivers is as old as its last change.
#[test]
fn bundle_file_that_is_not_delivered_any_more_is_stale() {
    let source = World::enrolled();
    let bundle = served(&source);
    let mut world = World::new();
    let file = world.device.path("bundle.json");
    fs::write(&file, &bundle).unwrap();
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(&file).unwrap().set_modified(hour_ago).unwrap();
    configure(&world, "bundle_file = \"{dir}/bundle.json\"");
    let config = world.device.path("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[bundle]\n", "[bundle]\nmax_age = \"30m\"\n")).unwrap();
    world.device.start();
    world.device.wait_for_status("a stale bundle", |status| status["bundle"]["stale"] == true);
    fs::write(&file, &bundle).unwrap(); // the same once more
    world.device.wait_for_status("a fresh bundle", |status| status["bundle"]["stale"] == false);
}

#[test]
fn bundle_of_another_form_is_taken_from_a_url() {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(DocumentFault::PlainBundle));
    configure(&world, &format!("bundle_url = \"{}/.well-known/spiffe/bundle.json\"", world.mis.url()));
    world.device.start();
    world.device.wait_until("the bundle", |_| anchors(&world) == 1);
}
