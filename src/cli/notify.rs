//! `miaf-agent notify`: restarts the program that only reads an identity's files at its start. The
//! path unit of the package has it run, as root, after each change of them.
//!
//! The unit is the one in the configuration, which belongs to root. The agent itself has no say: it
//! could otherwise have root restart any unit.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::{EXIT_CONFIG, complain_with_hint, fail, fail_with_hint};
use crate::agent;
use crate::config::{Config, ConfigError};
use crate::hint::Reason;
use miaf_client::api::IdentityName;

pub(super) fn run(config: &Path, identity: &IdentityName) -> ExitCode {
    let source = agent::place(Some(config));
    let (config, error) = match source.load() {
        Ok(config) => (config, None),
        // The agent goes on under what it can read of it, and so do the programs.
        Err(e) => match source.salvage() {
            Ok(salvaged) => (salvaged.config, Some(e)),
            Err(_) => return reject(&e),
        },
    };
    match (unit(&config, identity), error) {
        // Whether there is such a unit is not known.
        (Err(_), Some(e)) => reject(&e),
        (unit, error) => {
            if let Some(e) = &error {
                complain_with_hint(e);
            }
            restart(unit)
        }
    }
}

fn reject(e: &ConfigError) -> ExitCode {
    complain_with_hint(e);
    ExitCode::from(EXIT_CONFIG)
}

fn restart(unit: Result<&str, Reason>) -> ExitCode {
    match unit {
        // Does not return, unless the program cannot be run.
        Ok(unit) => {
            let why = Command::new("systemctl").args(["--no-block", "try-restart", "--", unit]).exec();
            fail(&format_args!("systemctl cannot be run: {why}"))
        }
        Err(why) => fail_with_hint(&why),
    }
}

/// The unit that the configuration names for an identity.
fn unit<'a>(config: &'a Config, identity: &IdentityName) -> Result<&'a str, Reason> {
    let configured = config.identities.iter().find(|configured| configured.name == *identity);
    let configured = configured.ok_or_else(|| {
        let what =
            format!("the configuration has no identity \"{identity}\", so there is no unit to restart");
        let disable =
            format!("Disable the unit for it: systemctl disable --now miaf-agent-notify@{identity}.path");
        Reason::from(what).with_hint_text(disable)
    })?;
    configured.notify.as_deref().ok_or_else(|| {
        let what = format!("the configuration names no unit to restart for the identity \"{identity}\"");
        Reason::from(what).with_hint_text("Set notify = \"UNIT.service\" under its [[identity]]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;

    #[test]
    fn notified_unit_is_that_of_the_identity() {
        let parse = |text: &str| Config::parse(text, Path::new("config.toml"), None).unwrap();
        let device = "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n";
        let client = "[[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\nnotify = \"wfm.service\"\n";
        let config = parse(&format!("{device}{client}"));
        let of = |config: &Config, name: &str| {
            unit(config, &IdentityName::parse(name).unwrap()).map(str::to_owned)
        };
        assert_eq!(of(&config, "wfm-client").unwrap(), "wfm.service");
        for (config, name, expected) in [
            (&config, "device", "Set notify"),
            (&config, "line-2", "miaf-agent-notify@line-2.path"),
            (&parse(""), "device", "Set notify"),
        ] {
            let refused = of(config, name).unwrap_err();
            assert!(refused.hint.as_ref().unwrap().contains(expected), "{refused}");
            assert_apart(&refused);
        }
    }
}
