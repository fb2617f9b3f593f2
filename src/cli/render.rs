//! The parts of a status as text, for readers who do not know SPIFFE.

use std::time::Duration;

use miaf_client::api::{
    ErrorStatus, EstAuthorization, EstStatus, EstUrlSource, IdentityStatus, KeyStatus, Open, ProblemCode,
    Protection, State, TrustStatus,
};
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{MargoName, SpiffeId};

/// Describes the state in a sentence.
pub(super) fn meaning(identity: &IdentityStatus) -> String {
    let Some(state) = identity.state.known() else {
        return "unknown to this command; the agent is newer".to_owned();
    };
    let is_untrusted = identity.svid.as_ref().is_some_and(|svid| !svid.trusted);
    match (state, identity.spiffe_id.as_deref().and_then(holder)) {
        (State::Active | State::Renewing, holder) if is_untrusted => {
            let holder = holder.as_deref().unwrap_or("the agent");
            let due = if state == State::Renewing { ", and its renewal is due" } else { "" };
            format!("{holder} has an identity that peers refuse: the trust bundle does not vouch for it{due}")
        }
        (State::Active, Some(holder)) => format!("{holder} has a valid identity"),
        (State::Renewing, Some(holder)) => format!("{holder} has a valid identity, and its renewal is due"),
        (State::PendingAdmission, _) if identity.est.is_some() => {
            "the identity service has the request; its operator has yet to approve it".to_owned()
        }
        (State::Expired, _) if identity.est.as_ref().is_some_and(|est| est.token_needed) => {
            "the identity has expired, and the operator has to bring an enrollment token for the next one; the hint \
             says how"
                .to_owned()
        }
        _ => state.meaning().to_owned(),
    }
}

/// Who has the identity that a SPIFFE ID names.
fn holder(spiffe_id: &str) -> Option<String> {
    match SpiffeId::parse(spiffe_id).ok()?.margo_name()? {
        MargoName::Device { .. } => Some("the device".to_owned()),
        MargoName::WfmClient { client_id, .. } => Some(format!("the WFM Client {client_id}")),
        MargoName::Wfm { .. } => None,
    }
}

/// Describes the way to an identity, as `enroll` in the configuration has it.
pub(super) fn way(enroll: &str, est: Option<&EstStatus>) -> &'static str {
    match enroll {
        "est" => match est.and_then(|est| est.authorization.known()) {
            Some(EstAuthorization::Token) => {
                "the agent requests it from an EST server with an operator's enrollment token, and renews it without one"
            }
            Some(EstAuthorization::Certificate) => {
                "the agent requests it from an EST server with a certificate of this device, and renews it with itself"
            }
            None => "the agent requests it from an EST server",
        },
        "factory-cert" => "the agent requests it with the factory certificate of this device",
        "manual" => "an operator has its certificate issued, and installs it",
        "installed" => "an operator puts its certificate and its key into files",
        "wfm-binding" => {
            "the agent requests it with the identity of this device, by way of the fleet manager (WFM)"
        }
        _ => "unknown to this command; the agent is newer",
    }
}

/// Describes the EST endpoint, and where its address is from.
pub(super) fn est_server(est: &EstStatus) -> String {
    let Some(url) = &est.url else {
        return "not known yet: the identity service (MIS) is to name it".to_owned();
    };
    let source = match est.url_source.as_ref().map(Open::known) {
        Some(Some(EstUrlSource::Configuration)) => " (named by the configuration)",
        Some(Some(EstUrlSource::Discovery)) => " (named by the discovery document of the MIS)",
        Some(None) | None => "",
    };
    format!("{url}{source}")
}

/// Describes whether there is an enrollment token, and where the next one is expected. `None`: tokens
/// are not used. `is_refused`: the last error is that the MIS has refused it.
pub(super) fn token(est: &EstStatus, is_refused: bool) -> Option<String> {
    if est.authorization != EstAuthorization::Token {
        return None;
    }
    let place = match &est.token_source {
        Some(source) => format!("expected in {source}, or by command"),
        None => "expected by command (miaf-agent enroll)".to_owned(),
    };
    Some(match (est.has_token, est.token_needed) {
        (true, _) if is_refused => format!("there is one, which the MIS has refused; another is {place}"),
        (true, _) => "there is one, for the next enrollment".to_owned(),
        (false, true) => format!("needed now, {place}"),
        (false, false) if est.token_needed_after.is_some() => format!("needed soon, {place}"),
        (false, false) => format!("none, and none is needed now; a later one is {place}"),
    })
}

