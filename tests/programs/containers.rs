//! The agent's sockets in containers, and the examples for them.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::device::{Device, READER};
use crate::process::{Running, output_of, wait_until};

/// A mount namespace in which the directory of the socket is found under one name, read-only, and
/// the socket's file under another.
struct Container<'a> {
    device: &'a Device,
    inside: Running,
}

impl<'a> Container<'a> {
    fn start(device: &'a Device) -> Self {
        let script = "mkdir dir && touch file \
            && mount --bind run dir && mount -o remount,bind,ro dir && mount --bind run/agent.sock file \
            && touch ready && exec sleep infinity";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).current_dir(device.path("."));
        let mut inside = Running::start(&mut command, &device.path("container.log"));
        wait_until("the mounts", || {
            assert!(!inside.has_ended(), "{}", inside.log());
            device.path("ready").exists()
        });
        Self { device, inside }
    }

    /// Exit status of curl with this socket, run by a member of these groups.
    fn ask(&self, groups: &[&str], socket: &str) -> Option<i32> {
        let user = self.device.user(groups, "curl");
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside.pid().to_string(), "--mount", "--root", "--"]);
        command.arg(user.get_program()).args(user.get_args());
        command.args(["--silent", "--fail", "--unix-socket"]).arg(self.device.path(socket));
        command.arg("http://agent/readyz").output().unwrap().status.code()
    }
}

#[test]
#[ignore = "needs root: mounts, and programs are run as another user"]
fn socket_directory_works_read_only_and_after_a_restart() {
    const CANNOT_CONNECT: Option<i32> = Some(7);
    let mut device = Device::renewing();
    let container = Container::start(&device);
    assert_eq!(container.ask(READER, "dir/agent.sock"), Some(0));
    assert_eq!(container.ask(&["nogroup"], "dir/agent.sock"), CANNOT_CONNECT);
    assert_eq!(container.ask(READER, "file"), Some(0));

    let Container { inside, .. } = container;
    device.restart_the_agent();
    let container = Container { device: &device, inside };
    assert_eq!(container.ask(READER, "dir/agent.sock"), Some(0));
    // The reason why containers get the directory.
    assert_eq!(container.ask(READER, "file"), CANNOT_CONNECT);
}

#[test]
fn compose_mounts_the_directory_read_only_with_the_group() {
    let documents = yaml("examples/compose/compose.yaml");
    let service = &documents[0]["services"]["wfm-client"];
    let [mount] = &service["volumes"].as_array().unwrap()[..] else {
        panic!("more than the directory: {service:#}")
    };
    assert_eq!(mount["type"], "bind");
    assert_eq!(mount["read_only"], true);
    assert_eq!(mount["bind"]["create_host_path"], false);
    is_the_directory(&mount["source"], &mount["target"], &service["environment"]["SPIFFE_ENDPOINT_SOCKET"]);
    let [group] = &service["group_add"].as_array().unwrap()[..] else { panic!("{service:#}") };
    assert!(group.as_str().unwrap().starts_with("${MIAF_GID:?"), "by number, and not without");
}

#[test]
fn kubernetes_mounts_the_directory_read_only_with_the_group() {
    let documents = yaml("examples/kubernetes/wfm-client.yaml");
    let [workload] = &documents.as_array().unwrap()[..] else { panic!("one document") };
    assert_eq!((&workload["apiVersion"], &workload["kind"]), (&"apps/v1".into(), &"DaemonSet".into()));
    let template = &workload["spec"]["template"];
    assert_eq!(workload["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]);
    let pod = &template["spec"];
    let groups = pod["securityContext"]["supplementalGroups"].as_array().unwrap();
    assert!(groups.len() == 1 && groups[0].is_u64(), "by number");

    let [container] = &pod["containers"].as_array().unwrap()[..] else { panic!("{pod:#}") };
    let [mount] = &container["volumeMounts"].as_array().unwrap()[..] else { panic!("{container:#}") };
    let [volume] = &pod["volumes"].as_array().unwrap()[..] else { panic!("{pod:#}") };
    assert_eq!(mount["name"], volume["name"]);
    assert_eq!(mount["readOnly"], true);
    assert!(mount["subPath"].is_null(), "a subPath is looked up once, and never again");
    assert_eq!(volume["hostPath"]["type"], "Directory");
    let [variable] = &container["env"].as_array().unwrap()[..] else { panic!("{container:#}") };
    assert_eq!(variable["name"], "SPIFFE_ENDPOINT_SOCKET");
    is_the_directory(&volume["hostPath"]["path"], &mount["mountPath"], &variable["value"]);
}

/// Checks that the mounted directory is not the agent's own, where the other sockets are, and that
/// the program's variable names the socket in it.
fn is_the_directory(outside: &Value, inside: &Value, endpoint: &Value) {
    let outside = Path::new(outside.as_str().unwrap());
    assert!(
        outside.extension().is_none() && outside != Path::new("/run/miaf-agent"),
        "{}",
        outside.display()
    );
    let socket = Path::new(endpoint.as_str().unwrap().strip_prefix("unix://").unwrap());
    assert_eq!(socket.parent(), Some(Path::new(inside.as_str().unwrap())));
    assert_eq!(socket.file_name().unwrap(), "agent.sock");
}

/// All documents in this file of the repository.
fn yaml(file: &str) -> Value {
    const TO_JSON: &str =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let json = output_of(Command::new("/usr/bin/python3").args(["-c", TO_JSON]).arg(file));
    serde_json::from_str(&json).unwrap()
}
