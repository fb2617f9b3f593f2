//! Programs that tests start and talk to: lines of JSON on their standard output, lines on their standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::agent::PATIENCE;

/// A running program whose lines of JSON are read as they come.
pub(crate) struct Program {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    read: Vec<Value>,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn() // its stderr is the test's
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take().expect("its stdout"));
        Self { process, stdin, lines: lines_of(stdout), read: Vec::new() }
    }

    /// Starts a server whose first line is `listening on` its address, and returns it with that.
    pub(crate) fn serve(command: &mut Command) -> (Self, String) {
        let server = Self::start(command);
        let line = server.lines.recv_timeout(PATIENCE).expect("the address of the server");
        let address = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{command:?}: {line}"));
        (server, address.to_owned())
    }

    /// The next of its lines that is like this.
    pub(crate) fn next(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
                    self.read.push(line.clone());
                    if is(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("timed out waiting for {what}: {:#?}", self.read),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before {what}: {:#?}", self.read),
            }
        }
    }

    /// How many lines were read so far.
    pub(crate) fn read(&self) -> usize {
        self.read.len()
    }

    /// Everything that it has said so far.
    pub(crate) fn said(&mut self) -> &[Value] {
        self.read.extend(self.lines.try_iter().map(|line| serde_json::from_str(&line).expect("JSON")));
        &self.read
    }

    /// One empty line on its standard input.
    pub(crate) fn ask(&mut self) {
        self.say("");
    }

    /// One line on its standard input.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its stdin");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("it reads its stdin");
    }

    /// Its exit status after the end of its standard input.
    pub(crate) fn end(&mut self) -> i32 {
        self.stdin = None;
        let status = self.process.wait().expect("its exit status");
        self.read.extend(self.lines.iter().map(|line| serde_json::from_str(&line).expect("JSON")));
        status.code().expect("it was not killed")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
