//! The other end: a server with an ordinary certificate that demands one of the trust domain, `openssl s_server`.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use tempfile::TempDir;

use crate::device::Device;
use crate::page;
use crate::process::{Running, output_of, wait_until};

/// What it is called on the page, and here.
const ON_THE_PAGE: &str = "wfm.factory.example";

const CERTIFICATE: &str = "openssl req -x509 -days 1 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout wfm.key \
                           -out wfm.pem -subj /CN=wfm -addext subjectAltName=DNS:localhost 2>&1";

pub(crate) struct Peer {
    port: u16,
    _server: Running,
    _folder: TempDir,
}

impl Peer {
    /// Starts it as the page says.
    pub(crate) fn start(device: &Device) -> Self {
        let folder = tempfile::tempdir().unwrap();
        output_of(Command::new("sh").args(["-c", CERTIFICATE]).current_dir(folder.path()));
        fs::copy(folder.path().join("wfm.pem"), device.path("wfm-ca.pem")).unwrap();
        for _ in 0..20 {
            let port = free_port();
            let log = folder.path().join(format!("{port}.log"));
            let says = device.here(&page::block("sh peer")).replace("8443", &format!("127.0.0.1:{port}"));
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec {says}")]).current_dir(folder.path());
            let mut server = Running::start(&mut command, &log);
            let listens = || fs::read_to_string(&log).unwrap().contains("ACCEPT");
            wait_until("openssl s_server", || server.has_ended() || listens());
            if !server.has_ended() {
                return Self { port, _server: server, _folder: folder };
            }
        }
        panic!("openssl s_server does not start; its logs are in {}", folder.keep().display());
    }

    /// The text with this server in the place of the page's.
    pub(crate) fn here(&self, text: &str) -> String {
        text.replace(&format!("{ON_THE_PAGE}:8443"), &format!("localhost:{}", self.port))
            .replace(ON_THE_PAGE, "localhost")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
