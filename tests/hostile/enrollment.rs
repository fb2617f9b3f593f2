//! Enrollment over EST under pressure: an operator, a disk and a server that each do something
//! unexpected between the request and the SVID. No token is lost by it, and the server is not asked
//! more than once for what it has answered.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use development_mis::{Endpoint, Fault, Token};
use serde_json::Value;

use crate::support::agent::Device;
use crate::world::World;

const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";

/// A device with one identity over EST and a software key, and these lines under `[identity.est]`.
fn world(est: &str) -> World {
    let world = World::with(|settings| settings.policy.est.attempts = None);
    let keys = world.device.path("keys");
    world.device.configure(&format!(
        "state_dir = \"{{dir}}/state\"\n\
         [mis]\nest_url = \"{}\"\nbundle_file = \"{}\"\ntrust_domain = \"factory.example\"\n\
         [mis.trust]\nca_file = \"{}\"\n\
         [files]\nsoftware_key_dir = \"{}\"\n\
         [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n\
         [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
         [[identity]]\nname = \"line-7\"\nenroll = \"est\"\n\
         [identity.key]\nprovider = \"software\"\n\
         [identity.est]\n{est}",
        world.mis.est_url(),
        world.mis.bundle_file().unwrap().display(),
        world.mis.ca_file().display(),
        keys.display(),
    ));
    world
}

fn file_with(device: &Device, name: &str, token: &Token) -> PathBuf {
    let file = device.path(name);
    token.write(&file).unwrap();
    file
}

/// Hands a token over by command; returns what the command says.
fn enroll(device: &Device, token: &Token) -> Result<String, String> {
    let file = file_with(device, "by-command", token);
    let output = device.run(&["enroll", "--identity", "line-7", "--token-file", file.to_str().unwrap()]);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn unsent_token_is_not_used_up_after_a_restart() {
    let mut world = world("");
    world.mis.policy(|policy| {
        policy.est.review = true;
        policy.est.retry_after = 1;
    });
    let (first, second) = (world.mis.est().token(CLIENT), world.mis.est().token(CLIENT));
    world.device.start();
    world.device.wait_for("waiting-for-token");
    enroll(&world.device, &first).unwrap();
    world.device.wait_for("pending-admission");
    // The certificate comes, and its issuers only after a while: meanwhile another token is brought.
    world.mis.fault(Endpoint::EstCaCerts, Fault::answer(503, &[("retry-after", "8")], b"later"));
    world.mis.est().release(CLIENT).unwrap();
    world.device.wait_for_error("503");
    enroll(&world.device, &second).unwrap();
    world.device.kill();
    world.device.start();
    world.device.wait_for("active");
    assert_eq!(world.mis.est().record().len(), 1, "for the first one");
    let first = enroll(&world.device, &first).unwrap_err();
    assert!(first.contains("used up"), "{first}");
    enroll(&world.device, &second).expect("it was never sent");
}

#[test]
fn full_disk_costs_the_server_nothing() {
    let mut world = world("");
    world.device.start();
    world.device.wait_for("waiting-for-token");
    // No identity can be stored: what is to be its file for a moment is a directory.
    let in_the_way = world.device.path("state/private/identities/line-7/identity.json.new");
    fs::create_dir_all(&in_the_way).unwrap();
    enroll(&world.device, &world.mis.est().token(CLIENT)).unwrap();
    let failed_at = |device: &Device| {
        let error = device.status()["lastError"].clone();
        (error["code"] == "state").then(|| error["at"].clone())
    };
    let mut moments: Vec<Value> = Vec::new();
    world.device.wait_until("the third failure", |device| {
        moments.extend(failed_at(device).filter(|at| !moments.contains(at)));
        moments.len() >= 3
    });
    assert_eq!(world.seen(Endpoint::EstCaCerts).len(), 2, "before and after the enrollment");
    fs::remove_dir(&in_the_way).unwrap();
    world.device.wait_for("active");
    assert_eq!(world.seen(Endpoint::EstCaCerts).len(), 2);
    assert_eq!(world.seen(Endpoint::EstEnroll).len(), 1);
}

#[test]
fn token_file_out_of_reach_is_no_missing_one() {
    let mut world = world("token = \"file:{dir}/token\"\n");
    symlink(world.device.path("token"), world.device.path("token")).unwrap();
    world.device.start();
    let status = world.device.wait_for("waiting-for-token");
    assert_eq!(status["lastError"]["code"], "token-unusable", "{status:#}");
    fs::remove_file(world.device.path("token")).unwrap();
    file_with(&world.device, "token", &world.mis.est().token(CLIENT));
    world.device.wait_for("active");
}
