//! Software keys (miaf-v0 K2): only if configured, sealed at rest, and reported as what they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use development_mis::{Endpoint, Fault};
use serde_json::{Value, json};

use crate::world::{self, World};

/// A device that is configured for software keys. There is no TPM at all.
fn world(renews_soon: bool) -> World {
    let mut world = World::with(|settings| {
        if renews_soon {
            world::long_enough(&mut settings.policy);
        }
    });
    world.tpm.stop();
    configure(&world, if renews_soon { world::SOON } else { "" });
    world
}

fn configure(world: &World, more: &str) {
    let config = world::config(&world.mis, &world.tpm, more);
    world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
}

/// What systemd does for `LoadCredential=kek`.
fn give_credential(world: &mut World, content: &[u8]) {
    let directory = world.device.path("credentials");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("kek"), content).unwrap();
    world.device.environment("CREDENTIALS_DIRECTORY", directory.to_str().unwrap());
}

fn enrolled(mut world: World) -> (World, Value) {
    world.device.start();
    let status = world.device.wait_for("active");
    (world, status)
}

#[test]
fn software_key_is_enrolled_renewed_and_named_as_such() {
    let (world, status) = enrolled(world(true));
    let key = json!({ "provider": "software", "protection": "software-basic", "algorithm": "ecdsa-p256", "lost": false,
        "renewals": 0 });
    let mut shown = status["key"].clone();
    let since = shown.as_object_mut().unwrap().remove("since").unwrap();
    assert!(since.is_string(), "{since}");
    assert_eq!(shown, key);
    world.device.wait_for_another_svid(&status["svid"]["serial"]);
    let said: Value = serde_json::from_str(&world.device.published("identity.json")).unwrap();
    assert_eq!(said["keyProtection"], "software-basic");
    assert!(world.device.log().contains("software-basic"));
    let printed = String::from_utf8(world.device.run(&["status"]).stdout).unwrap();
    assert!(printed.contains("in software, sealed with a key in the same directory"), "{printed}");
    // The MIS is not informed of it: v0 refuses unknown members, and it is strict.
    let renewals = world.wait_for_requests(Endpoint::Renewal, 1);
    let statuses: Vec<u16> = renewals.iter().filter_map(|entry| entry.status).collect();
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[test]
fn key_floor_withdraws_a_weaker_identity_until_it_is_lifted() {
    let (mut world, status) = enrolled(world(false));
    let serial = &status["svid"]["serial"];
    let config = world::config(&world.mis, &world.tpm, "");
    let with = |lines: &str| config.replace("[key]", &format!("[key]\n{lines}"));
    // Where nothing else would have a stronger key, the configuration is refused.
    world.device.configure(&with("provider = \"software\"\nrequire = \"tpm\""));
    let refused = String::from_utf8(world.device.run(&["check-config"]).stderr).unwrap();
    assert!(refused.contains("key.require"), "{refused}");

    world.device.stop();
    world.device.configure(&with("require = \"tpm\"")); // and there is no TPM
    world.device.start();
    let status = world.device.wait_for_error("TPM");
    assert!(status["svid"].is_null(), "{status:#}");
    assert!(world.device.log().contains("key.require = \"tpm\" demands"), "{}", world.device.log());
    assert!(!world.device.path("state/svid/device/current").exists(), "nor is it published any more");

    // Nothing is lost.
    world.device.stop();
    world.device.configure(&with("provider = \"software\""));
    world.device.start();
    assert_eq!(&world.device.wait_for("active")["svid"]["serial"], serial);
}

#[test]
fn software_key_is_never_on_disk_in_the_clear() {
    let (world, _) = enrolled(world(false));
    let mut files = Vec::new();
    all_files(&world.device.path("state"), &mut files);
    assert!(files.iter().any(|file| file.ends_with("private/identities/device/identity.json")));
    for file in &files {
        let content = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        assert!(!content.contains("BEGIN PRIVATE KEY") && !content.contains("BEGIN EC PRIVATE"), "{file:?}");
        assert!(!file.ends_with("key.pem") && !file.ends_with("svid-with-key.pem"), "{file:?}");
    }
    let kek = world.device.path("state/private/kek");
    assert_eq!(fs::metadata(kek).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn software_key_is_published_on_tmpfs_if_configured() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let world = world(false);
    let keys = memory.path().join("keys");
    configure(&world, &format!("[files]\nsoftware_key_dir = \"{}\"", keys.display()));
    let (mut world, _) = enrolled(world);
    let published = |name: &str| fs::read_to_string(keys.join("device/current").join(name)).unwrap();
    let key = world.device.path("published.key");
    fs::write(&key, published("key.pem")).unwrap();
    let of_key = world.tpm.run("openssl", &["pkey", "-in", key.to_str().unwrap(), "-pubout"]);
    assert_eq!(of_key, world::public_key_of_certificate(&world, &published("svid.pem")));
    assert!(published("svid-with-key.pem").ends_with(&published("key.pem")));
    let mut files = Vec::new();
    all_files(&world.device.path("state"), &mut files);
    let secret = published("key.pem").lines().nth(1).unwrap().to_owned();
    assert!(files.iter().all(|file| !fs::read_to_string(file).unwrap_or_default().contains(&secret)));
    assert!(!world.device.path("state/svid/device/current/key.pem").exists());

    // A reboot empties the tmpfs. What was sealed is published again, without the MIS.
    world.device.kill();
    fs::remove_dir_all(&keys).unwrap();
    world.mis.stop_listening().unwrap();
    world.device.start();
    world.device.wait_until("the key is there again", |_| keys.join("device/current/key.pem").exists());
    assert_eq!(published("key.pem"), fs::read_to_string(&key).unwrap());
}

#[test]
fn published_key_is_withdrawn_with_its_setting() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let world = world(false);
    configure(&world, &format!("[files]\nsoftware_key_dir = \"{}\"", memory.path().display()));
    let (world, _) = enrolled(world);
    world.device.wait_until("the key is there", |_| memory.path().join("device/current/key.pem").exists());
    configure(&world, "");
    world.device.signal("HUP");
    let left = || fs::read_dir(memory.path().join("device")).unwrap().count();
    world.device.wait_until("the key is gone", |_| left() == 0);
    assert_eq!(world.device.status()["state"], "active");
}

#[test]
fn software_key_is_not_published_on_a_disk() {
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    let world = world(false);
    configure(&world, &format!("[files]\nsoftware_key_dir = \"{}\"", disk.path().display()));
    let (world, _) = enrolled(world);
    world.device.wait_for_error("is not on a tmpfs");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    assert!(!world.device.published("svid.pem").is_empty());
}

#[test]
fn credential_of_systemd_makes_the_key_isolated() {
    let mut world = world(false);
    give_credential(&mut world, &[7; 32]);
    let (world, status) = enrolled(world);
    assert_eq!(status["key"]["protection"], "software-isolated");
    assert!(!world.device.path("state/private/kek").exists());
}

#[test]
fn missing_credential_blocks_and_is_not_weakened() {
    let mut world = world(true);
    give_credential(&mut world, &[7; 32]);
    let (mut world, status) = enrolled(world);
    world.device.kill();
    world.device.environment("CREDENTIALS_DIRECTORY", "/nonexistent");
    world.device.start();
    let blocked = world.device.wait_for_error("LoadCredentialEncrypted=kek");
    assert_eq!(blocked["state"], "blocked");
    // The identity is still shown.
    assert_eq!(blocked["spiffeId"], status["spiffeId"]);
    assert!(!world.device.path("state/private/kek").exists());

    world.device.kill();
    give_credential(&mut world, &[7; 32]);
    world.device.start();
    let again = world.device.wait_for_another_svid(&status["svid"]["serial"]);
    assert_eq!(again["spiffeId"], status["spiffeId"]);
    assert_eq!(again["key"]["protection"], "software-isolated");
}

#[test]
fn damaged_seal_is_quarantined_and_the_device_reenrolls() {
    for spoil in [
        (|state: &Path| fs::write(state.join("private/kek"), [1; 32]).unwrap()) as fn(&Path),
        |state| fs::remove_file(state.join("private/kek")).unwrap(),
        |state| {
            let file = state.join("private/identities/device/identity.json");
            let record = fs::read_to_string(&file).unwrap();
            // The last line of the seal but one: within the bytes that are authenticated.
            let at = record.find("\\n-----END MIAF SEALED").unwrap() - 8;
            let other = if record.as_bytes()[at] == b'A' { "B" } else { "A" };
            fs::write(&file, format!("{}{other}{}", &record[..at], &record[at + 1..])).unwrap();
        },
    ] {
        let (mut world, before) = enrolled(world(false));
        world.device.kill();
        spoil(&world.device.path("state"));
        world.device.start();
        let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
        assert_eq!(after["spiffeId"], before["spiffeId"], "the same factory certificate, the same identity");
        assert!(world.device.path("state/private/identities/device/identity.json.unusable-1").exists());
        let log = world.device.log();
        assert!(
            log.contains("record quarantined")
                && log.contains("eplace the key with: miaf-agent retry --new-key"),
            "{log}"
        );
    }
}

#[test]
fn quarantined_key_is_recovered_under_its_credential() {
    let mut world = world(false);
    give_credential(&mut world, &[7; 32]);
    world.mis.policy(|policy| policy.rotation_at_enrollment = false);
    let (mut world, before) = enrolled(world);
    world.device.kill();
    give_credential(&mut world, &[8; 32]);
    world.device.start();
    world.device.wait_for("blocked"); // the MIS allows this device no other key
    world.device.kill();
    give_credential(&mut world, &[7; 32]);
    world.device.start();
    let after = world.device.wait_for("active");
    assert_eq!(after["svid"]["serial"], before["svid"]["serial"]);
    assert!(world.device.log().contains("can be used again"));
}

#[test]
fn damaged_kek_file_is_healed_by_enrollment() {
    let (mut world, before) = enrolled(world(false));
    world.device.kill();
    fs::write(world.device.path("state/private/kek"), "").unwrap();
    world.device.start();
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
}

#[test]
fn key_of_another_certificate_is_quarantined() {
    let (mut world, before) = enrolled(world(false));
    let record = world.device.path("state/private/identities/device/identity.json");
    let first: Value = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
    // Another key of the same device, under the same key-encryption key.
    world.device.kill();
    fs::remove_file(&record).unwrap();
    world.device.start();
    world.device.wait_for_another_svid(&before["svid"]["serial"]);
    world.device.kill();
    let mut second: Value = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
    second["record"]["key"] = first["record"]["key"].clone();
    fs::write(&record, second.to_string()).unwrap();
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.log().contains("its key is another than its certificate's"));
}

