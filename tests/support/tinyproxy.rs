//! A real HTTP proxy of one's own for a test: tinyproxy on a free loopback port, gone when dropped.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::agent::pause;

/// A running (or stopped) proxy.
pub(crate) struct Tinyproxy {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Tinyproxy {
    /// Starts one that connects to this port only; `more` are further lines of its configuration.
    ///
    /// # Panics
    /// If `tinyproxy` is not installed.
    pub(crate) fn start(to: u16, more: &str) -> Self {
        let mut proxy = Self::stopped();
        for _ in 0..20 {
            proxy.port = free_port();
            if proxy.try_start(to, more) {
                return proxy;
            }
        }
        panic!("tinyproxy does not start: {}", proxy.log());
    }

    /// One that does not run yet, at an address where nothing is.
    pub(crate) fn stopped() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder for the proxy"),
            port: free_port(),
            process: None,
        }
    }

    /// Starts it at the address that it has.
    pub(crate) fn try_start(&mut self, to: u16, more: &str) -> bool {
        let file = self.folder.path().join("tinyproxy.conf");
        let log = self.folder.path().join("tinyproxy.log");
        let config = format!(
            "Port {}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 60\nConnectPort {to}\nLogFile \"{}\"\n\
             LogLevel Connect\n{more}\n",
            self.port,
            log.display(),
        );
        fs::write(&file, config).expect("the configuration is written");
        let mut command = Command::new("tinyproxy");
        command
            .arg("-d")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process =
            command.spawn().expect("tinyproxy is needed for this test: apt install tinyproxy-bin");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(process.try_wait(), Ok(Some(_))) {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
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

    /// How many tunnels it was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.log().matches(": CONNECT ").count()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("tinyproxy.log")).unwrap_or_default()
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

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).expect("a free port").local_addr().expect("its number").port()
}
