//! The independent EST server of this directory, as a process.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::program::Program;
use crate::support::python;

/// The directory of the server.
pub(crate) const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/est-peer");

pub(crate) const ID: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";
pub(crate) const USER: &str = "line-7";
pub(crate) const SECRET: &str = "its:secret-4711";

/// The server gives this SPIFFE ID to whoever has the secret.
pub(crate) const TABLE: &[&str] = &["--user", USER, SECRET, ID];
/// It issues what the request asks for.
pub(crate) const COPIES: &[&str] = &["--user", USER, SECRET, "--copy-san"];
/// It issues certificates of a subject, and of nothing else.
pub(crate) const GENERIC: &[&str] = &["--user", USER, SECRET];

pub(crate) struct EstPeer {
    program: Program,
    /// Scheme, host and port.
    pub(crate) address: String,
    pub(crate) dir: PathBuf,
    _temporary: TempDir,
}

impl EstPeer {
    pub(crate) fn start(credentials: &[&str], options: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("est");
        let mut command = python::script(&format!("{DIRECTORY}/est.py"));
        command.arg("--directory").arg(&dir).args(credentials).args(options);
        let (program, address) = Program::serve(&mut command);
        Self { program, address, dir, _temporary: temporary }
    }

    /// The EST endpoint.
    pub(crate) fn url(&self) -> String {
        format!("{}/.well-known/est/factory", self.address)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Orders oddities for an operation: for so many requests, or until the next order.
    pub(crate) fn order(&mut self, at: &str, odd: &[&str], times: Option<u32>) {
        self.program.say(&json!({ "at": at, "odd": odd, "times": times }).to_string());
        let line = self
            .program
            .next("its word on the order", |line| line["ordered"].is_object() || line["error"].is_string());
        assert!(line["ordered"].is_object(), "{line}");
    }

    /// The next request for an operation.
    pub(crate) fn next(&mut self, operation: &str) -> Value {
        let end = format!("/{operation}");
        self.program.next(&format!("a request for {operation}"), |line| {
            line["request"].as_str().is_some_and(|request| request.ends_with(&end))
        })
    }

    /// The next request for an operation that ends with this status.
    pub(crate) fn next_with(&mut self, operation: &str, status: u16) -> Value {
        loop {
            let line = self.next(operation);
            if line["status"] == status {
                return line;
            }
        }
    }

    /// The requests for an operation so far.
    pub(crate) fn requests(&mut self, operation: &str) -> Vec<Value> {
        let end = format!("/{operation}");
        let is = |line: &&Value| line["request"].as_str().is_some_and(|request| request.ends_with(&end));
        self.program.said().iter().filter(is).cloned().collect()
    }

    /// Everything that it said so far.
    pub(crate) fn said(&mut self) -> &[Value] {
        self.program.said()
    }
}

impl Drop for EstPeer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines: Vec<_> = self.program.said().iter().map(Value::to_string).collect();
            eprintln!("--- what the EST server said ---\n{}\n--- end ---", lines.join("\n"));
        }
    }
}

/// Writes a file that only its owner reads.
pub(crate) fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
