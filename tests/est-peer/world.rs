//! A device that enrolls over EST.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::server::{EstPeer, SECRET, USER, write_secret};
use crate::support::agent::Device;

/// What the configuration of an agent has of a server.
pub(crate) struct Endpoint {
    pub(crate) url: String,
    /// Authenticates the HTTPS server.
    pub(crate) ca_file: PathBuf,
    pub(crate) bundle_file: PathBuf,
}

impl Endpoint {
    pub(crate) fn of(peer: &EstPeer) -> Self {
        Self { url: peer.url(), ca_file: peer.file("https-ca.crt"), bundle_file: peer.file("bundle.json") }
    }
}

pub(crate) struct World {
    pub(crate) device: Device,
    memory: TempDir,
}

impl World {
    /// A device whose agent is not started yet, with its token where the configuration says.
    pub(crate) fn at(endpoint: &Endpoint) -> Self {
        Self::with(endpoint, "")
    }

    /// The same, with further lines under `[identity.est]`.
    pub(crate) fn with(endpoint: &Endpoint, est: &str) -> Self {
        let world = Self { device: Device::new(""), memory: tempfile::tempdir_in("/dev/shm").unwrap() };
        world.token(&format!("{USER}:{SECRET}"));
        world.configure(endpoint, &format!("token = \"file:{{dir}}/token\"\n{est}"));
        world
    }

    /// The same, with these lines under `[identity.est]` and no token.
    pub(crate) fn without_token(endpoint: &Endpoint, est: &str) -> Self {
        let world = Self { device: Device::new(""), memory: tempfile::tempdir_in("/dev/shm").unwrap() };
        world.configure(endpoint, est);
        world
    }

    /// Writes the configuration, with these lines under `[identity.est]`.
    pub(crate) fn configure(&self, endpoint: &Endpoint, est: &str) {
        self.device.configure(&format!(
            "state_dir = \"{{dir}}/state\"\n\
             [mis]\nest_url = \"{}\"\nbundle_file = \"{}\"\ntrust_domain = \"factory.example\"\n\
             [mis.trust]\nca_file = \"{}\"\n\
             [files]\nsoftware_key_dir = \"{}\"\n\
             [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n\
             [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             [[identity]]\nname = \"wfm-client\"\nenroll = \"est\"\n\
             [identity.key]\nprovider = \"software\"\n\
             [identity.est]\n{est}",
            endpoint.url,
            endpoint.bundle_file.display(),
            endpoint.ca_file.display(),
            self.memory.path().join("keys").display(),
        ));
    }

    /// Puts an enrollment token where the configuration says.
    pub(crate) fn token(&self, token: &str) {
        write_secret(&self.device.path("token"), token);
    }

    /// Starts the agent and waits for its SVID; returns the serial number.
    pub(crate) fn enroll(&mut self) -> Value {
        self.device.start();
        self.device.wait_for("active")["svid"]["serial"].clone()
    }

    /// Has the agent renew, and returns what it has from then on.
    pub(crate) fn renew(&self) -> Value {
        let serial = self.device.status()["svid"]["serial"].clone();
        self.order_renewal();
        self.device.wait_for_another_svid(&serial)
    }

    pub(crate) fn order_renewal(&self) {
        let output = self.device.run(&["renew"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}\n{}", self.device.log());
    }

    /// The published chain, in PEM, leaf first.
    pub(crate) fn chain(&self) -> Vec<String> {
        const END: &str = "-----END CERTIFICATE-----\n";
        let file = self.memory.path().join("keys/wfm-client/current/svid.pem");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.split_inclusive(END).map(str::to_owned).collect()
    }

    /// The agent has said this of its last failure, and nothing of the secret anywhere.
    pub(crate) fn secret_is_nowhere(&self, secret: &str) {
        let status = self.device.status_document().to_string();
        assert!(!status.contains(secret), "{status}");
        let log = self.device.log();
        assert!(!log.contains(secret), "{log}");
    }
}

/// The texts of certificates in PEM files.
pub(crate) fn pem(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Has the intermediate of a server issue a certificate of an operator's: chain and key, in files.
pub(crate) fn operator_certificate(peer: &EstPeer, cert: &Path, key: &Path) {
    let csr = peer.file("operator.csr");
    let [csr, cert_text, key] = [&csr, cert, key].map(|path| path.to_str().unwrap().to_owned());
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key]);
    openssl(&["req", "-new", "-key", &key, "-subj", "/CN=operator", "-out", &csr]);
    let [ca, ca_key] =
        ["intermediate.crt", "intermediate.key"].map(|name| peer.file(name).to_str().unwrap().to_owned());
    let extensions = peer.file("operator.conf");
    fs::write(&extensions, "keyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n").unwrap();
    let extensions = extensions.to_str().unwrap().to_owned();
    let serial = ["-set_serial", "4711", "-days", "30", "-extfile", &extensions, "-out", &cert_text];
    openssl(&[&["x509", "-req", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key], &serial[..]].concat());
    fs::write(cert, pem(cert) + &pem(&peer.file("intermediate.crt"))).unwrap();
    write_secret(Path::new(&key), &pem(Path::new(&key)));
}

pub(crate) fn openssl(arguments: &[&str]) {
    openssl_output(arguments);
}

/// What OpenSSL prints.
pub(crate) fn openssl_output(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().expect("openssl");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
