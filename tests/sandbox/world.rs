//! A device, and the released MIS of its trust domain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::program;
use crate::support::agent::Device;
use crate::support::program::Program;

pub(crate) const CLIENT: &str = "spiffe://margo.org/margo/wfm/wfm-1/client/line-7";
pub(crate) const WFM: &str = "spiffe://margo.org/margo/wfm/wfm-1";

/// The identity of the released client: a software key, as it reads its key from a file.
pub(crate) const IDENTITY: &str =
    "[[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\nkey.provider = \"software\"\n";

/// The released MIS: its server, and the directory with its authorities.
pub(crate) struct Mis {
    pub(crate) server: Program,
    /// `https://HOST:PORT` that the server listens on.
    pub(crate) url: String,
    pub(crate) dir: PathBuf,
    _temporary: TempDir,
}

impl Mis {
    /// On loopback, and its documents say so.
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {}, &["--host", "127.0.0.1", "--url-host", "127.0.0.1"])
    }

    /// With these options, in a directory that is prepared before.
    pub(crate) fn start_with(prepare: impl FnOnce(&Path), options: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("mis");
        fs::create_dir(&dir).unwrap();
        prepare(&dir);
        let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> =
            vec![&"serve", &"--directory", &dir, &"--port", &"0"];
        arguments.extend(options.iter().map(|option| option as &dyn AsRef<std::ffi::OsStr>));
        let (server, url) = program::serve("mis.py", &arguments);
        Self { server, url, dir, _temporary: temporary }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Mints an SVID with a new key: its certificate and key files.
    pub(crate) fn mint(&self, name: &str, id: &str) -> (PathBuf, PathBuf) {
        let dir = self.output(name);
        program::run(
            "mis.py",
            &[&"mint", &"x509", &"--directory", &self.dir, &"--spiffeID", &id, &"--outputDir", &dir],
        );
        (dir.join("payload-cert.pem"), dir.join("payload-key.pem"))
    }

    /// Mints the SVID of a certification request.
    pub(crate) fn sign(&self, csr: &Path) -> PathBuf {
        sign(&self.dir, csr, &self.output("signed"))
    }

    fn output(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The path of the next request that it responds to, and the status.
    pub(crate) fn next_request(&mut self, to: &str) -> u64 {
        let wanted = format!("GET {to}");
        let line = self.server.next(&wanted, |line| line["request"] == wanted.as_str());
        line["status"].as_u64().unwrap()
    }
}

/// `mis mint x509 --csrPath`, with the authority in a directory.
pub(crate) fn sign(authority: &Path, csr: &Path, output: &Path) -> PathBuf {
    program::run(
        "mis.py",
        &[&"mint", &"x509", &"--directory", &authority, &"--csrPath", &csr, &"--outputDir", &output],
    );
    output.join("payload-cert.pem")
}

pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) mis: Mis,
    memory: TempDir,
}

impl World {
    /// A device of this MIS, whose agent is not started yet.
    pub(crate) fn of(mis: Mis) -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let world = Self { device: Device::new(""), mis, memory };
        world.configure(&world.discovery(), IDENTITY);
        world
    }

    /// The usual way to the MIS.
    pub(crate) fn discovery(&self) -> String {
        format!("discovery_url = \"{}/.well-known/margo\"\n", self.mis.url)
    }

    /// Configures the device with these lines under `[mis]`, and these identities.
    pub(crate) fn configure(&self, mis: &str, identities: &str) {
        self.device.configure(&format!(
            "state_dir = \"{{dir}}/state\"\n\
             [mis]\n{mis}\
             [mis.trust]\nca_file = \"{}\"\n\
             [files]\nsoftware_key_dir = \"{}\"\n\
             [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n\
             [bundle]\nrefresh = \"1s\"\n\
             [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             {identities}",
            self.mis.file("https-ca.crt").display(),
            self.memory.path().join("keys").display(),
        ));
    }

    /// The status of the WFM Client.
    pub(crate) fn client(&self) -> Value {
        let document = self.device.status_document();
        let mut identities = document["identities"].as_array().unwrap().iter();
        identities.find(|identity| identity["name"] == "wfm-client").unwrap().clone()
    }

    pub(crate) fn wait_for_client(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.device.wait_until(what, |_| holds(&self.client()));
        self.client()
    }

    /// A certification request of the WFM Client, in a file.
    pub(crate) fn csr(&self, id: &str) -> PathBuf {
        let file = self.device.path("csr.pem");
        self.run(&["csr", "--identity", "wfm-client", "--spiffe-id", id, "--out", file.to_str().unwrap()]);
        file
    }

    /// Brings the chain in this file in, and returns the serial number once it is used: that of the
    /// files, too.
    pub(crate) fn install(&self, chain: &Path) -> String {
        let before = self.client()["svid"]["serial"].clone();
        self.run(&["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
        let status = self.wait_for_client("the SVID that was installed", |client| {
            client["svid"].is_object() && client["svid"]["serial"] != before
        });
        let serial = plain(status["svid"]["serial"].as_str().unwrap());
        self.device.wait_until("its files", |_| {
            let identity = fs::read_to_string(self.published("identity.json")).unwrap_or_default();
            let identity: Value = serde_json::from_str(&identity).unwrap_or_default();
            identity["serial"].as_str().is_some_and(|published| plain(published) == serial)
        });
        serial
    }

    /// Has the released MIS sign for the WFM Client, and installs what it issues.
    pub(crate) fn enroll(&self, id: &str) -> String {
        self.install(&self.mis.sign(&self.csr(id)))
    }

    /// A command of the agent's, which succeeds.
    pub(crate) fn run(&self, arguments: &[&str]) {
        let output = self.device.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}\n{}", self.device.log());
    }

    /// A published file of the WFM Client's: where its key is, too.
    pub(crate) fn published(&self, name: &str) -> PathBuf {
        self.memory.path().join("keys/wfm-client/current").join(name)
    }

    pub(crate) fn authorized(&self) -> PathBuf {
        self.device.path("state/svid/wfm-client/authorized.json")
    }
}

/// A serial number as the replayed programs print it.
fn plain(serial: &str) -> String {
    serial.replace(':', "").trim_start_matches('0').to_owned()
}

pub(crate) fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
