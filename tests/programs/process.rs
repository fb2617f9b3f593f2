//! Programs in the background.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::agent::{PATIENCE, pause};
use crate::support::log::Log;

/// A program that ends with this value. What it wrote is shown if the test fails.
pub(crate) struct Running {
    process: Child,
    log: Log,
}

impl Running {
    /// Starts the program; its output goes to this file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).collect();
        let name = words.join(" ".as_ref()).to_string_lossy().into_owned();
        let log = Log::new(&name, log.to_owned());
        command.stdin(Stdio::null()).stdout(log.to_append()).stderr(log.to_append());
        let process = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}; run scripts/setup"));
        Self { process, log }
    }

    /// Its output.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until `holds` is true.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        pause();
    }
}

/// Output of a program, which must succeed.
pub(crate) fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{:?}: {e}", command.get_program()));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}\n{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed
}
