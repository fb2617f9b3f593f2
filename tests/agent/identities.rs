//! Several identities on one device: the device's own by v0, and those of WFM Clients that an
//! operator enrolls by hand or installs (N9).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use development_mis::{Endpoint, MintSpec};
use serde_json::Value;

use crate::support::agent::Device;
use crate::world::{self, World};

pub(crate) const DEVICE: &str = "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n";
pub(crate) const MANUAL: &str = "[[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\n";
const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";

/// The status of one identity.
pub(crate) fn identity(device: &Device, name: &str) -> Value {
    let document = device.status_document();
    let all = document["identities"].as_array().unwrap().clone();
    all.into_iter().find(|identity| identity["name"] == name).unwrap_or(Value::Null)
}

pub(crate) fn wait_for(device: &Device, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    device.wait_until(&format!("{name}: {what}"), |device| holds(&identity(device, name)));
    identity(device, name)
}

pub(crate) fn wait_for_state(device: &Device, name: &str, state: &str) -> Value {
    wait_for(device, name, state, |identity| identity["state"] == state)
}

/// Runs a command, which succeeds, and returns what it prints.
pub(crate) fn run(device: &Device, arguments: &[&str]) -> String {
    let output = device.run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {stderr}\n{}", device.log());
    String::from_utf8(output.stdout).unwrap()
}

/// Has the operator of the MIS certify what the device asks for, and installs it.
pub(crate) fn enroll_by_hand(world: &World, name: &str, id: &str, lifetime: Duration) -> String {
    let csr = run(&world.device, &["csr", "--identity", name, "--spiffe-id", id]);
    let minted = world.mis.mint(&MintSpec { ttl: lifetime, ..MintSpec::csr(csr) }).unwrap();
    assert_eq!(minted.spiffe_id, id);
    let chain = world.device.path("chain.pem");
    fs::write(&chain, &minted.chain_pem).unwrap();
    run(&world.device, &["install", "--identity", name, chain.to_str().unwrap()]);
    minted.chain_pem
}

#[test]
fn identity_enrolled_by_hand_is_adopted_without_a_restart() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let waiting = wait_for_state(&world.device, "wfm-client", "waiting-for-operator");
    assert_eq!(waiting["lastError"]["code"], "operator-needed");
    let hint = waiting["lastError"]["hint"].as_str().unwrap();
    assert!(hint.contains("miaf-agent csr --identity wfm-client"), "{hint}");
    assert_eq!(waiting["enroll"], "manual");
    let pid = world.device.pid();
    let first = run(&world.device, &["csr", "--identity", "wfm-client"]);
    let key = |csr: &str| {
        let file = world.device.path("request.pem");
        fs::write(&file, csr).unwrap();
        world.tpm.run("openssl", &["req", "-in", file.to_str().unwrap(), "-noout", "-pubkey", "-verify"])
    };
    let again = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
    assert_eq!(key(&first), key(&again), "a request that is made again is for the same key");

    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    let active = wait_for_state(&world.device, "wfm-client", "active");
    assert_eq!((active["spiffeId"].as_str(), &active["ready"]), (Some(CLIENT), &true.into()), "{active:#}");
    assert_eq!(active["key"]["protection"], "hardware");
    assert!(active["lastError"].is_null(), "{active:#}");
    assert_eq!(world.device.pid(), pid);
    world.device.wait_until("files", |device| device.path("state/svid/wfm-client/current/svid.pem").exists());
    let authorized = fs::read_to_string(world.device.path("state/svid/wfm-client/authorized.json")).unwrap();
    let authorized: Value = serde_json::from_str(&authorized).unwrap();
    assert_eq!(authorized, serde_json::json!(["spiffe://factory.example/margo/wfm/wfm-1"]));
    // The device's own is what it was, and the default one.
    let (status, svid) = world.device.get("/v1/svid").unwrap();
    assert!(status == 200 && svid.contains("/margo/device/"), "{svid}");
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "nothing was requested for the other");
}

