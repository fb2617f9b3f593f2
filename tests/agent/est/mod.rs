//! Identities enrolled over EST (docs/est.md): by a token or a certificate, with the development EST
//! server.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use development_mis::{Endpoint, Entry, Settings, Token};
use serde_json::Value;

use crate::identities;
use crate::support::swtpm::Swtpm;
use crate::world::{self, World};

mod bundle;
mod certificate;
mod chain;
mod discovery;
mod learnt;
mod pending;
mod renewal;
mod token;
mod wire;

pub(crate) const NAME: &str = "wfm-client";
pub(crate) const CLIENT: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";

/// A device with one identity over EST, and an MIS whose bundle it reads from a file.
pub(crate) struct Line {
    pub(crate) world: World,
}

impl Line {
    /// The agent is not started yet, nor configured.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// The same with other settings of the MIS.
    pub(crate) fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let world = World::with(|settings| {
            world::long_enough(&mut settings.policy);
            settings.policy.est.attempts = None; // some stories take more than a device is to make
            adjust(settings);
        });
        Self { world }
    }

    /// An agent that a token has enrolled.
    pub(crate) fn enrolled(est: &str, before: &str) -> Self {
        let mut line = Self::new();
        line.hand_out_token();
        line.start(&format!("token = \"file:{{dir}}/token\"\n{est}"), before);
        line.wait_for("an SVID", |client| client["svid"].is_object());
        line
    }

    /// Ends the agent as a power cut would, and starts it again.
    pub(crate) fn restart(&mut self) {
        self.world.kill();
        self.world.device.start();
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

    /// Hands over a token by command.
    pub(crate) fn enroll_by_command(&self, token: &Token) {
        let file = self.world.device.path("by-command");
        token.write(&file).unwrap();
        let arguments = ["enroll", "--identity", NAME, "--token-file", file.to_str().unwrap()];
        identities::run(&self.world.device, &arguments);
        std::fs::remove_file(file).unwrap();
    }

    pub(crate) fn status(&self) -> Value {
        identities::identity(&self.world.device, NAME)
    }

    pub(crate) fn wait_for_state(&self, state: &str) -> Value {
        self.wait_for(state, |client| client["state"] == state)
    }

    pub(crate) fn wait_for_another_svid(&self, than: &Value) -> Value {
        let serial = &than["svid"]["serial"];
        self.wait_for("another SVID", |client| {
            client["svid"].is_object() && client["svid"]["serial"] != *serial
        })
    }

    pub(crate) fn at(&self, endpoint: Endpoint) -> Vec<Entry> {
        self.world.seen(endpoint)
    }

    /// Waits for a status, and returns it: the next one may be another already.
    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let last = RefCell::new(Value::Null);
        self.world.device.wait_until(&format!("{NAME}: {what}"), |device| {
            last.replace(identities::identity(device, NAME));
            holds(&last.borrow())
        });
        last.into_inner()
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

    /// Each credential was sent where it belongs and nowhere else, and no connection served two
    /// purposes (X27, X28, X64).
    pub(crate) fn check_wire(&self) {
        let mis = &self.world.mis;
        assert!(mis.est().violations().is_empty(), "{:?}", mis.est().violations());
        let requests = self.requests();
        for entry in &requests {
            let shown = (entry.authorization, entry.client_leaf_sha256.is_some());
            match entry.path.rsplit('/').next().unwrap() {
                "cacerts" => assert_eq!(shown, (false, false), "{entry:?}"),
                "simpleenroll" => assert_ne!(shown.0, shown.1, "one form or the other: {entry:?}"),
                "simplereenroll" => assert_eq!(shown, (false, true), "{entry:?}"),
                other => panic!("{other}"),
            }
        }
        let elsewhere = |entry: &Entry| entry.authorization && !entry.path.contains("/est/");
        assert!(!mis.journal().iter().any(elsewhere), "a token goes to /simpleenroll alone");
        let connections: Vec<_> = requests.iter().map(|entry| entry.connection).collect();
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

/// The outcomes of requests, in order.
pub(crate) fn statuses(entries: &[Entry]) -> Vec<Option<u16>> {
    entries.iter().map(|entry| entry.status).collect()
}

/// Checks that these attempts were one request, for one key, byte for byte.
pub(crate) fn assert_repeated(attempts: &[Entry]) {
    let bodies: BTreeSet<_> = attempts.iter().map(|entry| entry.body_sha256.clone()).collect();
    let keys: BTreeSet<_> = attempts.iter().map(|entry| entry.csr_spki_sha256.clone()).collect();
    assert_eq!((bodies.len(), keys.len()), (1, 1), "the same request: {attempts:#?}");
    assert!(bodies.iter().chain(&keys).all(Option::is_some), "{attempts:#?}");
}
