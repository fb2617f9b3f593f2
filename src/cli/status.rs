//! `miaf-agent status`: the state of the agent, for readers who do not know SPIFFE.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use super::render::{distance, due, in_lines, key, meaning, next_step, renewal, step_after, trusted_by, way};
use super::{
    Output, Selection, fail_on_client, lifetime_bar, print, print_json, reader, shown, unknown_identity,
};
use miaf_client::api::{BundleStatus, ErrorStatus, IdentityStatus, Status};
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
    for (nth, identity) in status.identities.iter().enumerate() {
        let is_default = nth == 0 && status.identities.len() > 1;
        text.identity(identity, is_default, status.last_error.as_ref(), now);
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

    /// Writes a text with the commands in it on lines of their own.
    fn lines(&mut self, name: &str, text: &str) {
        let names = std::iter::once(name).chain(std::iter::repeat(""));
        for (name, line) in names.zip(in_lines(text)) {
            // The indentation of a command would be lost as a part of the text.
            let indentation = line.len() - line.trim_start().len();
            let _ = writeln!(self.0, "{name:<13} {:indentation$}{}", "", shown(line.trim_start()));
        }
    }

    fn identity(
        &mut self,
        identity: &IdentityStatus,
        is_default: bool,
        shared: Option<&ErrorStatus>,
        now: Timestamp,
    ) {
        let note = if is_default { " (the default: that of programs that name none)" } else { "" };
        self.line("Identity", &format!("{}{note}", identity.name));
        self.line("State", &format!("{} - {}", identity.state, meaning(identity)));
        if let Some(enroll) = &identity.enroll {
            self.line("Enrollment", &format!("{enroll} - {}", way(enroll)));
        }
        self.line("SPIFFE ID", identity.spiffe_id.as_deref().unwrap_or("none yet"));
        if let Some(svid) = &identity.svid {
            let until = svid.not_after;
            self.line("Valid until", &format!("{until} ({})", distance(until, now)));
            if let Some(leaf) = svid.leaf_not_after {
                self.line("", &format!("(an issuer of it ends then; the certificate itself says {leaf})"));
            }
            if let Some(renew_at) = svid.renew_at {
                let by_hand = if identity.is_by_operator() { "by hand from " } else { "" };
                self.line("Renewal", &format!("{by_hand}{renew_at} ({})", renewal(renew_at, now)));
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
        self.lines("Next step", &next_step(identity, shared, now));
    }

    fn shared(&mut self, status: &Status, now: Timestamp) {
        self.line("Trust domain", status.trust_domain.as_deref().unwrap_or("not known yet"));
        if let Some(bundle) = &status.bundle {
            self.bundle(bundle, now);
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
            self.lines("Next step", &step_after(error, now));
        }
    }

    fn bundle(&mut self, bundle: &BundleStatus, now: Timestamp) {
        let next = bundle.refresh_at.map(|at| format!(", next refresh {}", due(at, now)));
        let fetched = distance(bundle.fetched_at, now);
        self.line("Trust bundle", &format!("fetched {fetched}{}", next.unwrap_or_default()));
        match bundle.stale_at {
            Some(at) if bundle.stale => {
                let why = "it is older than bundle.max_age allows";
                self.line("", &format!("stale since {at} ({}): {why}", distance(at, now)));
            }
            Some(at) => {
                self.line("", &format!("stale from {at} ({}), unless it is refreshed before", due(at, now)));
            }
            None => {}
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
            self.lines("Hint", hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::tests::{example, time};
    use miaf_client::api::{IdentityName, ProblemCode, State};

    #[test]
    fn status_describes_identity_key_error_and_next_step() {
        let (mut status, now) = example();
        let text = render(&status, now);
        for part in [
            "Identity      device\nState         renewing - the device has a valid identity, and its renewal is due\nSPIFFE ID     spiffe://",
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
            text.contains(
                "\nHint          Replace the key with:\n                miaf-agent retry --new-key\n"
            ),
            "{text}"
        );
    }

    /// Four identities, one of each way, in different states.
    fn of_each_way() -> (Status, Timestamp) {
        let (mut status, now) = example();
        let device = IdentityStatus {
            state: State::Active.into(),
            enroll: Some("factory-cert".into()),
            last_error: None,
            ..status.identities.remove(0)
        };
        let error = |code: ProblemCode, title: &str, detail: &str, hint: Option<&str>| ErrorStatus {
            code: code.into(),
            title: title.into(),
            detail: Some(detail.into()),
            hint: hint.map(Into::into),
            status: None,
            kind: None,
            instance: None,
            at: time("2026-01-01T23:00:00Z"),
            retry_at: None,
            waits_until: None,
            permanent: code == ProblemCode::OperatorNeeded,
        };
        let with = |name: &str, enroll: &str, state: State, last_error: Option<ErrorStatus>| IdentityStatus {
            name: IdentityName::parse(name).unwrap(),
            state: state.into(),
            enroll: Some(enroll.into()),
            spiffe_id: Some(format!("spiffe://factory.example/margo/wfm/w/client/{name}")),
            last_error,
            ..device.clone()
        };
        let needed = error(
            ProblemCode::OperatorNeeded,
            "An operator has to bring the next SVID of this identity",
            "half of the lifetime of the current one is over; it ends at 2026-01-03T00:00:00Z",
            Some(
                "Have the request signed that this prints: miaf-agent csr --identity line-7; then: miaf-agent install \
                  --identity line-7 chain.pem",
            ),
        );
        let waits = error(
            ProblemCode::DeviceIdentityNeeded,
            "The identity of the device is not there yet",
            "the enrollment is authenticated by the SVID of the device, which has no valid one now",
            None,
        );
        let mut gateway = with("gateway", "installed", State::Active, None);
        gateway.svid.as_mut().unwrap().renew_at = Some(time("2026-01-02T03:21:00Z"));
        let mut fleet = with("fleet", "wfm-binding", State::Enrolling, Some(waits));
        (fleet.svid, fleet.spiffe_id) = (None, None);
        (fleet.key.protection, fleet.key.algorithm) = (None, None);
        let line = with("line-7", "manual", State::WaitingForOperator, Some(needed));
        status.identities = vec![device, line, gateway, fleet];
        status.bundle = Some(BundleStatus {
            sequence: None,
            fetched_at: time("2025-12-25T00:00:00Z"),
            refresh_at: Some(time("2026-01-02T00:02:00Z")),
            stale: true,
            stale_at: Some(time("2026-01-01T00:00:00Z")),
        });
        (status, now)
    }

    /// As a person sees it who has never heard of SPIFFE.
    #[test]
    fn status_of_each_way_is_as_in_the_example() {
        let (mut status, now) = of_each_way();
        for identity in &mut status.identities {
            if let Some(svid) = &mut identity.svid {
                svid.renewal_window = None; // an operator has none
            }
        }
        let expected = "\
Identity      device (the default: that of programs that name none)
State         active - the device has a valid identity
Enrollment    factory-cert - the agent requests it with the factory certificate of this device
SPIFFE ID     spiffe://factory.example/margo/device/87f4893b-a029-42c1-8777-d214f7f76120
Valid until   2026-01-03T00:00:00Z (in 23h 59m)
Renewal       2026-01-01T23:00:00Z (due for 1h 1m)
Lifetime      [=======================R=>------------------------]
              > now, 50 % of the lifetime elapsed, R renewal
Serial        01:02
Key           ecdsa-p256 in this device's TPM; it cannot be copied out
Next step     none: renewal is due since 2026-01-01T23:00:00Z, and the agent renews the identity by itself

Identity      line-7
State         waiting-for-operator - the operator has to bring this identity's next certificate; the hint says how
Enrollment    manual - an operator has its certificate issued, and installs it
SPIFFE ID     spiffe://factory.example/margo/wfm/w/client/line-7
Valid until   2026-01-03T00:00:00Z (in 23h 59m)
Renewal       by hand from 2026-01-01T23:00:00Z (due for 1h 1m)
Lifetime      [=======================R=>------------------------]
              > now, 50 % of the lifetime elapsed, R renewal
Serial        01:02
Key           ecdsa-p256 in this device's TPM; it cannot be copied out
Last error    An operator has to bring the next SVID of this identity
              half of the lifetime of the current one is over; it ends at 2026-01-03T00:00:00Z
              seen 1h 1m ago
Hint          Have the request signed that this prints:
                miaf-agent csr --identity line-7
              then:
                miaf-agent install --identity line-7 chain.pem
Next step     an operator has to bring the certificate, as the hint says

Identity      gateway
State         active - the WFM Client gateway has a valid identity
Enrollment    installed - an operator puts its certificate and its key into files
SPIFFE ID     spiffe://factory.example/margo/wfm/w/client/gateway
Valid until   2026-01-03T00:00:00Z (in 23h 59m)
Renewal       by hand from 2026-01-02T03:21:00Z (in 3h 20m)
Lifetime      [=========================>--R---------------------]
              > now, 50 % of the lifetime elapsed, R renewal
Serial        01:02
Key           ecdsa-p256 in this device's TPM; it cannot be copied out
Next step     none until 2026-01-02T03:21:00Z: then an operator has to bring the next certificate

Identity      fleet
State         enrolling - the agent requests the first certificate of this identity
Enrollment    wfm-binding - the agent requests it with the identity of this device, by way of the fleet manager (WFM)
SPIFFE ID     none yet
Key           none yet (provider: tpm)
Last error    The identity of the device is not there yet
              the enrollment is authenticated by the SVID of the device, which has no valid one now
              seen 1h 1m ago
Next step     none: the agent waits for the identity of this device, and then continues by itself

Trust domain  factory.example
Trust bundle  fetched 8days 1m ago, next refresh in 1m
              stale since 2026-01-01T00:00:00Z (1day 1m ago): it is older than bundle.max_age allows
";
        let text = render(&status, now);
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn bundle_that_is_not_stale_yet_says_when() {
        let (mut status, now) = of_each_way();
        let bundle = status.bundle.as_mut().unwrap();
        (bundle.stale, bundle.stale_at) = (false, Some(time("2026-01-02T12:01:00Z")));
        let text = render(&status, now);
        let line =
            "\n              stale from 2026-01-02T12:01:00Z (in 12h), unless it is refreshed before\n";
        assert!(text.contains(line), "{text}");
        status.bundle.as_mut().unwrap().stale_at = None;
        assert!(!render(&status, now).contains("stale"));
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
