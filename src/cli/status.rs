//! `miaf-agent status`: the state of the agent, for readers who do not know SPIFFE.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use super::render::{distance, due, key, meaning, next_step, renewal, trusted_by};
use super::{Output, fail_on_client, lifetime_bar, print, print_json, reader, shown};
use miaf_client::api::Status;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    match reader(config, output).status() {
        Ok(status) if output.json => print_json(&status),
        Ok(status) => print(&render(&status, SystemTime::now())),
        Err(e) => fail_on_client(config, &e),
    }
}

fn render(status: &Status, now: SystemTime) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<13} {}", shown(value)); // writing to a String cannot fail
    };
    line("State", &format!("{} - {}", status.state, meaning(&status.state)));
    line("Identity", status.spiffe_id.as_deref().unwrap_or("none yet"));
    if let Some(domain) = &status.trust_domain {
        line("Trust domain", domain);
    }
    if let Some(svid) = &status.svid {
        line("Valid until", &format!("{} ({})", svid.not_after, distance(&svid.not_after, now)));
        if let Some(leaf) = &svid.leaf_not_after {
            line("", &format!("(an issuer of it ends then; the certificate itself says {leaf})"));
        }
        if let Some(renew_at) = &svid.renew_at {
            line("Renewal", &format!("{renew_at} ({})", renewal(renew_at, now)));
        }
        if let Some([bar, legend]) = lifetime_bar::bar(svid, now) {
            line("Lifetime", &bar);
            line("", &legend);
        }
        line("Serial", &svid.serial);
    }
    line("Key", &key(status));
    if let Some(bundle) = &status.bundle {
        let next = bundle.refresh_at.as_deref().map(|at| format!(", next refresh {}", due(at, now)));
        line(
            "Trust bundle",
            &format!("fetched {}{}", distance(&bundle.fetched_at, now), next.unwrap_or_default()),
        );
    }
    if let Some(bootstrap) = &status.bootstrap {
        line(
            "Factory cert",
            &format!("valid until {} ({})", bootstrap.not_after, distance(&bootstrap.not_after, now)),
        );
        line("", &format!("SHA-256 {}", bootstrap.sha256));
        let storage = if bootstrap.key.in_tpm { "in the TPM" } else { "in a file" };
        line("Factory key", &format!("{} {storage}", bootstrap.key.algorithm));
    }
    if let Some(trust) = &status.initial_trust {
        line("MIS trusted", &trusted_by(trust));
    }
    if let Some(error) = &status.last_error {
        line("Last error", &error.title);
        if let Some(detail) = &error.detail {
            line("", detail);
        }
        line("", &format!("seen {}", distance(&error.at, now)));
        if let Some(instance) = &error.instance {
            line("", &format!("for the operator of the MIS: {instance}"));
        }
    }
    line("Next step", &next_step(status, now));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::example;

    #[test]
    fn status_describes_identity_key_error_and_next_step() {
        let (mut status, now) = example();
        let text = render(&status, now);
        for part in [
            "renewing - this device has a valid identity",
            "2026-01-03T00:00:00Z (in 23h 59m)",
            "2026-01-01T23:00:00Z (due for 1h 1m)",
            "Lifetime      [=====",
            "in this device's TPM",
            "Factory key   rsa-2048 in the TPM",
            "by the CA certificates in /etc/ca.pem (2) or the CA certificates of the system, and 2 pinned keys",
            "Last error    Service Unavailable\n              The database is away.\n              seen 1m ago\n",
            "urn:x",
            "Next step     none: the agent tries again in 4m\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing from:\n{text}");
        }

        status.key.lost = true;
        if let Some(error) = &mut status.last_error {
            error.retry_at = None;
            error.kind = "urn:miaf-agent:error:key-lost".into();
        }
        let text = render(&status, now);
        assert!(
            text.contains("lost: this device cannot use it") && !text.contains("TPM; it cannot"),
            "{text}"
        );
        assert!(text.contains("miaf-agent retry --new-key"), "{text}");
    }
}