#[test]
fn chain_brought_by_hand_is_judged_by_our_own_rules() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let csr = run(&world.device, &["csr", "--identity", "wfm-client"]);
    let refused = |what: &str, spec: MintSpec| {
        let minted = world.mis.mint(&spec).unwrap();
        let chain = world.device.path("chain.pem");
        fs::write(&chain, &minted.chain_pem).unwrap();
        let chain = chain.to_str().unwrap();
        let output = world.device.run(&["install", "--identity", "wfm-client", chain]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{what}");
        assert!(identity(&world.device, "wfm-client")["svid"].is_null(), "{what}");
        stderr
    };
    let of_csr = |id: &str| MintSpec { spiffe_id: Some(id.into()), ..MintSpec::csr(csr.clone()) };
    let says = refused("another key", MintSpec::new(CLIENT));
    assert!(says.contains("another key") && says.contains("miaf-agent csr --identity wfm-client"), "{says}");
    let says = refused("a WFM's name", of_csr("spiffe://factory.example/margo/wfm/wfm-1"));
    assert!(says.contains("wfm-1"), "{says}");
    // What is right still is, for the same key.
    let minted = world.mis.mint(&of_csr(CLIENT)).unwrap();
    let chain = world.device.path("chain.pem");
    fs::write(&chain, minted.chain_pem).unwrap();
    run(&world.device, &["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    wait_for_state(&world.device, "wfm-client", "active");
}

#[test]
fn expiry_is_announced_from_half_of_the_lifetime_on() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    // The development MIS backdates by half a minute: half of the lifetime is over in ten seconds.
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(50));
    wait_for_state(&world.device, "wfm-client", "active");
    let waiting = wait_for_state(&world.device, "wfm-client", "waiting-for-operator");
    let detail = waiting["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("half of the lifetime"), "{waiting:#}");
    assert_eq!(waiting["ready"], true, "it is served until it ends: {waiting:#}");
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    wait_for_state(&world.device, "wfm-client", "active");
    assert_eq!(identity(&world.device, "device")["state"], "active");
}

#[test]
fn file_of_an_identity_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wfm-client.pem");
    let manual = format!("{MANUAL}svid_file = \"{}\"\n", file.display());
    let world = World::enrolled_with(&format!("{DEVICE}{manual}"));
    for _ in 0..2 {
        let csr = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
        let minted = world.mis.mint(&MintSpec::csr(csr)).unwrap();
        let before = identity(&world.device, "wfm-client")["svid"]["serial"].clone();
        fs::write(&file, &minted.chain_pem).unwrap();
        wait_for(&world.device, "wfm-client", "the SVID in the file", |identity| {
            identity["svid"]["serial"].is_string() && identity["svid"]["serial"] != before
        });
    }
    fs::write(&file, "nonsense").unwrap();
    let refused =
        wait_for(&world.device, "wfm-client", "an error", |identity| !identity["lastError"].is_null());
    assert_eq!(refused["lastError"]["code"], "installed-credential");
    assert_eq!((&refused["state"], &refused["ready"]), (&"active".into(), &true.into()), "{refused:#}");
}

#[test]
fn installed_identity_follows_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
    let installed = format!(
        "[[identity]]\nname = \"gateway\"\nenroll = \"installed\"\nsvid_file = \"{}\"\nkey_file = \"file:{}\"\n",
        chain.display(),
        key.display()
    );
    let world = World::enrolled_with(&format!("{DEVICE}{installed}"));
    let missing = wait_for(&world.device, "gateway", "an error", |identity| !identity["lastError"].is_null());
    assert!(missing["lastError"]["detail"].as_str().unwrap().contains("chain.pem"), "{missing:#}");
    let install = |client: &str| {
        let id = format!("spiffe://factory.example/margo/wfm/wfm-1/client/{client}");
        let minted = world.mis.mint(&MintSpec::new(&id)).unwrap();
        fs::write(&key, minted.key_pem.as_ref().unwrap()).unwrap();
        fs::write(&chain, &minted.chain_pem).unwrap();
        wait_for(&world.device, "gateway", client, |identity| identity["spiffeId"] == id.as_str());
        minted
    };
    install("first");
    let minted = install("second");
    let status = wait_for_state(&world.device, "gateway", "active");
    assert_eq!(status["key"]["protection"], "software-basic", "{status:#}");
    let state =
        fs::read_to_string(world.device.path("state/private/identities/gateway/identity.json")).unwrap();
    let secret = minted.key_pem.unwrap();
    let line = secret.lines().nth(1).unwrap();
    assert!(!state.contains(line), "the key is sealed at rest");

    // It is there without its files, too, after a restart.
    fs::remove_file(&chain).unwrap();
    fs::remove_file(&key).unwrap();
    let mut world = world;
    world.device.kill();
    world.device.start();
    let after = wait_for(&world.device, "gateway", "restored", |identity| identity["svid"].is_object());
    assert_eq!(after["svid"]["serial"], status["svid"]["serial"]);
}

