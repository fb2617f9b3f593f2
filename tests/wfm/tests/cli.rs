//! The program: what it prints, and that it ends on a signal.

use development_mis::{Mis, Settings};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_development-wfm");

#[test]
fn wfm_listens_and_ends_on_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mis = Mis::start(Settings { directory: dir.path().join("mis"), ..Settings::default() }).unwrap();
    let (chain, key) = mis.mint_wfm("w1").unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--base-path", "/v1alpha2/margo", "--mis", &mis.url(), "--svid"])
        .arg(chain)
        .arg("--key")
        .arg(key)
        .arg("--bundle")
        .arg(mis.bundle_file().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("spiffe://factory.example/margo/wfm/w1."));
    let url = lines.next().unwrap();
    let url = url.strip_prefix("listening on https://127.0.0.1:").unwrap();
    let port: u16 = url.strip_suffix("/v1alpha2/margo").unwrap().parse().unwrap();
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let id = child.id().to_string();
    assert!(Command::new("sh").args(["-c", &format!("kill -s TERM {id}")]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert_eq!(lines.last().as_deref(), Some("ended"));
}

#[test]
fn readme_has_every_switch() {
    let help = String::from_utf8(Command::new(PROGRAM).arg("--help").output().unwrap().stdout).unwrap();
    let readme = include_str!("../README.md");
    let switches: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(switches.contains(&"svid") && switches.contains(&"mis"), "{switches:?}");
    for switch in switches {
        assert!(readme.contains(&format!("`--{switch}")), "--{switch}");
    }
}
