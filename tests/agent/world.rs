//! A device, its TPM and an MIS.

use std::time::Duration;

use development_mis::{Endpoint, Entry, Mis, Policy, Settings};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::agent::{Device, PATIENCE};
use crate::support::swtpm::Swtpm;

pub(crate) struct World {
    pub(crate) device: Device,
    pub(crate) mis: Mis,
    pub(crate) tpm: Swtpm,
    _mis_directory: TempDir,
}

impl World {
    /// Nothing special anywhere. The agent is not started yet.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With other settings of the MIS.
    pub(crate) fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let mis_directory = tempfile::tempdir().unwrap();
        let mut settings = Settings { directory: mis_directory.path().join("mis"), ..Settings::default() };
        settings.policy.refresh_hint = None; // the device's own interval counts
        adjust(&mut settings);
        let mis = Mis::start(settings).unwrap();
        let tpm = Swtpm::start();
        let device = Device::new(&config(&mis, &tpm, ""));
        Self { device, mis, tpm, _mis_directory: mis_directory }
    }

    /// As [`new`](Self::new), with the agent started and the first identity there.
    pub(crate) fn enrolled() -> Self {
        Self::enrolled_with("")
    }

    /// The same, configured with these lines more.
    pub(crate) fn enrolled_with(more: &str) -> Self {
        let mut world = Self::new();
        world.configure(more);
        world.device.start();
        world.device.wait_for("active");
        world
    }

    /// The same with an identity that is renewed every few seconds.
    pub(crate) fn renewing() -> Self {
        let world = Self::with(|settings| long_enough(&mut settings.policy));
        world.device.configure(&config(&world.mis, &world.tpm, SOON));
        let mut world = world;
        world.device.start();
        world.device.wait_for_status("an identity", |status| status["svid"].is_object());
        world
    }

    /// Kills the agent. What it left in the TPM goes, as behind the kernel's resource manager:
    /// three of them fill it.
    pub(crate) fn kill(&mut self) {
        self.device.kill();
        self.tpm.flush();
    }

    /// Configures the device with these lines more.
    pub(crate) fn configure(&self, more: &str) {
        self.device.configure(&config(&self.mis, &self.tpm, more));
    }

    /// What the MIS saw at this endpoint.
    pub(crate) fn seen(&self, endpoint: Endpoint) -> Vec<Entry> {
        self.mis.journal().into_iter().filter(|entry| is_at(entry, endpoint)).collect()
    }

    /// Waits until the MIS has seen so many requests at this endpoint.
    pub(crate) fn wait_for_requests(&self, endpoint: Endpoint, count: usize) -> Vec<Entry> {
        let of =
            |journal: &[Entry]| journal.iter().filter(|e| is_at(e, endpoint) && e.status.is_some()).count();
        let journal = self.mis.wait_for(PATIENCE, |journal| of(journal) >= count);
        let journal = journal
            .unwrap_or_else(|| panic!("{count} requests at {endpoint:?} never came: {}", self.device.log()));
        journal.into_iter().filter(|entry| is_at(entry, endpoint)).collect()
    }

    /// The status after a quiet while, and the requests that the MIS saw in it.
    pub(crate) fn after(&self, while_: Duration) -> (Value, Vec<Entry>) {
        let before = self.mis.journal().len();
        std::thread::sleep(while_); // to see that nothing happens one has to wait
        (self.device.status(), self.mis.journal().split_off(before))
    }
}

/// Renewal as soon as the agent allows itself one (5 seconds after the one before), long before the
/// SVID expires.
pub(crate) const SOON: &str = "[renewal]\nwindow = [0.001, 0.002]\n";

pub(crate) fn long_enough(policy: &mut Policy) {
    policy.svid_lifetime = Duration::from_secs(900);
    policy.backdate = Duration::ZERO;
}

/// The configuration of a device that enrolls at this MIS with this TPM, and does not wait long
/// after a failure.
pub(crate) fn config(mis: &Mis, tpm: &Swtpm, more: &str) -> String {
    format!(
        "state_dir = \"{{dir}}/state\"\n\
         [mis]\ndiscovery_url = \"{}\"\n\
         [mis.trust]\nca_file = \"{}\"\n\
         [bootstrap]\ncert_file = \"{}\"\nkey = \"file:{}\"\n\
         [key]\ntcti = \"{}\"\n\
         [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n\
         [bundle]\nrefresh = \"1s\"\n\
         [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
         {more}",
        mis.discovery_url(),
        mis.ca_file().display(),
        mis.factory_cert().display(),
        mis.factory_key().display(),
        tpm.tcti(),
    )
}

pub(crate) fn is_at(entry: &Entry, endpoint: Endpoint) -> bool {
    Endpoint::at(&entry.path).is_some_and(|(at, _)| at == endpoint)
}

/// As OpenSSL reads it from the certificate.
pub(crate) fn public_key_of_certificate(world: &World, pem: &str) -> String {
    let file = world.device.path("certificate.pem");
    std::fs::write(&file, pem).unwrap();
    world.tpm.run("openssl", &["x509", "-in", file.to_str().unwrap(), "-noout", "-pubkey"])
}

/// As OpenSSL reads it from the TSS2 file, through its provider for TPMs.
pub(crate) fn public_key_of_tpm_key(world: &World, pem: &str) -> String {
    let file = world.device.path("key.pem");
    std::fs::write(&file, pem).unwrap();
    let file = file.to_str().unwrap();
    world.tpm.run("openssl", &["pkey", "-provider", "tpm2", "-provider", "default", "-in", file, "-pubout"])
}