#[test]
fn identities_come_and_go_by_reload_and_disturb_no_other() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    let active = wait_for_state(&world.device, "wfm-client", "active");
    let device = identity(&world.device, "device");

    let other = "[[identity]]\nname = \"other\"\nenroll = \"manual\"\nkey.provider = \"software\"\n";
    world.configure(&format!("{DEVICE}{MANUAL}{other}"));
    world.device.signal("HUP");
    wait_for_state(&world.device, "other", "waiting-for-operator");
    let other_id = "spiffe://factory.example/margo/wfm/wfm-1/client/other";
    enroll_by_hand(&world, "other", other_id, Duration::from_secs(3600));
    let soft = wait_for_state(&world.device, "other", "active");
    assert_eq!(soft["key"]["protection"], "software-basic");

    world.configure(&format!("{DEVICE}{MANUAL}"));
    world.device.signal("HUP");
    wait_for(&world.device, "other", "gone", Value::is_null);
    let retired = world.device.path("state/private/retired-1-other/identity.json");
    assert!(retired.exists(), "{}", world.device.log());
    assert!(!world.device.path("state/svid/other/current").exists(), "it is withdrawn");
    for (name, before) in [("device", &device), ("wfm-client", &active)] {
        let now = wait_for(&world.device, name, "as before", |identity| identity["ready"] == true);
        assert_eq!(now["svid"]["serial"], before["svid"]["serial"], "{name}");
    }
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1);
    assert!(world.seen(Endpoint::Renewal).is_empty());
}

#[test]
fn bootstrap_credential_is_of_no_concern_without_a_device() {
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key.pem");
    let installed = format!(
        "[[identity]]\nname = \"gateway\"\nenroll = \"installed\"\nsvid_file = \"{}\"\nkey_file = \"file:{}\"\n",
        keys.path().join("chain.pem").display(),
        key.display()
    );
    let mut world = World::new();
    let without_bootstrap = |identities: &str| {
        let config = world::config(&world.mis, &world.tpm, identities);
        let begin = config.find("[bootstrap]").unwrap();
        let end = config.find("[key]").unwrap();
        config[..begin].to_owned() + &config[end..]
    };
    let (clients, with_device) =
        (without_bootstrap(&format!("{MANUAL}{installed}")), without_bootstrap(&format!("{DEVICE}{MANUAL}")));
    fs::write(&key, "a secret").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    world.device.configure(&clients);
    let checked = run(&world.device, &["check-config"]);
    assert!(!checked.contains("credential"), "{checked}");
    world.device.start();
    wait_for_state(&world.device, "wfm-client", "waiting-for-operator");
    world
        .device
        .wait_until("the bundle", |device| device.get("/v1/bundle").is_some_and(|(status, _)| status == 200));
    let document = world.device.status_document();
    assert!(document["lastError"].is_null(), "{document:#}");
    let log = world.device.log();
    assert!(!log.contains("factory credential"), "{log}");
    assert_eq!(log.matches("is open to every user of this device").count(), 1, "{log}");

    // It is one as soon as a device needs it, and only as long.
    world.device.configure(&with_device);
    let checked = run(&world.device, &["check-config"]);
    assert!(checked.contains("No factory credential is configured"), "{checked}");
    world.device.signal("HUP");
    world.device.wait_until("the error", |device| {
        device.status_document()["lastError"]["code"] == "factory-credential"
    });
    world.device.configure(&clients);
    world.device.signal("HUP");
    world.device.wait_until("no error", |device| device.status_document()["lastError"].is_null());
}
