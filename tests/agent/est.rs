//! Identities enrolled over EST (docs/est.md): by a token or a certificate, with the development EST
//! server.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use development_mis::{Endpoint, Entry, Token};
use serde_json::Value;

use crate::identities;
use crate::support::swtpm::Swtpm;
use crate::world::{self, World};

pub(crate) const NAME: &str = "wfm-client";
pub(crate) const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";

/// A device with one identity over EST, and an MIS whose bundle it reads from a file.
pub(crate) struct Line {
    pub(crate) world: World,
}

impl Line {
    /// The agent is not started yet, nor configured.
    pub(crate) fn new() -> Self {
        Self { world: World::with(|settings| world::long_enough(&mut settings.policy)) }
    }

    /// Starts the agent with these lines under `[identity.est]`, and these before all.
    pub(crate) fn start(&mut self, est: &str, before: &str) {
        self.world.device.configure(&self.config(est, before));
        self.world.device.start();
    }

    /// The configuration of a device without a discovery document.
    pub(crate) fn config(&self, est: &str, before: &str) -> String {
        let World { mis, tpm, .. } = &self.world;
        config(&mis.est_url(), mis.bundle_file().unwrap().as_path(), &mis.ca_file(), tpm, est, before)
    }

    /// A token for the client, in the file that it is expected in.
    pub(crate) fn hand_out_token(&self) -> (Token, PathBuf) {
        let token = self.world.mis.est().token(CLIENT);
        let file = self.world.device.path("token");
        token.write(&file).unwrap();
        (token, file)
    }

    pub(crate) fn status(&self) -> Value {
        identities::identity(&self.world.device, NAME)
    }

    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        identities::wait_for(&self.world.device, NAME, what, holds)
    }

    /// Waits until the error says this somewhere.
    pub(crate) fn wait_for_error(&self, says: &str) -> Value {
        let status = self.wait_for(says, |client| client["lastError"].to_string().contains(says));
        status["lastError"].clone()
    }

    /// What the MIS saw at its EST endpoint, in order.
    pub(crate) fn requests(&self) -> Vec<Entry> {
        let is_est = |entry: &Entry| entry.path.contains("/est/");
        self.world.mis.journal().into_iter().filter(is_est).collect()
    }

    /// No credential was shown where it has no place, and no connection served two purposes (X27, X28).
    pub(crate) fn check_wire(&self) {
        assert!(self.world.mis.est().violations().is_empty(), "{:?}", self.world.mis.est().violations());
        let connections: Vec<_> = self.requests().iter().map(|entry| entry.connection).collect();
        let distinct: BTreeSet<_> = connections.iter().collect();
        assert_eq!(distinct.len(), connections.len(), "each request has a connection of its own");
    }
}

pub(crate) fn config(
    est_url: &str,
    bundle: &Path,
    ca_file: &Path,
    tpm: &Swtpm,
    est: &str,
    before: &str,
) -> String {
    format!(
        "state_dir = \"{{dir}}/state\"\n{before}\
         [mis]\nest_url = \"{est_url}\"\nbundle_file = \"{}\"\ntrust_domain = \"factory.example\"\n\
         [mis.trust]\nca_file = \"{}\"\n\
         [key]\ntcti = \"{}\"\n\
         [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n\
         [bundle]\nrefresh = \"1s\"\n\
         [socket]\npath = \"{{dir}}/run/agent.sock\"\n\
         [[identity]]\nname = \"{NAME}\"\nenroll = \"est\"\n[identity.est]\n{est}",
        bundle.display(),
        ca_file.display(),
        tpm.tcti(),
    )
}

/// Every file below a directory.
fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

