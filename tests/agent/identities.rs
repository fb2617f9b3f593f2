//! Several identities on one device: the device's own by v0, and those of WFM Clients that an
//! operator enrolls by hand or installs (N9).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use development_mis::{Endpoint, Fault, MintSpec, Mis, Settings, SvidFault};
use miaf_client::Client;
use miaf_client::api::IdentityName;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::sockets::is_signed_by;
use crate::support::agent::Device;
use crate::support::swtpm::Swtpm;
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
fn status_tells_of_a_request_until_its_chain_is_installed() {
    let mut world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let before = wait_for_state(&world.device, "wfm-client", "waiting-for-operator")["lastError"].clone();
    assert!(!before.to_string().contains("A request was made"), "{before:#}");
    run(&world.device, &["csr", "--identity", "wfm-client"]);
    let is_told = |is: &Value| {
        let (detail, hint) = (&is["lastError"]["detail"], &is["lastError"]["hint"]);
        detail.to_string().contains("A request was made at 20")
            && hint.to_string().contains(": miaf-agent install --identity wfm-client chain.pem; ")
    };
    wait_for(&world.device, "wfm-client", "the request", is_told);
    let status = String::from_utf8(world.device.run(&["status", "--identity", "wfm-client"]).stdout).unwrap();
    assert!(
        status.contains("\n                miaf-agent install --identity wfm-client chain.pem\n"),
        "{status}"
    );
    world.kill();
    world.device.start();
    wait_for(&world.device, "wfm-client", "the request from before", is_told);
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(50));
    wait_for_state(&world.device, "wfm-client", "active");
    // What is due next has not been requested yet.
    let due = wait_for_state(&world.device, "wfm-client", "waiting-for-operator")["lastError"].clone();
    assert!(
        due.to_string().contains("half of the lifetime") && !due.to_string().contains("A request"),
        "{due:#}"
    );
}

