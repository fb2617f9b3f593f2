//! The key: in the TPM, not exportable, usable by other programs through the file (miaf-v0 K).

use miaf_agent::keys::tpm::{Tcti, Tpm};

use crate::world::{self, World};

#[test]
fn published_key_is_the_certificates_and_not_exportable() {
    let world = World::enrolled();
    let (svid, key) = (world.device.published("svid.pem"), world.device.published("key.pem"));
    assert!(key.starts_with("-----BEGIN TSS2 PRIVATE KEY-----"), "{key}");
    assert_eq!(world::public_key_of_certificate(&world, &svid), world::public_key_of_tpm_key(&world, &key));

    let tpm = Tpm::start(world.tpm.tcti().parse::<Tcti>().unwrap());
    let attributes = tpm.key_from_pem(&key).unwrap().attributes();
    assert!(attributes.non_exportable(), "{attributes}");
    let listed = attributes.to_string();
    for attribute in ["fixedtpm", "fixedparent", "sensitivedataorigin", "noda", "sign"] {
        assert!(listed.split('|').any(|is| is == attribute), "{attribute} is missing in {listed}");
    }
}

#[test]
fn tpm_has_no_transient_objects_after_renewals() {
    let world = World::renewing();
    let serial = world.device.status()["svid"]["serial"].clone();
    world.device.wait_for_another_svid(&serial);
    assert_eq!(world.tpm.transient_handles(), 0);
}

#[test]
fn tpm_with_an_owner_password_is_used_by_its_srk() {
    let mut world = World::new();
    keep_srk(&world, "rsa2048:aes128cfb");
    world.tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    world.device.start();
    world.device.wait_for("active");
    let (svid, key) = (world.device.published("svid.pem"), world.device.published("key.pem"));
    assert!(key.starts_with("-----BEGIN TSS2 PRIVATE KEY-----"), "{key}");
    assert_eq!(world::public_key_of_certificate(&world, &svid), world::public_key_of_tpm_key(&world, &key));

    // The record is read back after a restart, also if another parent for new keys is configured by
    // then.
    let serial = world.device.status()["svid"]["serial"].clone();
    world.device.kill();
    let config = world::config(&world.mis, &world.tpm, "");
    let (parent, auth) = ("parent = \"primary\"", "owner_auth = \"file:owner.auth\"");
    world.device.configure(&config.replace("[key]", &format!("[key]\n{parent}\n{auth}")));
    world.device.start();
    let status = world.device.wait_for("active");
    assert_eq!(status["svid"]["serial"], serial);

    // And a new one is made under that, once the owner's password is there.
    let renew = || world.device.run(&["renew"]);
    std::fs::write(world.device.path("owner.auth"), "secret\n").unwrap();
    assert!(renew().status.success());
    world.device.wait_for_another_svid(&serial);
    assert!(world.device.log().contains("the owner's primary"), "{}", world.device.log());
}

#[test]
fn key_of_a_replaced_parent_is_lost_until_replaced() {
    let mut world = World::new();
    keep_srk(&world, "rsa2048:aes128cfb");
    world.tpm.run("tpm2_changeauth", &["-c", "owner", "secret"]);
    world.device.start();
    let before = world.device.wait_for("active");
    world.device.kill();
    world.tpm.run("tpm2_changeauth", &["-c", "owner", "-p", "secret"]);
    world.tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "0x81000001"]);
    keep_srk(&world, "ecc256:aes128cfb");
    world.device.start();
    let lost = world.device.wait_for_status("a lost key", |status| status["lastError"]["code"] == "key-lost");
    assert_eq!(lost["svid"]["serial"], before["svid"]["serial"], "the identity is kept");
    let detail = lost["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("0x81000001"), "{detail}");
    let hint = lost["lastError"]["hint"].as_str().unwrap();
    assert!(hint.contains("miaf-agent retry --new-key"), "{hint}");

    assert!(world.device.run(&["retry", "--new-key"]).status.success());
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!((&after["spiffeId"], &after["key"]["lost"]), (&before["spiffeId"], &false.into()));
}

/// Stores a storage key as the SRK.
fn keep_srk(world: &World, algorithm: &str) {
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt";
    let primary = ["-Q", "-C", "o", "-G", algorithm, "-a", attributes, "-c", "srk.ctx"];
    world.tpm.run("tpm2_createprimary", &primary);
    world.tpm.run("tpm2_flushcontext", &["-t"]);
    world.tpm.run("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "srk.ctx", "0x81000001"]);
    world.tpm.run("tpm2_flushcontext", &["-t"]);
}
