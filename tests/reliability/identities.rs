//! The agent is killed at random moments while an operator enrolls an identity by hand, and while
//! an identity is removed from the configuration. After each kill all identities are whole: none is
//! lost, and what the agent has accepted or given out still counts.
//!
//! Sixteen times each, and 200 times in the long form; `SEED` repeats a run's draws.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use development_mis::{Endpoint, MintSpec};
use serde_json::Value;

use crate::kills::{next_draw, seed_of_run};
use crate::support::agent::Device;
use crate::world::World;

const DEVICE: &str = "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n";
const CLIENT: &str = "[[identity]]\nname = \"client\"\nenroll = \"manual\"\n";
const OTHER: &str = "[[identity]]\nname = \"other\"\nenroll = \"manual\"\nkey.provider = \"software\"\n";

struct Story {
    world: World,
    draws: u64,
    /// The serial number of the device's SVID, which nothing here changes.
    device: Value,
}

impl Story {
    fn new(configuration: &str) -> Self {
        let world = World::enrolled_with(configuration);
        let draws = seed_of_run();
        let device = identity(&world.device, "device")["svid"]["serial"].clone();
        assert!(device.is_string());
        Self { world, draws, device }
    }

    /// Has a command begin, and kills the agent in this time. Returns what the command printed, if
    /// it succeeded before.
    fn killed_within(&mut self, usual: Duration, begin: impl FnOnce(&Device) -> Child) -> Option<String> {
        let child = begin(&self.world.device);
        std::thread::sleep(usual.mul_f64(1.2 * next_draw(&mut self.draws)));
        self.world.kill();
        let output = child.wait_with_output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// The agent is there again, with these identities, each under the name that it had.
    fn is_whole_again(&mut self, identities: &[(&str, Option<&str>)]) {
        self.world.device.start();
        for (name, id) in identities {
            let log = || self.world.device.log();
            let status = wait_for(&self.world.device, name, "it is restored", |identity| {
                id.is_none() || identity["svid"].is_object()
            });
            assert_eq!(status["spiffeId"].as_str(), *id, "{name}: {status:#}\n{}", log());
        }
        let device =
            wait_for(&self.world.device, "device", "it is active", |identity| identity["state"] == "active");
        assert_eq!(device["svid"]["serial"], self.device, "{}", self.world.device.log());
        assert_eq!(self.world.seen(Endpoint::Enrollment).len(), 1, "the device enrolls once");
        let state = self.world.device.path("state/private");
        let unusable = names(&state).into_iter().chain(names(&state.join("identities")));
        let unusable: Vec<_> = unusable.filter(|name| name.contains("unusable")).collect();
        assert!(unusable.is_empty(), "{unusable:?}\n{}", self.world.device.log());
    }

    fn csr(&self, name: &str, id: &str) -> String {
        finish(begin_csr(&self.world.device, name, id), &self.world.device)
    }

    /// Has a request certified.
    fn mint(&self, csr: &str) {
        let ttl = Duration::from_secs(24 * 3600);
        let minted = self.world.mis.mint(&MintSpec { ttl, ..MintSpec::csr(csr) }).unwrap();
        fs::write(self.world.device.path("chain.pem"), minted.chain_pem).unwrap();
    }

    fn enroll(&self, name: &str, id: &str) {
        self.mint(&self.csr(name, id));
        self.install(name, id);
    }

    fn install(&self, name: &str, id: &str) {
        finish(begin_install(&self.world.device, name), &self.world.device);
        self.has(name, id);
    }

    fn has(&self, name: &str, id: &str) {
        wait_for(&self.world.device, name, id, |identity| {
            identity["spiffeId"] == id && identity["state"] == "active"
        });
    }
}

#[test]
fn kills_while_an_identity_is_enrolled_by_hand() {
    let mut story = Story::new(&format!("{DEVICE}{CLIENT}{OTHER}"));
    let other = id("other");
    story.enroll("other", &other);
    let mut current = id("first");
    let begun = Instant::now();
    let csr = story.csr("client", &current);
    let usual_csr = begun.elapsed();
    story.mint(&csr);
    let begun = Instant::now();
    finish(begin_install(&story.world.device, "client"), &story.world.device);
    let usual_install = begun.elapsed();
    story.has("client", &current);
    let (mut given_out, mut accepted) = (0, 0);
    for kill in 0..kills() {
        let next = id(&format!("line-{kill}"));
        let printed = match kill % 2 {
            0 => story.killed_within(usual_csr, |device| begin_csr(device, "client", &next)),
            _ => {
                story.mint(&story.csr("client", &next));
                story.killed_within(usual_install, |device| begin_install(device, "client"))
            }
        };
        match (kill % 2, printed) {
            // A request that was given out is for a key that is there.
            (0, csr) => {
                given_out += usize::from(csr.is_some());
                story.is_whole_again(&[("client", Some(&current)), ("other", Some(&other))]);
                story.mint(&csr.unwrap_or_else(|| story.csr("client", &next)));
                story.install("client", &next);
            }
            // A chain that was accepted is adopted, by itself.
            (_, Some(_)) => {
                accepted += 1;
                story.world.device.start();
                story.has("client", &next);
                story.world.kill();
                story.is_whole_again(&[("client", Some(&next)), ("other", Some(&other))]);
            }
            // Another one may have been, before its response was on its way; else it still can be.
            (_, None) => {
                story.world.device.start();
                let status = wait_for(&story.world.device, "client", "it is restored", |identity| {
                    identity["svid"].is_object()
                });
                let is_known = [&current, &next].iter().any(|id| status["spiffeId"] == id.as_str());
                assert!(is_known, "{status:#}");
                story.install("client", &next);
                story.world.kill();
                story.is_whole_again(&[("client", Some(&next)), ("other", Some(&other))]);
            }
        }
        current = next;
    }
    println!("{} kills; {given_out} requests were given out before, {accepted} chains accepted", kills());
}

#[test]
fn kills_while_an_identity_is_removed_by_reload() {
    let (with, without) = (format!("{DEVICE}{CLIENT}{OTHER}"), format!("{DEVICE}{CLIENT}"));
    let mut story = Story::new(&with);
    let client = id("line-7");
    story.enroll("client", &client);
    let mut usual = Duration::from_secs(1);
    for kill in 0..=kills() {
        story.world.configure(&with);
        story.world.device.signal("HUP");
        wait_for(&story.world.device, "other", "it is configured", |identity| !identity.is_null());
        story.enroll("other", &id(&format!("other-{kill}")));
        story.world.configure(&without);
        let begun = Instant::now();
        if kill == 0 {
            story.world.device.signal("HUP");
            wait_for(&story.world.device, "other", "it is gone", Value::is_null);
            usual = begun.elapsed();
        } else {
            story.world.device.signal("HUP");
            std::thread::sleep(usual.mul_f64(1.2 * next_draw(&mut story.draws)));
            story.world.kill();
            story.is_whole_again(&[("client", Some(&client))]);
        }
        // It is withdrawn and put away whole, once: the agent may be about to.
        let log = || story.world.device.log();
        assert!(identity(&story.world.device, "other").is_null(), "{}", log());
        let private = story.world.device.path("state/private");
        story.world.device.wait_until("it is withdrawn and put away", |device| {
            !device.path("state/svid/other/current").exists() && !private.join("identities/other").exists()
        });
        let retired: Vec<_> =
            names(&private).into_iter().filter(|name| name.starts_with("retired-")).collect();
        assert_eq!(retired.len() as u32, kill + 1, "{retired:?}\n{}", log());
        for name in retired {
            assert!(private.join(&name).join("identity.json").exists(), "{name}\n{}", log());
        }
    }
}

fn kills() -> u32 {
    if crate::is_long() { 200 } else { 16 }
}

fn id(client: &str) -> String {
    format!("spiffe://factory.example/margo/wfm/wfm-1/client/{client}")
}

fn begin_csr(device: &Device, name: &str, id: &str) -> Child {
    begin(device, &["csr", "--identity", name, "--spiffe-id", id])
}

fn begin_install(device: &Device, name: &str) -> Child {
    begin(device, &["install", "--identity", name, device.path("chain.pem").to_str().unwrap()])
}

fn begin(device: &Device, arguments: &[&str]) -> Child {
    let mut command = device.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a command prints that succeeds.
fn finish(command: Child, device: &Device) -> String {
    let output = command.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}\n{}", device.log());
    String::from_utf8(output.stdout).unwrap()
}

/// The status of one identity.
fn identity(device: &Device, name: &str) -> Value {
    let document = device.status_document();
    let all = document["identities"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|identity| identity["name"] == name).unwrap_or(Value::Null)
}

fn wait_for(device: &Device, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    device.wait_until(&format!("{name}: {what}"), |device| holds(&identity(device, name)));
    identity(device, name)
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
