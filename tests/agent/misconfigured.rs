//! A configuration that cannot be used, at the start and later: what is stored is served, file and
//! line are named, and the agent goes on once it is corrected.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;
use std::thread;
use std::time::Duration;

use development_mis::{Endpoint, Fault, MintSpec};
use serde_json::Value;

use crate::support::agent::{AGENT, Device, PATIENCE};
use crate::support::directory::open_to_all;
use crate::support::strace::{Call, Strace, What};
use crate::world::{World, is_at};

const UNCONFIGURED: &str = "state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n";
/// An unprivileged user.
const NOBODY: u32 = 65534;

fn metric(device: &Device, name: &str) -> String {
    let text = device.get("/metrics").unwrap().1;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("miaf_agent_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

fn run(device: &Device, arguments: &[&str]) -> (Option<i32>, String) {
    let output = device.run(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn bad_configuration_at_start_serves_the_current_identity() {
    let mut world = World::enrolled();
    let (held, published) = (world.device.status(), world.device.published("svid.pem"));
    for bad in ["[log]\nlevle = \"info\"\n", "[log\n", "[renewal]\nwindow = [2.0, 3.0]\n"] {
        world.kill();
        world.configure(bad);
        world.device.start();
        let status = world.device.wait_for("blocked");
        for member in ["spiffeId", "trustDomain", "key"] {
            assert_eq!(status[member], held[member], "{member}");
        }
        assert_eq!(status["svid"]["serial"], held["svid"]["serial"]);
        let error = &status["lastError"];
        assert_eq!(error["code"], "configuration");
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains("/config.toml:"), "{detail}");
        assert_eq!(world.device.published("svid.pem"), published);
        assert_eq!(world.device.get("/readyz").unwrap().0, 200);
        assert_eq!(world.device.get("/v1/bundle").unwrap().0, 200);
        let body = "{\"algorithm\":\"ES256\",\"digest\":\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\"}";
        let sign = format!(
            "POST /v1/sign HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(world.device.request_at("run/sign.sock", &sign).unwrap().0, 200);
        assert_eq!(metric(&world.device, "configuration_rejected"), "1");
        assert_eq!(metric(&world.device, "needs_correction"), "1");
        let text = String::from_utf8(world.device.run(&["status"]).stdout).unwrap();
        assert!(text.contains(detail) && text.contains("miaf-agent check-config"), "{text}");
        let (code, said) = run(&world.device, &["renew"]);
        assert!(code == Some(1) && said.contains(&format!("{detail}\n  Hint: ")), "{said}");

        world.configure("");
        let status = world.device.wait_for("active");
        assert_eq!(status["spiffeId"], held["spiffeId"]);
        assert_eq!(metric(&world.device, "configuration_rejected"), "0");
    }
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "no other identity was requested");
    assert!(!world.device.path("state/private/identities/device/identity.json.unusable-1").exists());
}

/// Faults of a configuration, with the error of each.
type Spoilt<'a> = (&'a dyn Fn(&Device), &'a str);

#[test]
fn bad_file_of_any_kind_is_named_and_its_correction_noticed() {
    let drop_in = |device: &Device, name: &str, text: &[u8]| {
        fs::create_dir_all(device.path("config.d")).unwrap();
        fs::write(device.path("config.d").join(name), text).unwrap();
    };
    let kinds: [Spoilt; 6] = [
        (&|device| device.configure("[log]\nlevel = \"info\"\n[mis]\norigin = 5\n"), "config.toml:4: "),
        (&|device| drop_in(device, "a.toml", b"\n[miss]\n"), "config.d/a.toml:2: unknown field"),
        (&|device| drop_in(device, "a.toml", b"\n\n# sch\xf6n\n"), "config.d/a.toml:3: it is not UTF-8"),
        (&|device| fs::create_dir_all(device.path("config.d/a.toml")).unwrap(), "it is a directory"),
        (&|device| drop_in(device, "a.toml", &vec![b'#'; 100 << 20]), "larger than 1 MiB"),
        (
            &|device| {
                fs::create_dir_all(device.path("config.d")).unwrap();
                std::os::unix::fs::symlink("nowhere", device.path("config.d/a.toml")).unwrap();
            },
            "a.toml: cannot be read: No such file",
        ),
    ];
    for (spoil, says) in kinds {
        let mut device = Device::new(UNCONFIGURED);
        device.pass_socket("agent", "run/agent.sock"); // wherever the file says that it is
        spoil(&device);
        device.start();
        let status = device.wait_for("blocked");
        assert!(status["lastError"]["detail"].as_str().unwrap().contains(says), "{says}: {status:#}");
        assert!(status["spiffeId"].is_null() && !device.path("state").exists(), "nothing is made");
        let _ = fs::remove_dir_all(device.path("config.d"));
        device.configure(UNCONFIGURED);
        device.wait_for("unconfigured");
        spoil(&device);
        let status = device.wait_for("blocked");
        assert!(status["lastError"]["detail"].as_str().unwrap().contains(says), "{says}: {status:#}");
        // It is logged after it is shown.
        let is_said = |device: &Device| device.log().matches("What is stored is served").count() == 2;
        device.wait_until("both are logged", is_said);
    }
}

/// What is reported of it is shortened and on one line: it is the same mistake all the same.
#[test]
fn bad_file_with_an_odd_name_is_waited_for() {
    let mut device = Device::new(UNCONFIGURED);
    fs::create_dir_all(device.path("config.d")).unwrap();
    let odd = device.path("config.d").join(format!("odd\n  \u{1b}[31m{}.toml", "x".repeat(200)));
    fs::write(&odd, "[miss]\n").unwrap();
    device.start();
    let status = device.wait_for("blocked");
    let detail = status["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("odd \u{fffd}[31mxx") && detail.contains("unknown field `miss`"), "{detail}");
    assert_eq!(device.log().matches("What is stored is served").count(), 1, "{}", device.log());
    assert!(device.stop().success(), "signals are heard meanwhile");
}

/// A change that is reverted while an action is running has no effect.
#[test]
fn reverted_change_has_no_effect() {
    let mut world = World::new();
    world.mis.fault(Endpoint::Enrollment, Fault::StallAnswer(Duration::from_secs(25)));
    world.device.start();
    world.mis.wait_for(PATIENCE, |journal| journal.iter().any(|e| is_at(e, Endpoint::Enrollment))).unwrap();
    let read = |count: usize| {
        move |device: &Device| device.log().matches("the configuration has been read anew").count() == count
    };
    world.configure("[workload_api]\nkey_users = [\"nobody\"]\n");
    world.device.wait_until("the change is read", read(1));
    world.configure("");
    world.device.wait_until("the change back is read", read(2));
    world.device.wait_for("active");
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1);
}

#[test]
fn old_state_in_the_default_directory_is_not_served() {
    let mut world = World::enrolled();
    world.kill();
    // The state that an earlier configuration has left at the default is what was enrolled here.
    let state = world.device.path("state");
    world.device.environment("STATE_DIRECTORY", state.to_str().unwrap());
    let config = crate::world::config(&world.mis, &world.tpm, "");
    let unread = config.replace("state_dir = \"{dir}/state\"", "state_dir = \"{dir}/elsewhere");
    assert_ne!(unread, config);
    world.device.configure(&unread);
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["spiffeId"].is_null(), "{status:#}");
    assert_eq!(world.device.get("/v1/svid").unwrap().0, 503);
    assert!(world.device.log().contains("nothing that is stored is served"), "{}", world.device.log());
    world.configure("");
    world.device.wait_for("active");
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "it is where it was");
}

/// Written step by step: only what is there at the end is used. What a loaded machine does too
/// slowly is done again.
fn is_read_once(world: &World, begin: impl Fn()) -> bool {
    const LAST: usize = 7;
    let count = || world.device.log().matches("the configuration has been read anew").count();
    (0..20).any(|round| {
        begin();
        let before = count();
        for step in 0..=LAST {
            world.configure(&format!("[metrics]\ntextfile = \"{{dir}}/{round}-{step}.prom\"\n"));
            thread::sleep(Duration::from_millis(200));
        }
        world.device.wait_until("it is read", |_| count() > before);
        thread::sleep(Duration::from_secs(2)); // what would be read besides has been by then
        count() == before + 1 && world.device.path(&format!("{round}-{LAST}.prom")).exists()
    })
}

#[test]
fn partial_change_to_a_new_device_is_not_used() {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(500, "about:blank", None));
    world.device.start();
    world.device.wait_for_error("\"status\":500");
    assert!(is_read_once(&world, || {}), "{}", world.device.log());
}

#[test]
fn partial_correction_is_not_used() {
    let world = World::enrolled();
    let reject = || {
        world.configure("[log]\nlevle = 1\n");
        world.device.signal("HUP");
        world.device.wait_for_error("unknown field `levle`");
    };
    assert!(is_read_once(&world, reject), "{}", world.device.log());
}

#[test]
fn bad_reload_is_shown_until_corrected() {
    let world = World::enrolled();
    assert_eq!(metric(&world.device, "configuration_rejected"), "0");
    world.configure("[log]\nlevle = 1\n");
    thread::sleep(Duration::from_secs(2));
    assert!(world.device.status()["lastError"].is_null(), "nobody has asked to read it");
    world.device.signal("HUP");
    let status = world.device.wait_for_error("unknown field `levle`");
    assert_eq!(status["state"], "active");
    let detail = status["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("/config.toml:") && detail.contains("stays in use"), "{detail}");
    assert_eq!(metric(&world.device, "configuration_rejected"), "1");
    let (code, said) = run(&world.device, &["check-config"]);
    assert!(code == Some(78) && said.contains("unknown field `levle`"), "{said}");

    world.device.configure(UNCONFIGURED);
    world.device.wait_for_error("names no [mis] any more");
    let (code, said) = run(&world.device, &["check-config"]);
    assert!(code == Some(78) && said.contains("names no [mis] any more"), "{said}");
    assert_eq!(world.device.status()["state"], "active");

    world.configure("");
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
    assert_eq!(metric(&world.device, "configuration_rejected"), "0");
    assert_eq!(run(&world.device, &["check-config"]), (Some(0), String::new()));
}

#[test]
fn command_without_an_agent_names_the_bad_line() {
    let device = Device::new(&format!("{UNCONFIGURED}colour = \"blue\"\n"));
    for command in [&["status"][..], &["svid"], &["bundle"], &["renew"], &["wait", "--timeout", "1s"]] {
        let (code, said) = run(&device, command);
        assert_eq!(code, Some(1), "{command:?}");
        assert!(said.contains("no agent answers at"), "{said}");
        assert!(said.contains("config.toml:4: unknown field `colour`"), "{said}");
    }
    let (code, said) = run(&device, &["check-config"]);
    assert!(code == Some(78) && said.contains("config.toml:4: "), "{said}");
}

#[test]
fn command_refuses_a_given_configuration_that_cannot_be_read() {
    let mut world = World::new();
    world.device.start();
    world.device.wait_for("active");
    let socket = world.device.path("run/agent.sock");
    let directory = world.device.path("directory.toml");
    fs::create_dir(&directory).unwrap();
    for (file, says) in [
        (world.device.path("none.toml"), "none.toml: there is no such file"),
        (directory, "directory.toml: cannot be read: "),
    ] {
        for command in
            [&["status"][..], &["svid"], &["bundle"], &["watch"], &["wait"], &["renew"], &["retire", "--yes"]]
        {
            let run = |more: &[&str]| {
                let output =
                    Command::new(AGENT).arg("--config").arg(&file).args(command).args(more).output().unwrap();
                (output.status.code(), String::from_utf8(output.stderr).unwrap())
            };
            let (code, said) = run(&[]);
            assert!(
                code == Some(1) && said.contains(says) && said.contains("Hint: Correct --config"),
                "{said}"
            );
        }
        let status = Command::new(AGENT)
            .arg("--config")
            .arg(&file)
            .arg("status")
            .arg("--socket")
            .arg(&socket)
            .output();
        assert!(status.unwrap().status.success(), "a socket that is given needs no configuration");
    }
}

/// The kernel refuses as it does when the user has no instances left.
#[test]
fn configuration_change_is_noticed_without_inotify() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    let refuse = ["--trace=inotify_init1", "--inject=inotify_init1:error=EMFILE", "--output=/dev/null"];
    // As a grandchild of the agent: the process that is signalled and waited for is the agent's.
    world.device.under(&[&["strace", "--daemonize", "--follow-forks", "--quiet=all"], &refuse[..]].concat());
    world.device.start();
    world.device.wait_for("unconfigured");
    world.device.wait_until("it is said", |device| device.log().contains("fs.inotify.max_user_instances"));
    world.device.configure("[mis\n");
    world.device.wait_for("blocked");
    world.configure("");
    world.device.wait_for("active");
    assert_eq!(world.device.log().matches("max_user_instances").count(), 1, "{}", world.device.log());
}

#[test]
#[ignore = "needs root: files of other users"]
fn state_of_another_user_is_not_touched() {
    let mut world = World::new();
    let state = world.device.path("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    world.device.start();
    let status = world.device.wait_for("blocked");
    let text = |member: &str| status["lastError"][member].as_str().unwrap().to_owned();
    assert!(text("detail").contains("(uid 65534), and this agent runs as root"), "{status:#}");
    for says in ["systemctl start miaf-agent", "runuser -u", "chown -R root"] {
        assert!(text("hint").contains(says), "{says:?} is not in {status:#}");
    }
    thread::sleep(Duration::from_secs(11)); // it looks again twice
    assert_eq!(world.device.log().matches("runs as root").count(), 1, "{}", world.device.log());
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "nothing was written");
    chown(&state, Some(0), Some(0)).unwrap();
    world.device.wait_for("active");

    // The part that is the agent's own decides.
    world.kill();
    chown(&state, Some(NOBODY), None).unwrap();
    world.device.start();
    world.device.wait_for("active");
}

#[test]
#[ignore = "needs root: files of other users"]
fn record_of_another_user_is_named_with_a_remedy() {
    let mut world = World::new();
    let private = world.device.path("state/private/identities/device");
    fs::create_dir_all(&private).unwrap();
    for dir in private.ancestors().take_while(|dir| dir.starts_with(world.device.path("state"))) {
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(private.join("identity.json"), "root's").unwrap();
    fs::set_permissions(private.join("identity.json"), fs::Permissions::from_mode(0o600)).unwrap();
    open_to_all(world.device.dir(), 0o777);
    open_to_all(&world.device.path("config.toml"), 0o644);
    world.device.under(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    world.device.start();
    let status = world.device.wait_for("blocked");
    let detail = status["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("could not read") && detail.contains("identity.json"), "{detail}");
    let hint = status["lastError"]["hint"].as_str().unwrap();
    assert!(hint.contains("chown -R nobody ") && hint.contains("/state"), "{status:#}");
    assert_eq!(fs::read_to_string(private.join("identity.json")).unwrap(), "root's");
}

#[test]
#[ignore = "needs root: files of other users"]
fn unreadable_configuration_is_named_with_owner_and_mode() {
    let mut device = Device::new(UNCONFIGURED);
    fs::create_dir(device.path("config.d")).unwrap();
    let file = device.path("config.d/site.toml");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    open_to_all(device.dir(), 0o777);
    open_to_all(&device.path("config.d"), 0o755);
    open_to_all(&device.path("config.toml"), 0o644);
    device.under(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    device.start();
    let status = device.wait_for("blocked");
    let detail = status["lastError"]["detail"].as_str().unwrap();
    assert!(
        detail.contains("belongs to root:root with mode 0600, and this process runs as nobody"),
        "{detail}"
    );
    let hint = status["lastError"]["hint"].as_str().unwrap();
    assert!(hint.starts_with("Let it in: chgrp nogroup "), "{hint}");
    open_to_all(&file, 0o644);
    device.wait_for("unconfigured");
}

#[test]
#[ignore = "needs root: strace traces an agent that keeps to itself"]
fn directory_that_cannot_be_synced_blocks_nothing() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    let sync = Call { name: "fsync".into(), path: world.device.path("state/private"), reads: false };
    let what = What::Fails("EINVAL");
    let strace = Strace::inject(world.device.pid(), &world.device.path("strace.log"), &sync, what);
    world.configure("");
    world.device.wait_for("active");
    assert!(strace.has_hit(what));
    let log = world.device.log();
    assert_eq!(log.matches("cannot make changes durable").count(), 1, "{log}");
}

#[test]
fn unwritable_output_is_no_success() {
    let world = World::enrolled();
    let shell = |script: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, AGENT]);
        let output = world.device.complete(&mut command, arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "status"],
        &["status", "--help"],
        &["status"],
        &["svid"],
        &["check-config"],
    ] {
        let (code, said) = shell("\"$0\" \"$@\" >/dev/full", arguments);
        assert!(
            code == Some(1) && said.contains("cannot be written: No space left"),
            "{arguments:?}: {said}"
        );
        let (code, said) = shell("{ sleep 0.3; \"$0\" \"$@\"; echo $? >&2; } | true", arguments);
        assert!(code == Some(0) && said == "0\n", "{arguments:?}: {said}");
    }
    assert_eq!(shell("\"$0\" \"$@\" >/dev/null", &["nonsense"]).0, Some(2));
}

#[test]
fn broken_configuration_serves_identities_in_their_order() {
    // Neither has its usual name, from which the way could be guessed.
    let identities = "[[identity]]\nname = \"client\"\nenroll = \"manual\"\n\
                      [[identity]]\nname = \"plc\"\nenroll = \"factory-cert\"\n";
    let mut world = World::new();
    world.configure(identities);
    world.device.start();
    let svid = |device: &Device, path: &str| device.get(path).filter(|(status, _)| *status == 200);
    world.device.wait_until("the device", |device| svid(device, "/v1/identities/plc/svid").is_some());
    let csr = world.device.run(&["csr", "--spiffe-id", "spiffe://factory.example/margo/wfm/w/client/c"]);
    let minted = world.mis.mint(&MintSpec::csr(String::from_utf8(csr.stdout).unwrap())).unwrap();
    let chain = world.device.path("chain.pem");
    fs::write(&chain, minted.chain_pem).unwrap();
    assert!(world.device.run(&["install", chain.to_str().unwrap()]).status.success());
    world.device.wait_until("the client", |device| svid(device, "/v1/svid").is_some());
    let before = ["/v1/svid", "/v1/identities/plc/svid"].map(|path| serial_at(&world.device, path));

    world.kill();
    world.configure(&format!("{identities}notify = \"no unit\"\n"));
    world.device.start();
    let status = world.device.status_document();
    let names: Vec<_> = status["identities"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["client", "plc"], "{status:#}");
    assert_eq!(status["lastError"]["code"], "configuration", "{status:#}");
    let after = ["/v1/svid", "/v1/identities/plc/svid"].map(|path| serial_at(&world.device, path));
    assert_eq!(after, before, "each is served as it was stored");

    world.configure(identities);
    world.device.wait_until("the correction", |device| device.status_document()["lastError"].is_null());
    let corrected = ["/v1/svid", "/v1/identities/plc/svid"].map(|path| serial_at(&world.device, path));
    assert_eq!(corrected, before);
}

fn serial_at(device: &Device, path: &str) -> Value {
    let (status, body) = device.get(path).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str::<Value>(&body).unwrap()["serial"].clone()
}

/// What has systemd restart a program works by what the agent serves, and says what is wrong.
#[test]
fn unit_is_restarted_under_a_broken_configuration() {
    let world = World::new();
    let client =
        "[[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\nnotify = \"wfm-client.service\"\n";
    let bin = world.device.path("bin");
    let said = world.device.path("said");
    fs::create_dir_all(&bin).unwrap();
    let systemctl = bin.join("systemctl");
    fs::write(&systemctl, format!("#!/bin/sh\necho \"$@\" >>{}\n", said.display())).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let notify = |world: &World, name: &str| {
        let mut command = world.device.command(&["notify", "--identity", name]);
        let output = command.env("PATH", &path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for broken in ["this is no TOML\n", "[renewal]\nwindow = \"no\"\n", "[mis\n"] {
        world.configure(&format!("{client}{broken}"));
        let (code, says) = notify(&world, "wfm-client");
        assert!(code == Some(0) && says.contains("config.toml"), "{broken:?}: {code:?} {says}");
        let line = fs::read_to_string(&said).unwrap();
        assert_eq!(line, "--no-block try-restart -- wfm-client.service\n", "{broken:?}");
        fs::remove_file(&said).unwrap();
        // Whether there is one that cannot be read is not known.
        let (code, says) = notify(&world, "other");
        assert!(code == Some(78) && says.contains("config.toml"), "{broken:?}: {code:?} {says}");
        assert!(!said.exists());
    }
}
