//! `miaf-agent status`: the state of the agent, for readers who do not know SPIFFE.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use super::render::{
    distance, due, est_server, in_lines, key, key_use, meaning, next_step, renewal, renewal_moment,
    step_after, token, trusted_by, way,
};
use super::{
    Output, Selection, fail_on_client, lifetime_bar, print, print_json, reader, shown, unknown_identity,
};
use miaf_client::api::{BootstrapStatus, BundleStatus, ErrorStatus, EstStatus, IdentityStatus, Status};
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
            self.line("Enrollment", &format!("{enroll} - {}", way(enroll, identity.est.as_ref())));
        }
        if let Some(est) = &identity.est {
            let is_refused = identity
                .last_error
                .as_ref()
                .is_some_and(|error| error.code == miaf_client::api::ProblemCode::TokenRefused);
            self.est(est, is_refused, now);
        }
        self.line("SPIFFE ID", identity.spiffe_id.as_deref().unwrap_or("none yet"));
        if let Some(svid) = &identity.svid {
            let until = svid.not_after;
            self.line("Valid until", &format!("{until} ({})", distance(until, now)));
            if let Some(leaf) = svid.leaf_not_after {
                self.line("", &format!("(an issuer of it ends then; the certificate itself says {leaf})"));
            }
            if let Some(renew_at) = renewal_moment(identity, now) {
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
        if let Some(use_of_key) = key_use(&identity.key, now) {
            self.line("", &use_of_key);
        }
        if let Some(error) = &identity.last_error {
            self.error(error, now);
        }
        self.lines("Next step", &next_step(identity, shared, now));
    }

    fn est(&mut self, est: &EstStatus, is_refused: bool, now: Timestamp) {
        self.line("EST server", &est_server(est));
        if est.tls12_allowed {
            self.line("", "TLS 1.2 is allowed there (tls12 = true): it is older than the standard asks for");
        }
        if !est.standardized {
            self.line(
                "",
                "the identity of a device over EST is not standardized (allow_nonstandard = true): it works with an MIS \
                 that agrees to it",
            );
        }
        if let Some(token) = token(est, is_refused) {
            self.line("Token", &token);
        }
        if let Some(certificate) = &est.certificate {
            self.credential("EST cert", "EST key", certificate, now);
        }
    }

    /// Writes a certificate that authorizes enrollments, and its key.
    fn credential(&mut self, name: &str, name_of_key: &str, credential: &BootstrapStatus, now: Timestamp) {
        let until = credential.not_after;
        self.line(name, &format!("valid until {until} ({})", distance(until, now)));
        self.line("", &format!("SHA-256 {}", credential.sha256));
        let storage = if credential.key.in_tpm { "in the TPM" } else { "in a file" };
        self.line(name_of_key, &format!("{} {storage}", credential.key.algorithm));
    }

    fn shared(&mut self, status: &Status, now: Timestamp) {
        let unknown = match &status.bundle {
            Some(_) => "not known yet: it is learnt from the first SVID",
            None => "not known yet",
        };
        self.line("Trust domain", status.trust_domain.as_deref().unwrap_or(unknown));
        if let Some(bundle) = &status.bundle {
            self.bundle(bundle, now);
        }
        if let Some(bootstrap) = &status.bootstrap {
            self.credential("Factory cert", "Factory key", bootstrap, now);
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
        self.line("Last error", &format!("{} ({})", error.title, error.code));
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
    use miaf_client::api::{
        BootstrapKeyStatus, EstAuthorization, EstUrlSource, IdentityName, ProblemCode, State, SvidStatus,
    };

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
            "Last error    Service Unavailable (server-error)\n              The database is away.\n              seen 1m ago\n",
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
Last error    An operator has to bring the next SVID of this identity (operator-needed)
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
Last error    The identity of the device is not there yet (device-identity-needed)
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
    fn unknown_trust_domain_of_a_bundle_is_said_to_be_learnt() {
        let (mut status, now) = of_each_way();
        status.trust_domain = None;
        let line = "\nTrust domain  not known yet: it is learnt from the first SVID\n";
        assert!(render(&status, now).contains(line));
        status.bundle = None;
        assert!(render(&status, now).contains("\nTrust domain  not known yet\n"));
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

    /// A WFM Client that enrolls by a token: first as it waits for one. What it shares with other
    /// identities is left out.
    fn by_token() -> (IdentityStatus, Timestamp) {
        let (mut status, now) = example();
        let mut client = status.identities.remove(0);
        client.name = IdentityName::parse("wfm-client").unwrap();
        client.enroll = Some("est".into());
        client.state = State::WaitingForToken.into();
        (client.ready, client.spiffe_id, client.svid) = (false, None, None);
        (client.key.protection, client.key.algorithm) = (None, None);
        client.est = Some(EstStatus {
            url: Some("https://mis.example/.well-known/est/factory.example".into()),
            url_source: Some(EstUrlSource::Discovery.into()),
            authorization: EstAuthorization::Token.into(),
            token_source: Some("/etc/miaf-agent/token".into()),
            has_token: false,
            token_needed: true,
            token_needed_after: None,
            certificate: None,
            tls12_allowed: false,
            standardized: true,
        });
        client.last_error = Some(ErrorStatus {
            code: ProblemCode::TokenNeeded.into(),
            title: "This identity needs an enrollment token".into(),
            detail: Some("there is none yet that may be used".into()),
            hint: Some(
                "Have the operator of the MIS create an enrollment token for this identity, and hand it over with: \
                 miaf-agent enroll --token-file FILE; or put it into /etc/miaf-agent/token, which the agent reads by itself"
                    .into(),
            ),
            status: None,
            kind: None,
            instance: None,
            at: time("2026-01-02T00:00:00Z"),
            retry_at: None,
            waits_until: None,
            permanent: true,
        });
        (client, now)
    }

    /// The same with a certificate of two days, in its last hours.
    fn with_svid() -> (IdentityStatus, Timestamp) {
        let (mut client, _) = by_token();
        client.spiffe_id = Some("spiffe://factory.example/margo/wfm/wfm-1/client/line-7".into());
        client.svid = Some(SvidStatus {
            serial: "01:02".into(),
            not_before: time("2026-01-01T00:00:00Z"),
            not_after: time("2026-01-03T00:00:00Z"),
            trusted: true,
            leaf_not_after: None,
            ends_while_waiting: false,
            renew_at: Some(time("2026-01-01T23:00:00Z")),
            renewal_window: None,
        });
        client.key.protection = Some(miaf_client::api::Protection::Hardware.into());
        client.key.algorithm = Some("ecdsa-p256".into());
        (client.key.since, client.key.renewals) = (Some(time("2025-12-20T00:00:00Z")), 12);
        (client, time("2026-01-02T15:00:00Z"))
    }

    fn text_of(client: &IdentityStatus, now: Timestamp) -> String {
        let mut text = Lines::default();
        text.identity(client, false, None, now);
        text.0
    }

    #[test]
    fn status_tells_a_token_that_was_refused() {
        let (mut client, now) = by_token();
        let est = client.est.as_mut().unwrap();
        (est.has_token, est.token_needed) = (true, false);
        assert!(text_of(&client, now).contains("Token         there is one, for the next enrollment\n"));
        client.last_error.as_mut().unwrap().code = ProblemCode::TokenRefused.into();
        let shown = text_of(&client, now);
        let line = "Token         there is one, which the MIS has refused; another is expected in /etc/miaf-agent/token, or by \
                    command\n";
        assert!(shown.contains(line), "{shown}");
    }

    #[test]
    fn next_step_with_a_credential_is_a_start() {
        let (mut client, now) = by_token();
        client.last_error.as_mut().unwrap().code = ProblemCode::TokenUnusable.into();
        assert!(
            text_of(&client, now).contains("Next step     follow the hint; the agent reads the token again")
        );
        client.est.as_mut().unwrap().token_source = Some("the credential \"token\"".into());
        assert!(text_of(&client, now).contains("systemd hands a credential over when the agent starts"));
    }

    #[test]
    fn status_of_an_identity_that_waits_for_its_first_token() {
        let (client, now) = by_token();
        let expected = "\
Identity      wfm-client
State         waiting-for-token - the operator has to bring an enrollment token: a secret, good for one certificate; the hint says how
Enrollment    est - the agent requests it from an EST server with an operator's enrollment token, and renews it without one
EST server    https://mis.example/.well-known/est/factory.example (named by the discovery document of the MIS)
Token         needed now, expected in /etc/miaf-agent/token, or by command
SPIFFE ID     none yet
Key           none yet (provider: tpm)
Last error    This identity needs an enrollment token (token-needed)
              there is none yet that may be used
              seen 1m ago
Hint          Have the operator of the MIS create an enrollment token for this identity, and hand it over with:
                miaf-agent enroll --token-file FILE
              or put it into /etc/miaf-agent/token, which the agent reads by itself
Next step     an operator has to bring an enrollment token, as the hint says; the agent does the rest by itself
";
        assert_eq!(text_of(&client, now), expected);
    }

    #[test]
    fn status_of_an_expired_identity_that_needs_a_token() {
        let (mut client, _) = with_svid();
        client.state = State::Expired.into();
        let est = client.est.as_mut().unwrap();
        est.token_source = None;
        est.url_source = Some(EstUrlSource::Configuration.into());
        let error = client.last_error.as_mut().unwrap();
        error.title = "This identity needs a fresh enrollment token".into();
        error.detail = Some(
            "the current SVID ended at 2026-01-03T00:00:00Z, and an SVID that has ended cannot be renewed"
                .into(),
        );
        error.hint = Some(
            "Have the operator of the MIS create an enrollment token for this identity, and hand it over with: \
             miaf-agent enroll --token-file FILE"
                .into(),
        );
        error.at = time("2026-01-03T00:00:00Z");
        let expected = "\
Identity      wfm-client
State         expired - the identity has expired, and the operator has to bring an enrollment token for the next one; the hint says how
Enrollment    est - the agent requests it from an EST server with an operator's enrollment token, and renews it without one
EST server    https://mis.example/.well-known/est/factory.example (named by the configuration)
Token         needed now, expected by command (miaf-agent enroll)
SPIFFE ID     spiffe://factory.example/margo/wfm/wfm-1/client/line-7
Valid until   2026-01-03T00:00:00Z (2h ago)
Lifetime      [=======================R=========================>]
              > now: expired, R renewal
Serial        01:02
Key           ecdsa-p256 in this device's TPM; it cannot be copied out
              the same key since 2025-12-20T00:00:00Z (14days 2h ago), through 12 renewals
Last error    This identity needs a fresh enrollment token (token-needed)
              the current SVID ended at 2026-01-03T00:00:00Z, and an SVID that has ended cannot be renewed
              seen 2h ago
Hint          Have the operator of the MIS create an enrollment token for this identity, and hand it over with:
                miaf-agent enroll --token-file FILE
Next step     an operator has to bring an enrollment token, as the hint says; the agent does the rest by itself
";
        assert_eq!(text_of(&client, time("2026-01-03T02:00:00Z")), expected);
    }

    #[test]
    fn status_of_an_identity_that_enrolls_by_token() {
        let (mut client, now) = by_token();
        client.state = State::Enrolling.into();
        let est = client.est.as_mut().unwrap();
        (est.has_token, est.token_needed, client.last_error) = (true, false, None);
        let expected = "\
Identity      wfm-client
State         enrolling - the agent requests the first certificate of this identity
Enrollment    est - the agent requests it from an EST server with an operator's enrollment token, and renews it without one
EST server    https://mis.example/.well-known/est/factory.example (named by the discovery document of the MIS)
Token         there is one, for the next enrollment
SPIFFE ID     none yet
Key           none yet (provider: tpm)
Next step     none: the agent continues by itself
";
        assert_eq!(text_of(&client, now), expected);
    }

    #[test]
    fn renewal_of_an_ended_svid_is_shown_without_a_token_only() {
        let (mut client, now) = with_svid();
        client.state = State::Renewing.into();
        let later = time("2026-01-03T02:00:00Z");
        assert!(text_of(&client, now).contains("\nRenewal  "));
        client.state = State::Blocked.into(); // ended all the same
        assert!(!text_of(&client, later).contains("\nRenewal  "));
        client.state = State::WaitingForClock.into();
        assert!(text_of(&client, later).contains("\nRenewal  "));
        client.state = State::Expired.into();
        client.est.as_mut().unwrap().authorization = EstAuthorization::Certificate.into();
        assert!(text_of(&client, later).contains("\nRenewal  "));
    }

    #[test]
    fn svid_that_the_bundle_does_not_vouch_for_is_not_called_valid() {
        let (mut client, now) = with_svid();
        client.state = State::Renewing.into();
        client.svid.as_mut().unwrap().trusted = false;
        let state = |client: &IdentityStatus| {
            let text = text_of(client, now);
            text.lines().find_map(|line| line.strip_prefix("State         ")).unwrap().to_owned()
        };
        let refused =
            "the WFM Client line-7 has an identity that peers refuse: the trust bundle does not vouch for it";
        assert_eq!(state(&client), format!("renewing - {refused}, and its renewal is due"));
        client.state = State::Active.into();
        assert_eq!(state(&client), format!("active - {refused}"));
        client.spiffe_id = Some("spiffe://factory.example/x".into());
        assert!(state(&client).contains("peers refuse"));
        client.state = State::Blocked.into();
        assert!(state(&client).contains("has to be corrected"));
    }

    #[test]
    fn status_of_an_enrollment_over_est_that_is_held() {
        let (mut client, now) = by_token();
        client.state = State::PendingAdmission.into();
        let est = client.est.as_mut().unwrap();
        (est.has_token, est.token_needed) = (true, false);
        let error = client.last_error.as_mut().unwrap();
        error.code = ProblemCode::PendingAdmission.into();
        error.title = "The MIS has yet to approve the request".into();
        error.detail =
            Some("https://mis.example/.well-known/est/factory.example/simpleenroll responds with 202".into());
        error.hint = Some(
            "Have the operator of the MIS approve the enrollment; the agent repeats its request by itself"
                .into(),
        );
        (error.permanent, error.retry_at, error.status) =
            (false, Some(time("2026-01-02T00:06:00Z")), Some(202));
        let expected = "\
Identity      wfm-client
State         pending-admission - the identity service has the request; its operator has yet to approve it
Enrollment    est - the agent requests it from an EST server with an operator's enrollment token, and renews it without one
EST server    https://mis.example/.well-known/est/factory.example (named by the discovery document of the MIS)
Token         there is one, for the next enrollment
SPIFFE ID     none yet
Key           none yet (provider: tpm)
Last error    The MIS has yet to approve the request (pending-admission)
              https://mis.example/.well-known/est/factory.example/simpleenroll responds with 202
              seen 1m ago
Hint          Have the operator of the MIS approve the enrollment; the agent repeats its request by itself
Next step     follow the hint; the agent tries again in 5m
";
        assert_eq!(text_of(&client, now), expected);
    }

    #[test]
    fn status_of_a_renewal_over_est_that_fails_near_the_end() {
        let (mut client, now) = with_svid();
        client.state = State::Renewing.into();
        client.ready = true;
        let est = client.est.as_mut().unwrap();
        (est.token_needed, est.token_needed_after) = (false, Some(time("2026-01-03T00:00:00Z")));
        let error = client.last_error.as_mut().unwrap();
        error.code = ProblemCode::Unreachable.into();
        error.title = "The MIS cannot be reached".into();
        error.detail = Some(
            "mis.example refuses the connection. If it is not renewed by 2026-01-03T00:00:00Z, this identity needs a fresh \
             enrollment token"
                .into(),
        );
        error.hint = Some("If it lasts, see to firewalls and proxies on the way".into());
        error.at = time("2026-01-02T14:59:00Z");
        (error.permanent, error.retry_at) = (false, Some(time("2026-01-02T15:20:00Z")));
        let expected = "\
Identity      wfm-client
State         renewing - the WFM Client line-7 has a valid identity, and its renewal is due
Enrollment    est - the agent requests it from an EST server with an operator's enrollment token, and renews it without one
EST server    https://mis.example/.well-known/est/factory.example (named by the discovery document of the MIS)
Token         needed soon, expected in /etc/miaf-agent/token, or by command
SPIFFE ID     spiffe://factory.example/margo/wfm/wfm-1/client/line-7
Valid until   2026-01-03T00:00:00Z (in 9h)
Renewal       2026-01-01T23:00:00Z (due for 16h)
Lifetime      [=======================R================>---------]
              > now, 81 % of the lifetime elapsed, R renewal
Serial        01:02
Key           ecdsa-p256 in this device's TPM; it cannot be copied out
              the same key since 2025-12-20T00:00:00Z (13days 15h ago), through 12 renewals
Last error    The MIS cannot be reached (unreachable)
              mis.example refuses the connection. If it is not renewed by 2026-01-03T00:00:00Z, this identity needs a fresh enrollment token
              seen 1m ago
Hint          If it lasts, see to firewalls and proxies on the way
Next step     follow the hint; the agent tries again in 20m. If the identity is not renewed by 2026-01-03T00:00:00Z (in 9h), it needs another enrollment token: have one ready
";
        assert_eq!(text_of(&client, now), expected);
    }

    /// By a certificate, for a device, with everything that the standard has otherwise.
    #[test]
    fn status_of_an_enrollment_over_est_that_is_refused_for_a_day() {
        let (mut client, now) = by_token();
        client.state = State::Blocked.into();
        client.est = Some(EstStatus {
            url: None,
            url_source: None,
            authorization: EstAuthorization::Certificate.into(),
            token_source: None,
            has_token: false,
            token_needed: false,
            token_needed_after: None,
            certificate: Some(BootstrapStatus {
                not_before: time("2025-01-01T00:00:00Z"),
                not_after: time("2035-01-01T00:00:00Z"),
                sha256: "5e".repeat(32),
                key: BootstrapKeyStatus { algorithm: "rsa-2048".into(), in_tpm: true },
            }),
            tls12_allowed: true,
            standardized: false,
        });
        let error = client.last_error.as_mut().unwrap();
        error.code = ProblemCode::RequestRefused.into();
        error.title = "The MIS refuses the request".into();
        error.detail = Some("mis.example responds with 400 Bad Request".into());
        error.hint = Some(
            "Show this to the operator of the EST server; once it is corrected: miaf-agent retry".into(),
        );
        error.retry_at = Some(time("2026-01-02T23:01:00Z"));
        let expected = format!(
            "\
Identity      wfm-client
State         blocked - something has to be corrected; the last error says what
Enrollment    est - the agent requests it from an EST server with a certificate of this device, and renews it with itself
EST server    not known yet: the identity service (MIS) is to name it
              TLS 1.2 is allowed there (tls12 = true): it is older than the standard asks for
              the identity of a device over EST is not standardized (allow_nonstandard = true): it works with an MIS that agrees to it
EST cert      valid until 2035-01-01T00:00:00Z (in 8years 11months)
              SHA-256 {}
EST key       rsa-2048 in the TPM
SPIFFE ID     none yet
Key           none yet (provider: tpm)
Last error    The MIS refuses the request (request-refused)
              mis.example responds with 400 Bad Request
              seen 1m ago
Hint          Show this to the operator of the EST server; once it is corrected:
                miaf-agent retry
Next step     follow the hint; the agent tries again in 23h
",
            "5e".repeat(32)
        );
        assert_eq!(text_of(&client, now), expected);
    }

    #[test]
    fn status_of_a_valid_identity_over_est_needs_no_token() {
        let (mut client, _) = with_svid();
        client.state = State::Active.into();
        client.last_error = None;
        client.est.as_mut().unwrap().token_needed = false;
        (client.key.since, client.key.renewals) = (None, 1);
        let text = text_of(&client, time("2026-01-01T12:00:00Z"));
        for part in [
            "State         active - the WFM Client line-7 has a valid identity\n",
            "Token         none, and none is needed now; a later one is expected in /etc/miaf-agent/token, or by command\n",
            "\n              the same key, through 1 renewal\n",
            "Next step     none: the agent renews the identity in 11h\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing from:\n{text}");
        }
    }
}
