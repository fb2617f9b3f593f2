//! docs/identities.md, followed: an identity that `openssl ca` certifies with the config of the page,
//! one that is installed, and its removal. There is no MIS.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use miaf_agent::config::Config;

use crate::page;
use crate::support::agent::{AGENT, Device};
use crate::support::swtpm::Swtpm;

const PAGE: &str = include_str!("../../docs/identities.md");

/// A device whose directory is that of its configuration, and of a CA.
struct Site {
    device: Device,
    _tpm: Swtpm,
}

impl Site {
    fn start() -> Self {
        let tpm = Swtpm::start();
        let mut device = Device::new(&format!(
            "state_dir = \"{{dir}}/state\"\n[key]\ntcti = \"{}\"\n[socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             [bundle]\nrefresh = \"1s\"\n",
            tpm.tcti()
        ));
        fs::create_dir(device.path("config.d")).unwrap();
        fs::create_dir(device.path("bin")).unwrap();
        device.start();
        let site = Self { device, _tpm: tpm };
        let config = site.device.path("config.toml");
        site.program("miaf-agent", &format!("exec {AGENT} --config {} \"$@\"", config.display()));
        // `systemctl reload miaf-agent`
        site.program("systemctl", &format!("kill -s HUP {}", site.device.pid()));
        site
    }

    fn program(&self, name: &str, commands: &str) {
        let file = self.device.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{commands}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a block of the page in the directory of the configuration.
    fn run(&self, label: &str) {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.device.path("bin").display());
        let commands = block(&format!("sh {label}"));
        let run = Command::new("sh")
            .args(["-ec", &commands])
            .current_dir(self.device.dir())
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{commands}\n{said}\n{}", self.device.log());
    }

    /// Puts a block of the page into a drop-in of its name.
    fn configure(&self, name: &str) {
        let file = self.device.path("config.d").join(format!("{name}.toml"));
        fs::write(file, block(&format!("toml {name}"))).unwrap();
    }

    /// Waits until the status of an identity has each line of a block of the page, or begins one so.
    fn shows(&self, identity: &str, label: &str) {
        let expected = block(&format!("text {label}"));
        self.device.wait_until(&expected, |device| {
            let output = device.run(&["status", "--identity", identity]);
            let status = String::from_utf8(output.stdout).unwrap();
            expected.lines().all(|line| status.lines().any(|shown| shown.starts_with(line)))
        });
    }
}

fn block(label: &str) -> String {
    page::block_of(PAGE, label)
}

#[test]
fn identities_document_leads_to_identities_without_an_mis() {
    let site = Site::start();
    fs::write(site.device.path("ca.cnf"), block("ini ca.cnf")).unwrap();
    site.run("ca");
    site.run("bundle");
    site.configure("wfm-client");
    // A device without an identity applies its configuration by itself; the reload comes on top.
    site.device.wait_until("the configuration", |device| {
        device.status_document()["identities"][0]["name"] == "wfm-client"
    });
    site.run("csr");
    site.shows("wfm-client", "waiting");
    site.run("sign");
    site.run("install");
    site.shows("wfm-client", "active");
    let document = site.device.status_document();
    assert!(document["lastError"].is_null(), "{document:#}");

    site.run("installed");
    site.configure("gateway");
    site.run("reload");
    site.shows("gateway", "installed");
    let authorized = site.device.path("state/svid/gateway/authorized.json");
    site.device.wait_until("authorized.json", |_| authorized.exists());

    site.run("remove");
    let retired = site.device.path("state/private/retired-1-gateway/identity.json");
    site.device.wait_until("it is retired", |_| retired.exists());
    site.shows("wfm-client", "active");
    assert!(!site.device.path("state/svid/gateway/current").exists());
}

#[test]
fn toml_of_the_identities_document_can_be_used() {
    let blocks: Vec<&str> =
        PAGE.split("```toml ").skip(1).map(|from| from.split("\n```").next().unwrap()).collect();
    assert!(blocks.len() >= 6, "{blocks:?}");
    for block in blocks {
        let (label, text) = block.split_once('\n').unwrap();
        if let Err(e) = Config::parse(text, Path::new("config.toml"), None) {
            panic!("{label}: {e}");
        }
    }
}
