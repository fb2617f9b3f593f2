//! A device that renews all the time, with tpm2-abrmd between its TPM and all that use it, and its
//! users.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

use development_mis::IssuingMode;
use serde_json::Value;

use crate::abrmd::{self, Abrmd};
use crate::page;
use crate::process::output_of;
use crate::support::agent::PATIENCE;
use crate::support::directory::open_to_all;
use crate::world::{self, World};

/// Groups that every Debian has, in place of `miaf` and `miaf-sign`.
const MIAF: &str = "users";
const MIAF_SIGN: &str = "games";
/// Groups of a user who may read the identity.
pub(crate) const READER: &[&str] = &[MIAF];
/// Groups of a user who may have the agent use the key.
pub(crate) const ASKER: &[&str] = &[MIAF, MIAF_SIGN];
/// Groups of a user who may use the key, in programs that use the TPM.
pub(crate) const SIGNER: &[&str] = &[MIAF, MIAF_SIGN, "tss"];

pub(crate) struct Device {
    world: World,
    abrmd: Abrmd,
}

impl Device {
    /// With an identity from an intermediate CA, so that chains count, and the next one a few
    /// seconds later.
    pub(crate) fn renewing() -> Self {
        let mut world = World::with(|settings| {
            settings.mode = IssuingMode::Intermediate;
            world::long_enough(&mut settings.policy);
        });
        let abrmd = Abrmd::start(&world.tpm);
        world.device.environment(abrmd::BUS, abrmd.bus());
        let files = format!("[files]\ngroup = \"{MIAF}\"\nkey_group = \"{MIAF_SIGN}\"\n");
        let config = world::config(&world.mis, &world.tpm, &(files + world::SOON))
            .replace(&world.tpm.tcti(), abrmd::TCTI)
            .replace("[socket]", &format!("[socket]\ngroup = \"{MIAF}\"\nsign_group = \"{MIAF_SIGN}\""));
        world.device.configure(&config);
        // As in the package: others may pass through.
        open_to_all(world.device.dir(), 0o711);
        fs::create_dir(world.device.path("state")).unwrap();
        open_to_all(&world.device.path("state"), 0o711);
        fs::write(world.device.path("openssl-tpm.cnf"), page::block("ini openssl-tpm.cnf")).unwrap();
        open_to_all(&world.device.path("openssl-tpm.cnf"), 0o644);
        world.device.start();
        world.device.wait_for_status("an identity", |status| status["svid"].is_object());
        Self { world, abrmd }
    }

    /// A text of the page, with the paths of this device.
    pub(crate) fn here(&self, text: &str) -> String {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        text.replace("/var/lib/miaf-agent/svid", &path("state/svid"))
            .replace("/run/miaf-agent", &path("run"))
            .replace("/etc/ssl/openssl-tpm.cnf", &path("openssl-tpm.cnf"))
            .replace("/etc/ssl/wfm-ca.pem", &path("wfm-ca.pem"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.device.path(name)
    }

    /// A program that is run by an ordinary user in these groups.
    pub(crate) fn user(&self, groups: &[&str], program: &str) -> Command {
        let mut command = Command::new("setpriv");
        let groups: Vec<String> = groups.iter().map(|name| group_id(name)).collect();
        command.args(["--reuid=65534", "--regid=65534", "--no-new-privs", "--groups", &groups.join(",")]);
        command.arg(program).current_dir("/");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env(abrmd::BUS, self.abrmd.bus());
        command
    }

    /// Runs commands of the page as this user.
    pub(crate) fn run(&self, groups: &[&str], commands: &str) -> Output {
        let commands = self.here(&(page::block("sh environment") + commands));
        self.user(groups, "sh").args(["-ec", &commands]).output().unwrap()
    }

    /// Repeats `act` until the device has another identity, and at least three times.
    pub(crate) fn until_it_rotates(&self, mut act: impl FnMut()) {
        let before = self.serial();
        let deadline = Instant::now() + PATIENCE;
        let mut times = 0;
        while times < 3 || self.serial() == before {
            let log = || self.world.device.log();
            assert!(Instant::now() < deadline, "timed out waiting for a rotation, {times} times\n{}", log());
            act();
            times += 1;
        }
        println!("{times} times until the rotation");
    }

    pub(crate) fn spiffe_id(&self) -> String {
        self.world.device.status()["spiffeId"].as_str().unwrap().to_owned()
    }

    /// The certificate of the device.
    pub(crate) fn leaf(&self) -> String {
        leaf_in(&self.world.device.published("svid.pem")).unwrap()
    }

    fn serial(&self) -> Value {
        self.world.device.status()["svid"]["serial"].clone()
    }

    pub(crate) fn restart_the_agent(&mut self) {
        self.world.device.stop();
        self.world.device.start();
    }

    /// Checks that the agent has no error: other users of the TPM do not disturb it.
    pub(crate) fn is_content(&self) {
        let log = self.world.device.log();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        let status = self.world.device.status();
        assert_eq!(status["lastError"], Value::Null, "{status:#}");
    }
}

#[test]
#[ignore = "needs root: tpm2-abrmd is run as its own user"]
fn agent_reports_a_missing_abrmd_and_recovers() {
    let mut device = Device::renewing();
    device.abrmd.stop();
    let serial = device.serial();
    let status = device.world.device.wait_for_error("tpm2-abrmd does not answer on D-Bus");
    assert_eq!(status["svid"]["serial"], serial, "what it had is still there");
    device.abrmd.start_again();
    device.world.device.wait_for_another_svid(&serial);
    device.world.device.wait_for_status("no error", |status| status["lastError"].is_null());
}

/// The first certificate in a text, as PEM.
pub(crate) fn leaf_in(text: &str) -> Option<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = &text[text.find("-----BEGIN CERTIFICATE-----")?..];
    Some(text[..text.find(END)? + END.len()].to_owned())
}

fn group_id(name: &str) -> String {
    let entry = output_of(Command::new("getent").args(["group", name]));
    entry.split(':').nth(2).expect("its number").to_owned()
}