#[test]
fn another_key_provider_renews_the_identity_at_once() {
    let (mut world, before) = enrolled(world(false));
    world.tpm.boot();
    let config = world::config(&world.mis, &world.tpm, "").replace("[key]", "[key]\nrotate = false");
    world.device.configure(&config);
    world.device.signal("HUP");
    let hardware = |status: &Value| status["key"]["protection"] == "hardware";
    let after = world.device.wait_for_status("a key in the TPM", hardware);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    assert!(world.device.published("key.pem").starts_with("-----BEGIN TSS2 PRIVATE KEY-----"));
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "renewal was the way");
    assert!(world.device.log().contains("not of the configured provider"));
}

#[test]
fn pending_key_of_another_provider_is_enrolled_then_replaced() {
    let mut world = world(false);
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::LoseAnswer);
    world.device.start();
    world.device.wait_until("a first request", |_| !world.seen(Endpoint::Enrollment).is_empty());
    world.tpm.boot();
    world.configure("");
    world.device.signal("HUP");
    world.mis.clear_faults();
    // The MIS may know the software key already: another one might be refused (E6). Then it goes.
    let hardware = |status: &Value| status["key"]["protection"] == "hardware";
    world.device.wait_for_status("a key in the TPM", hardware);
    assert_eq!(world.seen(Endpoint::Renewal).len(), 1);
}

fn all_files(directory: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            all_files(&path, into);
        } else if path.is_file() {
            into.push(path);
        }
    }
}
