//! `miaf-agent check-config`: whether the configuration can be used, with file and line if not.
//!
//! A reload of the service runs it after the agent was notified, with the agent's user and sandbox,
//! and fails where it fails.

use std::path::Path;
use std::process::ExitCode;

use super::{EXIT_CONFIG, Output, complain_with_hint, print, print_json, reader};
use crate::agent;
use crate::config::{Config, Enrollment, EstAuthorizationConfig, IdentityConfig};
use crate::hint::{Hint, Reason};
use miaf_client::api::State;
use miaf_spiffe::text::Excerpt;

/// Limit of characters of an address or a path in what is printed.
const MAX_URL: usize = 512;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let source = agent::place(Some(config));
    let file = source.file.display();
    let detail = match source.load() {
        Err(e) => return reject(&e, output),
        Ok(config @ Config { mis: Some(_), .. }) => {
            format!("{file}: can be used{}{}{}", missing(&config), over_est(&config), warnings(&config))
        }
        // An agent that has had a configuration goes on under it.
        Ok(_) if is_configured(config, output) => {
            let what = format!("{file}: names no [mis] any more. The agent continues under the previous one");
            return reject(&Reason::from(what).with_hint_text("Restore [mis]"), output);
        }
        Ok(_) if source.file.symlink_metadata().is_err() => {
            format!("{file}: there is no such file, and no drop-in names [mis]: the device is unconfigured")
        }
        Ok(_) => format!("{file}: can be used, and names no [mis]: the device is unconfigured"),
    };
    if output.json {
        print_json(&serde_json::json!({ "valid": true, "detail": detail }))
    } else {
        print(&(detail + "\n"))
    }
}

/// Describes the settings that the agent is blocked without.
fn missing(config: &Config) -> String {
    let trust = "No trust anchor is configured for the MIS, and so no MIS is contacted: set ca_file, spki_sha256 or system_roots \
                 under [mis.trust]";
    let credential = "No factory credential is configured, and so no first identity can be requested: set cert_file and key \
                      under [bootstrap]";
    let lacks_trust = config.contacts_mis() && config.mis.as_ref().is_some_and(|mis| mis.trust.is_empty());
    let lacks_credential = config.device().is_some() && config.bootstrap.is_none();
    let missing = [(lacks_trust, trust), (lacks_credential, credential)];
    missing.into_iter().filter(|(is_missing, _)| *is_missing).map(|(_, what)| format!(". {what}")).collect()
}

/// Describes what is hardly meant.
fn warnings(config: &Config) -> String {
    config.warnings().iter().map(|warning| format!(". Warning: {}", warning.with_hint())).collect()
}

/// Describes each identity that enrolls over EST: at which address, what authorizes it, and what is not
/// as the standard has it.
fn over_est(config: &Config) -> String {
    let url = config.mis.as_ref().and_then(|mis| mis.est_url.as_ref());
    let place = url.map_or_else(
        || "the EST server that the discovery document names".to_owned(),
        |url| format!("the EST server {}", Excerpt::of(url, MAX_URL)),
    );
    let described = |identity: &IdentityConfig| {
        let Enrollment::Est(est) = &identity.enroll else { return None };
        let name = &identity.name;
        let by = match (&est.authorization, est.token()) {
            (EstAuthorizationConfig::Certificate(_), _) => "a certificate of this device".to_owned(),
            (_, Some(source)) => {
                format!("an enrollment token, expected in {}", Excerpt::of(source.shown(), MAX_URL))
            }
            (_, None) => format!(
                "an enrollment token, which is brought with miaf-agent enroll --identity {name} --token-file FILE"
            ),
        };
        let tls12 = if est.tls12 { ". TLS 1.2 is allowed there (tls12 = true)" } else { "" };
        let nonstandard = match est.allow_nonstandard {
            true => ". The identity of a device over EST is not standardized (allow_nonstandard = true)",
            false => "",
        };
        Some(format!(". The identity \"{name}\" enrolls at {place} by {by}{tls12}{nonstandard}"))
    };
    config.identities.iter().filter_map(described).collect()
}

fn is_configured(config: &Path, output: &Output) -> bool {
    let status = reader(config, output).with_limit(super::SHORT_LIMIT).status();
    status.is_ok_and(|status| status.identity(None).is_some_and(|device| device.state != State::Unconfigured))
}

fn reject(why: &dyn Hint, output: &Output) -> ExitCode {
    if output.json {
        let (detail, hint) = (why.to_string(), why.hint());
        print_json(&serde_json::json!({ "valid": false, "detail": detail, "hint": hint }));
    } else {
        complain_with_hint(why);
    }
    ExitCode::from(EXIT_CONFIG)
}
