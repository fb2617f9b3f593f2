//! `miaf-agent check-config`: whether the configuration can be used, with file and line if not. A reload of the service
//! runs it after it has told the agent, with the agent's user and sandbox, and fails with it.

use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CONFIG, Output, print, print_json, reader, say};
use crate::agent;
use crate::config::{BootstrapConfig, Config, MisConfig};
use crate::hint::Hint as _;
use crate::lifecycle::State;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let place = agent::place(Some(config));
    let file = place.file.display();
    let says = match place.load() {
        Err(e) => return refused(&e.with_hint()),
        Ok(Config { mis: Some(mis), bootstrap, .. }) => {
            format!("{file}: can be used{}", missing(&mis, bootstrap.as_ref()))
        }
        // Under such a configuration an agent that has one goes on under the one before.
        Ok(_) if is_configured(config, output) => {
            return refused(&format_args!(
                "{file}: names no [mis] any more. The agent goes on under the configuration before it"
            ));
        }
        Ok(_) if place.file.symlink_metadata().is_err() => {
            format!("{file}: there is no such file, and no drop-in names [mis]: the device is unconfigured")
        }
        Ok(_) => format!("{file}: can be used, and names no [mis]: the device is unconfigured"),
    };
    if output.json {
        print_json(&serde_json::json!({ "valid": true, "detail": says }))
    } else {
        print(&(says + "\n"))
    }
}

/// What the agent goes without, and is blocked for.
fn missing(mis: &MisConfig, bootstrap: Option<&BootstrapConfig>) -> String {
    let trust = "No trust in the MIS is configured, and so no one is contacted: set ca_file, spki_sha256 or system_roots under \
                 [mis.trust]";
    let credential = "No factory credential is configured, and so no first identity can be asked for: set cert_file and key \
                      under [bootstrap]";
    let missing = [(mis.trust.is_empty(), trust), (bootstrap.is_none(), credential)];
    missing.into_iter().filter(|(is_missing, _)| *is_missing).map(|(_, what)| format!(". {what}")).collect()
}

fn is_configured(config: &Path, output: &Output) -> bool {
    let status = reader(config, output).with_limit(super::SHORT).status();
    status.is_ok_and(|status| status.state != State::Unconfigured.as_str())
}

fn refused(why: &dyn std::fmt::Display) -> ExitCode {
    say(why);
    ExitCode::from(EXIT_CONFIG)
}
