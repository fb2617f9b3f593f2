//! Client programs of the agent, and what they report: a line of JSON on standard output for each
//! event.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Backoff of these clients reaches some ten seconds while the agent is away, and the machine may
/// be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whether `tests/interop/run` has built the clients in this language.
pub(crate) fn has(language: &str) -> bool {
    let built = std::env::var("INTEROP").expect("INTEROP names the languages: start this with make interop");
    built.split_whitespace().any(|one| one == language)
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop")
}

pub(crate) fn go(arguments: &[&str]) -> Command {
    let mut command = Command::new(target().join("go/interop"));
    command.args(arguments);
    command
}

/// `examples/go/mtls-client`
pub(crate) fn go_example(arguments: &[&str]) -> Command {
    let mut command = Command::new(target().join("go/mtls-client"));
    command.args(arguments);
    command
}

pub(crate) fn java(arguments: &[&str]) -> Command {
    let mut command = Command::new("java");
    command.arg("-cp").arg(format!("{0}/java/classes:{0}/java/lib/*", target().display()));
    command.arg("Interop").args(arguments);
    command
}

pub(crate) fn node(arguments: &[&str]) -> Command {
    let mut command = Command::new("node");
    command.arg(target().join("node/clients.mjs")).args(arguments);
    command
}

/// The clients of one device.
#[derive(Default)]
pub(crate) struct Clients {
    reports: Arc<(Mutex<Vec<Value>>, Condvar)>,
    /// Names of the clients that report serial numbers, and of those that report trust anchors.
    with_serial: BTreeSet<String>,
    with_anchors: BTreeSet<String>,
}

/// A program. It is killed when dropped.
pub(crate) struct Client {
    process: Child,
    stdin: Option<ChildStdin>,
    reports: Arc<(Mutex<Vec<Value>>, Condvar)>,
    id: u32,
}

impl Clients {
    pub(crate) fn start(&self, mut command: Command, errors: &Path) -> Client {
        let log = File::options().create(true).append(true).open(errors).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take().unwrap());
        let (id, reports) = (process.id(), Arc::clone(&self.reports));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(mut line) = serde_json::from_str::<Value>(&line) else { continue };
                line["pid"] = id.into();
                println!("{line}");
                reports.0.lock().unwrap().push(line);
                reports.1.notify_all();
            }
        });
        Client { process, stdin, reports: Arc::clone(&self.reports), id }
    }

    /// Adds a client to those that are waited for.
    pub(crate) fn expect(&mut self, name: &str, serial: bool, anchors: bool) {
        self.with_serial.extend(serial.then(|| name.to_owned()));
        self.with_anchors.extend(anchors.then(|| name.to_owned()));
    }

    /// Waits until the last reports of all of them have this SVID and this number of trust anchors.
    pub(crate) fn all_see(&self, serial: &str, anchors: usize) {
        let digits: String = serial.chars().filter(char::is_ascii_hexdigit).collect();
        let serial = digits.trim_start_matches('0').to_lowercase();
        for name in &self.with_serial {
            self.wait_for(&format!("the SVID {serial} at {name}"), |reports| {
                last(reports, name, "serial").is_some_and(|one| one == serial.as_str())
            });
        }
        for name in &self.with_anchors {
            self.wait_for(&format!("{anchors} trust anchors at {name}"), |reports| {
                last(reports, name, "anchors").is_some_and(|one| one.as_array().unwrap().len() == anchors)
            });
        }
    }

    /// The trust anchors that all of them have.
    pub(crate) fn anchors(&self) -> Value {
        let reports = self.reports.0.lock().unwrap();
        let all: BTreeSet<_> = self
            .with_anchors
            .iter()
            .map(|name| last(&reports, name, "anchors").unwrap().to_string())
            .collect();
        assert_eq!(all.len(), 1, "they do not have the same: {all:?}");
        serde_json::from_str(all.first().unwrap()).unwrap()
    }

    /// The first line that matches.
    pub(crate) fn find(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, |reports| reports.iter().any(&is_it));
        self.reports.0.lock().unwrap().iter().find(|line| is_it(line)).unwrap().clone()
    }

    /// The last line of this name.
    pub(crate) fn latest(&self, name: &str) -> Value {
        let reports = self.reports.0.lock().unwrap();
        reports.iter().rfind(|line| line["client"] == name).cloned().unwrap_or_default()
    }

    /// Waits until `holds` is true of the reports. A handshake that failed ends the test at once.
    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&[Value]) -> bool) {
        wait(&self.reports, what, holds);
    }
}

impl Client {
    /// Number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Address of a server: `listening` in its report.
    pub(crate) fn address(&self) -> String {
        let mine = |line: &&Value| line["pid"] == self.id && line["listening"].is_string();
        wait(&self.reports, "a server", |reports| reports.iter().any(|line| mine(&line)));
        let reports = self.reports.0.lock().unwrap();
        reports.iter().find(mine).unwrap()["listening"].as_str().unwrap().to_owned()
    }

    pub(crate) fn send(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Ends the program, and returns the number of its handshakes. None of them may have failed.
    pub(crate) fn handshakes(mut self) -> u64 {
        drop(self.stdin.take());
        let mine = |line: &&Value| line["pid"] == self.id && line["handshakes"].is_u64();
        wait(&self.reports, "the number of handshakes", |reports| reports.iter().any(|line| mine(&line)));
        let reports = self.reports.0.lock().unwrap();
        let counts = reports.iter().find(mine).unwrap();
        assert_eq!(counts["failures"], 0, "{counts}");
        counts["handshakes"].as_u64().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn last<'a>(reports: &'a [Value], name: &str, member: &str) -> Option<&'a Value> {
    reports.iter().rfind(|line| line["client"] == name && !line[member].is_null()).map(|line| &line[member])
}

fn wait(reports: &(Mutex<Vec<Value>>, Condvar), what: &str, holds: impl Fn(&[Value]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut lines = reports.0.lock().unwrap();
    loop {
        if let Some(failed) = lines.iter().find(|line| line["failed"].is_string()) {
            panic!("while waiting for {what}: {failed}");
        }
        if holds(&lines) {
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let tail: Vec<_> = lines.iter().rev().take(60).rev().map(Value::to_string).collect();
            panic!("timed out waiting for {what}; the last lines:\n{}", tail.join("\n"));
        }
        lines = reports.1.wait_timeout(lines, left).unwrap().0;
    }
}