#[test]
fn token_enrolls_and_the_svid_renews() {
    let mut line = Line::new();
    let (token, file) = line.hand_out_token();
    line.start("token = \"file:{dir}/token\"\nremove_token = true\n", world::SOON);
    let status = line.wait_for("an SVID", |client| client["svid"].is_object());
    assert_eq!(status["spiffeId"], CLIENT);
    let seen = line.requests();
    let operations: Vec<_> =
        seen.iter().map(|entry| (entry.path.rsplit('/').next().unwrap(), entry.authorization)).collect();
    let expected = [("cacerts", false), ("simpleenroll", true), ("cacerts", false)];
    assert_eq!(operations[..3], expected, "what is not proven to be an EST server gets no token (X59)");
    assert!(!file.exists(), "the token is used up");
    let renewals = line.world.wait_for_requests(Endpoint::EstReenroll, 2);
    assert!(renewals.iter().all(|entry| entry.status == Some(200)), "{renewals:?}");
    line.check_wire();
    // The same key all along (X66), and one token.
    let record = line.world.mis.est().record();
    let keys: BTreeSet<_> = record.iter().map(|issued| issued.key_sha256.clone()).collect();
    assert_eq!(keys.len(), 1, "{record:?}");
    assert!(line.world.mis.est().alerts().is_empty());
    // Nothing of it is left anywhere (X43).
    line.world.device.stop();
    let mut files = Vec::new();
    files_below(line.world.device.dir(), &mut files);
    for file in files {
        let content = fs::read(&file).unwrap_or_default();
        let secret = token.secret.as_bytes();
        assert!(!content.windows(secret.len()).any(|part| part == secret), "{}", file.display());
    }
}

#[test]
fn token_is_picked_up_when_it_appears() {
    let mut line = Line::new();
    line.start("token = \"file:{dir}/token\"\n", "");
    let waits = line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    assert_eq!(waits["lastError"]["code"], "token-needed", "{waits:#}");
    assert!(waits["lastError"]["hint"].to_string().contains("miaf-agent enroll"), "{waits:#}");
    assert!(line.requests().is_empty());
    let (_, file) = line.hand_out_token();
    line.wait_for("an SVID", |client| client["state"] == "active");
    assert!(file.exists(), "nothing says that it is to be removed");
    // It is spent, and is not sent again: not after a restart, nor when its file is touched.
    line.world.device.stop();
    line.world.device.start();
    line.wait_for("an SVID", |client| client["state"] == "active");
    assert_eq!(line.world.seen(Endpoint::EstEnroll).len(), 1);
    line.check_wire();
}

#[test]
fn token_is_handed_over_by_command() {
    let mut line = Line::new();
    line.start("", "");
    line.wait_for("the need of a token", |client| client["state"] == "waiting-for-token");
    let token = line.world.mis.est().token(CLIENT);
    let file = line.world.device.path("by-hand");
    fs::write(&file, token.user_pass()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.to_str().unwrap();
    identities::run(&line.world.device, &["enroll", "--identity", NAME, "--token-file", file]);
    line.wait_for("an SVID", |client| client["state"] == "active");
    let again = line.world.device.run(&["enroll", "--identity", NAME, "--token-file", file]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && said.contains("used up") && !said.contains(&token.secret), "{said}");
    line.check_wire();
}

#[test]
fn refused_token_gives_way_to_another_at_once() {
    let mut line = Line::new();
    let (token, _) = line.hand_out_token();
    line.world.mis.est().invalidate(&token.username).unwrap();
    line.start("token = \"file:{dir}/token\"\n", "");
    let error = line.wait_for_error("token-refused");
    assert!(error["detail"].as_str().unwrap().contains("It is sent again, 4 times at most"), "{error:#}");
    line.hand_out_token();
    line.wait_for("an SVID", |client| client["state"] == "active");
    let attempts = line.world.seen(Endpoint::EstEnroll);
    let statuses: Vec<_> = attempts.iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [Some(401), Some(200)]);
    let keys: BTreeSet<_> = attempts.iter().map(|entry| entry.csr_spki_sha256.clone()).collect();
    assert_eq!(keys.len(), 1, "the key that the first token may be bound to");
}
