//! docs/est.md, followed: identities that enroll over EST by a token in a file, a token by command and
//! a certificate, and one under a static bundle. The MIS is the program `development-mis`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::page;
use crate::site::{self, Site};
use crate::support::agent::{AGENT, Device};
use crate::support::log::Log;

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

/// Starts a device, and an MIS next to it.
fn start(arguments: &[&str]) -> (Site, Mis) {
    let mut site = Site::new(PAGE);
    site.program("development-mis", &format!("exec {} \"$@\"", program().display()));
    let mis = Mis::start(&site.device, arguments);
    for (from, to) in
        [("tls-ca.pem", "mis-ca.pem"), ("factory.pem", "factory.pem"), ("factory.key", "factory.key")]
    {
        fs::copy(site.device.path("mis").join(from), site.device.path(to)).unwrap();
    }
    // `systemctl reload miaf-agent` returns when the agent has applied the configuration.
    site.start(
        "all=$(cat config.d/*.toml | grep -c '^\\[\\[identity')\n\
         until [ \"$(miaf-agent status | grep -c '^Identity ')\" = \"$all\" ]; do sleep 0.1; done",
    );
    (site, mis)
}

/// Configures as a block of the page does, with the address of this MIS.
fn configure(site: &Site, mis: &Mis, name: &str) {
    site.configure_with(name, |text| {
        text.replace("https://mis.factory.example", &mis.url).replace("https://est.factory.example", &mis.url)
    });
}

#[test]
fn est_document_leads_to_identities_by_token_and_certificate() {
    let (site, mis) = start(&[]);
    configure(&site, &mis, "est");
    // A device without an identity applies its configuration by itself.
    site.shows("line-7", "waiting");
    site.follow("token");
    site.follow("deliver");
    site.shows("line-7", "active");

    configure(&site, &mis, "command");
    site.follow("command");
    site.shows("line-8", "command");

    configure(&site, &mis, "certificate");
    site.follow("certificate");
    site.shows("line-9", "certificate");

    let document = site.device.status_document();
    assert!(document["lastError"].is_null(), "{document:#}");
    for identity in document["identities"].as_array().unwrap() {
        assert!(identity["lastError"].is_null(), "{document:#}");
    }
}

/// What the MIS prints when it starts: a configuration, and the commands for a token.
#[test]
fn printed_configuration_enrolls_over_est() {
    let (site, mis) = start(&[]);
    let said = mis.log.text();
    let config = said.split_once("A config.toml for an installed agent:\n").unwrap().1;
    let (config, token) = config.split_once("\nIn the directory of that config.toml").unwrap();
    assert!(!config.contains("[bootstrap]"), "{config}");
    fs::remove_file(site.device.path("mis-ca.pem")).unwrap(); // it comes with the commands
    fs::write(site.device.path("config.d/printed.toml"), config).unwrap();
    let commands = token.split_once("\n\n").unwrap().1.split("\nlistening on").next().unwrap();
    site.run(commands);
    site.shows("line-7", "active");
}

#[test]
fn est_document_leads_to_an_identity_under_a_static_bundle() {
    let (site, mis) = start(&["--est-names-in-csr"]);
    fs::copy(site.device.path("mis/trust-domain/root-1.pem"), site.device.path("ca.pem")).unwrap();
    site.run(&page::block_of(IDENTITIES, "sh bundle"));
    configure(&site, &mis, "foreign");
    site.shows("line-7", "waiting");
    site.follow("token");
    site.follow("deliver");
    site.shows("line-7", "foreign");
}

#[test]
fn toml_of_the_est_document_can_be_used() {
    site::assert_toml_of(PAGE);
}
