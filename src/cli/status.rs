//! `miaf-agent status`: for a person who has never heard of SPIFFE.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::{Output, ask};
use crate::deliver::status::{ErrorStatus, Status, TrustStatus};
use crate::lifecycle::State;

pub(super) fn run(config: &Path, output: &Output) -> ExitCode {
    let body = match ask::get(config, output, "/v1/status") {
        Ok(body) => body,
        Err(e) => return fail(&e),
    };
    if output.json {
        print!("{}", String::from_utf8_lossy(&body));
        return ExitCode::SUCCESS;
    }
    match serde_json::from_slice::<Status>(&body) {
        Ok(status) => {
            print!("{}", in_words(&status, SystemTime::now()));
            ExitCode::SUCCESS
        }
        Err(e) => fail(&e),
    }
}

pub(super) fn fail(e: &dyn fmt::Display) -> ExitCode {
    eprintln!("miaf-agent: {e}");
    ExitCode::FAILURE
}

fn in_words(status: &Status, now: SystemTime) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<13} {value}"); // writing to a String cannot fail
    };
    let meaning = State::ALL.into_iter().find(|state| state.as_str() == status.state).map(State::meaning);
    let meaning = meaning.unwrap_or("a newer agent than this command is running");
    line("State", &format!("{} - {meaning}", status.state));
    line("Identity", status.spiffe_id.as_deref().unwrap_or("none yet"));
    if let Some(domain) = &status.trust_domain {
        line("Trust domain", domain);
    }
    if let Some(svid) = &status.svid {
        line("Valid until", &format!("{} ({})", svid.not_after, distance(&svid.not_after, now)));
        if let Some(renew_at) = &svid.renew_at {
            line("Renewal", &format!("{renew_at} ({})", distance(renew_at, now)));
        }
        line("Serial", &svid.serial);
    }
    line("Key", &key(status));
    if let Some(bundle) = &status.bundle {
        let next = bundle.refresh_at.as_deref().map(|at| format!(", next look {}", distance(at, now)));
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
        let place = if bootstrap.key.in_tpm { "in the TPM" } else { "in a file" };
        line("Factory key", &format!("{} {place}", bootstrap.key.algorithm));
    }
    if let Some(trust) = &status.initial_trust {
        line("MIS trusted", &trusted_by(trust));
    }
    if let Some(error) = &status.last_error {
        line("Last error", &error.title);
        if let Some(detail) = &error.detail {
            line("", detail);
        }
        line("", &format!("seen {}; {}", distance(&error.at, now), next_step(error, now)));
        if let Some(instance) = &error.instance {
            line("", &format!("quote this to the operator of the MIS: {instance}"));
        }
    }
    text
}

fn key(status: &Status) -> String {
    let place = match status.key.protection.as_deref() {
        Some("hardware") => "in this device's TPM; it cannot be copied out",
        Some("software-isolated") => "in software, sealed with a key that the system keeps",
        Some("software-basic") => "in software, sealed with a key beside it",
        Some(_) => "kept in a way that this command does not know",
        None => return format!("none yet (provider: {})", status.key.provider),
    };
    let algorithm = status.key.algorithm.as_deref().unwrap_or_default();
    if status.key.lost {
        format!("{algorithm}, lost: this device cannot use it any more")
    } else {
        format!("{algorithm} {place}")
    }
}

fn trusted_by(trust: &TrustStatus) -> String {
    let file =
        trust.ca_file.as_ref().map(|file| format!("the CA certificates in {file} ({})", trust.anchors));
    let system = trust.system_roots.then(|| "the CA certificates of the system".to_owned());
    let pins = match trust.pins {
        0 => None,
        1 => Some("1 pinned key".to_owned()),
        more => Some(format!("{more} pinned keys")),
    };
    let anchors: Vec<String> = file.into_iter().chain(system).collect();
    // Either set of anchors will do; a pin must hold besides.
    let all: Vec<String> =
        Some(anchors.join(" or ")).filter(|a| !a.is_empty()).into_iter().chain(pins).collect();
    format!("by {}", all.join(", and "))
}