/// Says how long the key has been the same. `None`: since the current certificate, or it is not known.
pub(super) fn key_use(key: &KeyStatus, now: Timestamp) -> Option<String> {
    let since = key.since.map(|since| format!(" since {since} ({})", distance(since, now)));
    let since = since.unwrap_or_default();
    match key.renewals {
        0 => None,
        1 => Some(format!("the same key{since}, through 1 renewal")),
        more => Some(format!("the same key{since}, through {more} renewals")),
    }
}

/// Describes the key and its protection.
pub(super) fn key(key: &KeyStatus) -> String {
    let protection = match key.protection.as_ref().map(Open::known) {
        Some(Some(Protection::Hardware)) => "in this device's TPM; it cannot be copied out",
        Some(Some(Protection::SoftwareIsolated)) => "in software, sealed with a credential of systemd",
        Some(Some(Protection::SoftwareBasic)) => "in software, sealed with a key in the same directory",
        Some(None) => "with a protection unknown to this command",
        None => return format!("none yet (provider: {})", key.provider),
    };
    let algorithm = key.algorithm.as_deref().unwrap_or_default();
    if key.lost {
        format!("{algorithm}, lost: this device cannot use it any more")
    } else {
        format!("{algorithm} {protection}")
    }
}

/// Describes what authenticates the MIS.
pub(super) fn trusted_by(trust: &TrustStatus) -> String {
    let file =
        trust.ca_file.as_ref().map(|file| format!("the CA certificates in {file} ({})", trust.anchors));
    let system = trust.system_roots.then(|| "the CA certificates of the system".to_owned());
    let pins = match trust.pins {
        0 => None,
        1 => Some("1 pinned key".to_owned()),
        more => Some(format!("{more} pinned keys")),
    };
    let anchors: Vec<String> = file.into_iter().chain(system).collect();
    // One of the sets of anchors suffices; a pin must match in addition.
    let all: Vec<String> =
        Some(anchors.join(" or ")).filter(|a| !a.is_empty()).into_iter().chain(pins).collect();
    format!("by {}", all.join(", and "))
}

/// Formats the error in one line.
pub(super) fn error(error: &ErrorStatus) -> String {
    match &error.detail {
        Some(detail) => format!("{}: {detail}", error.title),
        None => error.title.clone(),
    }
}

