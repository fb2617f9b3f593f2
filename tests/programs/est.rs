//! docs/est.md, followed: identities that enroll over EST by a token in a file, a token by command and
//! a certificate, and one under a static bundle. The MIS is the program `development-mis`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use miaf_agent::config::Config;

use crate::page;
use crate::support::agent::{AGENT, Device};
use crate::support::log::Log;
use crate::support::swtpm::Swtpm;

const PAGE: &str = include_str!("../../docs/est.md");
const IDENTITIES: &str = include_str!("../../docs/identities.md");

/// The development MIS as a process of its own.
struct Mis {
    process: Child,
    log: Log,
    url: String,
}

impl Mis {
    /// `directory` is the current one of the process, which has its own in `mis`.
    fn start(device: &Device, arguments: &[&str]) -> Self {
        let log = Log::new("the MIS", device.path("mis.log"));
        let process = Command::new(program())
            .args(["--directory", "mis", "--listen", "127.0.0.1:0", "--refresh-hint", "5s", "--est"])
            .args(arguments)
            .current_dir(device.dir())
            .stdin(Stdio::null())
            .stdout(log.to_append())
            .stderr(log.to_append())
            .spawn()
            .unwrap();
        let mut mis = Self { process, log, url: String::new() };
        device.wait_until("the MIS", |_| {
            let said = mis.log.text();
            let url = said.lines().find_map(|line| line.strip_prefix("listening on "));
            url.is_some_and(|url| {
                mis.url = url.to_owned();
                true
            })
        });
        mis
    }
}

impl Drop for Mis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program, which is built with the binaries of the workspace.
fn program() -> PathBuf {
    let program = Path::new(AGENT).with_file_name("development-mis");
    assert!(program.exists(), "build it: cargo build --package development-mis");
    program
}

/// A device whose directory is that of its configuration, and an MIS next to it.
struct Site {
    device: Device,
    mis: Mis,
    _tpm: Swtpm,
}

impl Site {
    fn start(arguments: &[&str]) -> Self {
        let tpm = Swtpm::start();
        let mut device = Device::new(&format!(
            "state_dir = \"{{dir}}/state\"\n[key]\ntcti = \"{}\"\n[socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n[bundle]\nrefresh = \"1s\"\n",
            tpm.tcti()
        ));
        let mis = Mis::start(&device, arguments);
        for (from, to) in
            [("tls-ca.pem", "mis-ca.pem"), ("factory.pem", "factory.pem"), ("factory.key", "factory.key")]
        {
            fs::copy(device.path("mis").join(from), device.path(to)).unwrap();
        }
        fs::create_dir(device.path("config.d")).unwrap();
        fs::create_dir(device.path("bin")).unwrap();
        device.start();
        let site = Self { device, mis, _tpm: tpm };
        let config = site.device.path("config.toml");
        site.program("miaf-agent", &format!("exec {AGENT} --config {} \"$@\"", config.display()));
        site.program("development-mis", &format!("exec {} \"$@\"", program().display()));
        // `systemctl reload miaf-agent` returns when the agent has applied the configuration.
        let reload = format!(
            "kill -s HUP {}\nall=$(cat config.d/*.toml | grep -c '^\\[\\[identity')\n\
             until [ \"$(miaf-agent status | grep -c '^Identity ')\" = \"$all\" ]; do sleep 0.1; done",
            site.device.pid()
        );
        site.program("systemctl", &reload);
        site
    }

    fn program(&self, name: &str, commands: &str) {
        let file = self.device.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{commands}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs commands in the directory of the configuration.
    fn run(&self, commands: &str) {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.device.path("bin").display());
        let run = Command::new("sh")
            .args(["-ec", commands])
            .current_dir(self.device.dir())
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{commands}\n{said}\n{}", self.device.log());
    }

    /// Runs a block of the page.
    fn follow(&self, label: &str) {
        self.run(&block(&format!("sh {label}")));
    }

    /// Puts a block of the page into a drop-in of its name, with the address of this MIS.
    fn configure(&self, name: &str) {
        let text = block(&format!("toml {name}"))
            .replace("https://mis.factory.example", &self.mis.url)
            .replace("https://est.factory.example", &self.mis.url);
        let config_d = self.device.path("config.d");
        let file = config_d.join(format!(".{name}"));
        fs::write(&file, text).unwrap();
        fs::rename(file, config_d.join(format!("{name}.toml"))).unwrap();
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
fn est_document_leads_to_identities_by_token_and_certificate() {
    let site = Site::start(&[]);
    site.configure("est");
    // A device without an identity applies its configuration by itself.
    site.shows("line-7", "waiting");
    site.follow("token");
    site.follow("deliver");
    site.shows("line-7", "active");

    site.configure("command");
    site.follow("command");
    site.shows("line-8", "command");

    site.configure("certificate");
    site.follow("certificate");
    site.shows("line-9", "certificate");

    let document = site.device.status_document();
    assert!(document["lastError"].is_null(), "{document:#}");
    for identity in document["identities"].as_array().unwrap() {
        assert!(identity["lastError"].is_null(), "{document:#}");
    }
}

#[test]
fn est_document_leads_to_an_identity_under_a_static_bundle() {
    let site = Site::start(&["--est-names-in-csr"]);
    fs::copy(site.device.path("mis/trust-domain/root-1.pem"), site.device.path("ca.pem")).unwrap();
    site.run(&page::block_of(IDENTITIES, "sh bundle"));
    site.configure("foreign");
    site.shows("line-7", "waiting");
    site.follow("token");
    site.follow("deliver");
    site.shows("line-7", "foreign");
}

#[test]
fn toml_of_the_est_document_can_be_used() {
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
