//! The program: what it prints, and that it ends on a signal.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_development-mis");

#[test]
fn mis_prints_help_listens_and_ends_on_a_signal() {
    for signal in ["INT", "TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("mis");
        let mut child = Command::new(PROGRAM)
            .args(["--listen", "127.0.0.1:0", "--svid-lifetime", "60s", "--directory"])
            .arg(&directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut intro = Vec::new();
        let url = loop {
            let line = lines.next().unwrap();
            match line.strip_prefix("listening on ") {
                Some(url) => break url.to_owned(),
                None => intro.push(line),
            }
        };
        assert!(intro.contains(&format!("discovery_url = \"{url}/.well-known/margo\"")));
        assert!(intro.contains(&"[bootstrap]".to_owned()) && !intro.contains(&"[identity.est]".to_owned()));
        let port = url.rsplit_once(':').unwrap().1;
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        let id = child.id().to_string();
        assert!(
            Command::new("sh").args(["-c", &format!("kill -s {signal} {id}")]).status().unwrap().success()
        );
        assert!(child.wait().unwrap().success());
        assert_eq!(lines.last().as_deref(), Some("ended"));
    }
}

/// A system without /etc/hosts does not resolve `localhost`.
#[test]
fn default_urls_need_no_name_resolution() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("mis");
    let mut child = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--directory"])
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let url = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
    let address = url.strip_prefix("https://").unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{url}");
    let handshake = Command::new("openssl")
        .args(["s_client", "-connect", address, "-verify_ip", "127.0.0.1", "-verify_return_error", "-CAfile"])
        .arg(directory.join("tls-ca.pem"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(handshake.status.success(), "{}", String::from_utf8_lossy(&handshake.stderr));
}

#[test]
fn directory_can_be_created_alone() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("mis");
    let make = |more: &[&str]| {
        Command::new(PROGRAM)
            .arg("--directory")
            .arg(&directory)
            .arg("--pki-only")
            .args(more)
            .output()
            .unwrap()
    };
    assert!(make(&["--device", "two"]).status.success());
    for file in ["tls-ca.pem", "factory-ca.pem", "factory.pem", "factory.key", "factory-two.key"] {
        assert!(directory.join(file).exists(), "{file}");
    }
    let refused = make(&["--mode", "intermediate"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8(refused.stderr).unwrap().contains("use the same settings"));
}

/// The blocks of the README that enroll and renew over EST with curl and OpenSSL.
#[test]
fn readme_enrolls_over_est() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("mis");
    let mut child = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--est", "--directory"])
        .arg(&directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let url = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
    let section = include_str!("../README.md").split_once("## Enroll over EST").unwrap().1;
    let section = section.split_once("\n## ").unwrap().0;
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let script = blocks.collect::<String>() + "printf '%s' \"$token\" >token\n";
    let script = script
        .replace("target/debug/development-mis", PROGRAM)
        .replace("/tmp/mis", directory.to_str().unwrap())
        .replace("https://127.0.0.1:8443", &url);
    let run =
        Command::new("bash").args(["-euo", "pipefail", "-c", &script]).current_dir(&dir).output().unwrap();
    let admin = |request: &str| {
        Command::new(PROGRAM).args(["admin", "--directory"]).arg(&directory).arg(request).output().unwrap()
    };
    let record = admin("{\"command\": \"record\"}");
    let wrong = admin("{\"command\": \"rcord\"}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let record = String::from_utf8(record.stdout).unwrap();
    let id = "spiffe://factory.example/margo/wfm/wfm-1/client/client-1";
    assert_eq!(record.matches(id).count(), 2, "{record}");
    assert!(!wrong.status.success());
    // What the program prints has no secret.
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    let secret = token.split_once(':').unwrap().1;
    let printed = lines.collect::<Vec<_>>().join("\n");
    assert!(printed.contains("/simpleenroll -> 200 client=none authorization"), "{printed}");
    assert!(!printed.contains(secret) && !record.contains(secret));
    // Nothing listens any more.
    let gone = admin("{\"command\": \"record\"}");
    assert!(String::from_utf8(gone.stderr).unwrap().contains("is the MIS running?"));
}

#[test]
fn readme_has_every_switch() {
    let help = |arguments: &[&str]| {
        String::from_utf8(Command::new(PROGRAM).args(arguments).output().unwrap().stdout).unwrap()
    };
    let help = [help(&["--help"]), help(&["mint", "--help"]), help(&["token", "--help"])].concat();
    let readme = include_str!("../README.md");
    let switches: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(
        switches.contains(&"directory") && switches.contains(&"svid-lifetime") && switches.contains(&"csr"),
        "{switches:?}"
    );
    for switch in switches {
        assert!(readme.contains(&format!("`--{switch}")), "--{switch}");
    }
}
