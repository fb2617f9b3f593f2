//! The published files: their layout, their modes, and that a generation is consistent.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::support::reader::{Published, Readers};
use crate::support::strace::{Strace, wait_until_stopped};
use crate::world::{self, World};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn published_files_have_their_names_and_modes() {
    let world = World::enrolled();
    let current = world.device.path("state/svid/device/current");
    let mut names: Vec<_> = fs::read_dir(&current).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["bundle.json", "bundle.pem", "identity.json", "key.pem", "svid-with-key.pem", "svid.pem"]
    );
    for name in names {
        assert_eq!(mode(&current.join(&name)), 0o640, "{name:?}");
    }
    assert_eq!(mode(&world.device.path("state")), 0o711);
    assert_eq!(mode(&world.device.path("state/private")), 0o700);
    assert_eq!(mode(&world.device.path("state/svid")), 0o750);
    assert_eq!(mode(&world.device.path("state/svid/device")), 0o750);
    assert_eq!(mode(&current), 0o750);
    assert_eq!(mode(&world.device.path("run/agent.sock")), 0o660);
    let identity: serde_json::Value = serde_json::from_str(&world.device.published("identity.json")).unwrap();
    let status = world.device.status();
    assert_eq!(identity["spiffeId"], status["spiffeId"]);
    assert_eq!(identity["serial"], status["svid"]["serial"]);
    assert_eq!((&identity["keyProtection"], &identity["valid"]), (&"hardware".into(), &true.into()));
    let combined = format!("{}{}", world.device.published("svid.pem"), world.device.published("key.pem"));
    assert_eq!(world.device.published("svid-with-key.pem"), combined);
}

#[test]
#[ignore = "needs root: gives files to groups"]
fn files_and_sockets_belong_to_the_configured_groups() {
    // Groups that every Debian has. Only root may give files to groups it is not in.
    let mut world = World::new();
    let groups = "[files]\ngroup = \"users\"\nkey_group = \"games\"\n";
    let config = world::config(&world.mis, &world.tpm, groups);
    world.device.configure(&config.replace("[socket]", "[socket]\ngroup = \"users\""));
    world.device.start();
    world.device.wait_for("active");
    let group = |name: &str| fs::metadata(world.device.path(name)).unwrap().gid();
    let (users, games) = (100, 60);
    for name in [
        "state/svid",
        "state/svid/device",
        "state/svid/device/current",
        "state/svid/device/current/svid.pem",
        "state/svid/device/current/bundle.pem",
    ] {
        assert_eq!(group(name), users, "{name}");
    }
    for name in ["state/svid/device/current/key.pem", "state/svid/device/current/svid-with-key.pem"] {
        assert_eq!(group(name), games, "{name}");
    }
    assert_eq!(group("run/agent.sock"), users);

    // Another group in the configuration applies to published files, too.
    world.configure("[files]\ngroup = \"games\"\nkey_group = \"games\"\n");
    world.device.signal("HUP");
    world.device.wait_until("the new group", |_| {
        ["state/svid", "state/svid/device", "state/svid/device/current", "state/svid/device/current/svid.pem"]
            .iter()
            .all(|name| group(name) == games)
    });
}

/// A file system that journals hides the lack of a sync in most power cuts; the sequence of the
/// calls does not.
#[test]
#[ignore = "needs root: strace traces an undumpable agent"]
fn identitys_directory_is_durable_before_anything_is_in_it() {
    let mut world = World::enrolled();
    world.kill();
    fs::remove_dir_all(world.device.path("state/svid/device")).unwrap();
    world.device.under(&["sh", "-c", "kill -s STOP $$; exec \"$0\" \"$@\""]);
    world.device.spawn();
    wait_until_stopped(world.device.pid());
    let strace = Strace::watch(world.device.pid(), &world.device.path("strace.log"));
    world.device.signal("CONT");
    world.device.wait_until("published", |device| device.path("state/svid/device/current/svid.pem").exists());
    let log = strace.detach();
    // "SYSCALL(DESCRIPTOR<DIRECTORY>, …": strace names the directories of descriptors.
    let first = |call: &str, directory: &str| {
        let directory = format!("<{}>", world.device.path(directory).display());
        let is = |line: &str| line.contains(&format!("{call}(")) && line.contains(&directory);
        log.lines().position(is).unwrap_or_else(|| panic!("no {call} in {directory}:\n{log}"))
    };
    let made = first("mkdirat", "state/svid");
    let synced = first("fsync", "state/svid");
    let filled = first("mkdirat", "state/svid/device");
    assert!(made < synced && synced < filled, "{made} {synced} {filled}:\n{log}");
}

#[test]
fn link_in_place_of_the_identitys_directory_is_reported() {
    let mut world = World::enrolled();
    world.kill();
    let (dir, target) = (world.device.path("state/svid/device"), world.device.path("target"));
    fs::rename(&dir, &target).unwrap();
    std::os::unix::fs::symlink(&target, &dir).unwrap();
    world.device.start();
    let status = world.device.wait_for_error("svid/device: it is a symbolic link");
    assert_eq!(status["lastError"]["code"], "not-published");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200, "the socket serves in any case");
    fs::remove_file(&dir).unwrap();
    world.device.signal("HUP");
    world.device.wait_until("published", |device| device.path("state/svid/device/current/svid.pem").exists());
}

#[test]
fn unpublished_files_are_reported_and_follow_later() {
    let mut world = World::new();
    world.configure("[files]\ngroup = \"no-such-group-here\"\n");
    world.device.start();
    let status = world.device.wait_for_error("there is no group");
    assert_eq!(status["lastError"]["code"], "not-published");
    world.device.wait_for("active"); // the socket serves in any case
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    world.configure("");
    world.device.signal("HUP");
    world.device.wait_until("published", |device| device.path("state/svid/device/current/svid.pem").exists());
}

#[test]
fn reader_never_sees_a_key_of_another_certificate() {
    let world = World::renewing();
    let readers = Readers::of(world.device.path("state/svid/device"));
    for _ in 0..3 {
        world.device.wait_for_another_svid(&world.device.status()["svid"]["serial"]);
    }
    let seen = readers.end();
    assert!(seen.iter().all(|seen| *seen >= 3), "the identity was rotated meanwhile: {seen:?}");
    // The key is that of the certificate for the TPM and OpenSSL, too.
    let published = Published::read(&world.device.path("state/svid/device")).unwrap();
    assert_eq!(
        world::public_key_of_certificate(&world, &published.svid),
        world::public_key_of_tpm_key(&world, &published.key)
    );
}
