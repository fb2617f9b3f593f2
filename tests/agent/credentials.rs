//! `docs/credentials.md`, run: in every section that has lines for the configuration, the commands
//! are carried out, the device is configured with the lines, enrolls, and its status says what the
//! page says.

use std::fs;
use std::process::Command;

use development_mis::{FactorySpec, Mis, Settings};

use crate::support::agent::Device;
use crate::support::swtpm::Swtpm;

const PAGE: &str = include_str!("../../docs/credentials.md");

macro_rules! sections {
    ($($name:ident: $title:literal,)*) => {
        $(#[test]
        fn $name() {
            follow($title);
        })*

        #[test]
        fn credentials_document_has_a_test_for_every_section() {
            let here: Vec<&str> = vec![$($title),*];
            let there: Vec<&str> =
                titles().into_iter().filter(|title| !blocks(title, "toml").is_empty()).collect();
            assert_eq!(here, there);
        }
    };
}

sections! {
    a_key_in_a_file: "A key in a file",
    a_key_in_the_older_forms: "A key in a file, in the older forms",
    rsa_in_a_file: "RSA in a file",
    intermediates_in_another_file: "A certificate with intermediates in another file",
    a_key_that_openssl_had_the_tpm_make: "A key that OpenSSL had the TPM make",
    the_same_with_rsa: "The same with RSA",
    a_key_with_a_password: "A key with a password",
    a_key_at_a_persistent_handle: "A key at a persistent handle of the TPM",
    a_p_384_key_at_a_persistent_handle: "A P-384 key at a persistent handle",
    an_rsa_key_at_a_persistent_handle: "An RSA key at a persistent handle, with a password",
    certificate_and_key_in_the_tpm: "Certificate and key in the TPM",
    anchors_in_a_file: "Anchors in a file",
    pins: "Pins",
    anchors_and_pins: "Anchors and pins",
    the_system_s_store: "The system's store",
    sealed_under_a_credential: "Sealed under a credential of systemd's",
    sealed_under_a_file: "Sealed under a file",
}

/// Does what a section says.
fn follow(title: &str) {
    let tpm = Swtpm::start();
    let mut device = Device::new("");
    manufacturer(&device);
    let directory = device.path("mis");
    let manufacturers = vec![device.path("manufacturer-ca.pem")];
    let mis = Mis::start(Settings { directory, factory_cas: manufacturers, ..Settings::default() }).unwrap();
    fs::copy(mis.ca_file(), device.path("mis-ca.pem")).unwrap();
    fs::copy(mis.server_cert(), device.path("mis-server.pem")).unwrap();

    let mut printed = String::new();
    for commands in blocks(title, "sh") {
        printed = run(&device, &tpm, &commands);
    }
    let lines = blocks(title, "toml").concat().replace("PIN", printed.trim());
    device.configure(&configuration(&mis, &tpm, &lines));
    if lines.contains("system_roots") {
        device.environment("SSL_CERT_FILE", device.path("mis-ca.pem").to_str().unwrap());
    }
    if device.path("kek").exists() {
        // What systemd does for LoadCredential.
        let credentials = device.path("credentials");
        fs::create_dir(&credentials).unwrap();
        fs::rename(device.path("kek"), credentials.join("kek")).unwrap();
        device.environment("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    }
    device.start();
    device.wait_for("active");

    let status = String::from_utf8(device.run(&["status"]).stdout).unwrap();
    let expected = blocks(title, "text");
    assert!(!expected.is_empty(), "the section does not say what to look for");
    for line in expected.concat().lines() {
        let line = line.replace("mis-ca.pem", device.path("mis-ca.pem").to_str().unwrap());
        assert!(status.contains(&line), "{line:?} is not in:\n{status}");
    }
}

/// What the section does not speak of is as usual.
fn configuration(mis: &Mis, tpm: &Swtpm, lines: &str) -> String {
    let (certificate, key) = mis.new_factory_credential_as("usual", &FactorySpec::default()).unwrap();
    let has = |section: &str| lines.contains(section);
    let mut config = format!(
        "state_dir = \"{{dir}}/state\"\n[mis]\ndiscovery_url = \"{}\"\n[socket]\npath = \"{{dir}}/run/agent.sock\"\n",
        mis.discovery_url()
    );
    if !has("[mis.trust]") {
        config.push_str("[mis.trust]\nca_file = \"mis-ca.pem\"\n");
    }
    if !has("[bootstrap]") {
        let (certificate, key) = (certificate.display(), key.display());
        config.push_str(&format!("[bootstrap]\ncert_file = \"{certificate}\"\nkey = \"file:{key}\"\n"));
    }
    if !has("[key]") {
        config.push_str(&format!("[key]\ntcti = \"{}\"\n", tpm.tcti()));
    }
    config + lines
}

fn manufacturer(device: &Device) {
    let subject = "/CN=Manufacturer";
    let arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let made = Command::new("openssl")
        .args(arguments)
        .args([
            "-subj",
            subject,
            "-days",
            "3650",
            "-keyout",
            "manufacturer-ca.key",
            "-out",
            "manufacturer-ca.pem",
        ])
        .current_dir(device.dir())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Runs commands as a person would type them, in the device's directory, and gives back what they
/// print.
fn run(device: &Device, tpm: &Swtpm, commands: &str) -> String {
    let script = format!("set -eu -o pipefail; umask 077; cd '{}'; {commands}", device.dir().display());
    tpm.run("bash", &["-c", &script])
}

fn titles() -> Vec<&'static str> {
    PAGE.lines().filter_map(|line| line.strip_prefix("### ")).collect()
}

/// The fenced blocks of a section in this language.
fn blocks(title: &str, language: &str) -> Vec<String> {
    let section = PAGE.split("\n### ").find_map(|section| section.strip_prefix(title)?.strip_prefix('\n'));
    let section = section.unwrap_or_else(|| panic!("no section {title:?}")).split("\n## ").next().unwrap();
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}
