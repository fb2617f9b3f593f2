//! A software TPM for one test: own state directory, own ports, removed when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::agent::{PATIENCE, pause};
use super::directory::directory;
use super::log::Log;
use super::ports;

/// A running (or stopped) swtpm.
pub(crate) struct Swtpm {
    process: Option<Child>,
    log: Log, // before its directory: it is read when it is dropped
    directory: TempDir,
    port: u16,
}

impl Swtpm {
    /// Starts a new TPM with an empty state.
    ///
    /// # Panics
    /// If `swtpm` is not installed: a test without a TPM would prove nothing.
    pub(crate) fn start() -> Self {
        let installed = Command::new("swtpm").arg("--version").stdout(Stdio::null()).status();
        assert!(
            installed.is_ok(),
            "swtpm is needed for this test: apt install swtpm tpm2-tools tpm2-openssl"
        );

        let directory = directory();
        let log = Log::new("swtpm", directory.path().join("swtpm.log"));
        let mut tpm = Self { process: None, log, directory, port: 0 };
        for _ in 0..50 {
            tpm.port = ports::free_in_a_row(2);
            if tpm.try_boot() {
                return tpm;
            }
        }
        panic!("swtpm does not start");
    }

    /// The `tcti` setting that reaches it; tpm2-tools take the same.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// A path in the TPM's directory, for files of the test.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Cuts its power.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Gives it power again, with the state it had.
    pub(crate) fn boot(&mut self) {
        assert!(self.try_boot(), "swtpm does not start again on port {}", self.port);
    }

    /// Power cut and restart.
    pub(crate) fn power_cycle(&mut self) {
        self.stop();
        self.boot();
    }

    /// Makes it stop answering (`STOP`) or go on (`CONT`).
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.as_ref().expect("a running swtpm").id().to_string();
        let status = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().expect("sh");
        assert!(status.success());
    }

    /// Runs a program against this TPM, in its directory, and gives back what it prints.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`Swtpm::run`], for programs that may fail.
    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        clean_command(program)
            .args(arguments)
            .current_dir(self.directory.path())
            .env("TPM2TOOLS_TCTI", self.tcti())
            .env("TPM2OPENSSL_TCTI", self.tcti())
            .env("TSS2_LOG", "all+none")
            .output()
            .expect("bash")
    }

    /// Flushes what a killed process left in it, as the kernel's resource manager does for a
    /// hardware TPM.
    pub(crate) fn flush(&self) {
        self.run("tpm2_flushcontext", &["--transient-object"]);
    }

    /// How many transient objects it holds.
    pub(crate) fn transient_handles(&self) -> usize {
        self.run("tpm2_getcap", &["handles-transient"]).lines().filter(|line| line.contains("0x8")).count()
    }

    fn try_boot(&mut self) -> bool {
        let child = clean_command("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", path(self.directory.path()))])
            .args(["--server", &format!("type=tcp,port={}", self.port)])
            .args(["--ctrl", &format!("type=tcp,port={}", self.port + 1)])
            .stdin(Stdio::null())
            .stdout(self.log.to_append())
            .stderr(self.log.to_append())
            .spawn()
            .expect("bash");
        let process = self.process.insert(child);

        let since = Instant::now();
        while since.elapsed() < PATIENCE && matches!(process.try_wait(), Ok(None)) {
            if ports::is_of(self.port, process.id()) {
                return true;
            }
            pause();
        }
        self.stop();
        false
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.stop();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A program that inherits no open files. The TSS opens its connections without close-on-exec; a
/// swtpm or a tool that another thread starts at that moment would hold them open for ever, and
/// swtpm serves one connection at a time.
fn clean_command(program: &str) -> Command {
    const CLOSE_AND_EXEC: &str = r#"
        for fd in /proc/$$/fd/*; do fd=${fd##*/}; if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi; done
        exec "$0" "$@""#;
    let mut command = Command::new("bash");
    command.args(["-c", CLOSE_AND_EXEC, program]);
    command
}