#[test]
fn requested_key_of_another_tpm_is_replaced() {
    let both = format!("{DEVICE}{MANUAL}");
    let mut world = World::enrolled_with(&both);
    let first = run(&world.device, &["csr", "--identity", "wfm-client"]);
    world.device.kill();
    let other = Swtpm::start();
    world.device.configure(&world::config(&world.mis, &other, &both));
    world.device.start();
    let second = run(&world.device, &["csr", "--identity", "wfm-client"]);
    assert_ne!(first, second);
    let lost = "state/private/identities/wfm-client/pending-key.pem.unusable-1";
    assert!(world.device.path(lost).exists(), "{}", world.device.log());
    let minted =
        world.mis.mint(&MintSpec { spiffe_id: Some(CLIENT.into()), ..MintSpec::csr(second) }).unwrap();
    let chain = world.device.path("chain.pem");
    fs::write(&chain, minted.chain_pem).unwrap();
    run(&world.device, &["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    wait_for_state(&world.device, "wfm-client", "active");
}

#[test]
fn lost_key_of_an_operators_identity_is_replaced_by_hand() {
    let both = format!("{DEVICE}{MANUAL}");
    let mut world = World::enrolled_with(&both);
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    wait_for_state(&world.device, "wfm-client", "active");
    world.device.kill();
    let other = Swtpm::start();
    world.device.configure(&world::config(&world.mis, &other, &both));
    world.device.start();
    let lost = wait_for(&world.device, "wfm-client", "lost", |is| is["lastError"]["code"] == "key-lost");
    let hint = lost["lastError"]["hint"].as_str().unwrap();
    assert!(hint.contains("miaf-agent csr --identity wfm-client"), "{lost:#}");
    assert!(!lost["lastError"]["detail"].as_str().unwrap().contains("by itself"), "{lost:#}");
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    wait_for_state(&world.device, "wfm-client", "active");
}

/// What the configuration does not allow any more is not found by programs either, and is not lost.
#[test]
fn svid_that_the_configuration_rules_out_is_withdrawn() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    let serial = wait_for_state(&world.device, "wfm-client", "active")["svid"]["serial"].clone();
    let current = world.device.path("state/svid/wfm-client/current");
    let authorized = world.device.path("state/svid/wfm-client/authorized.json");
    world.device.wait_until("files", |_| current.exists() && authorized.exists());
    let other = CLIENT.replace("line-7", "line-8");
    world.configure(&format!("{DEVICE}{MANUAL}spiffe_id = \"{other}\"\n"));
    world.device.signal("HUP");
    wait_for_state(&world.device, "wfm-client", "waiting-for-operator");
    assert!(!current.exists() && !authorized.exists());
    world.configure(&format!("{DEVICE}{MANUAL}"));
    world.device.signal("HUP");
    let back = wait_for_state(&world.device, "wfm-client", "active");
    assert_eq!(back["svid"]["serial"], serial);
    world.device.wait_until("files", |_| current.exists() && authorized.exists());
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
    assert!(
        says.contains("wfm-1") && says.contains("\n  Hint: Have a certificate with the SPIFFE ID of a"),
        "{says}"
    );
    // A name of another trust domain is not even requested.
    let foreign = CLIENT.replace("factory", "other");
    let output = world.device.run(&["csr", "--identity", "wfm-client", "--spiffe-id", &foreign]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && stderr.contains("trust domain of this device, factory.example"),
        "{stderr}"
    );
    // What is right still is, for the same key.
    let minted = world.mis.mint(&of_csr(CLIENT)).unwrap();
    let chain = world.device.path("chain.pem");
    fs::write(&chain, minted.chain_pem).unwrap();
    run(&world.device, &["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    wait_for_state(&world.device, "wfm-client", "active");
}

#[test]
fn request_is_for_the_configuration_under_which_it_is_made() {
    let mut world = World::new();
    world.configure(&format!("{DEVICE}{MANUAL}"));
    world.mis.fault(Endpoint::Enrollment, Fault::Stall(Duration::from_secs(10)));
    world.device.start();
    world.device.wait_until("an action is in flight", |_| world.mis.waiting_faults() == 0);
    let installed =
        MANUAL.replace("manual", "installed") + "svid_file = \"none.pem\"\nkey_file = \"none.key\"\n";
    world.configure(&format!("{DEVICE}{installed}"));
    world.device.signal("HUP");
    // It waits for the action, and for the configuration that replaces the one in use after it.
    let says = refused(&world.device, &["csr", "--identity", "wfm-client"]);
    assert!(says.contains("enroll = \"installed\""), "{says}");
    let key = world.device.path("state/private/identities/wfm-client/pending-key.pem");
    assert!(!key.exists(), "no key was created for an identity that has another way");
}

#[test]
fn chain_that_cannot_be_stored_is_not_accepted() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let csr = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
    let chain = world.device.path("chain.pem");
    fs::write(&chain, world.mis.mint(&MintSpec::csr(csr)).unwrap().chain_pem).unwrap();
    // A full disk would be as bad, and root may write everywhere.
    let in_the_way = world.device.path("state/private/identities/wfm-client/issued.json/x");
    fs::create_dir_all(&in_the_way).unwrap();
    let install = ["install", "--identity", "wfm-client", chain.to_str().unwrap()];
    let says = refused(&world.device, &install);
    assert!(says.contains("issued.json"), "{says}");
    assert!(identity(&world.device, "wfm-client")["svid"].is_null());
    fs::remove_dir_all(in_the_way.parent().unwrap()).unwrap();
    run(&world.device, &install);
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
fn key_of_a_refused_pair_is_sealed_once() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
    let installed = installed("gateway", &chain, &key);
    let world = World::enrolled_with(&format!("{DEVICE}{installed}"));
    let minted = || world.mis.mint(&MintSpec::new(CLIENT)).unwrap();
    let pair = minted();
    fs::write(&key, pair.key_pem.as_ref().unwrap()).unwrap();
    let sealed = || world.device.log().matches("key installed and sealed").count();
    for (written, says) in
        [(minted().chain_pem, "another key"), ("nonsense".into(), "PEM"), (minted().chain_pem, "another key")]
    {
        fs::write(&chain, written).unwrap();
        run(&world.device, &["retry"]);
        wait_for(&world.device, "gateway", says, |is| is["lastError"]["detail"].to_string().contains(says));
    }
    assert_eq!(sealed(), 1, "{}", world.device.log());
    fs::write(&chain, pair.chain_pem).unwrap();
    run(&world.device, &["retry"]);
    wait_for_state(&world.device, "gateway", "active");
    assert_eq!(sealed(), 1, "what was sealed is used");
}

/// Its request may be at a CA, for months.
#[test]
fn requested_key_is_kept_while_another_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
    let manual = format!("{DEVICE}{MANUAL}");
    let world = World::enrolled_with(&manual);
    let csr = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
    let requested = world.mis.mint(&MintSpec::csr(csr)).unwrap();

    let pair = world.mis.mint(&MintSpec::new(CLIENT)).unwrap();
    fs::write(&key, pair.key_pem.as_ref().unwrap()).unwrap();
    fs::write(&chain, pair.chain_pem).unwrap();
    world.configure(&format!("{DEVICE}{}", installed("wfm-client", &chain, &key)));
    world.device.signal("HUP");
    let soft = wait_for_state(&world.device, "wfm-client", "active");
    assert_eq!(soft["key"]["protection"], "software-basic");

    world.configure(&manual);
    world.device.signal("HUP");
    wait_for(&world.device, "wfm-client", "manual again", |is| is["enroll"] == "manual");
    // Another request is out by now, whose key is not lost either.
    let csr = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
    let later = world.mis.mint(&MintSpec::csr(csr)).unwrap();
    let file = world.device.path("chain.pem");
    for minted in [requested, later] {
        fs::write(&file, &minted.chain_pem).unwrap();
        run(&world.device, &["install", "--identity", "wfm-client", file.to_str().unwrap()]);
        let now = wait_for_state(&world.device, "wfm-client", "active");
        assert_eq!(now["key"]["protection"], "hardware");
        let (_, svid) = world.device.get("/v1/identities/wfm-client/svid").unwrap();
        let svid: Value = serde_json::from_str(&svid).unwrap();
        let leaf = svid["certificateChainPem"][0].as_str().unwrap().to_owned();
        assert!(minted.chain_pem.starts_with(&leaf), "{svid:#}");
    }
}

/// The entry of an installed identity.
fn installed(name: &str, chain: &Path, key: &Path) -> String {
    format!(
        "[[identity]]\nname = \"{name}\"\nenroll = \"installed\"\nsvid_file = \"{}\"\nkey_file = \"file:{}\"\n",
        chain.display(),
        key.display()
    )
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

/// Where its files are, only the configuration before knows.
#[test]
fn files_of_a_removed_identity_are_withdrawn_where_they_are() {
    let mut world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
    let published = world.device.path("state/svid/wfm-client");
    world.device.wait_until("files", |_| published.join("current/svid.pem").exists());
    // Root may write everywhere, but unlinks no directory.
    let current = published.join("current");
    fs::remove_file(&current).unwrap();
    fs::create_dir(&current).unwrap();
    world.configure(&format!("[files]\ndir = \"{{dir}}/elsewhere\"\n{DEVICE}"));
    world.device.signal("HUP");
    let generations = || fs::read_dir(&published).unwrap().filter_map(Result::ok);
    let shown = |device: &Device| device.status_document()["lastError"].clone();
    world.device.wait_until("the error", |device| shown(device)["code"] == "not-published");
    let error = shown(&world.device);
    assert!(error["title"].as_str().unwrap().contains("removed identity \"wfm-client\""), "{error:#}");
    assert!(error["hint"].is_string() && error["retryAt"].is_string(), "{error:#}");
    // The directory that is configured now has nothing of it, and is not what is meant.
    assert!(error["detail"].as_str().unwrap().contains("state/svid/wfm-client"), "{error:#}");
    let status = String::from_utf8(world.device.run(&["status"]).stdout).unwrap();
    assert!(status.contains("removed identity") && status.contains("Hint  "), "{status}");
    // It is not forgotten by another reload.
    world.configure(&format!(
        "[files]\ndir = \"{{dir}}/elsewhere\"\nsoftware_key_dir = \"/dev/shm/x\"\n{DEVICE}"
    ));
    world.device.signal("HUP");
    world.device.wait_until("reloaded", |device| device.log().matches("has been read anew").count() == 2);
    world.device.wait_until("the error", |device| shown(device)["code"] == "not-published");
    assert!(!world.device.path("state/private/retired-1-wfm-client").exists());

    fs::remove_dir(&current).unwrap();
    world.device.wait_until("withdrawn", |device| shown(device).is_null());
    assert!(generations().all(|entry| fs::read_dir(entry.path()).unwrap().next().is_none()));
    assert!(world.device.path("state/private/retired-1-wfm-client/identity.json").exists());
    assert_eq!(identity(&world.device, "device")["ready"], true);
    world.kill();
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

const TWO_LINES: &str = "[[identity]]\nname = \"line-1\"\nenroll = \"manual\"\n\
                         [[identity]]\nname = \"line-2\"\nenroll = \"manual\"\nkey.provider = \"software\"\n";

/// The device, and two WFM Clients that were enrolled by hand.
fn with_two_lines() -> World {
    let world = World::enrolled_with(&format!("{DEVICE}{TWO_LINES}"));
    for line in ["line-1", "line-2"] {
        let id = format!("spiffe://factory.example/margo/wfm/wfm-1/client/{line}");
        enroll_by_hand(&world, line, &id, Duration::from_secs(3600));
        wait_for_state(&world.device, line, "active");
    }
    world
}

/// Runs a command, which fails, and returns what it says.
fn refused(device: &Device, arguments: &[&str]) -> String {
    let output = device.run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn admin_commands_of_one_identity_leave_the_others() {
    let world = with_two_lines();
    let device = &world.device;
    let serials =
        || ["device", "line-1", "line-2"].map(|name| identity(device, name)["svid"]["serial"].clone());
    let before = serials();
    for arguments in [&["renew", "--identity", "line-1"][..], &["retry", "--new-key", "--identity", "line-1"]]
    {
        let says = refused(device, arguments);
        let hint = "\n  Hint: Have the request signed that this prints: miaf-agent csr --identity line-1; ";
        assert!(says.contains("an operator brings them") && says.contains(hint), "{says}");
    }
    for arguments in [&["csr", "--identity", "device"][..], &["csr"]] {
        let says = refused(device, arguments);
        assert!(says.contains("has enroll = \"factory-cert\""), "{says}");
    }
    run(device, &["renew", "--identity", "device"]);
    wait_for(device, "device", "another SVID", |is| is["svid"]["serial"] != before[0]);
    let renewed = serials();
    assert_eq!(renewed[1..], before[1..], "only the device is renewed");

    let says = run(device, &["retire", "--yes", "--identity", "line-1"]);
    assert!(says.contains("comes when an operator brings it"), "{says}");
    wait_for_state(device, "line-1", "waiting-for-operator");
    let after = serials();
    assert!(after[1].is_null() && after[0] == renewed[0] && after[2] == renewed[2], "{after:?}");
    for (path, status) in [
        ("/readyz", 200),
        ("/v1/identities/device/readyz", 200),
        ("/v1/identities/line-1/readyz", 503),
        ("/v1/identities/line-2/readyz", 200),
        ("/v1/identities/line-1/svid", 503),
        ("/v1/identities/line-3/svid", 404),
    ] {
        assert_eq!(device.get(path).unwrap().0, status, "{path}");
    }
    let log = device.log();
    let records: Vec<_> = log.lines().filter(|line| line.contains("audit=\"retire\"")).collect();
    assert!(
        !records.is_empty() && records.iter().all(|line| line.contains("identity=\"line-1\"")),
        "{records:?}"
    );
    for name in ["line-1", "line-2"] {
        let record =
            |line: &str| line.contains("audit=\"install\"") && line.contains(&format!("identity=\"{name}\""));
        assert!(log.lines().any(record), "{name}: {log}");
    }
    // For a person, and for one identity.
    let text = run(device, &["status"]);
    for part in [
        "Identity      device (the default",
        "Identity      line-1\nState         waiting-for-operator - ",
        "Enrollment    manual - an operator ",
        "\n                miaf-agent csr --identity line-1\n",
        "\n                miaf-agent install --identity line-1 chain.pem\n",
        "Renewal       by hand from ",
    ] {
        assert!(text.contains(part), "{part:?} is missing from:\n{text}");
    }
    let text = run(device, &["status", "--identity", "line-2"]);
    assert!(text.contains("line-2") && !text.contains("line-1") && !text.contains("factory-cert"), "{text}");
    let (_, metrics) = device.get("/metrics").unwrap();
    for line in [
        "miaf_agent_operator_needed{identity=\"line-1\"} 1\n",
        "miaf_agent_operator_needed{identity=\"line-2\"} 0\n",
        "miaf_agent_identity_info{identity=\"device\",enroll=\"factory-cert\"} 1\n",
        "miaf_agent_identity_info{identity=\"line-2\",enroll=\"manual\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line:?} is missing from:\n{metrics}");
    }
    assert!(!metrics.contains("operator_needed{identity=\"device\""), "{metrics}");
}

#[test]
fn signatures_are_by_the_key_of_the_named_identity() {
    let world = with_two_lines();
    let client = |name: &str| {
        let socket = world.device.path("run/sign.sock");
        Client::new(socket).with_identity(IdentityName::parse(name).unwrap())
    };
    let message = b"a message";
    let hash: [u8; 32] = digest(&SHA256, message).as_ref().try_into().unwrap();
    let is_by = |chain: &[String], name: &str, serial: Option<&str>| {
        let signed = client(name).sign(&hash, serial).unwrap();
        is_signed_by(&json!(chain), message, &BASE64.encode(signed.der).into())
    };
    let names = ["device", "line-1", "line-2"];
    let svids = names.map(|name| client(name).svid().unwrap());
    for svid in &svids {
        for name in names {
            let same = svid.identity.as_str() == name;
            assert_eq!(is_by(&svid.certificate_chain_pem, name, None), same, "{name}");
        }
    }
    // The serial number of one identity is none of another.
    client("line-1").sign(&hash, Some(&svids[2].serial)).unwrap_err();
    enroll_by_hand(&world, "line-1", &svids[1].spiffe_id, Duration::from_secs(3600));
    let next = client("line-1").svid().unwrap();
    assert_ne!(next.serial, svids[1].serial, "install ends when the SVID is adopted");
    let previous = &svids[1];
    assert!(
        is_by(&previous.certificate_chain_pem, "line-1", Some(&previous.serial)),
        "the previous key signs"
    );
    assert!(is_by(&next.certificate_chain_pem, "line-1", None));
    let event = client("device").state().unwrap();
    let shown: Vec<_> =
        event.svids.iter().map(|svid| (svid.identity.as_str(), svid.serial.as_str())).collect();
    let expected = [("device", &svids[0].serial), ("line-1", &next.serial), ("line-2", &svids[2].serial)];
    assert_eq!(shown, expected.map(|(name, serial)| (name, serial.as_str())), "an event has all of them");
}

#[test]
fn install_tells_what_became_of_the_chain() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let directory = tempfile::tempdir().unwrap();
    let other =
        Mis::start(Settings { directory: directory.path().join("mis"), ..Settings::default() }).unwrap();
    let request = world.device.path("request.pem");
    let csr = ["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT, "--out", request.to_str().unwrap()];
    let says = run(&world.device, &csr);
    assert!(says.contains("\n  miaf-agent install --identity wfm-client chain.pem\n"), "{says}");
    let request = fs::read_to_string(&request).unwrap();
    let chain = world.device.path("chain.pem");
    let install = ["install", "--identity", "wfm-client", "--json", chain.to_str().unwrap()];
    // Whether its issuer is trusted is only known when the bundle has been fetched once more.
    for _ in 0..2 {
        fs::write(&chain, other.mint(&MintSpec::csr(request.clone())).unwrap().chain_pem).unwrap();
        let says = refused(&world.device, &install);
        assert!(says.contains("the chain is not adopted. ") && says.contains("\n  Hint: "), "{says}");
    }
    let error = identity(&world.device, "wfm-client")["lastError"].clone();
    assert_eq!(error["code"], "svid-refused", "{error:#}");
    assert!(!error.to_string().contains("the MIS issued"), "{error:#}");
    fs::write(&chain, world.mis.mint(&MintSpec::csr(request)).unwrap().chain_pem).unwrap();
    for _ in 0..2 {
        let says: Value = serde_json::from_str(&run(&world.device, &install)).unwrap();
        assert_eq!((&says["accepted"], &says["outcome"]), (&true.into(), &"adopted".into()), "{says}");
        assert_eq!(identity(&world.device, "wfm-client")["state"], "active");
    }
    let says = run(&world.device, &["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    assert_eq!(says, "Nothing changes: this SVID is installed already.\nIt is in use now.\n");
    let renewed = run(&world.device, &csr[..3]);
    fs::write(
        &chain,
        world
            .mis
            .mint(&MintSpec { spiffe_id: Some(CLIENT.into()), ..MintSpec::csr(renewed) })
            .unwrap()
            .chain_pem,
    )
    .unwrap();
    let says = run(&world.device, &["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    assert!(says.starts_with(&format!("The SVID is valid: {CLIENT}, ")), "{says}");
    assert!(says.ends_with(".\nIt is in use now.\n") && says.matches("now").count() == 1, "{says}");
    let says = refused(&world.device, &["install", "--identity", "wfm-client", "no such file"]);
    assert!(
        says.contains("no such file cannot be read: ") && says.contains("\n  Hint: Name the file"),
        "{says}"
    );
}

/// What an operator has brought is not lost because the trust bundle came later than it.
#[test]
fn chain_brought_by_hand_waits_for_a_bundle_with_its_issuer() {
    let directory = tempfile::tempdir().unwrap();
    let mis = |name: &str| {
        Mis::start(Settings { directory: directory.path().join(name), ..Settings::default() }).unwrap()
    };
    let (first, second) = (mis("first"), mis("second"));
    let bundle = |mis: &Mis| -> Value {
        serde_json::from_slice(&fs::read(mis.bundle_file().unwrap()).unwrap()).unwrap()
    };
    let mut device = Device::new(&format!(
        "state_dir = \"{{dir}}/state\"\n[key]\nprovider = \"software\"\n[socket]\npath = \"{{dir}}/run/agent.sock\"\n\
         [bundle]\nrefresh = \"1s\"\n[mis]\ntrust_domain = \"factory.example\"\nbundle_file = \"{{dir}}/bundle.json\"\n{MANUAL}"
    ));
    let of_first = bundle(&first);
    fs::write(device.path("bundle.json"), of_first.to_string()).unwrap();
    device.start();
    wait_for_state(&device, "wfm-client", "waiting-for-operator");
    let request = device.path("request.pem");
    let says = run(&device, &["csr", "--identity", "wfm-client", "--out", request.to_str().unwrap()]);
    assert!(says.contains("The request names no SPIFFE ID"), "{says}");
    let csr = fs::read_to_string(&request).unwrap();
    let chain = device.path("chain.pem");
    let spec = MintSpec { spiffe_id: Some(CLIENT.into()), ..MintSpec::csr(csr) };
    fs::write(&chain, second.mint(&spec).unwrap().chain_pem).unwrap();
    let says = refused(&device, &["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    assert!(says.contains("It is stored, and adopted once") && says.contains("miaf-agent bundle"), "{says}");
    // A restart does not change that.
    device.kill();
    device.start();
    wait_for(&device, "wfm-client", "the error", |is| is["lastError"]["code"] == "svid-refused");
    let mut both = of_first;
    let more = bundle(&second)["keys"].as_array().unwrap().clone();
    both["keys"].as_array_mut().unwrap().extend(more);
    both["spiffe_sequence"] = (both["spiffe_sequence"].as_u64().unwrap() + 1).into();
    fs::write(device.path("bundle.new"), both.to_string()).unwrap();
    fs::rename(device.path("bundle.new"), device.path("bundle.json")).unwrap();
    let active = wait_for_state(&device, "wfm-client", "active");
    assert!(active["lastError"].is_null() && active["spiffeId"] == CLIENT, "{active:#}");
}

/// An MIS of the same trust domain, for which no anchor vouches.
fn foreign_mis() -> (tempfile::TempDir, Mis) {
    let directory = tempfile::tempdir().unwrap();
    let mis = Mis::start(Settings { directory: directory.path().join("mis"), ..Settings::default() });
    (directory, mis.unwrap())
}

#[test]
fn file_that_is_replaced_in_a_loop_is_read_now_and_then() {
    let directory = tempfile::tempdir().unwrap();
    let (file, new) = (directory.path().join("chain.pem"), directory.path().join("new"));
    let mut world = World::new();
    let manual = format!("{DEVICE}{MANUAL}svid_file = \"{}\"\n", file.display());
    let config =
        world::config(&world.mis, &world.tpm, &manual).replace("refresh = \"1s\"", "refresh = \"1h\"");
    world.device.configure(&config);
    world.device.start();
    wait_for_state(&world.device, "device", "active");
    wait_for_state(&world.device, "wfm-client", "waiting-for-operator");
    let csr = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
    let (_foreign, other) = foreign_mis();
    // For each of them the bundle is fetched once more.
    let chains = [(); 2].map(|()| other.mint(&MintSpec::csr(csr.clone())).unwrap().chain_pem);
    let (before, began) = (world.seen(Endpoint::Bundle).len(), Instant::now());
    for chain in chains.iter().cycle().take(600) {
        fs::write(&new, chain).unwrap();
        fs::rename(&new, &file).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_for(&world.device, "wfm-client", "refused", |is| is["lastError"]["code"] == "svid-refused");
    let requests = world.seen(Endpoint::Bundle).len() - before;
    let most = 20 + usize::try_from(began.elapsed().as_secs()).unwrap() / 10;
    assert!((1..=most).contains(&requests), "{requests} requests");
    assert_eq!(identity(&world.device, "device")["ready"], true);
    // What comes at last is adopted.
    let good = world.mis.mint(&MintSpec::csr(csr)).unwrap();
    fs::write(&new, good.chain_pem).unwrap();
    fs::rename(&new, &file).unwrap();
    wait_for_state(&world.device, "wfm-client", "active");
}

#[test]
fn chain_that_waits_for_its_time_gives_way_to_no_doubtful_one() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let csr = run(&world.device, &["csr", "--identity", "wfm-client", "--spiffe-id", CLIENT]);
    let early = SvidFault::NotYetValid(Duration::from_secs(120));
    let early = world.mis.mint(&MintSpec { faults: vec![early], ..MintSpec::csr(csr.clone()) }).unwrap();
    let chain = world.device.path("chain.pem");
    let install = ["install", "--identity", "wfm-client", chain.to_str().unwrap()];
    fs::write(&chain, &early.chain_pem).unwrap();
    let says = run(&world.device, &install);
    assert!(says.contains("adopted when it becomes valid"), "{says}");
    let stored = || fs::read(world.device.path("state/private/identities/wfm-client/issued.json")).unwrap();
    let before = stored();
    let (_foreign, other) = foreign_mis();
    fs::write(&chain, other.mint(&MintSpec::csr(csr.clone())).unwrap().chain_pem).unwrap();
    let says = refused(&world.device, &install);
    assert!(says.contains("the place of a chain that is stored") && says.contains("\n  Hint: "), "{says}");
    assert!(stored() == before, "it is still stored");
    fs::write(&chain, world.mis.mint(&MintSpec::csr(csr)).unwrap().chain_pem).unwrap();
    run(&world.device, &install);
    wait_for_state(&world.device, "wfm-client", "active");
}

#[test]
fn wait_goes_on_until_the_operator_has_brought_the_svid() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let wait = ["wait", "--for", "svid", "--identity", "wfm-client", "--timeout"];
    let says = refused(&world.device, &[&wait[..], &["1s"]].concat());
    assert!(says.contains("the state is waiting-for-operator - "), "{says}");
    assert!(says.contains("\n  Hint: Have the request signed that this prints: miaf-agent csr "), "{says}");
    let log = world.device.log();
    let line = log.lines().find(|line| line.contains("waiting-for-operator: ")).unwrap();
    assert!(line.contains("WARN") && line.contains("hint="), "{line}");
    assert!(
        !log.lines().any(|line| line.contains("ERROR") && line.contains("waiting-for-operator")),
        "{log}"
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&world.device, &[&wait[..], &["1h"]].concat()));
        enroll_by_hand(&world, "wfm-client", CLIENT, Duration::from_secs(3600));
        assert!(waiting.join().unwrap().starts_with(&format!("the SVID of {CLIENT} is valid until ")));
    });
}
