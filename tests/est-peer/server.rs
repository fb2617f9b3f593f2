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

/// The server gives this SPIFFE ID to the client that has the secret.
pub(crate) const TABLE: &[&str] = &["--user", USER, SECRET, ID];
/// It issues what the request asks for.
pub(crate) const COPIES: &[&str] = &["--user", USER, SECRET, "--copy-san"];
/// It issues certificates of a subject, and of nothing else.
pub(crate) const GENERIC: &[&str] = &["--user", USER, SECRET];

pub(crate) struct EstPeer {
    program: Program,
    /// How many of its lines [`Self::next`] has passed.
    passed: usize,
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
        Self { program, passed: 0, address, dir, _temporary: temporary }
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
        self.passed = self.program.read();
    }

    /// The next request for an operation since the last order.
    pub(crate) fn next(&mut self, operation: &str) -> Value {
        let is = |line: &Value| is_for(line, operation);
        if let Some(at) = self.program.said().iter().skip(self.passed).position(is) {
            self.passed += at + 1;
            return self.program.said()[self.passed - 1].clone();
        }
        let line = self.program.next(&format!("a request for {operation}"), is);
        self.passed = self.program.read();
        line
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
        self.program.said().iter().filter(|line| is_for(line, operation)).cloned().collect()
    }

    /// Everything that it said so far.
    pub(crate) fn said(&mut self) -> &[Value] {
        self.program.said()
    }
}

fn is_for(line: &Value, operation: &str) -> bool {
    line["request"]
        .as_str()
        .and_then(|request| request.rsplit_once('/'))
        .is_some_and(|(_, last)| last == operation)
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