/// What is next for an identity: the agent's step ("none: ..." for the reader), or the operator's.
/// `shared` is the error that concerns the device. What the operator can do about an error is its
/// hint.
pub(super) fn next_step(identity: &IdentityStatus, shared: Option<&ErrorStatus>, now: Timestamp) -> String {
    let svid = identity.svid.as_ref();
    if let Some(ErrorStatus { waits_until: Some(until), retry_at: Some(again), .. }) = &identity.last_error
        && svid.is_some_and(|svid| svid.ends_while_waiting)
    {
        return format!(
            "the retry-after delay of the MIS ends {}, after the identity. The agent tries again {}, and no admin command \
             makes it try earlier",
            due(*until, now),
            due(*again, now)
        );
    }
    match (identity.error(shared), identity.state.known()) {
        (Some(error), _) if error.code == ProblemCode::OperatorNeeded => {
            "an operator has to bring the certificate, as the hint says".into()
        }
        (Some(error), _) if error.code == ProblemCode::TokenNeeded => {
            "an operator has to bring an enrollment token, as the hint says; the agent does the rest by itself".into()
        }
        (Some(error), _) if error.code == ProblemCode::TokenUnusable => {
            let source = identity.est.as_ref().and_then(|est| est.token_source.as_deref());
            match source.is_some_and(|source| source.starts_with("the credential")) {
                true => "follow the hint; systemd hands a credential over when the agent starts".into(),
                false => "follow the hint; the agent reads the token again by itself".into(),
            }
        }
        (Some(error), Some(State::WaitingForToken)) if error.retry_at.is_none() => {
            "follow the hint; the agent uses another enrollment token as soon as there is one".into()
        }
        (Some(error), _) if error.code == ProblemCode::DeviceIdentityNeeded => {
            "none: the agent waits for the identity of this device, and then continues by itself".into()
        }
        (Some(error), _) if is_for_the_operator(identity, error) => {
            "follow the hint; the agent uses another certificate, or another trust bundle, by itself".into()
        }
        (Some(error), _) => match identity.est.as_ref().and_then(|est| est.token_needed_after) {
            Some(ends) => format!(
                "{}. If the identity is not renewed by {ends} ({}), it needs another enrollment token: have one ready",
                step_after(error, now),
                due(ends, now)
            ),
            None => step_after(error, now),
        },
        (None, Some(State::Unconfigured)) => "set the address of the MIS in the configuration".into(),
        (None, Some(State::Active)) => match svid.and_then(|svid| svid.renew_at) {
            Some(renew_at) if identity.is_by_operator() => {
                format!("none until {renew_at}: then an operator has to bring the next certificate")
            }
            Some(renew_at) => match difference(renew_at, now) {
                Difference::Past(_) => {
                    format!(
                        "none: renewal is due since {renew_at}, and the agent renews the identity by itself"
                    )
                }
                _ => format!("none: the agent renews the identity {}", due(renew_at, now)),
            },
            None => "none: the agent renews the identity by itself".into(),
        },
        (None, Some(State::WaitingForToken)) => "an operator has to bring an enrollment token".into(),
        (None, Some(State::WaitingForOperator)) => "an operator has to bring the certificate".into(),
        (None, Some(State::Blocked)) => "read the log of the agent: journalctl --unit miaf-agent".into(),
        (None, _) => "none: the agent continues by itself".into(),
    }
}

/// Whether an error of an identity ends only when an operator brings another certificate: there is
/// nothing that the agent could try again.
fn is_for_the_operator(identity: &IdentityStatus, error: &ErrorStatus) -> bool {
    identity.is_by_operator() && identity.last_error.as_ref() == Some(error) && error.retry_at.is_none()
}

/// What is next after an error.
pub(super) fn step_after(error: &ErrorStatus, now: Timestamp) -> String {
    let operator = match (&error.hint, error.permanent) {
        (Some(_), _) => Some("follow the hint"),
        (None, true) => Some("correct that"),
        (None, false) => None,
    };
    match (error.retry_at.map(|at| due(at, now)), operator) {
        (Some(again), None) => format!("none: the agent tries again {again}"),
        (Some(again), Some(operator)) => format!("{operator}; the agent tries again {again}"),
        (None, _) if error.code == ProblemCode::Configuration => {
            "correct the configuration; the agent reloads it by itself. To check it: miaf-agent check-config"
                .into()
        }
        (None, Some(operator)) => {
            format!("{operator}; to have the agent try again at once: miaf-agent retry")
        }
        (None, None) => "to have the agent try again at once: miaf-agent retry".into(),
    }
}

/// A moment relative to now: "in 3h 20m", "5m ago".
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    match difference(at, now) {
        Difference::Past(elapsed) => format!("{} ago", approximate(elapsed)),
        _ => due(at, now),
    }
}

/// The moment of something that the agent has scheduled: "in 3h 20m". One that has passed is now:
/// the agent is doing it.
pub(super) fn due(at: Timestamp, now: Timestamp) -> String {
    match difference(at, now) {
        Difference::Future(left) => format!("in {}", approximate(left)),
        Difference::Now | Difference::Past(_) => "now".into(),
    }
}

/// A text of the agent in lines, with each command in it on a line of its own, indented: to be read,
/// and to be copied.
pub(super) fn in_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((before, command, after)) = next_command(rest) {
        lines.push(before.to_owned());
        lines.push(format!("  {command}"));
        rest = after;
    }
    lines.extend(Some(rest.to_owned()).filter(|rest| !rest.is_empty()));
    lines
}

