//! The sockets, as the page describes them for programs that do not use OpenSSL.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::device::{ASKER, Device, READER};
use crate::page;
use crate::process::output_of;
use crate::support::python;
use crate::world::World;

/// With curl, for a user who cannot reach the TPM; and not for one who may only read.
#[test]
#[ignore = "needs root: programs are run as another user"]
fn signing_socket_serves_members_of_its_group() {
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

/// Without an address in the program: the drop-in's variable leads to the socket, its unit and its
/// group are the agent's.
#[test]
fn drop_in_leads_spiffe_libraries_to_the_socket() {
    const DROP_IN: &str = include_str!("../../examples/systemd/workload-api.conf");
    let setting = |name: &str| DROP_IN.lines().find_map(|line| line.strip_prefix(name)).expect("a setting");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for unit in ["Wants=", "After="] {
        assert!(root.join("systemd").join(setting(unit)).is_file(), "{unit}");
    }
    let socket = fs::read_to_string(root.join("systemd/miaf-agent.socket")).unwrap();
    assert!(socket.contains(&format!("SocketGroup={}\n", setting("SupplementaryGroups="))), "{socket}");

    let world = World::enrolled();
    let run = world.device.path("run").to_str().unwrap().to_owned();
    let address = setting("Environment=SPIFFE_ENDPOINT_SOCKET=").replace("/run/miaf-agent", &run);
    let program = page::block("python bundle").replace("\"unix:///run/miaf-agent/agent.sock\"", "");
    assert!(program.contains("WorkloadApiClient()"), "{program}");
    let mut command = Command::new(python::program("python"));
    let names = output_of(command.args(["-c", &program]).env("SPIFFE_ENDPOINT_SOCKET", address));
    assert!(names.contains("CN="), "{names}");
}
