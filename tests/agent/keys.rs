//! The key: in the TPM, not exportable, usable by other programs through the file (miaf-v0 K).

use miaf_agent::keys::tpm::{Tcti, Tpm};

use crate::world::{self, World};

#[test]
fn the_published_key_is_the_certificate_s_and_cannot_leave_the_tpm() {
    let world = World::enrolled();
    let (svid, key) = (world.device.published("svid.pem"), world.device.published("key.pem"));
    assert!(key.starts_with("-----BEGIN TSS2 PRIVATE KEY-----"), "{key}");
    assert_eq!(world::public_key_of_certificate(&world, &svid), world::public_key_of_tpm_key(&world, &key));

    let tpm = Tpm::start(world.tpm.tcti().parse::<Tcti>().unwrap());
    let attributes = tpm.key_from_pem(&key).unwrap().attributes();
    assert!(attributes.non_exportable(), "{attributes}");
    let said = attributes.to_string();
    for attribute in ["fixedtpm", "fixedparent", "sensitivedataorigin", "noda", "sign"] {
        assert!(said.split('|').any(|is| is == attribute), "{attribute} is missing in {said}");
    }
}

#[test]
fn nothing_stays_in_the_tpm_after_enrollments_and_renewals() {
    let world = World::renewing();
    let serial = world.device.status()["svid"]["serial"].clone();
    world.device.wait_for_another_svid(&serial);
    assert_eq!(world.tpm.transient_handles(), 0);
}