/// Programs that hints name with their arguments.
const PROGRAMS: [&str; 7] =
    ["miaf-agent ", "systemctl ", "journalctl ", "chown ", "chmod ", "install ", "usermod "];

/// The first command in a text, with what is before it and after it. As hints have it: after a
/// colon, and up to a semicolon or the end.
fn next_command(text: &str) -> Option<(&str, &str, &str)> {
    let is_command = |rest: &str| PROGRAMS.iter().any(|program| rest.starts_with(program));
    let colons = text.match_indices(": ").map(|(at, colon)| at + colon.len());
    let start = colons.filter(|start| text.get(*start..).is_some_and(is_command)).min()?;
    let (before, command) = text.split_at_checked(start)?;
    let (command, after) = command.split_once("; ").unwrap_or((command, ""));
    Some((before.trim_end(), command, after))
}

/// When the SVID of an identity is renewed. `None`: not known, or it has ended, and only an enrollment
/// token leads to the next one.
pub(super) fn renewal_moment(identity: &IdentityStatus, now: Timestamp) -> Option<Timestamp> {
    let svid = identity.svid.as_ref()?;
    // By a clock that cannot be right, nothing counts as ended.
    let has_ended = identity.state != State::WaitingForClock && now > svid.not_after;
    svid.renew_at.filter(|_| !(has_ended && identity.is_by_token()))
}

/// The moment of the renewal: "in 3h 20m", or "due for 5m" once it has passed. Without the MIS,
/// that can be long ago.
pub(super) fn renewal(at: Timestamp, now: Timestamp) -> String {
    match difference(at, now) {
        Difference::Past(elapsed) => format!("due for {}", approximate(elapsed)),
        _ => due(at, now),
    }
}

/// Where a moment is, relative to now.
enum Difference {
    Past(Duration),
    /// About to be, or just passed.
    Now,
    Future(Duration),
}

fn difference(at: Timestamp, now: Timestamp) -> Difference {
    /// Smaller differences count as none.
    const MIN: Duration = Duration::from_secs(2);
    match (now.until(at), at.until(now)) {
        (left, _) if left >= MIN => Difference::Future(left),
        (_, elapsed) if elapsed >= MIN => Difference::Past(elapsed),
        _ => Difference::Now,
    }
}

