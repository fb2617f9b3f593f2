//! A real HTTP proxy of one's own for a test: tinyproxy on a free loopback port, gone when dropped.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use super::agent::{PATIENCE, pause};
use super::directory::directory;
use super::log::Log;
use super::ports;

/// A running (or stopped) proxy.
pub(crate) struct Tinyproxy {
    process: Option<Child>,
    log: Log, // before its directory: it is read when it is dropped
    directory: TempDir,
    port: u16,
}

impl Tinyproxy {
    /// Starts one that connects to this port only; `more` are further lines of its configuration.
    ///
    /// # Panics
    /// If `tinyproxy` is not installed.
    pub(crate) fn start(to: u16, more: &str) -> Self {
        let mut proxy = Self::stopped();
        for _ in 0..20 {
            proxy.port = ports::free();
            if proxy.try_start(to, more) {
                return proxy;
            }
        }
        panic!("tinyproxy does not start");
    }

    /// One that does not run yet, at an address where nothing is.
    pub(crate) fn stopped() -> Self {
        let directory = directory();
        let log = Log::new("tinyproxy", directory.path().join("tinyproxy.log"));
        Self { process: None, log, directory, port: ports::free() }
    }

    /// Starts it at the address that it has.
    pub(crate) fn try_start(&mut self, to: u16, more: &str) -> bool {
        let file = self.directory.path().join("tinyproxy.conf");
        let config = format!(
            "Port {}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 60\nConnectPort {to}\nLogFile \"{}\"\n\
             LogLevel Connect\n{more}\n",
            self.port,
            self.log.path().display(),
        );
        fs::write(&file, config).expect("the configuration is written");
        let mut command = Command::new("tinyproxy");
        command
            .arg("-d")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(self.log.to_append())
            .stderr(self.log.to_append());
        let mut process =
            command.spawn().expect("tinyproxy is needed for this test: apt install tinyproxy-bin");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if matches!(process.try_wait(), Ok(Some(_))) {
                return false;
            }
            if ports::is_of(self.port, process.id()) {
                self.process = Some(process);
                return true;
            }
            pause();
        }
        let _ = process.kill();
        let _ = process.wait();
        false
    }

    /// `http://127.0.0.1:PORT`, with something before the address (`user:password@`).
    pub(crate) fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    /// The number of tunnels that were requested.
    pub(crate) fn asked(&self) -> usize {
        self.log().matches(": CONNECT ").count()
    }

    pub(crate) fn log(&self) -> String {
        self.log.text()
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
