//! The sockets, as the page tells them to programs that do not use OpenSSL.

use std::process::Command;

use serde_json::Value;

use crate::device::{ASKER, Device, READER};
use crate::page;
use crate::support::python;

/// With curl, by somebody who cannot reach the TPM; and by nobody who may only read.
#[test]
#[ignore = "needs root: programs are run as another user"]
fn the_agent_signs_for_whoever_is_in_the_group() {
    let device = Device::renewing();
    device.until_it_rotates(|| {
        let output = device.run(ASKER, &page::block("sh sign"));
        let errors = String::from_utf8_lossy(&output.stderr);
        let signed: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"));
        assert!(output.status.success() && signed["signature"].is_string(), "{signed}");
    });
    assert!(!device.run(READER, &page::block("sh sign")).status.success());
    device.is_content();
}

#[test]
#[ignore = "needs root: tpm2-abrmd is run as its own user"]
fn spiffe_for_python_has_the_trust_bundle() {
    let device = Device::renewing();
    let program = device.here(&page::block("python bundle"));
    let output = Command::new(python::program("python")).args(["-c", &program]).output().unwrap();
    let (names, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && names.contains("CN="), "{names}{errors}");
}
