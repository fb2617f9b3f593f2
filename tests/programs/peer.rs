//! The peer: a server with an ordinary certificate that demands one of the trust domain, `openssl
//! s_server`.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use crate::device::Device;
use crate::page;
use crate::process::{Running, output_of, wait_until};
use crate::support::directory::{directory, open_to_all};
use crate::support::ports;

/// Its name on the page, and here.
const ON_THE_PAGE: &str = "wfm.factory.example";

const CERTIFICATE: &str = "openssl req -x509 -days 1 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout wfm.key \
                           -out wfm.pem -subj /CN=wfm -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>&1";

pub(crate) struct Peer {
    port: u16,
    _server: Running,
    _dir: TempDir,
}

impl Peer {
    /// Starts it as the page says.
    pub(crate) fn start(device: &Device) -> Self {
        let dir = directory();
        output_of(Command::new("sh").args(["-c", CERTIFICATE]).current_dir(dir.path()));
        fs::copy(dir.path().join("wfm.pem"), device.path("wfm-ca.pem")).unwrap();
        open_to_all(&device.path("wfm-ca.pem"), 0o644);
        for _ in 0..20 {
            let port = ports::free();
            let log = dir.path().join(format!("{port}.log"));
            let says = device.here(&page::block("sh peer")).replace("8443", &format!("127.0.0.1:{port}"));
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec {says}")]).current_dir(dir.path());
            let mut server = Running::start(&mut command, &log);
            let listens = || fs::read_to_string(&log).is_ok_and(|says| says.contains("ACCEPT"));
            wait_until("openssl s_server", || server.has_ended() || listens());
            if !server.has_ended() {
                return Self { port, _server: server, _dir: dir };
            }
        }
        panic!("openssl s_server does not start");
    }

    /// The text with this server in place of the page's. It is connected to by address: not every
    /// machine can resolve "localhost", which is only a name to compare here.
    pub(crate) fn here(&self, text: &str) -> String {
        text.replace(&format!("{ON_THE_PAGE}:8443"), &format!("127.0.0.1:{}", self.port))
            .replace(ON_THE_PAGE, "localhost")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}