/// Formats a duration by its two largest units.
pub(super) fn approximate(duration: Duration) -> String {
    let exact = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    exact.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use miaf_client::api::{
        BootstrapKeyStatus, BootstrapStatus, IdentityName, Status, SvidStatus, WindowStatus, Word as _,
    };

    /// A time on 1 January 2026 or later.
    pub(in crate::cli) fn time(rfc3339: &str) -> Timestamp {
        Timestamp::from_rfc3339(rfc3339).unwrap()
    }

    /// A device whose renewal fails for the moment, and the time it is.
    pub(in crate::cli) fn example() -> (Status, Timestamp) {
        let identity = IdentityStatus {
            name: IdentityName::DEVICE,
            state: State::Renewing.into(),
            ready: true,
            spiffe_id: Some(
                "spiffe://factory.example/margo/device/87f4893b-a029-42c1-8777-d214f7f76120".into(),
            ),
            svid: Some(SvidStatus {
                serial: "01:02".into(),
                not_before: time("2026-01-01T00:00:00Z"),
                not_after: time("2026-01-03T00:00:00Z"),
                trusted: true,
                leaf_not_after: None,
                ends_while_waiting: false,
                renew_at: Some(time("2026-01-01T23:00:00Z")),
                renewal_window: Some(WindowStatus {
                    from: time("2026-01-01T19:12:00Z"),
                    to: time("2026-01-02T04:48:00Z"),
                }),
            }),
            key: KeyStatus {
                provider: "tpm".into(),
                protection: Some(Protection::Hardware.into()),
                algorithm: Some("ecdsa-p256".into()),
                lost: false,
                since: None,
                renewals: 0,
            },
            enroll: None,
            est: None,
            last_error: Some(ErrorStatus {
                code: ProblemCode::ServerError.into(),
                title: "Service Unavailable".into(),
                detail: Some("The database is away.".into()),
                hint: None,
                status: Some(503),
                kind: Some("about:blank".into()),
                instance: Some("urn:x".into()),
                at: time("2026-01-02T00:00:00Z"),
                retry_at: Some(time("2026-01-02T00:05:00Z")),
                waits_until: None,
                permanent: false,
            }),
        };
        let status = Status {
            trust_domain: Some("factory.example".into()),
            bundle: None,
            bootstrap: Some(BootstrapStatus {
                not_before: time("2025-01-01T00:00:00Z"),
                not_after: time("2035-01-01T00:00:00Z"),
                sha256: "5e".repeat(32),
                key: BootstrapKeyStatus { algorithm: "rsa-2048".into(), in_tpm: true },
            }),
            initial_trust: Some(TrustStatus {
                ca_file: Some("/etc/ca.pem".into()),
                anchors: 2,
                pins: 2,
                system_roots: true,
            }),
            last_error: None,
            identities: vec![identity],
        };
        (status, time("2026-01-02T00:01:00Z"))
    }

    fn device() -> (IdentityStatus, Timestamp) {
        let (mut status, now) = example();
        (status.identities.remove(0), now)
    }

    #[test]
    fn next_step_is_the_agents_or_the_operators() {
        let (identity, now) = device();
        let with = |state: State, change: &dyn Fn(&mut ErrorStatus)| {
            let mut identity = IdentityStatus { state: state.into(), ..identity.clone() };
            change(identity.last_error.as_mut().unwrap());
            next_step(&identity, None, now)
        };
        assert_eq!(with(State::Renewing, &|_| {}), "none: the agent tries again in 4m");
        let permanent = with(State::Blocked, &|e| e.permanent = true);
        assert_eq!(permanent, "correct that; the agent tries again in 4m");
        assert!(with(State::Blocked, &|e| e.retry_at = None).ends_with("at once: miaf-agent retry"));
        let hinted = with(State::Renewing, &|e| e.hint = Some("Ask the operator".into()));
        assert_eq!(hinted, "follow the hint; the agent tries again in 4m");
        let configuration = |e: &mut ErrorStatus| {
            e.code = ProblemCode::Configuration.into();
            e.retry_at = None;
        };
        assert!(with(State::Active, &configuration).ends_with("miaf-agent check-config"));

        let mut waiting = identity.clone();
        waiting.svid.as_mut().unwrap().ends_while_waiting = true;
        let error = waiting.last_error.as_mut().unwrap();
        error.waits_until = Some(time("2026-01-04T00:01:00Z"));
        error.retry_at = Some(time("2026-01-04T00:31:00Z"));
        let step = next_step(&waiting, None, now);
        for part in ["of the MIS ends in 2days, after", "tries again in 2days 30m"] {
            assert!(step.contains(part), "{part:?} is missing from: {step}");
        }

        let fine =
            |state: State| IdentityStatus { state: state.into(), last_error: None, ..identity.clone() };
        assert!(next_step(&fine(State::Unconfigured), None, now).contains("configuration"));
        let shared = identity.last_error.as_ref();
        assert_eq!(next_step(&fine(State::Active), shared, now), "none: the agent tries again in 4m");
        for state in State::ALL {
            assert!(!next_step(&fine(*state), None, now).is_empty(), "{state}");
        }
    }

    #[test]
    fn commands_of_a_text_have_lines_of_their_own() {
        for (text, expected) in [
            ("Ask the operator: they know", "Ask the operator: they know"),
            ("Replace it with: miaf-agent retry --new-key", "Replace it with:|  miaf-agent retry --new-key"),
            (
                "Have it certified: miaf-agent csr --identity a; then: miaf-agent install --identity a chain.pem",
                "Have it certified:|  miaf-agent csr --identity a|then:|  miaf-agent install --identity a chain.pem",
            ),
            (
                "Correct it, then: systemctl reload miaf-agent; or see: the log",
                "Correct it, then:|  systemctl reload miaf-agent|or see: the log",
            ),
            ("the miaf-agent runs: miaf-agentless", "the miaf-agent runs: miaf-agentless"),
            ("", ""),
        ] {
            assert_eq!(in_lines(text).join("|"), expected);
        }
    }

    #[test]
    fn next_step_of_an_operators_identity_is_the_operators() {
        let (mut identity, now) = device();
        identity.enroll = Some("manual".into());
        let error = identity.last_error.as_mut().unwrap();
        (error.permanent, error.retry_at, error.hint) = (true, None, Some("Do it".into()));
        let step = |identity: &IdentityStatus| next_step(identity, None, now);
        // To try again would change nothing.
        assert!(!step(&identity).contains("miaf-agent retry"), "{}", step(&identity));
        assert!(step(&identity).contains("another certificate"), "{}", step(&identity));
        identity.last_error.as_mut().unwrap().code = ProblemCode::OperatorNeeded.into();
        assert_eq!(step(&identity), "an operator has to bring the certificate, as the hint says");
        identity.last_error = None;
        identity.state = State::Active.into();
        assert_eq!(
            step(&identity),
            "none until 2026-01-01T23:00:00Z: then an operator has to bring the next certificate"
        );
        // An error of the device is another matter.
        let (with_error, _) = device();
        assert!(next_step(&identity, with_error.last_error.as_ref(), now).contains("tries again"));
    }

    #[test]
    fn next_step_is_never_in_the_past() {
        let (mut identity, now) = device();
        identity.svid.as_mut().unwrap().ends_while_waiting = true;
        let past = Some(time("2026-01-01T20:00:00Z"));
        let error = identity.last_error.as_mut().unwrap();
        (error.retry_at, error.waits_until) = (past, past);
        let permanent = ErrorStatus { permanent: true, ..error.clone() };
        let hinted = ErrorStatus { hint: Some("Ask the operator".into()), ..error.clone() };
        let errors = [Some(error.clone()), Some(permanent), Some(hinted), None];
        for (state, last_error) in State::ALL.iter().flat_map(|state| errors.iter().map(move |e| (state, e)))
        {
            for ends_while_waiting in [true, false] {
                let mut identity = IdentityStatus {
                    state: (*state).into(),
                    last_error: last_error.clone(),
                    ..identity.clone()
                };
                let svid = identity.svid.as_mut().unwrap();
                (svid.ends_while_waiting, svid.renew_at) = (ends_while_waiting, past);
                let step = next_step(&identity, None, now);
                assert!(!step.contains(" ago"), "{state}: {step}");
            }
        }
    }

    #[test]
    fn renewal_that_is_due_is_shown_as_due() {
        let (identity, now) = device();
        let active = |renew_at: &str| {
            let renew_at = time(renew_at);
            let svid = SvidStatus { renew_at: Some(renew_at), ..identity.svid.clone().unwrap() };
            let identity = IdentityStatus {
                state: State::Active.into(),
                last_error: None,
                svid: Some(svid),
                ..identity.clone()
            };
            (next_step(&identity, None, now), renewal(renew_at, now))
        };
        let (step, moment) = active("2026-01-01T23:00:00Z");
        assert!(step.starts_with("none: renewal is due since 2026-01-01T23:00:00Z, and "), "{step}");
        assert_eq!(moment, "due for 1h 1m");
        for (renew_at, shown) in [("2026-01-02T00:01:00Z", "now"), ("2026-01-02T03:21:00Z", "in 3h 20m")] {
            let (step, moment) = active(renew_at);
            assert_eq!(step, format!("none: the agent renews the identity {shown}"));
            assert_eq!(moment, shown);
        }
    }

    #[test]
    fn distance_has_two_units_and_near_is_now() {
        let (_, now) = example();
        for (moment, shown) in [
            ("2026-01-02T00:01:01Z", "now"),
            ("2026-01-02T00:00:59Z", "now"),
            ("2026-01-02T00:04:05Z", "in 3m 5s"),
            ("2025-12-30T20:00:59Z", "2days 4h ago"),
        ] {
            assert_eq!(distance(time(moment), now), shown, "{moment}");
        }
    }
}