fn next_step(error: &ErrorStatus, now: SystemTime) -> String {
    match (&error.retry_at, error.permanent) {
        (Some(at), true) => format!("it needs to be corrected; the agent looks again {}", distance(at, now)),
        (Some(at), false) => format!("the agent tries again {}", distance(at, now)),
        (None, _) if error.kind == "urn:miaf-agent:error:key-lost" => {
            "the agent looks for the key from time to time; it makes another when it is told to, by miaf-agent retry --new-key".into()
        }
        (None, _) => {
            "the agent waits until it is corrected, at the MIS or in the configuration, or until miaf-agent retry".into()
        }
    }
}

/// "in 3h 20m", "5m ago".
fn distance(rfc3339: &str, now: SystemTime) -> String {
    let Ok(moment) = humantime::parse_rfc3339_weak(rfc3339) else { return "at an unknown time".into() };
    match moment.duration_since(now) {
        // It is about to be done, or was just now.
        Ok(near) if near < NOW => "now".into(),
        Err(near) if near.duration() < NOW => "now".into(),
        Ok(ahead) => format!("in {}", rough(ahead)),
        Err(behind) => format!("{} ago", rough(behind.duration())),
    }
}

/// What is nearer than this is not told apart.
const NOW: Duration = Duration::from_secs(2);

/// The two largest units say enough.
fn rough(duration: Duration) -> String {
    let exact = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    exact.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::status::{BootstrapKeyStatus, BootstrapStatus, KeyStatus, SvidStatus};

    #[test]
    fn a_person_reads_what_is_going_on() {
        let status = Status {
            state: "renewing".into(),
            trust_domain: Some("factory.example".into()),
            spiffe_id: Some("spiffe://factory.example/margo/device/x".into()),
            svid: Some(SvidStatus {
                serial: "01:02".into(),
                not_before: "2026-01-01T00:00:00Z".into(),
                not_after: "2026-01-03T00:00:00Z".into(),
                renew_at: Some("2026-01-01T23:00:00Z".into()),
            }),
            key: KeyStatus {
                provider: "tpm".into(),
                protection: Some("hardware".into()),
                algorithm: Some("ecdsa-p256".into()),
                lost: false,
            },
            bundle: None,
            bootstrap: Some(BootstrapStatus {
                not_before: "2025-01-01T00:00:00Z".into(),
                not_after: "2035-01-01T00:00:00Z".into(),
                sha256: "5e".repeat(32),
                key: BootstrapKeyStatus { algorithm: "rsa-2048".into(), in_tpm: true },
            }),
            initial_trust: Some(TrustStatus {
                ca_file: Some("/etc/ca.pem".into()),
                anchors: 2,
                pins: 2,
                system_roots: true,
            }),
            last_error: Some(ErrorStatus {
                kind: "about:blank".into(),
                title: "Service Unavailable".into(),
                status: Some(503),
                detail: None,
                instance: Some("urn:x".into()),
                at: "2026-01-02T00:00:00Z".into(),
                retry_at: Some("2026-01-02T00:05:00Z".into()),
                permanent: false,
            }),
        };
        let now = humantime::parse_rfc3339("2026-01-02T00:01:00Z").unwrap();
        let text = in_words(&status, now);
        for said in [
            "renewing - this device has a valid identity",
            "2026-01-03T00:00:00Z (in 23h 59m)",
            "2026-01-01T23:00:00Z (1h 1m ago)",
            "in this device's TPM",
            "Factory key   rsa-2048 in the TPM",
            "by the CA certificates in /etc/ca.pem (2) or the CA certificates of the system, and 2 pinned keys",
            "seen 1m ago; the agent tries again in 4m",
            "urn:x",
        ] {
            assert!(text.contains(said), "{said:?} is missing from:\n{text}");
        }

        let mut status = status;
        status.key.lost = true;
        if let Some(error) = &mut status.last_error {
            error.retry_at = None;
            error.kind = "urn:miaf-agent:error:key-lost".into();
        }
        let text = in_words(&status, now);
        assert!(
            text.contains("lost: this device cannot use it") && !text.contains("TPM; it cannot"),
            "{text}"
        );
        assert!(text.contains("miaf-agent retry --new-key"), "{text}");
    }
}
