//! `miaf-agent status`: the state of the agent, for readers who do not know SPIFFE.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use super::render::{distance, due, key, meaning, next_step, renewal, step_after, trusted_by};
use super::{
    Output, Selection, fail_on_client, lifetime_bar, print, print_json, reader, shown, unknown_identity,
};
use miaf_client::api::{ErrorStatus, IdentityStatus, Status};
use miaf_spiffe::time::Timestamp;

pub(super) fn run(config: &Path, output: &Output, Selection { identity }: &Selection) -> ExitCode {
    let mut status = match reader(config, output).status() {
        Ok(status) => status,
        Err(e) => return fail_on_client(config, &e),
    };
    if let Some(name) = identity {
        status.identities.retain(|identity| identity.name == *name);
        if status.identities.is_empty() {
            return unknown_identity(name);
        }
    }
    if output.json { print_json(&status) } else { print(&render(&status, SystemTime::now().into())) }
}

/// Writes the identities, and then what they share.
fn render(status: &Status, now: Timestamp) -> String {
    let mut text = Lines::default();
    for identity in &status.identities {
        text.identity(identity, status.last_error.as_ref(), now);
        text.0.push('\n');
    }
    text.shared(status, now);
    text.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "{name:<13} {}", shown(value)); // writing to a String cannot fail
    }

    fn identity(&mut self, identity: &IdentityStatus, shared: Option<&ErrorStatus>, now: Timestamp) {
        self.line("Identity", identity.name.as_str());
        self.line("State", &format!("{} - {}", identity.state, meaning(&identity.state)));
        self.line("SPIFFE ID", identity.spiffe_id.as_deref().unwrap_or("none yet"));
        if let Some(svid) = &identity.svid {
            let until = svid.not_after;
            self.line("Valid until", &format!("{until} ({})", distance(until, now)));
            if let Some(leaf) = svid.leaf_not_after {
                self.line("", &format!("(an issuer of it ends then; the certificate itself says {leaf})"));
            }
            if let Some(renew_at) = svid.renew_at {
                self.line("Renewal", &format!("{renew_at} ({})", renewal(renew_at, now)));
            }
            if let Some([bar, legend]) = lifetime_bar::bar(svid, now) {
                self.line("Lifetime", &bar);
                self.line("", &legend);
            }
            self.line("Serial", &svid.serial);
        }
        self.line("Key", &key(&identity.key));
        if let Some(error) = &identity.last_error {
            self.error(error, now);
        }
        self.line("Next step", &next_step(identity, shared, now));
    }

    fn shared(&mut self, status: &Status, now: Timestamp) {
        self.line("Trust domain", status.trust_domain.as_deref().unwrap_or("not known yet"));
        if let Some(bundle) = &status.bundle {
            let next = bundle.refresh_at.map(|at| format!(", next refresh {}", due(at, now)));
            let fetched = distance(bundle.fetched_at, now);
            self.line("Trust bundle", &format!("fetched {fetched}{}", next.unwrap_or_default()));
        }
        if let Some(bootstrap) = &status.bootstrap {
            let until = bootstrap.not_after;
            self.line("Factory cert", &format!("valid until {until} ({})", distance(until, now)));
            self.line("", &format!("SHA-256 {}", bootstrap.sha256));
            let storage = if bootstrap.key.in_tpm { "in the TPM" } else { "in a file" };
            self.line("Factory key", &format!("{} {storage}", bootstrap.key.algorithm));
        }
        if let Some(trust) = &status.initial_trust {
            self.line("MIS trusted", &trusted_by(trust));
        }
        if let Some(error) = &status.last_error {
            self.error(error, now);
            self.line("Next step", &step_after(error, now));
        }
    }

    fn error(&mut self, error: &ErrorStatus, now: Timestamp) {
        self.line("Last error", &error.title);
        if let Some(detail) = &error.detail {
            self.line("", detail);
        }
        self.line("", &format!("seen {}", distance(error.at, now)));
        if let Some(instance) = &error.instance {
            self.line("", &format!("for the operator of the MIS: {instance}"));
        }
        if let Some(hint) = &error.hint {
            self.line("Hint", hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::example;
    use miaf_client::api::ProblemCode;

    #[test]
    fn status_describes_identity_key_error_and_next_step() {
        let (mut status, now) = example();
        let text = render(&status, now);
        for part in [
            "Identity      device\nState         renewing - this device has a valid identity, and its renewal is due\nSPIFFE ID     spiffe://",
            "2026-01-03T00:00:00Z (in 23h 59m)",
            "2026-01-01T23:00:00Z (due for 1h 1m)",
            "Lifetime      [=====",
            "in this device's TPM",
            "Factory key   rsa-2048 in the TPM",
            "by the CA certificates in /etc/ca.pem (2) or the CA certificates of the system, and 2 pinned keys",
            "Last error    Service Unavailable\n              The database is away.\n              seen 1m ago\n",
            "urn:x",
            "Next step     none: the agent tries again in 4m\n\nTrust domain  factory.example\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing from:\n{text}");
        }

        let identity = status.identities.first_mut().unwrap();
        identity.key.lost = true;
        if let Some(error) = &mut identity.last_error {
            error.retry_at = None;
            error.code = ProblemCode::KeyLost.into();
            error.hint = Some("Replace the key with: miaf-agent retry --new-key".into());
        }
        let text = render(&status, now);
        assert!(
            text.contains("lost: this device cannot use it") && !text.contains("TPM; it cannot"),
            "{text}"
        );
        assert!(
            text.contains("\nHint          Replace the key with: miaf-agent retry --new-key\n"),
            "{text}"
        );
    }

    #[test]
    fn shared_error_is_shown_once_and_counts_for_each_identity() {
        let (mut status, now) = example();
        let identity = status.identities.first_mut().unwrap();
        status.last_error = identity.last_error.take();
        let text = render(&status, now);
        assert_eq!(text.matches("Service Unavailable").count(), 1, "{text}");
        assert_eq!(text.matches("Next step     none: the agent tries again in 4m").count(), 2, "{text}");
    }
}
