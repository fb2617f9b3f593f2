//! `miaf-agent check-config`: whether the configuration can be used, with file and line if not. A reload of the service
//! runs it after it has told the agent, with the agent's user and sandbox, and fails with it.

use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CONFIG, Output, print, print_json, reader, say};
use crate::agent;
use crate::lifecycle::State;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let place = agent::place(Some(config));
    let file = place.file.display();
    let says = match place.load() {
        Err(e) => return refused(&e),
        Ok(config) if config.mis.is_some() => format!("{file}: can be used"),
        // Under such a configuration an agent that has one goes on under the one before.
        Ok(_) if is_configured(config, output) => {
            return refused(&format_args!(
                "{file}: names no [mis] any more. The agent goes on under the configuration before it"
            ));
        }
        Ok(_) => format!("{file}: can be used, and names no [mis]: the device is unconfigured"),
    };
    if output.json {
        print_json(&serde_json::json!({ "valid": true, "detail": says }))
    } else {
        print(&(says + "\n"))
    }
}

fn is_configured(config: &Path, output: &Output) -> bool {
    let status = reader(config, output).with_limit(super::SHORT).status();
    status.is_ok_and(|status| status.state != State::Unconfigured.as_str())
}

fn refused(why: &dyn std::fmt::Display) -> ExitCode {
    say(why);
    ExitCode::from(EXIT_CONFIG)
}
